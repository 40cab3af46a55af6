"""What the GPU's kernels give under the simulator: whole networks, edges of tiles, failures, and what the simulator must see.

The operations themselves are tested with those of the other interpretations, in test_ops.py and test_tape.py.
"""

import importlib.util
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import SIMULATED, assert_close, draw, draw_params, load_bench, pictures

if not SIMULATED:
    pytest.skip("NUMBA_ENABLE_CUDASIM=1 is not set", allow_module_level=True)

import simulator
from simulator import Simulated, Small, failing

from pyshuffle import classify, cli, streams
from pyshuffle import cuda as kernels
from pyshuffle.backends.cost import Cost, Shape, count
from pyshuffle.backends.cuda import Cuda
from pyshuffle.backends.reference import Reference
from pyshuffle.cuda import check, launch
from pyshuffle.cuda import loss as kernels_loss
from pyshuffle.cuda import sgd as kernels_sgd
from pyshuffle.engine import cuda as engine
from pyshuffle.engine.steps import IMAGE, OUTPUT, Map
from pyshuffle.errors import DeviceError, PyShuffleError, ShapeError
from pyshuffle.nets import ARCHS, ShuffleNetV1, ShuffleNetV2
from pyshuffle.ops import loss
from pyshuffle.sgd_cuda import Trainer
from pyshuffle.weights import Checkpoint

BENCH = load_bench()


def expected_logits(net, params, images):
    return net(Reference({name: array.astype(np.float64) for name, array in params.items()}), images.astype(np.float64))


def test_a_compiled_network_gives_the_reference_logits_and_no_step_touches_what_is_not_its_own(net):
    """All maps lie in one array. While a step runs, only what it is to read is there; then, only what it is to write is another."""
    params, images = draw_params(net, (1, 32, 32, 3), np.float32), pictures(2, 33, 32, 3)
    model = engine.compile(net, params, images.shape)
    program = model.program(len(images))
    arena = program.arena.values._ary
    program.image.copy_to_device(images.reshape(-1))
    steps = [step for step in model.plan.steps if step.kind not in (IMAGE, OUTPUT)]
    for step, run in zip(steps, program.launches, strict=True):
        maps, target = [step.source, *([step.what.residual] if step.what.residual else [])], step.target
        own = np.concatenate([places(map_, len(images)) for map_ in maps])
        made = places(Map(*step.size, tuple((target, c) for c in range(target.channels))), len(images))
        held, arena[:] = arena.copy(), np.nan
        arena[own] = held[own]
        given = arena.copy()
        run()
        given[made] = held[made] = arena[made]
        np.testing.assert_array_equal(arena, given)
        arena[:] = held
    logits = program.logits.copy_to_host().reshape(len(images), -1)
    assert_close(logits, expected_logits(net, params, images), 1e-5)


def places(map_, images):
    """Where in the arena the values of a map are."""
    found = []
    for buffer, channel in map_.places:
        begin, image, pixel = engine.place_of(buffer, images)
        n, p = np.arange(images)[:, None], np.arange(map_.height * map_.width)
        found.append((begin + n * image + p * pixel + buffer.places[channel]).ravel())
    return np.concatenate(found)


def test_a_network_gives_the_reference_logits(net):
    params, images = draw_params(net, (1, 32, 32, 3), np.float32), pictures(1, 32, 35, 3)
    logits = launch.download(net(Cuda(launch.on_device(params)), launch.upload(images)))
    assert_close(logits, expected_logits(net, params, images), 1e-5)


def test_a_compiled_network_launches_once_a_layer(net, monkeypatch):
    """Convolution, pooling, mean, linear: nothing for batch normalisation, ReLU, split, concat, shuffle or the addition."""
    cost = Cost()
    net(cost, Shape((1, 32, 32, 3)))
    layers = [row.op for row in cost.rows if row.op in ("conv", "depthwise", "maxpool", "avgpool", "mean", "linear")]
    params = draw_params(net, (1, 32, 32, 3), np.float32)
    model = engine.compile(net, params, (1, 32, 32, 3))
    assert len(model.program(1).launches) == len(layers)
    before = launch.Kernel.launched
    monkeypatch.setattr(simulator.kernel.FakeCUDAKernel, "__call__", lambda *_: None)
    model(pictures(1, 32, 32, 3))
    assert launch.Kernel.launched - before == len(layers)


