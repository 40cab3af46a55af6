"""Small networks that the papers compare: the units of V1's section 3.2, and the blocks of V2's four guidelines (section 2).

Each is a function over operations like the whole networks, so that it can be counted, run and timed as they are. The blocks of a
guideline have the FLOPs of its first row in all others, to 1%; what differs is what the guideline is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .backends.cost import FLOAT, Cost, Shape, add_up, parameter_shapes
from .nets import MobileNetV1, MobileNetV2, Net, ShuffleNetV1, ShuffleNetV2

if TYPE_CHECKING:
    from .backends.ops import Ops
    from .types import Params

T = TypeVar("T")

SIDE = 56  # pixels of the maps of every guideline, each way
BLOCKS = 10

# Units --------------------------------------------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A residual unit of c channels with a bottleneck of m, and its multiply-adds at h w pixels, by the paper's formula."""

    formula: str
    cost: Callable[[int, int, int, int], int]  # of h w, c, m, g
    main: Callable[..., Any]  # (ops, x, c, m, g) -> what is added to x


def resnet(ops: Ops[T], x: T, c: int, m: int, g: int) -> T:
    """1x1, 3x3, 1x1."""
    return resnext(ops, x, c, m, g=1)


def resnext(ops: Ops[T], x: T, c: int, m: int, g: int) -> T:
    """1x1, 3x3 in groups, 1x1."""
    x = ops.conv_bn(ops.conv_bn(x, "1", "2", m), "4", "5", m, kernel=3, groups=g)
    return ops.conv_bn(x, "7", "8", c, relu=False)


def shufflenet(ops: Ops[T], x: T, c: int, m: int, g: int) -> T:
    """1x1 in groups, shuffle, depthwise 3x3, 1x1 in groups."""
    x = ops.depthwise_bn(ops.shuffle(ops.conv_bn(x, "1", "2", m, groups=g), g), "4", "5")
    return ops.conv_bn(x, "7", "8", c, groups=g, relu=False)


