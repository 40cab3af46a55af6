"""The engine: the reference's logits, the same bits however a call is shared out, and a model that is at home in any program."""

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from golden.make_logits import images, parameters
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_meetings import logits_in_turn

from pyshuffle import engine
from pyshuffle.backends.cost import Cost, Shape, parameter_shapes
from pyshuffle.backends.numba import Numba
from pyshuffle.backends.reference import Reference
from pyshuffle.engine import Model, bands
from pyshuffle.engine.layout import CLASH, Vector, cut
from pyshuffle.engine.machine import Machine, machine
from pyshuffle.engine.plan import Plan
from pyshuffle.engine.program import Encoder, panels
from pyshuffle.engine.steps import MEAN, STEM, WINDOW, multiply_adds
from pyshuffle.engine.team import CLOSED, ROUNDS
from pyshuffle.errors import ArchError, PyShuffleError, ShapeError, WeightsError
from pyshuffle.nets import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2
from pyshuffle.types import Array, Params

ROOT = Path(__file__).parents[1]
THREADS = (1, 2, 3, 8)


@cache
def params_of(net: Callable) -> Params:
    """Statistics that are not trivial, in float32."""
    return {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}


def draw_images(batch: int, height: int, width: int, seed: int = 0) -> Array:
    return np.ascontiguousarray(images(max(height, width), batch, seed)[:, :height, :width].astype(np.float32))


def compiled(net: Callable, height: int, width: int, threads: int = 1) -> Model:
    """For one image, and, if threads are several, for as many as they are."""
    return engine.compile(net, params_of(net), (threads, height, width, 3), threads)


def reference(net: Callable, x: Array, params: Params | None = None) -> Array:
    """The logits in float64."""
    exact = {name: value.astype(np.float64) for name, value in (params or params_of(net)).items()}
    return net(Reference(exact), x.astype(np.float64))


def assert_near(logits: Array, expected: Array, tolerance: float = 1e-5) -> None:
    """Off by no more than a share of the largest, which NaN is not."""
    assert (logits.dtype, logits.shape) == (np.float32, expected.shape)
    error, largest = np.abs(logits - expected).max(), np.abs(expected).max()
    assert largest != 0, "nothing is to be seen where all is 0"
    if not error <= tolerance * largest:
        pytest.fail(f"differs by {error:.3g} where the largest value is {largest:.3g}")


# The answers --------------------------------------------------------------------------------------------------------------------

CASES = [  # network, batch, height, width
    (ShuffleNetV1(groups=1, classes=10), 1, 64, 64),
    (ShuffleNetV1(groups=2, classes=10), 3, 33, 64),
    (ShuffleNetV1(groups=3), 1, 97, 97),
    (ShuffleNetV1(groups=4, classes=10), 1, 64, 33),
    (ShuffleNetV1(groups=8, classes=1000), 3, 64, 64),
    (ShuffleNetV1(0.25, groups=3), 3, 33, 64),
    (ShuffleNetV1(0.25, groups=1, classes=10), 1, 97, 80),
    (ShuffleNetV1(0.5, groups=3, classes=10), 3, 64, 64),
    (ShuffleNetV1(0.5, groups=8, classes=10, bias=False), 1, 97, 97),
    (ShuffleNetV1(1.0, groups=3, classes=10, order="authors"), 1, 64, 64),
    (ShuffleNetV1(0.5, groups=8, classes=10, order="authors"), 3, 33, 64),
    (ShuffleNetV2(0.5, classes=10), 3, 97, 97),
    (ShuffleNetV2(0.5, classes=10, wiring="torchvision"), 1, 64, 33),
    (ShuffleNetV2(1.0), 1, 64, 64),
    (ShuffleNetV2(1.0, wiring="torchvision"), 3, 33, 64),
    (ShuffleNetV2(1.5, classes=10), 1, 97, 97),
    (ShuffleNetV2(1.5, classes=10, wiring="torchvision"), 1, 64, 64),
    (ShuffleNetV2(2.0, classes=10), 1, 64, 33),
    (ShuffleNetV2(2.0, classes=1000, wiring="torchvision"), 1, 33, 64),
    (ShuffleNetV2(0.25, classes=1, wiring="torchvision"), 3, 32, 32),
    (ShuffleNetV2(0.33, classes=10), 1, 33, 64),
    (ShuffleNetV2(1.0, classes=10, extra_depthwise=True), 1, 64, 64),
    (ShuffleNetV2(0.5, classes=10, extra_depthwise=True, wiring="torchvision"), 1, 33, 64),
    (ShuffleNetV1(0.5, groups=3, classes=10, shuffle=False), 1, 64, 64),
    (ShuffleNetV2(0.5, classes=10, shuffle=False), 1, 64, 64),
    (ShuffleNetV2(1.0, classes=10, order="authors"), 3, 64, 64),
    (ShuffleNetV2(0.33, classes=10, order="authors"), 1, 97, 80),
    (ShuffleNetV1(0.5, groups=3), 1, 225, 225),
    (ShuffleNetV2(0.5), 32, 64, 64),
    (ShuffleNetV2(1.0, classes=10), 1, 128, 128),
    (MobileNetV1(1.0, classes=10), 1, 97, 80),
    (MobileNetV1(0.25, classes=10), 3, 33, 64),
    (MobileNetV2(1.0, classes=10), 1, 64, 64),
    (MobileNetV2(1.4, classes=10), 1, 33, 64),
    (MobileNetV2(0.15), 3, 97, 97),
]


@pytest.mark.parametrize(("net", "batch", "height", "width"), CASES, ids=str)
def test_logits_are_those_of_the_reference(net, batch, height, width):
    x = draw_images(batch, height, width)
    assert_near(compiled(net, height, width)(x), reference(net, x))


AT_224 = [
    ShuffleNetV1(groups=3, classes=10),
    ShuffleNetV1(groups=8, classes=10),
    ShuffleNetV1(0.25, groups=3, classes=10),
    ShuffleNetV2(0.5),
    ShuffleNetV2(1.0, wiring="torchvision"),
    ShuffleNetV2(2.0, classes=10),
    MobileNetV1(),
    MobileNetV2(),
]