def test_images_and_sizes_a_model_was_not_made_for(net):
    model = engine.compile(net, draw_params(net, (1, 32, 32, 3), np.float32), (32, 33, 3))
    with pytest.raises(ShapeError, match=r"the model was compiled for float32 \(N, 32, 33, 3\)"):
        model(pictures(1, 32, 32, 3))
    with pytest.raises(ShapeError, match="not finite"):
        model(np.full((1, 32, 33, 3), np.nan, np.float32))
    with pytest.raises(ShapeError, match=r"100000000 images at once are too many: at most \d+"):
        model.program(100_000_000)


# The whole way of an image, and of a batch ----------------------------------------------------------------------------------------


def logits_in_another_order(ops, x):
    return ops.shuffle(ops.linear(ops.mean(x), "fc", 6), 2)


def logits_of_the_layer_before_the_last(ops, x):
    x = ops.mean(x)
    one, other = ops.linear(x, "one", 2), ops.linear(x, "other", 3)
    ops.concat(one, other)
    return one


def logits_of_two_layers(ops, x):
    x = ops.mean(x)
    return ops.concat(ops.linear(x, "one", 2), ops.linear(x, "other", 3))


def the_image_beside_a_map(ops, x):
    return ops.linear(ops.mean(ops.conv(ops.concat(x, ops.conv(x, "conv", 20)), "next", 20)), "fc", 5)


@pytest.mark.parametrize("net", [logits_in_another_order, logits_of_the_layer_before_the_last], ids=lambda net: net.__name__)
def test_logits_that_are_not_all_that_is_computed_last(net):
    params, images = draw_params(net, (1, 32, 32, 3), np.float32), pictures(2, 32, 32, 3)
    logits = engine.compile(net, params, images.shape)(images)
    assert_close(logits, expected_logits(net, params, images), 1e-5)
    assert logits.flags.c_contiguous


@pytest.mark.parametrize("net", [logits_of_two_layers, the_image_beside_a_map], ids=lambda net: net.__name__)
def test_what_no_network_does_is_refused(net):
    with pytest.raises(PyShuffleError, match="on cuda no image is read as one with a map, and all logits come of one operation"):
        engine.compile(net, draw_params(net, (1, 32, 32, 3), np.float32), (32, 32, 3))


@pytest.mark.parametrize("net", ["v2"], indirect=True)
def test_classify_answers_from_the_device(net):
    checkpoint = Checkpoint(net, draw_params(net, (1, 32, 32, 3), np.float32))
    image = pictures(1, 32, 32, 3)
    assert_close(classify.predictor(checkpoint, 32, "cuda")(image), classify.predictor(checkpoint, 32)(image), 1e-5)


@pytest.mark.parametrize("net", ["v2"], indirect=True)
def test_bench_times_on_the_device(net, monkeypatch, capsys):
    monkeypatch.setattr(simulator.kernel.FakeCUDAKernel, "__call__", lambda *_: None)
    assert BENCH.main("--device cuda --width 0.125 --size 32 --rounds 1".split()) == 0
    out = capsys.readouterr().out
    assert "batch 1, 32 x 32, cuda: median" in out
    assert "23 launches" in out


def test_bench_stops_its_clock_when_the_device_has_done_the_step(monkeypatch):
    """A step ends when its last kernel is launched, not when that is done."""
    events = []
    monkeypatch.setattr(launch.Kernel, "__call__", lambda *_: events.append("launch"))
    monkeypatch.setattr(launch.cuda, "synchronize", lambda: events.append("wait"))
    monkeypatch.setattr(BENCH.time, "perf_counter", lambda: events.append("clock") or 1e-9 * len(events))
    assert BENCH.main("--device cuda --train --width 0.5 --size 32 --batch 2 --rounds 1".split()) == 0
    begin, end = (n for n, event in enumerate(events) if event == "clock")
    assert set(events[begin + 1 : end - 1]) == {"launch"}
    assert events[end - 1] == "wait"