UNITS = {
    "resnet": Unit("h w (2 c m + 9 m^2)", lambda hw, c, m, g: hw * (2 * c * m + 9 * m * m), resnet),
    "resnext": Unit("h w (2 c m + 9 m^2 / g)", lambda hw, c, m, g: hw * (2 * c * m + 9 * m * m // g), resnext),
    "shufflenet": Unit("h w (2 c m / g + 9 m)", lambda hw, c, m, g: hw * (2 * c * m // g + 9 * m), shufflenet),
}

# Guidelines ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Ten blocks of one kind behind a first 1x1 convolution, for images of height x 56 pixels; the answer is each channel's mean."""

    block: Callable[..., Any]
    channels: int
    height: int = SIDE

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of an image."""
        return 1, self.height, SIDE, 3

    def __call__(self, ops: Ops[T], x: T) -> T:
        x = ops.conv(x, "first", self.channels)
        for i in range(BLOCKS):
            x = self.block(ops, x, f"block{i}", self.channels)
        return ops.mean(x)


class Line(NamedTuple):
    """A row of a guideline's table: a network at each of three scales, and the paper's speeds at those."""

    name: str
    channels: tuple[int, ...]  # at each scale
    block: Callable[..., Any]  # (ops, x, name, channels)
    gpu: tuple[float, ...]  # batches/s; but for G4, of wider networks of the same kind
    cpu: tuple[float, ...]  # images/s; G1 has an ARM processor's

    def stack(self, scale: int) -> Stack:
        """The network at one of the scales 0, 1, 2."""
        return Stack(self.block, self.channels[scale])


class Guideline(NamedTuple):
    """An experiment, and the row that is the fastest if the guideline holds."""

    says: str
    lines: tuple[Line, ...]
    fastest: int
    note: str = ""

    def stacks(self) -> list[list[Stack]]:
        """For each line the networks at all scales.

        With the paper's channels, which are whole numbers, the FLOPs of two lines differ by as much as 6% on maps of one size. So a
        line's maps have a few rows more or fewer than the first's: as many as give it the FLOPs of that.
        """
        stacks = [[line.stack(scale) for scale in range(len(line.channels))] for line in self.lines]
        return [
            [replace(net, height=round(SIDE * cost(first)[1] / cost(net)[1])) for first, net in zip(stacks[0], nets, strict=True)]
            for nets in stacks
        ]

    def verdict(self, name: str, times: npt.NDArray[np.float64]) -> str:
        """One sentence on times (turns, lines, scales): whether the row that ought to be the fastest was so, at which scales.

        It counts as the fastest at a scale where each other row takes longer in three turns of four.
        """
        first = self.lines[self.fastest].name
        lower, median, upper = np.percentile(
            times[:, [self.fastest]] / times, (25, 50, 75), axis=0
        )  # speeds relative to that row
        others = [i for i in range(len(self.lines)) if i != self.fastest]
        held = [f"x{1 << scale}" for scale in range(times.shape[2]) if (upper[others, scale] < 1).all()]
        spread = np.max(upper - lower)
        last = others[int(np.argmin(median[others].mean(axis=1)))]
        speeds = ", ".join(f"{speed:.2f}" for speed in median[last])
        where = "at every scale" if len(held) == times.shape[2] else f"only at {', '.join(held)}" if held else "at no scale"
        return (
            f"{name}, {self.says}, holds here {where}: {self.lines[last].name} runs at {speeds} of the speed of {first} "
            f"(turns differ: the middle half of any such ratio spans {spread:.2f} at most).{self.note}"
        )


def two_widths(ops: Ops[T], x: T, name: str, c: int, ratio: int) -> T:
    """c1 -> c2 -> c1, where c2 is `ratio` times c1."""
    return ops.conv(ops.conv(x, f"{name}.0", ratio * c), f"{name}.1", c)


def grouped(ops: Ops[T], x: T, name: str, c: int, groups: int) -> T:
    return ops.conv(x, name, c, groups=groups)


def in_series(ops: Ops[T], x: T, name: str, c: int, fragments: int) -> T:
    for i in range(fragments):
        x = ops.conv(x, f"{name}.{i}", c)
    return x


def in_parallel(ops: Ops[T], x: T, name: str, c: int, fragments: int) -> T:
    """Branches that are added up."""
    y = ops.conv(x, f"{name}.0", c)
    for i in range(1, fragments):
        y = ops.add(y, ops.conv(x, f"{name}.{i}", c))
    return y


def bottleneck(ops: Ops[T], x: T, name: str, c: int, relu: bool, shortcut: bool) -> T:
    """ResNet's: 1x1 to a quarter of the channels, 3x3, 1x1."""
    act = ops.relu if relu else lambda y: y
    y = act(ops.conv(act(ops.conv(x, f"{name}.0", c // 4)), f"{name}.1", c // 4, kernel=3))
    y = ops.conv(y, f"{name}.2", c)
    return act(ops.add(x, y) if shortcut else y)


def doubled(channels: int) -> tuple[int, ...]:
    return channels, 2 * channels, 4 * channels


def split(fragments: int) -> tuple[int, ...]:
    """As many channels in each of the fragments as give the FLOPs of one with 64, 128 and 256."""
    return tuple(round(c / math.sqrt(fragments)) for c in doubled(64))


GUIDELINES = {
    "G1": Guideline(
        "equal channel widths minimise memory access",
        tuple(
            Line(f"1:{ratio}", doubled(c), partial(two_widths, ratio=ratio), gpu, cpu)
            for ratio, c, gpu, cpu in (
                (1, 32, (1480, 723, 232), (76.2, 21.7, 5.3)),
                (2, 22, (1296, 586, 206), (72.9, 20.5, 5.1)),
                (6, 13, (876, 489, 189), (69.1, 17.9, 4.6)),
                (12, 9, (748, 392, 163), (57.6, 15.1, 4.4)),
            )
        ),
        fastest=0,
    ),
    "G2": Guideline(
        "more groups raise memory access",
        tuple(
            Line(f"{g} groups" if g > 1 else "1 group", doubled(c), partial(grouped, groups=g), gpu, cpu)
            for g, c, gpu, cpu in (
                (1, 64, (2451, 1289, 437), (40.0, 10.2, 2.3)),
                (2, 90, (1725, 873, 341), (35.0, 9.5, 2.2)),
                (4, 128, (1026, 644, 338), (32.9, 8.7, 2.1)),
                (8, 184, (634, 445, 230), (27.8, 7.5, 1.8)),  # printed as 180, which 8 does not divide
            )
        ),
        fastest=0,
    ),
    "G3": Guideline(
        "fragmentation lowers parallelism",
        tuple(
            Line(name, split(fragments), partial(block, fragments=fragments), gpu, cpu)
            for name, block, fragments, gpu, cpu in (
                ("1 fragment", in_series, 1, (2446, 1274, 434), (40.2, 10.1, 2.3)),
                ("2 in series", in_series, 2, (1790, 909, 336), (38.6, 10.1, 2.2)),
                ("4 in series", in_series, 4, (752, 745, 349), (38.4, 10.1, 2.3)),
                ("2 in parallel", in_parallel, 2, (1537, 803, 320), (33.4, 9.1, 2.2)),
                ("4 in parallel", in_parallel, 4, (691, 572, 292), (35.0, 8.4, 2.1)),
            )
        ),
        fastest=0,
    ),
    "G4": Guideline(
        "element-wise operations are not negligible",
        tuple(
            Line(name, doubled(32), partial(bottleneck, relu=relu, shortcut=shortcut), gpu, cpu)
            for name, relu, shortcut, gpu, cpu in (
                ("ReLU and shortcut", True, True, (2427, 2066, 1436), (56.7, 16.9, 5.0)),
                ("ReLU", True, False, (2647, 2256, 1735), (61.9, 18.8, 5.2)),
                ("shortcut", False, True, (2672, 2121, 1458), (57.3, 18.2, 5.1)),
                ("neither", False, False, (2842, 2376, 1782), (66.3, 20.2, 5.4)),
            )
        ),
        fastest=3,
        note=" The engine folds both operations into the convolution before them; the paper's runtimes did not.",
    ),
}


def cost(net: Stack) -> tuple[int, int]:
    """Values read and written, and multiply-adds, of all blocks."""
    ops = Cost()
    net(ops, Shape(net.shape))
    totals = add_up(ops.rows[1:-1])  # without what comes before the blocks, and after
    return (totals.read + totals.written) // FLOAT, totals.macs


def draw(net: Stack) -> Params:
    """Weights under which values neither vanish nor grow, since there is no batch normalisation: tiny floats take longer."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1]))).astype(np.float32)
        for name, shape in parameter_shapes(net).items()
    }


# Networks -----------------------------------------------------------------------------------------------------------------------


class Row8(NamedTuple):
    """A row of V2's table 8."""

    level: int  # about so many MMACs
    net: Net
    size: int
    error: float  # top-1, in percent
    gpu: int  # batches/s
    arm: float  # images/s


TABLE8 = (
    Row8(40, ShuffleNetV2(0.5), 224, 39.7, 417, 57.0),
    Row8(40, ShuffleNetV1(0.5, groups=3), 224, 43.2, 347, 56.8),
    Row8(40, MobileNetV1(0.25), 224, 49.4, 502, 36.4),
    Row8(40, MobileNetV2(0.4), 160, 43.4, 333, 33.2),
    Row8(40, MobileNetV2(0.15), 224, 55.1, 351, 33.6),
    Row8(140, ShuffleNetV2(1.0), 224, 30.6, 341, 24.4),
    Row8(140, ShuffleNetV1(1.0, groups=3), 224, 32.6, 213, 21.8),
    Row8(140, MobileNetV1(0.5), 224, 36.3, 382, 16.5),
    Row8(140, MobileNetV2(0.75), 192, 32.1, 235, 15.9),
    Row8(140, MobileNetV2(0.6), 224, 33.3, 249, 14.9),
    Row8(300, ShuffleNetV2(1.5), 224, 27.4, 255, 11.8),
    Row8(300, ShuffleNetV1(1.5, groups=3), 224, 28.5, 164, 10.3),
    Row8(300, MobileNetV1(0.75), 224, 31.6, 314, 10.6),
    Row8(300, MobileNetV2(1.0), 224, 28.0, 180, 8.9),
    Row8(500, ShuffleNetV2(2.0), 224, 25.1, 217, 6.7),
    Row8(500, ShuffleNetV1(2.0, groups=3), 224, 26.3, 133, 6.4),
    Row8(500, MobileNetV1(1.0), 224, 29.4, 247, 6.5),
    Row8(500, MobileNetV2(1.4), 224, 25.3, 137, 5.4),
)
