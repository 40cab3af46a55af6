"""From a network and its parameters to a list of steps: the interpretation of `ops` that computes nothing and decides everything.

- **Batch normalisation is folded** into the convolution before it, in float64; a ReLU and the addition of a shortcut become part of
  the step as well. To that end an operation is first only `Pending`; it becomes a step when something needs its result that cannot
  be folded into it.
- **Split, concat and shuffle are no steps.** A `Map` is a list that says where each channel lies; these operations rearrange it. The
  next convolution reads through it: its table of offsets *is* that list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np

from ..backends.cost import check_params
from ..backends.ops import Ops
from ..errors import ShapeError
from ..nets import Net, check_size
from ..ops.check import EPS
from ..types import Array, Params
from .bands import opened, paired
from .layout import Buffer, arrange, divide, meetings, place
from .machine import Machine
from .steps import DENSE, IMAGE, KINDS, MAXIMUM, MEAN, OUTPUT, WINDOW, Map, Pending, Step, multiply_adds

TAPS = 9  # of a 3x3 window
FOLLOWING = {2: "the next", 3: "the next two"}  # steps that are computed together with the first of so many

Value = Map | Pending


class Plan(Ops[Value]):
    """The steps for images of one size. `print(plan)` shows them.

    params: as `weights` has them. Raises WeightsError where they are not those of the network.
    """

    def __init__(self, net: Net, params: Params, height: int, width: int, machine: Machine, threads: int = 1) -> None:
        check_params(net, params)
        self.params, self.machine, self.threads, self.size = params, machine, threads, (height, width)
        self.steps: list[Step] = []
        self.settled: WeakKeyDictionary[Pending, Map] = WeakKeyDictionary()
        image = self.settle(Pending(IMAGE, "image", Map(height, width, ())))
        logits = self.settle(net(self, image))
        self.settle(Pending(OUTPUT, "logits", logits))
        self.classes = len(logits.places)
        self.lay_out()

    def lay_out(self) -> None:
        """Where everything lies."""
        self.steps = paired(opened(self.steps, self.machine), self.machine, self.threads)
        arrange(self.steps, self.machine)
        divide(self.steps, self.machine, self.threads)
        self.meetings = set(meetings(self.steps, self.machine, self.threads))  # the steps before which all threads meet
        self.arena = place(self.steps, self.meetings, self.threads)  # bytes

    def conv(self, x: Value, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Value:
        weight = self.param(f"{name}.weight").reshape(kernel * kernel, -1, groups, out // groups)
        return Pending(DENSE, name, self.settle(x), np.moveaxis(weight, 2, 0), np.zeros(out), kernel, stride, learnt=True)

    def depthwise(self, x: Value, name: str, stride: int = 1) -> Value:
        weight = self.param(f"{name}.weight").reshape(TAPS, -1)
        return Pending(WINDOW, name, self.settle(x), weight, np.zeros(weight.shape[1]), 3, stride, learnt=True)

    def batchnorm(self, x: Value, name: str) -> Value:
        gamma, beta, mean, var = (self.param(f"{name}.{entry}") for entry in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / np.sqrt(var + EPS)
        x = self.linear_end(x)
        per_output = scale.reshape(len(x.weight), 1, 1, -1) if x.kind == DENSE else scale
        return replace(x, weight=x.weight * per_output, bias=(x.bias - mean) * scale + beta)

    def relu(self, x: Value, limit: float = np.inf) -> Value:
        x = x if isinstance(x, Pending) and x.kind in (DENSE, WINDOW) else self.linear_end(x)
        return replace(x, relu=True, limit=min(limit, x.limit))

    def maxpool(self, x: Value) -> Value:
        return Pending(MAXIMUM, "maxpool", self.settle(x), kernel=3, stride=2)

    def avgpool(self, x: Value) -> Value:
        return self.filtered(x, "avgpool", np.full(TAPS, 1 / TAPS), stride=2)

    def split(self, x: Value) -> tuple[Value, Value]:
        x = self.settle(x)
        half = len(x.places) // 2
        return replace(x, places=x.places[:half]), replace(x, places=x.places[half:])

    def concat(self, a: Value, b: Value) -> Value:
        a = self.settle(a)
        return replace(a, places=a.places + self.settle(b).places)

    def shuffle(self, x: Value, groups: int) -> Value:
        x = self.settle(x)
        each = len(x.places) // groups
        return replace(x, places=tuple(x.places[b * each + a] for a in range(each) for b in range(groups)))

    def add(self, a: Value, b: Value) -> Value:
        for main, shortcut in ((b, a), (a, b)):
            if isinstance(main, Pending) and main.kind == DENSE and main.linear:
                return replace(main, residual=self.settle(shortcut))
        source = self.settle(b)  # neither can take the other in: b is copied, by a convolution that can
        channels = len(source.places)
        copy = Pending(DENSE, "add", source, np.eye(channels)[None, None], np.zeros(channels))
        return replace(copy, residual=self.settle(a))

    def mean(self, x: Value) -> Value:
        return Pending(MEAN, "mean", self.settle(x))

    def linear(self, x: Value, name: str, out: int, bias: bool = True) -> Value:
        weight, shift = self.param(f"{name}.weight")[None, None], self.param(f"{name}.bias") if bias else np.zeros(out)
        return Pending(DENSE, name, self.settle(x), weight, shift, learnt=True)

    def param(self, name: str) -> Array:
        return self.params[name].astype(np.float64)

    def linear_end(self, x: Value) -> Pending:
        """x itself where something linear can be folded into it, else a copy of it to fold that into."""
        return x if isinstance(x, Pending) and x.linear else self.filtered(x, "copy", np.arange(TAPS) == TAPS // 2)

    def filtered(self, x: Value, name: str, window: Array, stride: int = 1) -> Pending:
        """Every channel of x seen through the same window (9,)."""
        source = self.settle(x)
        channels = len(source.places)
        return Pending(WINDOW, name, source, np.outer(window, np.ones(channels)), np.zeros(channels), 3, stride)

    def settle(self, x: Value) -> Map:
        """Where the channels of x lie. What is pending becomes a step: now, and once."""
        if isinstance(x, Map):
            return x
        if x not in self.settled:
            read_together(x)
            plain = x.kind == DENSE and len(x.weight) == 1 and not x.residual
            target = Buffer(x.size, x.channels, len(self.steps), plain, halo=x.kind == IMAGE)
            folded = replace(x, weight=x.weight.astype(np.float32), bias=x.bias.astype(np.float32))  # by now, with all there is
            step = Step(x.kind, folded, target, x.size, [])
            for buffer in step.reads:
                buffer.needed = target.made
            self.steps.append(step)
            self.settled[x] = Map(*x.size, tuple((target, c) for c in range(x.channels)))
        return self.settled[x]

    def check(self, x: Array) -> None:
        """Raises ShapeError unless x are images that the plan is for."""
        height, width = self.size
        if x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != (height, width, 3) or not len(x):
            raise ShapeError(f"x is {x.dtype} of shape {x.shape}: the model was compiled for float32 (N, {height}, {width}, 3)")

    def __str__(self) -> str:
        return "\n".join(describe(self))


def size_of(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Images, height and width of an input shape, whose first may be left out. Raises ShapeError, or ArchError for a size."""
    *_, images, height, width, channels = (0, 0, 0, 0, *input_shape)
    if len(input_shape) not in (3, 4) or channels != 3:
        raise ShapeError(f"input_shape={tuple(input_shape)}: (N, H, W, 3) or (H, W, 3) is needed")
    for size in (height, width):
        check_size(size)
    return images, height, width


