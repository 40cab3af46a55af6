"""From a network and its parameters to a table of steps: the interpretation of `ops` that computes nothing and decides everything.

- **Batch normalisation is folded** into the convolution before it, in float64; a ReLU and the addition of a shortcut become part of
  the step as well. To that end an operation is first only `Pending`; it becomes a step when something needs its result that cannot
  be folded into it.
- **Split, concat and shuffle are no steps.** A `Map` is a list that says where each channel lies, a buffer and a column in it;
  these operations rearrange the list. The next convolution reads through it: its table of offsets *is* that list.
- **Buffers** are (H, W, columns) with the columns padded to whole vectors, and with a border of zeros (a halo) where a 3x3 reads them.
  Buffers that are read by one convolution share a layout, so that a channel's offset is the same for every pixel. All lie in one
  arena, in places that are used again once their contents are not needed any more.
- A run of channels that is shorter than a vector gets a whole vector's columns. Where a longer run does not end with a whole vector,
  the last one is moved back and computes a few channels a second time, so that no vector ever writes over what is not its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..backends.cost import parameter_shapes
from ..backends.ops import Ops
from ..errors import WeightsError
from ..nets import Net
from ..ops.batchnorm import EPS
from ..ops.check import out_size
from ..types import Array, Params
from .tiles import FLOAT, LINE, Machine

KINDS = ("image", "dense", "window", "maximum", "mean", "output")
IMAGE, DENSE, WINDOW, MAXIMUM, MEAN, OUTPUT = range(len(KINDS))
TAPS = 9  # of a 3x3 window
BY_ROWS = 4  # a step is shared out by rows where each thread gets so many of them: then it mostly reads what it wrote


class Layout:
    """What buffers that are read together have in common."""

    def __init__(self, height: int, width: int, columns: int) -> None:
        self.height, self.width, self.columns, self.halo = height, width, columns, 0
        self.shared: list[Buffer] = []

    @property
    def pixel(self) -> int:
        """Bytes from one pixel to the next."""
        return self.columns * FLOAT

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.width + 2 * self.halo) * self.pixel

    @property
    def size(self) -> int:
        return (self.height + 2 * self.halo) * self.row

    def join(self, other: Layout) -> None:
        """Make the other's buffers have this layout, wide enough for both."""
        if other is not self:
            self.columns, self.halo = max(self.columns, other.columns), max(self.halo, other.halo)
            for buffer in other.shared:
                buffer.layout = self
            self.shared += other.shared

    def at(self, i: Any, j: Any) -> Any:
        """Bytes from the buffer's begin to pixel (i, j); -1 and the height or width are the halo's."""
        return (i + self.halo) * self.row + (j + self.halo) * self.pixel


class Buffer:
    """A piece of the arena, written by one step."""

    def __init__(self, height: int, width: int, columns: int, made: int) -> None:
        self.layout = Layout(height, width, columns)
        self.layout.shared.append(self)
        self.made = self.needed = made  # the step that writes it, the last one that reads it
        self.offset = 0  # bytes from the arena's begin


Place = tuple[Buffer, int]  # a channel's buffer and its column there


@dataclass(frozen=True, eq=False)
class Map:
    """An activation map: where each of its channels lies. Features (N, C) are a map of one pixel."""

    height: int
    width: int
    places: tuple[Place, ...]

    @property
    def buffers(self) -> list[Buffer]:
        return list(dict.fromkeys(buffer for buffer, _ in self.places))


@dataclass(frozen=True, eq=False)
class Pending:
    """An operation that is not a step yet, as more may be folded into it."""

    kind: int
    name: str
    source: Map
    weight: Array = field(default_factory=lambda: np.zeros((0, 0)))  # dense: (G, K K, C/G, O/G), window: (9, C), in float64
    bias: Array = field(default_factory=lambda: np.zeros(0))  # (O,)
    kernel: int = 1
    stride: int = 1
    relu: bool = False
    residual: Map | None = None

    @property
    def channels(self) -> int:
        return len(self.bias) or len(self.source.places)

    @property
    def size(self) -> tuple[int, int]:
        """Of the output."""
        return (1, 1) if self.kind == MEAN else (out_size(self.source.height, self.stride), out_size(self.source.width, self.stride))

    @property
    def linear(self) -> bool:
        """Whether something linear can still be folded in."""
        return self.kind in (DENSE, WINDOW) and not self.relu and self.residual is None

    def runs(self) -> Iterator[list[int]]:
        """The output channels in the order in which they are computed, each run of those that lie side by side in what is read.

        A step that sees each channel alone takes them as they lie, whatever their numbers. Where a dense step adds a residual, its
        own channels are cut where those of the residual are; a group's channels are never in one run with another's.
        """
        if self.kind != DENSE:
            places, group = self.source.places, self.channels
            order = sorted(range(self.channels), key=lambda c: (places[c][0].made, places[c][1]))
        else:
            places, group = self.residual.places if self.residual else (), self.weight.shape[3]
            order = list(range(self.channels))
        run = order[:1]
        for before, c in pairwise(order):
            apart = places and places[c] != (places[before][0], places[before][1] + 1)
            if apart or c // group != before // group:
                yield run
                run = []
            run.append(c)
        yield run