@pytest.mark.parametrize("net", ["v1", "v2", "mobilenet v2"], indirect=True)
def test_the_plan_is_printed_as_that_of_the_processor(net):
    plan = engine.compile(net, draw_params(net, (1, 32, 32, 3), np.float32), (32, 32, 3)).plan
    _, *lines, arena = str(plan).splitlines()
    assert [line.split()[2] for line in lines] == [step.name for step in plan.steps]
    assert arena == f"arena of {plan.arena / 2**20:.2f} MiB an image"


# Edges: sizes that no tile, block or part divides ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "stride", "groups"),
    [
        ((1, 3, 11, 17), (1, 1, 17, 33), 1, 1),  # a pixel, an input and an output more than tiles hold
        ((2, 4, 4, 32), (1, 1, 16, 64), 1, 2),  # whole tiles, and no more
        ((1, 12, 11, 3), (3, 3, 3, 5), 1, 1),  # pixels in two parts, the second shorter
        ((1, 2, 3, 34), (3, 3, 17, 66), 2, 2),
        ((1, 5, 5, 4), (1, 1, 4, 2), 2, 1),
        ((1, 1, 1, 1), (3, 3, 1, 1), 2, 1),
        ((1, 3, 3, 8), (1, 1, 2, 12), 1, 4),
        ((2, 3, 2, 24), (1, 1, 3, 16), 1, 8),
        ((1, 3, 4, 8), (3, 3, 1, 16), 2, 8),
    ],
    ids=str,
)
def test_a_convolution_at_the_edges_of_tiles(x, w, stride, groups):
    check_operation("conv", x, w, stride=stride, groups=groups)