def read_together(x: Pending) -> None:
    """Give the buffers that a step reads through one table one layout, and those that a 3x3 other than a maximum reads a halo."""
    for read in (x.source, x.residual) if x.kind == DENSE else ():
        for before, after in pairwise(read.buffers if read else []):
            before.layout.join(after.layout)
    for buffer in x.residual.buffers if x.residual else ():
        buffer.plain = False
    if x.kernel == 3 and x.kind != MAXIMUM:
        for buffer in x.source.buffers:
            buffer.layout.halo = 1


def describe(plan: Plan) -> Iterator[str]:
    """The lines of `print(plan)`."""
    names = {id(step.target): f"b{number}" for number, step in enumerate(plan.steps)}

    def where(map_: Map) -> str:
        return "+".join(names[id(buffer)] for buffer in map_.buffers)

    yield f"{'':4}{'step':<8} {'layer':<24} {'output':>14}  {'into':<5} {'at':>9} {'MMACs':>8}  from"
    for number, step in enumerate(plan.steps):
        height, width = step.size
        also = f" plus {where(step.what.residual)}" if step.what.residual else ""
        limit = f"{step.what.limit:g}" if step.what.limit < np.inf else ""
        relu = f"ReLU{limit}" if step.what.relu else ""
        together = f"with {FOLLOWING[step.span]} in bands of {step.band} rows" if step.band else ""
        yield (
            f"{number:3} {KINDS[step.kind]:<8} {step.name:<24} {f'{height} x {width} x {step.what.channels}':>14}  "
            f"b{number:<4} {step.target.offset:>9} {multiply_adds(step) / 1e6:8.3f}  "
            + ", ".join(filter(None, (f"{where(step.source)}{also}", relu, together)))
        )
    yield f"arena of {plan.arena / 2**20:.2f} MiB {'an image' if plan.threads == 1 else 'a thread'}"
