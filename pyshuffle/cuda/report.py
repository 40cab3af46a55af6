"""What a GPU makes of the kernels: `python -m pyshuffle.cuda.check --run`.

Every kernel, inference, and steps of training are compared with the reference, and timed by the device's own clock: a line each, the
report to send in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from .. import device, engine
from ..backends.cuda import Cuda
from ..backends.reference import Reference
from ..engine import cuda as device_engine
from ..init import initialise
from ..nets import Net, ShuffleNetV1, ShuffleNetV2
from ..ops import batchnorm, loss, sgd
from ..settings import MOMENTUM, SMOOTHING
from ..sgd import ReferenceTrainer, Trainer
from ..sgd_cuda import Trainer as DeviceTrainer
from ..types import Array, Params
from . import conv, depthwise
from . import loss as device_loss
from .launch import Tensor, download, milliseconds, table, upload, zeros_like
from .sgd import descend

TOLERANCE, NET_TOLERANCE = 1e-5, 1e-4  # of the largest value, of an operation and of a network
LEAST = 1e-2  # of the largest value of all parameters: some are 0, or their gradients, but for rounding
ROUNDS = 20  # of a measurement
STEPS, RATE = 2, 0.01  # of training: the second step shows the gradients, after it rounding grows from step to step
LIMIT, LIMIT6 = 0.5, 6.0  # of a ReLU of single values, of one of sums
MAP = (8, 28, 28, 48)
NETWORKS: list[tuple[Net, int, int, bool]] = [
    (ShuffleNetV1(0.5), 8, 64, True), (ShuffleNetV2(0.5), 8, 64, True), (ShuffleNetV2(1.0), 1, 224, True),
    (ShuffleNetV2(1.0), 64, 224, False),
]  # fmt: skip


class Case(NamedTuple):
    """What the device computes, and what it should."""

    name: str
    run: Callable[[], Any]
    expected: Any
    timed: Callable[[], Any] | None
    allowed: float = TOLERANCE
    least: float = 0.0  # of the largest value of all arrays, where that is more than an array's own


def run() -> int:
    """Prints the report. The exit code: 1 if something is not what the reference says."""
    print(f"{device.gpu()}, numba-cuda {version('numba-cuda')}, numpy {np.__version__}")
    print(f"{'':<54} {'away from the reference':>24} {'ms':>9}")
    failed = False
    for case in chain(operations(MAP), *(network(*one) for one in NETWORKS)):
        away = distance(case)
        took = f"{np.median(milliseconds(case.timed, ROUNDS)):.4f}" if case.timed else ""
        wrong = not away <= case.allowed
        failed |= wrong
        print(f"{case.name:<54} {away:>24.1e} {took:>9}", "WRONG" * wrong, flush=True)
    return int(failed)


def distance(case: Case) -> float:
    """How far what the device computes is away, in parts of the largest value of an array."""
    got, expected = (
        tuple(map(on_host, value if isinstance(value, tuple) else (value,))) for value in (case.run(), case.expected)
    )
    sizes = [np.abs(array).max() for array in expected]
    least = case.least * max(sizes)
    away = [np.abs(a - b).max() / (max(size, least) or 1) for a, b, size in zip(got, expected, sizes, strict=True)]
    return float(np.max(away))  # NaN, if one is


def on_host(value: Any) -> Array:
    return download(value) if isinstance(value, Tensor) else np.asarray(value)


def operations(x: tuple[int, ...]) -> Iterator[Case]:
    """Each of them, forward and backward, on maps of the shape x with 6 n channels; then what is left of the kernels."""
    channels = x[3]
    cases: list[tuple[str, str, tuple[tuple[int, ...], ...], dict[str, Any]]] = [
        ("conv 1x1", "conv", (x, (1, 1, channels, channels)), {}),
        ("conv 1x1, 3 groups", "conv", (x, (1, 1, channels // 3, channels)), {"groups": 3}),
        ("conv 3x3, stride 2", "conv", (x, (3, 3, channels, channels)), {"stride": 2}),
        ("depthwise", "depthwise", (x, (3, 3, channels)), {}),
        ("depthwise, stride 2", "depthwise", (x, (3, 3, channels)), {"stride": 2}),
        ("batchnorm and relu", "batchnorm", (x, (channels,), (channels,)), {"training": True, "relu": True}),
        (f"relu that ends at {LIMIT}", "relu", (x,), {"limit": LIMIT}),
        *((op, op, (x,), {}) for op in ("relu", "maxpool", "avgpool", "split", "mean")),
        ("concat", "concat", (x, x), {}),
        ("add", "add", (x, x), {}),
        ("shuffle, 3 groups", "shuffle", (x,), {"groups": 3}),
        ("linear", "linear", ((x[0], channels), (channels, 10), (10,)), {}),
    ]
    rng = np.random.default_rng(0)
    for name, op, shapes, settings in cases:
        yield from operation(name, op, [draw(rng, *shape) for shape in shapes], settings, rng)
    yield from fused(x, rng)
    yield from of_training(x, rng)


def operation(name: str, op: str, arrays: list[Array], settings: dict[str, Any], rng: np.random.Generator) -> Iterator[Case]:
    """Its forward, and its backward for a random cotangent."""
    exact, tensors = [array.astype(np.float64) for array in arrays], [upload(array) for array in arrays]
    told, known = dict(settings), dict(settings)
    if op == "batchnorm":
        moments = Reference.statistics(exact[0])
        told |= zip(("mean", "var"), (upload(array.astype(np.float32)) for array in moments), strict=True)
        known |= zip(("mean", "var"), moments, strict=True)
    (forward, backward), (right, right_backward) = Cuda.functions[op], Reference.functions[op]
    expected = right(*exact, **known)
    again = partial(forward, *tensors, **told)
    yield Case(f"{name}, forward", again, expected, again)
    cotangents = [draw(rng, *y.shape) for y in (expected if isinstance(expected, tuple) else (expected,))]
    again = partial(backward, *map(upload, cotangents), *tensors, **told)
    yield Case(f"{name}, backward", again, right_backward(*cotangents, *exact, **known), again)


def fused(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[Case]:
    """The product and the filter with all that may follow them, on channels in the opposite order, as a compiled network has them."""
    images, height, width, channels = shape
    x, residual, w, taps, bias = (draw(rng, *s) for s in (shape, shape, (channels, channels), (3, 3, channels), (channels,)))
    turned = x[..., ::-1].astype(np.float64)
    y, backwards, onwards = Tensor(shape), table(range(channels - 1, -1, -1)), table(range(channels))
    a, b, c, d, e = map(upload, (x, residual, w, taps, bias))
    view, place = (images, height, width, height, width), (0, height * width * channels, channels)
    strides, each = (0, channels * channels, channels, 1, channels), (*place, channels)

    def product() -> Tensor:
        follow = conv.BIAS | conv.RESIDUAL | conv.RELU
        conv.product(a, backwards, c, e, b, onwards, y, (*view, 1, 1, 1), each, strides, each, place, follow, 1, LIMIT6)
        return y

    def filter() -> Tensor:
        depthwise.filtered(a, backwards, d, e, y, (*view, 1), place, each, 1, 0, conv.BIAS | conv.RELU, LIMIT6)
        return y

    yield Case("conv 1x1 with bias, residual and relu", product, np.clip(turned @ w + bias + residual, 0, LIMIT6), product)
    filtered = Reference.functions["depthwise"][0](turned, taps.astype(np.float64)) + bias
    yield Case("depthwise with bias and relu", filter, np.clip(filtered, 0, LIMIT6), filter)


def of_training(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[Case]:
    """What a step has besides the operations: statistics, the loss, and the descent."""
    x, logits, labels = draw(rng, *shape), draw(rng, shape[0], 200), np.arange(shape[0])
    moments, count = Reference.statistics(x.astype(np.float64)), x.size // shape[3]
    statistics = partial(Cuda.statistics, upload(x))
    yield Case("mean and variance of a batch", statistics, moments, statistics)

    running = draw(rng, shape[3]), draw(rng, shape[3])
    held = tuple(map(upload, running))
    follow = partial(Cuda.follow, held, tuple(upload(array.astype(np.float32)) for array in moments), 0.1, count)
    batchnorm.follow(running, moments, 0.1, count)
    yield Case("running mean and variance", partial(after, follow, held), running, follow)

    assess = partial(device_loss.run, upload(logits), labels, SMOOTHING)
    yield Case("loss, and its gradient", assess, loss.run_reference(logits.astype(np.float64), labels, SMOOTHING), assess)

    w, velocity, gradient = (draw(rng, *shape) for _ in range(3))
    moved = upload(w), upload(velocity)
    down = partial(descend, *moved, upload(gradient), RATE, MOMENTUM, 0.1)
    sgd.descend_reference(w, velocity, gradient, RATE, MOMENTUM, 0.1)
    yield Case("descent", partial(after, down, moved), (w, velocity), down)
    yield Case("zeros", partial(zeros_like, moved[0]), np.zeros(shape), partial(zeros_like, moved[0]))


def network(net: Net, images: int, size: int, exactly: bool) -> Iterator[Case]:
    """Inference, and steps of training: their losses, and what parameters, statistics and velocities have come to.

    Compared with the reference in float64 or, where that takes too long, with the kernels and the engine for the processor.
    """
    x = draw(np.random.default_rng(0), images, size, size, 3)
    params, labels, name = parameters(net), np.arange(images) % net.classes, f"{net.arch} {net.width}, {images} x {size} x {size}"
    exact_x = x.astype(np.float64)
    exact: Params = {key: array.astype(np.float64) for key, array in params.items()}
    model, trainer = device_engine.compile(net, params, x.shape), DeviceTrainer(net, params)
    expected = net(Reference(exact), exact_x) if exactly else engine.compile(net, params, x.shape)(x)
    yield Case(f"{name}: logits", partial(model, x), expected, model.program(images).run, NET_TOLERANCE)

    oracle, given = (ReferenceTrainer(net, exact), exact_x) if exactly else (Trainer(net, params), x)
    losses, right = ([t.step(batch, labels, RATE)[0] for _ in range(STEPS)] for t, batch in ((trainer, x), (oracle, given)))
    step = partial(trainer.step, x, labels, RATE)
    got, wanted = trainer.state(), oracle.state()
    yield Case(f"{name}: {STEPS} losses, and a step", partial(np.array, losses), np.array(right), step, NET_TOLERANCE)
    of_params = list(wanted["params"])
    for what, kind, names in (
        ("parameters", "params", [key for key in of_params if "running" not in key]),
        ("statistics", "params", [key for key in of_params if "running" in key]),
        ("velocities", "velocity", list(wanted["velocity"])),
    ):
        arrays, oracles = (tuple(state[kind][key] for key in names) for state in (got, wanted))
        yield Case(f"{name}: {what} after them", partial(tuple, arrays), oracles, None, NET_TOLERANCE, LEAST)


def after(move: Callable[[], None], arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What lies in arrays that are moved in place."""
    move()
    return arrays


def parameters(net: Net) -> Params:
    """Such as training begins with, but that few values lie where a ReLU bends: there rounding would decide about the gradient."""
    params = initialise(net)
    for name in [name for name in params if name.endswith("running_mean")]:
        params[name.replace("running_mean", "bias")] += 1
    return params


def draw(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)