@pytest.mark.parametrize("x", [(1, 5, 8, 33), (2, 4, 7, 32), (3, 9, 15, 2), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_at_the_edges_of_tiles(x, stride):
    check_operation("depthwise", x, (3, 3, x[3]), stride=stride)


@pytest.mark.parametrize("classes", [128, 129, 300])
def test_the_loss_of_more_classes_than_a_block_has_threads(classes):
    """The first of equals is the answer, whichever thread looks at it."""
    logits, labels = draw(3, classes, dtype=np.float32), np.array([1, classes - 1, 0])
    logits[:2, [1, classes - 1]] = 9.0
    value, right, dlogits = kernels_loss.run(launch.upload(logits), labels, 0.1)
    expected, named, expected_dlogits = loss.run_reference(logits.astype(np.float64), labels, 0.1)
    assert right == named >= 1
    assert abs(value - expected) <= 1e-5 * expected
    assert_close(launch.download(dlogits), expected_dlogits, 1e-5)


def test_a_velocity_of_another_shape_is_refused():
    w, velocity = (launch.upload(np.ones(shape, np.float32)) for shape in ((3, 4), (3, 3)))
    with pytest.raises(ShapeError, match="must be the same"):
        kernels_sgd.descend(w, velocity, w, 0.1, 0.9, 0)


@pytest.mark.parametrize("x", [(2, 9, 8, 33), (3, 1, 1, 5)], ids=str)
def test_batch_statistics_over_parts(x):
    array = draw(*x, dtype=np.float32)
    mean, var = map(launch.download, Cuda.statistics(launch.upload(array)))
    assert_close((mean, var), Reference.statistics(array.astype(np.float64)), 1e-6)


def test_batch_statistics_survive_a_mean_far_from_zero():
    x = (1000 + np.random.default_rng(0).standard_normal((2, 20, 20, 3))).astype(np.float32)
    mean, var = map(launch.download, Cuda.statistics(launch.upload(x)))
    exact_mean, exact_var = Reference.statistics(x.astype(np.float64))
    assert_close(mean, exact_mean, 1e-7)
    assert_close(var, exact_var, 1e-6)


def check_operation(op, *shapes, **settings):
    """Forward and backward, against the reference in float64."""
    arrays = [draw(*shape, dtype=np.float32, seed=seed) for seed, shape in enumerate(shapes)]
    exact = [array.astype(np.float64) for array in arrays]
    (forward, backward), (reference, reference_backward) = Simulated.functions[op], Reference.functions[op]
    expected = reference(*exact, **settings)
    assert_close(forward(*arrays, **settings), expected, 1e-5)
    dy = draw(*expected.shape, dtype=np.float32, seed=100)
    assert_close(backward(dy, *arrays, **settings), reference_backward(dy.astype(np.float64), *exact, **settings), 1e-5)


# Memory ---------------------------------------------------------------------------------------------------------------------------


def test_memory_that_is_let_go_is_used_again():
    first = launch.Tensor((3, 5))
    values = first.values
    view = first.reshape(15)
    del first
    assert launch.Tensor((5, 3)).values is not values, "a view still holds it"
    del view
    assert launch.Tensor((5, 3)).values is values


# Failures of the driver -----------------------------------------------------------------------------------------------------------


def test_a_full_device_lets_go_of_what_is_free_before_it_says_so(monkeypatch):
    del launch.Tensor((3, 7)).memory
    assert any(launch.POOL.values())
    monkeypatch.setattr(launch.cuda, "device_array", failing(2, launch.FULL))
    with pytest.raises(DeviceError, match="device cuda: its memory is full: fewer images at once are needed"):
        launch.Tensor((98765,))
    assert not any(launch.POOL.values())


def test_a_model_lets_go_of_the_memory_for_another_number_of_images():
    net = Small()
    model = engine.compile(net, draw_params(net, (1, 32, 32, 3), np.float32), (1, 32, 32, 3))
    sizes = {model.program(images).arena.size for images in (1, 2, 3)}
    assert not sizes & {size for (size, _), free in launch.POOL.items() if free}


def test_only_a_full_device_lets_go(monkeypatch):
    del launch.Tensor((3, 7)).memory
    monkeypatch.setattr(launch.cuda, "device_array", failing(700, "CUDA_ERROR_ILLEGAL_ADDRESS"))
    with pytest.raises(DeviceError, match=r"device cuda: the driver fails: \[700\].*CUDA_ERROR_ILLEGAL_ADDRESS"):
        launch.Tensor((98765,))
    assert any(launch.POOL.values())


PHOTO = str(Path(__file__).parent / "photos" / "coffee.png")
RUNS = {
    "classify": (classify.main, [PHOTO, "--device", "cuda"]),
    "bench": (BENCH.main, "--device cuda --size 32 --rounds 1".split()),
    "check": (check.main, ["--run"]),
}


@pytest.mark.parametrize(("main", "arguments"), RUNS.values(), ids=RUNS)
def test_a_device_that_is_lost_is_said_in_one_line(main, arguments, monkeypatch, capsys):
    launched, fail = [], failing(719, "CUDA_ERROR_LAUNCH_FAILED")

    def call(*_):
        launched.append(1)
        if len(launched) > 3:
            fail()

    monkeypatch.setattr(simulator.kernel.FakeCUDAKernel, "__call__", call)
    assert cli.run(main, arguments) == 2
    err = capsys.readouterr().err
    assert re.search(r": error: device cuda: the driver fails: \[719\].*LAUNCH_FAILED\n$", err)
    assert err.count("\n") == 1


def test_kernels_do_not_load_where_each_thread_has_a_stream(monkeypatch):
    spec = importlib.util.spec_from_file_location("pyshuffle.cuda.again", launch.__file__)
    monkeypatch.setenv(streams.PER_THREAD, "1")
    with pytest.raises(DeviceError, match="gives each thread a stream of its own"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_device_that_fails_in_a_call_is_an_error_of_ours_and_the_next_call_may_go_well(monkeypatch):
    images = pictures(1, 32, 32, 3)
    model = engine.compile(Small(), draw_params(Small(), (1, 32, 32, 3), np.float32), images.shape)
    with monkeypatch.context() as patched:
        patched.setattr(simulator.kernel.FakeCUDAKernel, "__call__", failing(719, "CUDA_ERROR_LAUNCH_FAILED"))
        with pytest.raises(DeviceError, match="LAUNCH_FAILED"):
            model(images)
    assert np.isfinite(model(images)).all()


def test_python_threads_that_call_a_model_at_once_take_turns():
    model = engine.compile(Small(), draw_params(Small(), (1, 32, 32, 3), np.float32), (32, 32, 3))
    batches = [pictures(n, 32, 32, 3) for n in (1, 2, 1)]
    expected = [model(images) for images in batches]
    with ThreadPoolExecutor(len(batches)) as pool:
        for logits, alone in zip(pool.map(model, batches), expected, strict=True):
            np.testing.assert_array_equal(logits, alone)


def test_a_map_without_pixels_is_not_launched():
    """The driver refuses to launch no blocks."""
    before = launch.Kernel.launched
    assert Simulated.functions["relu"][0](np.zeros((0, 4), np.float32)).shape == (0, 4)
    assert launch.Kernel.launched == before


# The limits of the hardware -------------------------------------------------------------------------------------------------------


def within_limits(grids):
    for kernel, blocks, numbers in grids:
        assert kernel.threads <= 1024
        assert all(1 <= n <= most for n, most in zip(blocks, (2**31 - 1, 65535, 65535), strict=False))
        assert all(-(2**31) <= n < 2**31 for n in numbers)
    return len(grids)


VARIANTS = [net for kind in ARCHS.values() for net in kind.variants() if getattr(net, "bias", True)]


@pytest.mark.parametrize("net", [net for net in VARIANTS if not getattr(net, "extra_depthwise", False)], ids=str)
def test_no_launch_for_any_network_is_larger_than_there_can_be(net, grids):
    model = engine.compile(net, draw_params(net, (1, 32, 32, 3), np.float32), (224, 224, 3))
    programs = [model.program(images) for images in (1, 64)]
    for program in programs:
        program.run()
    assert within_limits(grids) == sum(len(program.launches) for program in programs)


@pytest.mark.parametrize("images", [1, 64])
def test_the_roofline_is_the_one_in_the_docstring(grids, images):
    """Arithmetic as the cost interpretation counts it, bytes from the maps and weights of the plan, launches as they come."""
    net = ShuffleNetV2(1.0)
    model = engine.compile(net, draw_params(net, (1, 32, 32, 3), np.float32), (224, 224, 3))
    model.program(images).run()
    moved, flops = [], []
    for step in model.plan.steps:
        if step.kind not in (IMAGE, OUTPUT):
            read = [len(map_.places) * map_.height * map_.width for map_ in (step.source, step.what.residual) if map_]
            size = math.prod(step.size)
            moved.append([images * sum(read), images * size * step.what.channels, step.what.weight.size + step.what.bias.size])
            flops.append(2 * images * size * step.what.weight.size)
    read, written, weights = 4 * np.sum(moved, axis=0)
    memory = 4 * np.sum(moved, axis=1) / 3.35e12
    assert sum(flops) == 2 * sum(row.macs for row in count(net, 224, images))
    best = np.maximum(memory, np.divide(flops, 67e12)).sum()
    row = [images, len(grids), *(f"{n / 1e6:.3g} MB" for n in (read, written, weights)), f"{sum(flops) / 1e9:.3g}"]
    row += [f"{1e6 * took:.3g} us" for took in (best, memory.sum())]
    expected = r"\s+".join(re.escape(str(entry)) for entry in row)
    assert re.search(expected, kernels.__doc__), row


@pytest.mark.parametrize("net", [ShuffleNetV1(2.0, groups=8), ShuffleNetV2(2.0)], ids=str)
def test_no_launch_of_a_step_of_training_is_larger_than_there_can_be(net, grids):
    trainer = Trainer(net, draw_params(net, (1, 32, 32, 3), np.float32))
    trainer.step(np.empty((64, 224, 224, 3), np.float32), np.zeros(64, np.int64), 0.1)
    assert within_limits(grids) > 500


@pytest.mark.parametrize(
    ("op", "x", "w"), [("depthwise", (70_000, 1, 1, 8), (3, 3, 8)), ("conv", (70_000, 1, 1, 8), (1, 1, 8, 8)),
                       ("conv", (1, 2, 2, 8192), (3, 3, 8192, 8192))]
)  # fmt: skip
def test_no_launch_is_larger_than_there_can_be_however_many_images_or_channels(op, x, w, grids):
    x, w = launch.Tensor(x), launch.Tensor(w)
    forward, backward = Cuda.functions[op]
    backward(forward(x, w), x, w)
    assert within_limits(grids) >= 4