@pytest.mark.compiled
@pytest.mark.parametrize("net", AT_224, ids=str)
def test_logits_at_224_pixels_are_those_of_the_kernels(net):
    x = draw_images(1, 224, 224)
    assert_near(compiled(net, 224, 224)(x), net(Numba(params_of(net)), x))


def test_logits_of_an_image_that_is_no_square():
    """Bands of rows of the stem that no thread's rows are a multiple of."""
    net, x = ShuffleNetV2(0.5, classes=10), draw_images(1, 250, 37)
    for threads in (1, 3):
        assert_near(compiled(net, 250, 37, threads)(x), reference(net, x))


# The same bits ------------------------------------------------------------------------------------------------------------------

SHARED = [  # network, height, width
    (ShuffleNetV1(groups=3, classes=10), 64, 64),
    (ShuffleNetV1(0.5, groups=8, classes=10), 33, 97),
    (ShuffleNetV2(0.5, classes=10), 64, 64),
    (ShuffleNetV2(1.0, classes=10, wiring="torchvision"), 32, 32),
]


@pytest.mark.compiled
@pytest.mark.parametrize(("net", "height", "width"), SHARED, ids=str)
def test_logits_are_the_same_bits_for_any_threads_and_any_batch(net, height, width):
    """Five images are five for a lone thread, two each and one for both, one each and two for all three, five for all eight."""
    x = draw_images(5, height, width)
    expected = compiled(net, height, width)(x)
    for threads in THREADS:
        model = compiled(net, height, width, threads)
        for _ in range(5):
            np.testing.assert_array_equal(model(x), expected)
        np.testing.assert_array_equal(np.concatenate([model(image[None]) for image in x]), expected)


@pytest.mark.compiled
@pytest.mark.parametrize("net", [ShuffleNetV1(groups=3, classes=10), ShuffleNetV2(classes=10)], ids=str)
def test_logits_are_the_same_bits_where_threads_share_rows(net):
    """At 224 pixels a thread goes on to a 1x1 convolution of its own rows without waiting for the others."""
    x = draw_images(3, 224, 224)
    expected = compiled(net, 224, 224)(x)
    for threads in THREADS[1:]:
        model = compiled(net, 224, 224, threads)
        assert len(model.plan.meetings) < len(model.plan.steps) - 2, "no rows are shared"
        for _ in range(3):
            np.testing.assert_array_equal(model(x), expected)
            np.testing.assert_array_equal(model(x[2:]), expected[2:])
        np.testing.assert_array_equal(np.concatenate([model(image[None]) for image in x]), expected)


@pytest.mark.compiled
def test_a_model_keeps_the_parameters_that_it_was_compiled_with():
    """Whatever becomes of the arrays."""
    net, x = ShuffleNetV2(0.5, classes=10), draw_images(4, 64, 64)
    params = {name: array.copy() for name, array in params_of(net).items()}
    model = engine.compile(net, params, x.shape, threads=2)
    expected = np.concatenate([model(image[None]) for image in x])
    for array in params.values():
        array[...] = -1
    params.clear()
    np.testing.assert_array_equal(model(x), expected)


@pytest.mark.compiled
def test_images_are_shared_out_whole_if_the_model_is_compiled_for_as_many_as_there_are_threads():
    """Else all threads work on each; the logits are the same."""
    net, x = ShuffleNetV2(0.5, classes=10), draw_images(5, 64, 64)
    few, many = (engine.compile(net, params_of(net), (images, 64, 64, 3), 2) for images in (1, 2))
    assert few.alone is None
    assert many.alone is not None
    np.testing.assert_array_equal(few(x), many(x))
    assert [model.team.words[ROUNDS] for model in (few, many)] == [0, 2]


def test_meetings_are_fewer_where_there_are_rows_to_share():
    """And none for a single thread, as it waits for nobody."""
    meetings = [len(plan_of(ShuffleNetV2(classes=10), size, size, 2).meetings) for size in (32, 224)]
    assert meetings[1] < meetings[0]
    assert not plan_of(ShuffleNetV2(classes=10), 224, 224).meetings


def test_an_image_leaves_nothing_behind_for_the_next():
    """Halos are cleared, whatever memory they share: a large image in between changes nothing."""
    x = draw_images(1, 64, 64)
    for net, _, _ in SHARED:
        for threads in (1, 2):
            model = compiled(net, 64, 64, threads)
            expected = model(x)
            model(1e6 * x)
            np.testing.assert_array_equal(model(x), expected)


@pytest.mark.parametrize(
    "view",
    [np.s_[:, ::-1], np.s_[:, :, ::-1], np.s_[..., ::-1], np.s_[::-1], np.s_[::2]],
    ids="rows columns channels images every".split(),
)
def test_an_array_in_another_order_is_as_good_as_its_copy(view):
    net, x = ShuffleNetV2(0.5, classes=10), draw_images(3, 64, 64)
    model = compiled(net, 64, 64, 2)
    assert not x[view].flags.c_contiguous
    np.testing.assert_array_equal(model(x[view]), model(x[view].copy()))


def test_channels_first_in_memory():
    net, x = ShuffleNetV2(0.5, classes=10), draw_images(3, 64, 64)
    planes = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    model = compiled(net, 64, 64)
    np.testing.assert_array_equal(model(planes.transpose(0, 2, 3, 1)), model(x))


def test_the_image_and_the_parameters_stay_as_they_are():
    net, x = ShuffleNetV1(0.25, groups=3, classes=10), draw_images(2, 64, 64)
    params = {name: value.copy() for name, value in params_of(net).items()}
    model, before = engine.compile(net, params, x.shape, 2), x.copy()
    first = model(x)
    np.testing.assert_array_equal(x, before)
    for name, value in params_of(net).items():
        np.testing.assert_array_equal(params[name], value)
        params[name][:] = 0  # the model has its own
    second = model(x)
    np.testing.assert_array_equal(second, first)
    assert not np.shares_memory(first, second)