class Vector(NamedTuple):
    """Channels of a step's output that are computed together, one to a lane: no more than there are lanes, maybe fewer."""

    channels: list[int]
    column: int  # of the buffer


class Step(NamedTuple):
    """A line of the program: an operation, the buffer that it writes, the vectors that it computes."""

    kind: int
    name: str
    what: Pending | None
    source: Map | None
    target: Buffer | None
    vectors: list[Vector]
    size: tuple[int, int]  # of the output

    @property
    def reads(self) -> list[Buffer]:
        residual = self.what.residual if self.what else None
        return [buffer for read in (self.source, residual) if read for buffer in read.buffers]

    def rows(self, machine: Machine, vectors: int) -> int:
        """The parts of a piece of so many vectors that can be shared out: rows of pixels, or where tiles do not fill rows, tiles."""
        height, width = self.size
        if self.kind == MEAN:
            return 1
        tall = machine.tall(vectors, height * width) if self.kind == DENSE else 1
        return height if width % tall == 0 else -(-height * width // tall)


Value = Map | Pending


class Plan(Ops[Value]):
    """The steps for images of one size. `print(plan)` shows them.

    params: as `weights` has them. Raises WeightsError where they are not those of the network.
    """

    def __init__(self, net: Net, params: Params, height: int, width: int, machine: Machine, threads: int = 1) -> None:
        check_params(net, params)
        self.params, self.machine, self.threads, self.size = params, machine, threads, (height, width)
        self.steps: list[Step] = []
        self.settled: dict[Pending, Map] = {}
        image = Buffer(height, width, 3, made=0)
        self.record(Step(IMAGE, "image", None, None, image, [], (height, width)))
        logits = self.settle(net(self, Map(height, width, tuple((image, c) for c in range(3)))))
        self.record(Step(OUTPUT, "logits", None, logits, None, [], (1, 1)))
        self.meetings = set(self.meet())  # the steps before which all threads have to be done with all others
        self.arena = self.place()  # bytes

    def conv(self, x: Value, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Value:
        weight = self.param(f"{name}.weight").reshape(kernel * kernel, -1, groups, out // groups)
        return Pending(DENSE, name, self.settle(x), np.moveaxis(weight, 2, 0), np.zeros(out), kernel, stride)

    def depthwise(self, x: Value, name: str, stride: int = 1) -> Value:
        weight = self.param(f"{name}.weight").reshape(TAPS, -1)
        return Pending(WINDOW, name, self.settle(x), weight, np.zeros(weight.shape[1]), 3, stride)

    def batchnorm(self, x: Value, name: str) -> Value:
        gamma, beta, mean, var = (self.param(f"{name}.{entry}") for entry in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / np.sqrt(var + EPS)
        x = self.linear_end(x, name)
        per_output = scale.reshape(len(x.weight), 1, 1, -1) if x.kind == DENSE else scale
        return replace(x, weight=x.weight * per_output, bias=(x.bias - mean) * scale + beta)

    def relu(self, x: Value) -> Value:
        foldable = isinstance(x, Pending) and x.kind in (DENSE, WINDOW)
        return replace(x if foldable else self.linear_end(x, "relu"), relu=True)

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
        weight = self.param(f"{name}.weight")[None, None]
        return Pending(DENSE, name, self.settle(x), weight, self.param(f"{name}.bias") if bias else np.zeros(out))

    def param(self, name: str) -> Array:
        return self.params[name].astype(np.float64)

    def linear_end(self, x: Value, name: str) -> Pending:
        """x itself where something linear can be folded into it, else a copy of it to fold that into."""
        return x if isinstance(x, Pending) and x.linear else self.filtered(x, name, np.arange(TAPS) == TAPS // 2)

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
            vectors, columns = cut(list(x.runs()), self.machine.lanes)
            target = self.same_place(x, vectors) or Buffer(*x.size, columns, made=len(self.steps))
            self.record(Step(x.kind, x.name, x, x.source, target, vectors, x.size))
            place_of = {c: (target, vector.column + lane) for vector in vectors for lane, c in enumerate(vector.channels)}
            self.settled[x] = Map(*x.size, tuple(place_of[c] for c in range(x.channels)))
        return self.settled[x]

    def same_place(self, x: Pending, vectors: list[Vector]) -> Buffer | None:
        """The buffer of the residual, if the sum can take its place: then a large map is in the cache once and not twice.

        Only where nothing is computed twice, and where nothing else reads the residual: nobody can know yet what will be read later,
        so this holds for a residual that the steps so far have read once, and whoever reads it later finds it `gone`.
        """
        return None

    def record(self, step: Step) -> None:
        for buffer in step.reads:
            buffer.needed = len(self.steps)
        self.steps.append(step)

    def meet(self) -> Iterator[int]:
        """The steps before which all threads meet: those that touch what another thread may just have written.

        A 1x1 convolution whose rows are shared out as those of the step before it needs only what its own thread computed.
        """
        written: dict[Buffer, list[Step]] = {}
        for number, step in enumerate(self.steps if self.threads > 1 else ()):
            if number == 0 or any(not self.own(before, step) for buffer in step.reads for before in written.get(buffer, ())):
                written.clear()
                yield number
            if step.target:
                written.setdefault(step.target, []).append(step)

    def own(self, before: Step, after: Step) -> bool:
        """Whether every thread computes `after` from that part of `before` that it computed itself."""
        pixelwise = after.kind == DENSE and after.what.kernel == after.what.stride == 1
        return pixelwise and before.size == after.size and self.by_rows(before) and self.by_rows(after)

    def by_rows(self, step: Step) -> bool:
        """Whether the threads share the rows of every piece in the same way."""
        kinds = self.machine.heights if step.kind == DENSE else (1,)
        return step.size[0] >= BY_ROWS * self.threads and all(step.rows(self.machine, vectors) == step.size[0] for vectors in kinds)

    def place(self) -> int:
        """Give every buffer the lowest place in the arena that no buffer holds while it is needed. Returns the arena's size in bytes.

        Between two meetings some threads are ahead of others: what one of them reads must not be overwritten before the next.
        """
        ends = [number for number in range(len(self.steps)) if self.threads == 1 or number + 1 in self.meetings]
        ends.append(len(self.steps))
        placed: list[Buffer] = []
        for buffer in dict.fromkeys(step.target for step in self.steps if step.target):
            buffer.needed = next(end for end in ends if end >= buffer.needed)
            for other in sorted(placed, key=lambda other: other.offset):
                at_once = other.made <= buffer.needed and buffer.made <= other.needed
                apart = buffer.offset + buffer.layout.size <= other.offset or other.offset + other.layout.size <= buffer.offset
                if at_once and not apart:
                    buffer.offset = -(-(other.offset + other.layout.size) // LINE) * LINE
            placed.append(buffer)
        return max(buffer.offset + buffer.layout.size for buffer in placed)

    def __str__(self) -> str:
        return "\n".join(describe(self))


def read_together(x: Pending) -> None:
    """Give the buffers that a step reads through one table one layout, and those that a 3x3 reads a halo."""
    for read in (x.source, x.residual) if x.kind == DENSE else ():
        first, *others = read.buffers if read else [None]
        for other in others:
            first.layout.join(other.layout)
    if x.kernel == 3 and x.kind != MAXIMUM:
        for buffer in x.source.buffers:
            buffer.layout.halo = 1


def cut(runs: list[list[int]], lanes: int) -> tuple[list[Vector], int]:
    """The vectors of a step's output, and the columns of its buffer."""
    vectors, column = [], 0
    for number, run in enumerate(runs, start=1):
        starts = list(range(0, len(run), lanes))
        if lanes < len(run) and number < len(runs):
            starts[-1] = len(run) - lanes  # moved back, so that it ends where the run does
        vectors += [Vector(run[start : start + lanes], column + start) for start in starts]
        column += starts[-1] + lanes
    return vectors, column


def check_params(net: Net, params: Params) -> None:
    """Raises WeightsError unless the parameters are those of the network."""
    for name, shape in parameter_shapes(net).items():
        if name not in params:
            raise WeightsError(f"the network needs a parameter {name!r} and the weights have none")
        if params[name].shape != shape:
            raise WeightsError(f"{name} has the shape {params[name].shape}: the network needs {shape}")


def describe(plan: Plan) -> Iterator[str]:
    """The lines of `print(plan)`."""
    names = {id(step.target): f"b{number}" for number, step in enumerate(plan.steps)}

    def where(map_: Map | None) -> str:
        return "+".join(names[id(buffer)] for buffer in map_.buffers) if map_ else ""

    yield f"{'':4}{'step':<8} {'layer':<24} {'output':>14}  {'into':<5} {'at':>9} {'MMACs':>8}  from"
    for number, step in enumerate(plan.steps):
        height, width = step.size
        channels = step.what.channels if step.what else len(step.source.places) if step.source else 3
        into, at = (f"b{number}", step.target.offset) if step.target else ("", "")
        also = f" plus {where(step.what.residual)}" if step.what and step.what.residual else ""
        relu = ", ReLU" if step.what and step.what.relu else ""
        yield (
            f"{number:3} {KINDS[step.kind]:<8} {step.name:<24} {f'{height} x {width} x {channels}':>14}  {into:<5} {at:>9} "
            f"{multiply_adds(step) / 1e6:8.3f}  {where(step.source)}{also}{relu}"
        )
    yield f"arena of {plan.arena / 2**20:.2f} MiB an image"


def multiply_adds(step: Step) -> int:
    """Those of convolutions and of the linear layer, as the papers count."""
    what = step.what
    if not what or not what.weight.size or what.name in ("add", "avgpool", "relu"):
        return 0
    height, width = what.size
    return height * width * what.weight.size
