"""Between two meetings no thread needs another: in whatever order they do their shares, the logits are the same bits."""

import numba
import numpy as np
import pytest
from golden.make_logits import images, parameters

from pyshuffle.backends.cost import parameter_shapes
from pyshuffle.engine import program as at
from pyshuffle.engine.kernels import run_begin, run_pair, run_step
from pyshuffle.engine.machine import FLOAT, machine
from pyshuffle.engine.plan import Plan
from pyshuffle.engine.program import Program, encode
from pyshuffle.engine.steps import DENSE
from pyshuffle.nets import MobileNetV2, ShuffleNetV1, ShuffleNetV2
from pyshuffle.types import Array


@numba.njit
def run_share(steps, pieces, tables, weights, arenas, image, logits, s, thread, threads):
    if s == 0:
        run_begin(steps, pieces, tables, weights.ctypes.data, arenas[0], arenas[thread], image, thread, threads)
    elif steps[s, at.SPAN] > 1:
        run_pair(steps[s], steps[s + 1], pieces, tables, weights.ctypes.data, arenas[0], arenas[thread], thread, threads)
    else:
        run_step(steps[s], pieces, tables, weights.ctypes.data, arenas[0], logits, thread, threads)


def logits_in_turn(program: Program, threads: int, image: Array, rng: np.random.Generator | None = None) -> Array:
    """One image's logits: between meetings one thread after the other, the last one first, or as the generator draws them."""
    spans = program.steps[:, at.SPAN]
    numbers, inside = [], 0  # of steps that are not computed together with the one before
    for number, span in enumerate(spans):
        numbers += [] if inside else [number]
        inside = (inside or span) - 1
    meetings = [n for n, s in enumerate(numbers) if program.steps[s, at.MEET] or n == 0]
    arenas = np.full((threads, program.arena // FLOAT), np.nan, np.float32)
    logits = np.full(program.pieces[-1, at.COUNT], np.nan, np.float32)
    for begin, end in zip(meetings, [*meetings[1:], len(numbers)], strict=True):
        order = np.repeat(np.arange(threads)[::-1], end - begin)
        if rng:
            rng.shuffle(order)
        done = [begin] * threads
        for thread in order:
            s = numbers[done[thread]]
            done[thread] += 1
            arrays = program.steps, program.pieces, program.tables, program.weights
            run_share(*arrays, arenas, image.view(np.int32).ravel(), logits, s, thread, threads)
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
    for step in program.steps[program.steps[:, at.BY_ROWS] > 0]:
        pixels = step[at.PIXELS] // step[at.WIDTH] // threads * step[at.WIDTH]
        tiles = program.pieces[step[at.FIRST] : step[at.LAST], at.TALL] if step[at.KIND] == DENSE else np.ones(1)
        assert pixels >= tiles.max()


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