# Threads and processes ----------------------------------------------------------------------------------------------------------


def call_at_once(models: list[Model], inputs: list[Array], calls: int) -> list[list[Array]]:
    """The logits of so many calls of each model with its input, each in a thread of its own, all begun together."""
    start = threading.Barrier(len(models))

    def call(model: Model, x: Array) -> list[Array]:
        start.wait()
        return [model(x) for _ in range(calls)]

    with ThreadPoolExecutor(len(models)) as pool:
        return list(pool.map(call, models, inputs))


@pytest.mark.compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("same", [True, False], ids=["one model", "two models"])
def test_models_are_called_from_several_threads_at_once(same, threads):
    one, other = ShuffleNetV2(0.5, classes=10), ShuffleNetV1(0.25, groups=3, classes=10)
    first = compiled(one, 32, 64, threads)
    models = [first, first if same else compiled(other, 32, 64, threads)]
    inputs = [draw_images(2, 32, 64, seed) for seed in (1, 2)]
    expected = [model(x) for model, x in zip(models, inputs, strict=True)]
    for answers, right in zip(call_at_once(models, inputs, 40), expected, strict=True):
        for logits in answers:
            np.testing.assert_array_equal(logits, right)


@pytest.mark.compiled
def test_ten_thousand_calls_of_four_models_by_eight_threads():
    """Every answer is the one that the model gives alone."""
    nets = (
        ShuffleNetV2(0.33, classes=5),
        ShuffleNetV2(0.25, classes=7, wiring="torchvision"),
        ShuffleNetV1(0.25, groups=3, classes=9),
        MobileNetV2(0.1, classes=3),
    )
    models = 2 * [compiled(net, 32, 32, 1) for net in nets]
    inputs = [draw_images(1, 32, 32, seed) for seed in range(8)]
    expected = [model(x) for model, x in zip(models, inputs, strict=True)]
    for answers, right in zip(call_at_once(models, inputs, 1250), expected, strict=True):
        np.testing.assert_array_equal(np.stack(answers), np.broadcast_to(right, (1250, *right.shape)))


def answer_of_a_model(threads: int) -> bytes:
    """What a model answers in the process that runs this."""
    return compiled(ShuffleNetV2(0.5, classes=10), 64, 64, threads)(draw_images(3, 64, 64)).tobytes()


@pytest.mark.compiled
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_a_pool_have_models_of_their_own(method):
    """While this one has its own, and its threads."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"there is no {method} here")
    expected = answer_of_a_model(2)
    model = compiled(ShuffleNetV2(0.5, classes=10), 64, 64, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
        with multiprocessing.get_context(method).Pool(2) as pool:
            answers = pool.map_async(answer_of_a_model, [1, 2, 1, 2])
            assert model(draw_images(3, 64, 64)).tobytes() == expected
            assert answers.get(timeout=120) == 4 * [expected]


def forked(run: Callable[[], bytes]) -> bytes:
    """What that returns in a forked child; nothing if it raises."""
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
        child = os.fork()
    if not child:
        try:
            signal.alarm(60)  # should it hang
            os.write(send, run())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, "the child was killed"
    return answer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forked_child_has_the_model_too(threads):
    models, x = [compiled(ShuffleNetV2(0.5, classes=10), 64, 64, threads)], draw_images(3, 64, 64)
    expected = models[0](x)

    def child() -> bytes:
        answers = [models[0](x).tobytes() for _ in range(3)]
        models.clear()
        gc.collect()
        return b"".join(answers) + b"closed"

    assert forked(child) == 3 * expected.tobytes() + b"closed"
    np.testing.assert_array_equal(models[0](x), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_threads_of_a_forked_child_begin_a_model_once():
    """Although one of the parent's held its lock at the fork."""
    model, x = compiled(ShuffleNetV2(0.5, classes=10), 32, 32, 2), draw_images(1, 32, 32)
    expected, begin, begun = model(x), model._begin, []

    def slowly() -> None:
        begun.append(threading.get_ident())
        time.sleep(0.1)
        begin()

    def child() -> bytes:
        model._begin = slowly
        answers = call_at_once(4 * [model], 4 * [x], 2)
        return bytes([len(begun)]) + np.array(answers).tobytes()

    with model._lock:
        answer = forked(child)
    assert answer == b"\1" + 8 * expected.tobytes()


def test_no_thread_outlives_its_model():
    gc.collect()
    before = threading.active_count()
    model, x = compiled(ShuffleNetV2(0.5, classes=10), 32, 32, 3), draw_images(1, 32, 32)
    assert threading.active_count() == before + 2
    model(x)
    time.sleep(0.05)  # the workers are asleep now
    model(x)
    del model
    gc.collect()
    assert threading.active_count() == before


def test_no_thread_outlives_a_model_that_is_never_called():
    gc.collect()
    before = threading.active_count()
    for _ in range(5):
        compiled(ShuffleNetV2(0.5, classes=10), 32, 32, 4)
    gc.collect()
    assert threading.active_count() == before


PROGRAM = """
import signal, sys
import numpy as np
from pyshuffle import engine
from pyshuffle.init import initialise
from pyshuffle.nets import ShuffleNetV2

net = ShuffleNetV2(0.5, classes=10)
model, x = engine.compile(net, initialise(net), (32, 32, 3), threads=3), np.ones((2, 32, 32, 3), np.float32)
expected = model(x)
signal.signal(signal.SIGINT, signal.default_int_handler)  # wherever the tests were started from
print("ready", flush=True)
"""
FOREVER = """
try:
    while True:
        model(x)
except KeyboardInterrupt:
    sys.exit(7 if (model(x) == expected).all() else 8)
"""
ENDINGS = {
    "its end": "",
    "exit": "sys.exit(0)",
    "a reference that stays": "sys.model = model",
    "a call from atexit": "import atexit; atexit.register(model, x)",
    "a thread that goes on": """
import threading, time
def calls():
    try:
        while True:
            model(x)
    except Exception:
        pass  # it is closed
threading.Thread(target=calls, daemon=True).start()
time.sleep(0.1)
""",
}


