"""Between two meetings no thread needs another: in whatever order they do their shares, the logits are the same bits."""

import numba
import numpy as np
import pytest
from golden.make_logits import images, parameters

from pyshuffle.backends.cost import parameter_shapes
from pyshuffle.engine.kernels import run_begin, run_pair, run_step
from pyshuffle.engine.layout import part_of
from pyshuffle.engine.machine import FLOAT, machine
from pyshuffle.engine.plan import Plan
from pyshuffle.engine.program import SLACK, Program, encode
from pyshuffle.engine.steps import DENSE, multiply_adds
from pyshuffle.nets import MobileNetV2, ShuffleNetV1, ShuffleNetV2
from pyshuffle.types import Array


@numba.njit
def run_share(steps, pieces, tables, weights, arenas, image, logits, s, thread, threads):
    if s == 0:
        run_begin(steps, pieces, tables, weights, arenas, image, thread, threads)
    elif steps[s].span > 1:
        run_pair(steps[s], steps[s + 1], pieces, tables, weights, arenas, thread, threads)
    else:
        run_step(steps[s], pieces, tables, weights, arenas, logits, thread, threads)


def logits_in_turn(program: Program, threads: int, image: Array, rng: np.random.Generator | None = None) -> Array:
    """One image's logits: between meetings one thread after the other, the last one first, or as the generator draws them."""
    spans = program.steps["span"]
    numbers, inside = [], 0  # of steps that are not computed together with the one before
    for number, span in enumerate(spans):
        numbers += [] if inside else [number]
        inside = (inside or span) - 1
    meetings = [n for n, s in enumerate(numbers) if program.steps[s].meet or n == 0]
    arenas = np.full((threads, program.arena // FLOAT), np.nan, np.float32)
    logits = np.full(program.pieces[-1].count, np.nan, np.float32)
    for begin, end in zip(meetings, [*meetings[1:], len(numbers)], strict=True):
        order = np.repeat(np.arange(threads)[::-1], end - begin)
        if rng:
            rng.shuffle(order)
        done = [begin] * threads
        for thread in order:
            s = numbers[done[thread]]
            done[thread] += 1
            data = program.tables.ctypes.data, program.weights.ctypes.data
            run_share(program.steps, program.pieces, *data, arenas, image.view(np.int32).ravel(), logits, s, thread, threads)
    assert np.isnan(arenas[:, -SLACK // FLOAT :]).all(), "a thread has written beyond its arena"
    return logits


SIZES = [  # network, height, width: from maps of whole tiles to such as hold none, and high ones whose rows do not
    (ShuffleNetV2(0.5, classes=10), 224, 224),
    (ShuffleNetV2(0.5, classes=10), 96, 96),
    (ShuffleNetV2(0.5, classes=10), 256, 32),
    (ShuffleNetV2(1.0, classes=10, extra_depthwise=True), 120, 33),
    (ShuffleNetV1(0.5, groups=8, classes=10), 192, 160),
    (ShuffleNetV1(0.25, groups=3, classes=10), 224, 224),
    (MobileNetV2(0.4, classes=10), 224, 97),
]


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize(("height", "width"), [(256, 32), (224, 224), (97, 80)])
def test_a_threads_rows_hold_a_tile(height, width, threads):
    """Else its tile would reach into the rows of another, which may be at work on them at the same time."""
    net = ShuffleNetV2(0.5, classes=10)
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    program = encode(Plan(net, params, height, width, machine(), threads))
    for step in program.steps[program.steps["by_rows"] > 0]:
        pixels = step.height // threads * step.width
        tiles = program.pieces[step.first : step.last]["tile"] if step.kind == DENSE else []
        assert all(tile % 2 or pixels >= machine().heights[-(-tile // 4)] for tile in tiles)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize(("net", "height", "width"), SIZES, ids=str)
def test_threads_need_nothing_of_each_other_between_meetings(net, height, width, threads):
    x = np.ascontiguousarray(images(max(height, width), 1, 0)[0, :height, :width].astype(np.float32))
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    alone, together = (encode(Plan(net, params, height, width, machine(), n)) for n in (1, threads))
    expected = logits_in_turn(alone, 1, x)
    assert np.isfinite(expected).all()
    for seed in (None, 0, 1):
        rng = None if seed is None else np.random.default_rng(seed)
        np.testing.assert_array_equal(logits_in_turn(together, threads, x, rng), expected)


def test_what_rows_of_a_map_lie_in_a_threads_own_arena():
    """Its share, and what a 3x3 reads beside it: so two arenas are together little larger than one for both would be."""
    net = ShuffleNetV2(1.0)
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    alone, together = (Plan(net, params, 224, 224, machine(), threads) for threads in (1, 2))
    layouts = {step.name: step.target.layout for step in together.steps}
    unit = [layouts[f"stage2.1.branch2.{part}"] for part in (0, 3, 5)]  # the last is read by the stride of stage 3
    assert [(layout.above, layout.height) for layout in unit] == [(1, 15), (0, 14), (1, 15)]
    assert layouts["conv5.0"].above == layouts["mean"].above == layouts["fc"].above == -1  # rows are not shared out
    assert all(step.target.layout.above == -1 for step in alone.steps)
    assert 2 * together.arena < 1.3 * alone.arena


@pytest.mark.parametrize("net", [ShuffleNetV1(groups=3), ShuffleNetV2(), MobileNetV2()], ids=str)
def test_programs_for_any_number_of_threads_have_the_same_weights(net):
    """A model has them once, for its program for all threads and for that of one alone."""
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    one, two, eight = (encode(Plan(net, params, 224, 224, machine(), threads)).weights for threads in (1, 2, 8))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, eight)


def test_threads_copy_rows_of_one_another_only_where_a_window_is_read():
    net = MobileNetV2()
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    plan = Plan(net, params, 224, 224, machine(), 2)
    copied = {step.name for step, row in zip(plan.steps, encode(plan).steps, strict=True) if row.seams > row.last}
    pairs = {"features.0.0", *(f"features.{unit}.conv.0.0" for unit in (2, 3, 4))}  # the window is the step behind
    assert copied == pairs | {f"features.{unit}.conv.1.0" for unit in range(5, 15)}  # behind them threads share out tiles


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("net", [ShuffleNetV1(groups=3), ShuffleNetV2(), ShuffleNetV2(2.0), MobileNetV2()], ids=str)
def test_heavy_steps_are_shared_out_evenly(net, threads):
    """No thread has more than an eighth above the mean, but for the tile at which its share ends."""
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    plan = Plan(net, params, 224, 224, machine(), threads)
    for step, row in zip(plan.steps, encode(plan).steps, strict=True):
        if multiply_adds(step) >= 5_000_000:
            units = row.height if row.by_rows else row.total
            shares = [last - first for first, last in (part_of(int(units), thread, threads) for thread in range(threads))]
            assert max(shares) <= 9 / 8 * units / threads + (0 if row.by_rows else 1), step.name