def start(program: str) -> subprocess.Popen:
    """A Python that has called a model once when this returns."""
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline().strip() == b"ready", process.stderr.read().decode()
    return process


@pytest.mark.compiled
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_program_ends_while_workers_wait(ending):
    with start(PROGRAM + ending) as process:
        try:
            assert process.communicate(timeout=20) == (b"", b"")
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.mark.compiled
def test_a_model_is_closed_at_the_end():
    """Which is before what was registered earlier."""
    before = "import atexit; held = []; atexit.register(lambda: held[0](held[1]))"
    with start(before + PROGRAM + "held += [model, x]") as process:
        _, error = process.communicate(timeout=20)
    assert error.decode().endswith("PyShuffleError: the model is closed: the program is ending\n")


def test_a_model_is_not_closed_in_the_middle_of_a_call():
    """Else a worker that has not yet heard of the call would leave, and the others wait for it for ever."""
    net = ShuffleNetV2(0.5, classes=2)
    model, x = compiled(net, 32, 32, 2), draw_images(1, 32, 32)
    team, usual, under_way, go_on, answers = model.team, model.team.function, threading.Event(), threading.Event(), []

    def delayed(*arguments):
        if not team.words[CLOSED]:
            under_way.set()
            go_on.wait(20)
        return usual(*arguments)

    team.function = delayed
    caller = threading.Thread(target=lambda: answers.append(model(x)), daemon=True)
    closer = threading.Thread(target=model._end, daemon=True)
    caller.start()
    under_way.wait(20)
    closer.start()
    closer.join(0.3)
    try:
        assert not team.words[CLOSED]
    finally:
        go_on.set()
        caller.join(20)
        closer.join(20)
    assert team.words[CLOSED]
    assert_near(answers[0], reference(net, x))


@pytest.mark.compiled
@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_ends_a_loop_of_calls_and_spares_the_model():
    with start(PROGRAM + FOREVER) as process:
        try:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == (b"", b"")
        finally:
            process.kill()
    assert process.returncode == 7, "the interrupted model has other logits" if process.returncode == 8 else process.returncode


# Memory -------------------------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory, 0 where the system does not say."""
    statistics = Path("/proc/self/statm")
    return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statistics.exists() else 0


@pytest.mark.compiled
@pytest.mark.parametrize(("threads", "calls"), [(1, 2000), (2, 500)])
def test_calls_leave_memory_as_it_was(threads, calls):
    model, x = compiled(ShuffleNetV2(0.5, classes=10), 32, 32, threads), draw_images(1, 32, 32)
    for _ in range(100):
        model(x)
    gc.collect()
    before = resident()
    tracemalloc.start()
    try:
        for _ in range(calls):  # numbers that Python keeps for the next time
            model(x)
        traced, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(calls):
            model(x)
        traced_then, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert traced_then - traced <= 4096, "Python's memory has grown"
    assert peak - traced <= 16384, "a call takes memory for more than its logits"
    assert resident() - before <= 2**20, "the process has grown"


@pytest.mark.compiled
def test_models_that_come_and_go_leave_memory_as_it_was():
    """Arena and weights of this one are 5 MB."""
    net = ShuffleNetV2(classes=10)
    x = draw_images(1, 64, 64)
    for number in range(12):
        compiled(net, 64, 64, 3)(x)
        gc.collect()
        if number == 3:
            before = resident()
    assert resident() - before <= 5 * 2**20


# The errors ---------------------------------------------------------------------------------------------------------------------

SMALL = ShuffleNetV2(0.5, classes=10)

BAD_ARRAYS = [  # dtype, shape
    (np.float64, (1, 64, 64, 3)),
    (np.float16, (1, 64, 64, 3)),
    (np.uint8, (1, 64, 64, 3)),
    (np.dtype(">f4"), (1, 64, 64, 3)),
    (np.float32, (64, 64, 3)),
    (np.float32, (0, 64, 64, 3)),
    (np.float32, (1, 64, 65, 3)),
    (np.float32, (1, 32, 64, 3)),
    (np.float32, (1, 3, 64, 64)),
    (np.float32, (1, 64, 64, 4)),
    (np.float32, (1, 1, 64, 64, 3)),
    (np.float32, ()),
]


@pytest.mark.parametrize(("dtype", "shape"), BAD_ARRAYS, ids=str)
def test_an_array_of_another_shape_or_dtype_is_refused(dtype, shape):
    model, x = compiled(SMALL, 64, 64, 2), draw_images(1, 64, 64)
    expected = model(x)
    with pytest.raises(ShapeError) as raised:
        model(np.ones(shape, dtype))
    for named in (str(np.dtype(dtype)), str(shape), "float32 (N, 64, 64, 3)"):
        assert named in str(raised.value)
    np.testing.assert_array_equal(model(x), expected)


PLACES = [(0, 0, 0, 0), (0, 32, 17, 1), (0, 63, 0, 0), (0, 0, 63, 2), (-1, 63, 63, 2), (1, 31, 63, 0)]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf], ids=["nan", "-nan", "inf", "-inf"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_value_that_is_not_finite_is_refused_wherever_it_is(threads, value):
    """And once: the images after it are answered again."""
    model, x = compiled(SMALL, 64, 64, threads), draw_images(4, 64, 64)
    expected = model(x)
    for place in PLACES:
        bad = x.copy()
        bad[place] = value
        with pytest.raises(ShapeError, match="x holds a value that is not finite"):
            model(bad)
        np.testing.assert_array_equal(model(x), expected)


@pytest.mark.parametrize("size", [(33, 64), pytest.param((224, 224), marks=pytest.mark.compiled)], ids=str)
def test_no_row_of_an_image_is_overlooked(size):
    """A NaN in each row in turn, which one thread or another reads."""
    height, width = size
    x = draw_images(1, height, width)
    model = compiled(ShuffleNetV2(0.25, classes=1, wiring="torchvision"), height, width, 3)
    for row in range(height):
        bad = x.copy()
        bad[0, row, row % width, row % 3] = np.nan
        with pytest.raises(ShapeError, match="not finite"):
            model(bad)
    model(x)


def test_values_that_are_finite_are_not_refused():
    """The largest of all, zeros of both signs, and the smallest."""
    x = draw_images(1, 64, 64)
    x[0, 0, 0], x[0, 1, 0] = (0, -0.0, 1e-45), (np.finfo(np.float32).max, np.finfo(np.float32).min, 1)
    assert compiled(SMALL, 64, 64)(x).shape == (1, 10)


OTHERS = [
    (ShuffleNetV1(0.25, groups=3, classes=10), r"conv1.0.weight has the shape \(3, 3, 3, 6\): the network needs \(3, 3, 3, 24\)"),
    (ShuffleNetV2(0.5, classes=11), r"fc.weight has the shape \(1024, 11\): the network needs \(1024, 10\)"),
    (ShuffleNetV2(1.0, classes=10), r"has the shape \(1, 1, 24, 58\): the network needs \(1, 1, 24, 24\)"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS, ids=["family", "classes", "width"])
def test_parameters_of_another_network_are_refused(other, message):
    with pytest.raises(WeightsError, match=message):
        engine.compile(SMALL, params_of(other), (64, 64, 3), 1)


def test_a_missing_parameter_is_named():
    params = dict(params_of(SMALL))
    del params["stage3.1.branch2.4.running_var"]
    with pytest.raises(WeightsError, match=r"needs a parameter 'stage3\.1\.branch2\.4\.running_var' and the weights have none"):
        engine.compile(SMALL, params, (64, 64, 3), 1)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_at_all_are_refused(threads):
    with pytest.raises(ShapeError, match=f"threads={threads}: at least 1 is needed"):
        compiled(SMALL, 64, 64, threads)


@pytest.mark.parametrize("shape", [(), (64,), (64, 64), (64, 64, 4), (1, 3, 64, 64), (1, 1, 64, 64, 3), (3,)], ids=str)
def test_an_input_shape_that_is_none_is_refused(shape):
    with pytest.raises(ShapeError, match=r"input_shape=.*: \(N, H, W, 3\) or \(H, W, 3\) is needed") as raised:
        engine.compile(SMALL, params_of(SMALL), shape, 1)
    assert str(shape) in str(raised.value)


@pytest.mark.parametrize(
    ("height", "width", "named"),
    [(16, 16, "16 is too small"), (64, 31, "31 is too small"), (31, 64, "31 is too small"), (0, 64, "0 is too small"),
     (32, 65537, "65537 is too large"), (10**9, 32, "1000000000 is too large")],
)  # fmt: skip
def test_an_image_of_a_size_that_cannot_be_is_refused(height, width, named):
    with pytest.raises(ArchError, match=f"size={named}: 32 to 65536 pixels are needed"):
        compiled(SMALL, height, width)


def test_more_threads_than_there_can_be_are_refused(monkeypatch):
    """And those that were begun are ended."""
    gc.collect()
    before, begin, begun = threading.active_count(), threading.Thread.start, []

    def begin_two(thread: threading.Thread) -> None:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", begin_two)
    with pytest.raises(PyShuffleError, match="threads=5: of so many, only 3 can be at work"):
        compiled(SMALL, 32, 32, 5)
    assert (len(begun), threading.active_count()) == (2, before)


def test_the_input_shape_may_have_a_batch():
    x = draw_images(2, 64, 64)
    expected = compiled(SMALL, 64, 64)(x)
    for shape in ((7, 64, 64, 3), [64, 64, 3], x.shape):
        np.testing.assert_array_equal(engine.compile(SMALL, params_of(SMALL), shape, 1)(x), expected)


# The plan -----------------------------------------------------------------------------------------------------------------------


def plan_of(net: Callable, height: int, width: int, threads: int = 1) -> Plan:
    return Plan(net, params_of(net), height, width, machine(), threads)


PLANNED = [
    (ShuffleNetV1(groups=3), 224, 224),
    (ShuffleNetV1(0.5, groups=8, classes=10, order="authors"), 33, 97),
    (ShuffleNetV2(), 224, 224),
    (ShuffleNetV2(0.5, classes=10, wiring="torchvision", extra_depthwise=True), 97, 64),
    (MobileNetV1(0.5, classes=10), 224, 224),
    (MobileNetV2(), 97, 64),
]


@pytest.mark.parametrize(("net", "height", "width"), PLANNED, ids=str)
def test_the_plan_counts_what_the_network_costs(net, height, width):
    cost = Cost()
    net(cost, Shape((1, height, width, 3)))
    assert sum(map(multiply_adds, plan_of(net, height, width).steps)) == sum(row.macs for row in cost.rows)


@pytest.mark.parametrize(("net", "height", "width"), PLANNED, ids=str)
def test_the_plan_has_a_step_for_every_convolution_and_pool_and_for_nothing_else(net, height, width):
    """No batch normalisation, ReLU or addition, and nothing that only moves channels."""
    cost = Cost()
    net(cost, Shape((1, height, width, 3)))
    steps = ("conv", "depthwise", "maxpool", "avgpool", "mean", "linear")
    expected = sorted(row.name or row.op for row in cost.rows if row.op in steps)
    first, *planned, last = (step.name for step in plan_of(net, height, width).steps)
    assert (first, sorted(planned), last) == ("image", expected, "logits")


@pytest.mark.parametrize(("net", "height", "width"), PLANNED, ids=str)
def test_the_printed_plan_has_a_line_for_every_step(net, height, width):
    plan = compiled(net, height, width, 2).plan
    title, *lines, arena = str(plan).splitlines()
    assert title.split() == "step layer output into at MMACs from".split()
    assert [line.split()[0] for line in lines] == [str(number) for number in range(len(plan.steps))]
    for line, step in zip(lines, plan.steps, strict=True):
        assert step.name in line.split()
        assert " x ".join(map(str, step.size)) in line
        assert step.what.relu == ("ReLU" in line)
    assert not any(word in str(plan) for word in ("split", "concat", "shuffle", "batchnorm"))
    assert arena == f"arena of {plan.arena / 2**20:.2f} MiB a thread"


def test_what_is_needed_at_once_lies_apart():
    """No buffer is written over while a later step, or a thread that has not met the others yet, reads it."""
    for net, height, width in PLANNED:
        for threads in (1, 2):
            plan = plan_of(net, height, width, threads)
            buffers = [step.target for step in plan.steps if step.target and not step.target.over]
            for number, a in enumerate(buffers):
                assert a.offset + a.size <= plan.arena
                for b in buffers[:number]:
                    if b.needed >= a.made:
                        assert b.offset + b.size <= a.offset or a.offset + a.size <= b.offset


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_pixels_do_not_clash(lanes):
    """V2 2.0x has 244 channels in a buffer, which take 256 columns with 16 lanes: a kilobyte, but for the vector that is added."""
    net = ShuffleNetV2(2.0, classes=10)
    plan = Plan(net, params_of(net), 64, 64, Machine(lanes, 32))
    assert all(step.target.layout.pixel % CLASH for step in plan.steps)
    assert all(step.target.planes == 1 for step in plan.steps if step.name.startswith("stage3"))


# Networks that nobody has built -------------------------------------------------------------------------------------------------


def conv_alone(ops, x):
    return ops.linear(ops.mean(ops.conv(x, "conv", 17)), "fc", 5)


def conv_3x3_stride_2_and_no_pool(ops, x):
    x = ops.conv_bn(x, "conv", "bn", 10, kernel=3, stride=2)
    return ops.linear(ops.mean(ops.conv(x, "next", 20)), "fc", 5, bias=False)


def batchnorm_after_relu(ops, x):
    x = ops.batchnorm(ops.relu(ops.conv(x, "conv", 18)), "bn")
    return ops.linear(ops.mean(ops.conv(x, "next", 20)), "fc", 5)


def batchnorm_first(ops, x):
    return ops.linear(ops.mean(ops.conv(ops.batchnorm(x, "bn"), "conv", 8)), "fc", 5)


def batchnorm_twice(ops, x):
    return ops.linear(ops.mean(ops.batchnorm(ops.batchnorm(ops.conv(x, "conv", 8), "one"), "other")), "fc", 5)


def batchnorm_of_logits(ops, x):
    return ops.batchnorm(ops.linear(ops.mean(x), "fc", 21), "bn")


def relu_of_a_concat(ops, x):
    x = ops.relu(ops.concat(ops.conv(x, "a", 7), ops.conv(x, "b", 20)))
    return ops.linear(ops.mean(x), "fc", 5)


def relu_of_the_image(ops, x):
    return ops.linear(ops.mean(ops.conv(ops.relu(x), "conv", 8)), "fc", 5)


def relu_of_logits(ops, x):
    return ops.relu(ops.linear(ops.mean(x), "fc", 20))


def relus_with_limits(ops, x):
    """Of a convolution, of that ReLU, of a sum, and of what no ReLU can be folded into."""
    x = ops.relu(ops.relu(ops.conv(x, "conv", 20), 0.5))
    y = ops.relu(ops.add(x, ops.relu(ops.relu(ops.conv(x, "next", 20)), 0.25)), 0.375)
    return ops.linear(ops.mean(ops.relu(ops.maxpool(ops.concat(y, ops.relu(ops.depthwise(y, "dw"), 0.125))), 0.25)), "fc", 5)


def sum_of_two_pools(ops, x):
    x = ops.add(ops.maxpool(x), ops.avgpool(x))
    return ops.linear(ops.mean(ops.conv(x, "conv", 20)), "fc", 5)


def sum_of_a_concat_and_a_shuffle(ops, x):
    x = ops.conv_bn(x, "conv", "bn", 20, kernel=3)
    left, right = ops.split(x)
    return ops.linear(ops.mean(ops.add(ops.concat(right, left), ops.shuffle(x, 4))), "fc", 5)


def sum_with_itself(ops, x):
    x = ops.conv(x, "conv", 20)
    return ops.linear(ops.mean(ops.relu(ops.add(x, x))), "fc", 5)


def sum_of_two_fresh_convolutions(ops, x):
    return ops.linear(ops.mean(ops.add(ops.conv(x, "a", 20), ops.conv(x, "b", 20))), "fc", 5)


def sum_of_three(ops, x):
    a, b, c = (ops.conv(x, name, 33) for name in "abc")
    return ops.linear(ops.mean(ops.relu(ops.add(ops.add(a, b), c))), "fc", 5)


def sum_of_a_map_and_its_convolution(ops, x):
    """The residual is read twice: it must not be replaced, value by value, while it is."""
    x = ops.conv_bn(x, "conv", "bn", 80)
    return ops.linear(ops.mean(ops.add(x, ops.conv(x, "next", 80))), "fc", 5)


def sum_of_a_map_and_its_3x3_convolution(ops, x):
    x = ops.conv_bn(x, "conv", "bn", 16)
    return ops.linear(ops.mean(ops.add(x, ops.conv(x, "next", 16, kernel=3))), "fc", 5)


def sum_with_a_depthwise(ops, x):
    x = ops.conv_bn(x, "conv", "bn", 20)
    return ops.linear(ops.mean(ops.add(ops.depthwise_bn(x, "dw", "dw_bn"), x)), "fc", 5)


def batchnorm_of_a_sum(ops, x):
    x = ops.conv(x, "conv", 20)
    return ops.linear(ops.mean(ops.batchnorm(ops.add(x, ops.conv(x, "next", 20, groups=4)), "bn")), "fc", 5)


def a_convolution_before_and_after_its_relu(ops, x):
    x = ops.conv(x, "conv", 20)
    return ops.linear(ops.mean(ops.concat(ops.relu(x), x)), "fc", 5)


def a_depthwise_before_and_after_its_relu(ops, x):
    x = ops.depthwise_bn(ops.conv(x, "conv", 20), "dw", "bn")
    return ops.linear(ops.mean(ops.conv(ops.concat(x, ops.relu(x)), "next", 7)), "fc", 5)


def maxpool_of_negative_values(ops, x):
    x = ops.conv(ops.relu(x), "conv", 20)
    return ops.linear(ops.mean(ops.maxpool(ops.add(x, x))), "fc", 5)


def maxpool_without_a_relu(ops, x):
    """A stem of which more than half is negative."""
    x = ops.maxpool(ops.conv(x, "conv", 20, kernel=3, stride=2))
    return ops.linear(ops.mean(x), "fc", 5)


def maxpool_of_the_image(ops, x):
    return ops.linear(ops.mean(ops.conv(ops.maxpool(ops.maxpool(x)), "conv", 20, kernel=3)), "fc", 5)


def a_stem_that_is_read_twice(ops, x):
    x = ops.conv_bn(x, "conv", "bn", 10, kernel=3, stride=2)
    return ops.linear(ops.mean(ops.concat(ops.maxpool(x), ops.avgpool(x))), "fc", 5)


def an_image_that_is_read_twice(ops, x):
    y = ops.maxpool(ops.conv_bn(x, "conv", "bn", 10, kernel=3, stride=2))
    return ops.linear(ops.concat(ops.mean(y), ops.mean(x)), "fc", 5)


def the_image_beside_a_map(ops, x):
    """Read through one table, as are all the parts of a concat."""
    return ops.linear(ops.mean(ops.conv(ops.concat(x, ops.conv(x, "conv", 20)), "next", 20)), "fc", 5)


def depthwise_of_the_image(ops, x):
    return ops.linear(ops.mean(ops.depthwise(ops.depthwise(x, "one", stride=2), "other")), "fc", 5)


def avgpool_of_avgpool(ops, x):
    return ops.linear(ops.mean(ops.relu(ops.avgpool(ops.avgpool(x)))), "fc", 5)


def convolutions_of_the_image_in_groups(ops, x):
    x = ops.conv(ops.conv(x, "conv", 9, groups=3), "next", 36, kernel=3, stride=2, groups=9)
    return ops.linear(ops.mean(ops.conv(x, "last", 40, stride=2, groups=4)), "fc", 5)


def shuffles_on_shuffles(ops, x):
    x = ops.shuffle(ops.shuffle(ops.conv(x, "conv", 24), 3), 4)
    left, right = ops.split(ops.depthwise(x, "dw"))
    x = ops.shuffle(ops.concat(ops.concat(left, right), left), 2)
    return ops.linear(ops.mean(ops.conv(x, "last", 42, groups=6)), "fc", 5)


def a_map_with_itself(ops, x):
    x = ops.conv(x, "conv", 17)
    x = ops.depthwise(ops.concat(x, x), "dw")
    return ops.linear(ops.mean(ops.conv(x, "next", 20, kernel=3)), "fc", 5)


def two_linear_layers(ops, x):
    x = ops.relu(ops.linear(ops.mean(x), "fc1", 33))
    left, right = ops.split(ops.concat(x, ops.linear(x, "fc2", 33)))
    return ops.linear(ops.add(left, right), "fc", 100)


def wide(ops, x):
    """A kilobyte and more for a pixel, so that there are several planes and panels."""
    x = ops.conv(x, "conv", 300)
    y = ops.conv(ops.concat(x, ops.conv(x, "next", 40)), "last", 260)
    return ops.linear(ops.mean(ops.concat(ops.depthwise(y, "dw"), x)), "fc", 5)


UNBUILT = [
    conv_alone, conv_3x3_stride_2_and_no_pool, batchnorm_after_relu, batchnorm_first, batchnorm_twice, batchnorm_of_logits,
    relu_of_a_concat, relu_of_the_image, relu_of_logits, relus_with_limits, sum_of_two_pools, sum_of_a_concat_and_a_shuffle,
    sum_with_itself, sum_of_two_fresh_convolutions, sum_of_three, sum_of_a_map_and_its_convolution,
    sum_of_a_map_and_its_3x3_convolution, sum_with_a_depthwise, batchnorm_of_a_sum, a_convolution_before_and_after_its_relu,
    a_depthwise_before_and_after_its_relu, maxpool_of_negative_values, maxpool_without_a_relu, maxpool_of_the_image,
    a_stem_that_is_read_twice, an_image_that_is_read_twice, the_image_beside_a_map, depthwise_of_the_image, avgpool_of_avgpool,
    convolutions_of_the_image_in_groups, shuffles_on_shuffles, a_map_with_itself, two_linear_layers, wide,
]  # fmt: skip


@pytest.mark.parametrize("net", UNBUILT, ids=lambda net: net.__name__)
def test_any_function_over_operations_is_a_network(net):
    for height, width in ((32, 32), (37, 50), (42, 42), (32, 130)):  # a whole number of tiles; a max-pool in three strips
        x = draw_images(2, height, width)
        expected = reference(net, x)
        for threads in (1, 3):
            assert_near(compiled(net, height, width, threads)(x), expected)


def test_vectors_of_channels_that_are_left_over():
    """Of 20: four of a second vector, of which half is computed; where channels follow, it begins earlier and computes some twice."""
    runs, last = [list(range(20)), list(range(20, 40))], [list(range(16)), list(range(16, 20))]
    first, again, *others = cut(runs, 16, dense=True, halved=True)
    assert [first, again] == [(runs[0][:16], 0, False), (runs[0][12:], 12, True)]
    assert others == [(runs[1][:16], 20, False), (runs[1][16:], 36, True)]
    assert [vector[1:] for vector in cut(runs, 16, dense=True, halved=False)] == [
        (0, False),
        (4, False),
        (20, False),
        (36, False),
    ]
    assert [vector[1:] for vector in cut(runs, 16, dense=False, halved=True)] == [
        (0, False),
        (16, False),
        (32, False),
        (48, False),
    ]
    assert cut(last, 16, dense=True, halved=True) == [(last[0], 0, False), (last[1], 16, True)]
    assert not any(vector.half for vector in cut([list(range(25))], 16, dense=True, halved=True))


def test_half_a_vector_is_the_last_of_its_panel():
    """As a panel's last vector may be a half, and no other; the rest are nearly alike."""
    whole, half = Vector([0], 0), Vector([0], 0, half=True)
    vectors = [whole, half, *5 * [whole], half, whole]
    assert [len(panel) for panel in panels(vectors, 4)] == [2, 3, 3, 1]
    assert [[vector.half for vector in panel] for panel in panels(vectors, 4)] == [
        [False, True],
        3 * [False],
        [False, False, True],
        [False],
    ]


def test_maps_too_large_for_tables_are_refused():
    encoder = Encoder(machine(), threads=1)
    assert encoder.table([0, (1 << 32) - 4]) == 0
    with pytest.raises(ShapeError, match="a map of the network would take 4 GiB or more: the images are too large"):
        encoder.table([0, 1 << 32])


@pytest.mark.parametrize("net", [maxpool_without_a_relu, ShuffleNetV2()], ids=["small", "v2"])
def test_a_stem_is_one_step(net):
    assert plan_of(net, 64, 64).steps[0].kind == STEM


@pytest.mark.parametrize("net", [a_stem_that_is_read_twice, an_image_that_is_read_twice, conv_3x3_stride_2_and_no_pool])
def test_what_is_read_twice_is_no_stem(net):
    assert plan_of(net, 64, 64).steps[0].kind != STEM


def test_a_batchnorm_after_a_relu_is_a_step():
    """A depthwise convolution of which only the middle counts."""
    kinds = [step.kind for step in plan_of(batchnorm_after_relu, 32, 32).steps]
    assert kinds.count(WINDOW) == 1
    assert kinds.count(MEAN) == 1


# Any network at all -------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """An operation on the values of these numbers, the image's being 0; the results are numbered on."""

    op: str
    reads: tuple[int, ...]
    arguments: tuple = ()


class Drawn(NamedTuple):
    """A network of such lines, that ends with the means of its last values."""

    lines: tuple[Line, ...]
    last: int

    def __call__(self, ops, x):
        values = [x]
        for op, reads, arguments in self.lines:
            result = getattr(ops, op)(*(values[number] for number in reads), *arguments)
            values += result if op == "split" else [result]
        features = ops.mean(values[-1])
        for value in values[-self.last : -1]:
            features = ops.concat(features, ops.mean(value))
        return ops.linear(features, "fc", 5)


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@st.composite
def drawn_nets(draw: st.DrawFn, height: int, width: int) -> Drawn:
    """Up to a dozen lines; the latest values are read most often."""
    shapes, lines = [(height, width, 3)], []
    for number in range(draw(st.integers(1, 12))):
        a = max(0, len(shapes) - 1 - draw(st.integers(0, 3)))
        h, w, c = shapes[a]
        beside = [b for b, shape in enumerate(shapes) if shape[:2] == (h, w)]
        alike = [b for b in beside if shapes[b][2] == c]
        name, stride = f"layer{number}", draw(st.sampled_from([1, 1, 2]))
        half = (-(-h // stride), -(-w // stride))
        op = draw(st.sampled_from("conv conv conv depthwise batchnorm relu maxpool avgpool split concat shuffle add add".split()))
        if op == "conv":
            groups = draw(st.sampled_from(divisors(c)))
            out = groups * draw(st.integers(1, max(1, 40 // groups)))
            lines.append(Line(op, (a,), (name, out, draw(st.sampled_from([1, 1, 3])), stride, groups)))
            shapes.append((*half, out))
        elif op == "depthwise":
            lines.append(Line(op, (a,), (name, stride)))
            shapes.append((*half, c))
        elif op in ("maxpool", "avgpool"):
            lines.append(Line(op, (a,)))
            shapes.append((-(-h // 2), -(-w // 2), c))
        elif op == "split" and c % 2 == 0:
            lines.append(Line(op, (a,)))
            shapes += [(h, w, c // 2)] * 2
        elif op == "concat":
            b = draw(st.sampled_from(beside))
            lines.append(Line(op, (a, b)))
            shapes.append((h, w, c + shapes[b][2]))
        elif op == "add":
            lines.append(Line(op, (a, draw(st.sampled_from(alike)))))
            shapes.append((h, w, c))
        else:
            limit = draw(st.sampled_from([math.inf, 0.5]))
            arguments = {"shuffle": (draw(st.sampled_from(divisors(c))),), "batchnorm": (name,), "relu": (limit,)}.get(op, ())
            lines.append(Line(op if op != "split" else "relu", (a,), arguments))
            shapes.append((h, w, c))
    return Drawn(tuple(lines), draw(st.integers(1, min(4, len(shapes)))))


@settings(max_examples=150, phases=[Phase.generate, Phase.shrink])
@given(
    data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), threads=st.sampled_from([1, 2, 3]),
    large=st.sampled_from([0, bands.LARGE]), nearby=st.sampled_from([1000, 20000]),
)  # fmt: skip
def test_a_network_drawn_at_random(data, height, width, threads, large, nearby):
    """Of any size: the engine's limit is the networks'. Half of them in bands wherever they can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "LARGE", large)
        patch.setattr(bands, "NEARBY", nearby)
        compare_in_turn(data.draw(drawn_nets(height, width)), height, width, threads)


def compare_in_turn(net: Callable, height: int, width: int, threads: int) -> None:
    """The engine with the reference, and its threads in turn with all at once."""
    x = np.random.default_rng(height).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
    params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
    model = Model(Plan(net, params, height, width, machine(), threads))
    logits = model(x)
    assert_near(logits, reference(net, x, params))
    np.testing.assert_array_equal(logits_in_turn(model.program, threads, x[0]), logits[0])
