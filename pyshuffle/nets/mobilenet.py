"""MobileNet V1 (arXiv 1704.04861) and V2 (arXiv 1801.04381), with which both ShuffleNet papers compare theirs.

V1 puts a 1x1 convolution behind every depthwise one. V2 makes a unit of three: a 1x1 that widens `expansion` times, a depthwise one,
and a 1x1 that narrows again, with a shortcut around it where the shapes allow. The last has no ReLU (a linear bottleneck), the others
one that ends at 6. Both take images of any size from 32 pixels up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ..errors import ArchError
from .net import Net, Published

if TYPE_CHECKING:
    from ..backends.ops import Ops

T = TypeVar("T")

V1_STEM = 32
WIDEST = 100.0
V1_UNITS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))  # channels, stride
V1_WIDTHS = (0.25, 0.5, 0.75, 1.0)
V1_NOTES = (
    "The last depthwise convolution is often printed with stride 2: it is stride 1.",
    "The share of its 3x3 convolution in the multiply-adds is often printed as 1.19%: it is 1.91%.",
)

V2_STEM, V2_LAST = 32, 1280
V2_UNITS = (  # expansion, channels, units, stride of the first
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
)  # fmt: skip
V2_WIDTHS = (0.15, 0.4, 0.5, 0.6, 0.75, 1.0, 1.4)
MULTIPLE = 8  # of which V2's channel counts are
SIX = 6.0


@dataclass(frozen=True)
class MobileNetV1(Net):
    """MobileNet V1. Calling it with operations and a (N, H, W, 3) image gives (N, classes) logits. Raises ArchError."""

    width: float = 1.0
    classes: int = 1000

    arch: ClassVar[str] = "mobilenet_v1"

    def __post_init__(self) -> None:
        self.check()
        check_width(self, V1_STEM)

    def __call__(self, ops: Ops[T], x: T) -> T:
        x = ops.conv_bn(x, "conv1.0", "conv1.1", int(V1_STEM * self.width), kernel=3, stride=2)
        for i, (channels, stride) in enumerate(V1_UNITS):
            x = ops.relu(ops.depthwise_bn(x, f"unit{i}.0", f"unit{i}.1", stride))
            x = ops.conv_bn(x, f"unit{i}.3", f"unit{i}.4", int(channels * self.width))
        return ops.linear(ops.mean(x), "fc", self.classes)

    @property
    def published(self) -> Published:
        return Published(None, "MobileNet V1 paper", with_linear=True, notes=V1_NOTES)

    @classmethod
    def variants(cls) -> Iterator[MobileNetV1]:
        return map(cls, V1_WIDTHS)


@dataclass(frozen=True)
class MobileNetV2(Net):
    """MobileNet V2, with torchvision's names. Calling it with operations and a (N, H, W, 3) image gives (N, classes) logits.

    Raises ArchError.
    """

    width: float = 1.0
    classes: int = 1000

    arch: ClassVar[str] = "mobilenet_v2"

    def __post_init__(self) -> None:
        self.check()
        check_width(self, V2_STEM)

    def __call__(self, ops: Ops[T], x: T) -> T:
        channels = rounded(V2_STEM * self.width)
        x = ops.relu(ops.conv_bn(x, "features.0.0", "features.0.1", channels, kernel=3, stride=2, relu=False), SIX)
        number = 1
        for expansion, base, repeats, first_stride in V2_UNITS:
            out = rounded(base * self.width)
            for stride in (first_stride, *[1] * (repeats - 1)):
                y = self.unit(ops, x, f"features.{number}.conv", expansion, channels, out, stride)
                x = ops.add(x, y) if stride == 1 and channels == out else y
                channels, number = out, number + 1
        last = rounded(V2_LAST * max(1.0, self.width))
        x = ops.relu(ops.conv_bn(x, f"features.{number}.0", f"features.{number}.1", last, relu=False), SIX)
        return ops.linear(ops.mean(x), "classifier.1", self.classes)

    def unit(self, ops: Ops[T], x: T, name: str, expansion: int, channels: int, out: int, stride: int) -> T:
        """Wide, depthwise, narrow. With an expansion of 1 there is nothing to widen, and no convolution that would."""
        depthwise = 0 if expansion == 1 else 1
        if depthwise:
            x = ops.relu(ops.conv_bn(x, f"{name}.0.0", f"{name}.0.1", expansion * channels, relu=False), SIX)
        x = ops.relu(ops.depthwise_bn(x, f"{name}.{depthwise}.0", f"{name}.{depthwise}.1", stride), SIX)
        return ops.conv_bn(x, f"{name}.{depthwise + 1}", f"{name}.{depthwise + 2}", out, relu=False)

    @property
    def published(self) -> Published:
        return Published(None, "MobileNet V2 paper", with_linear=True)

    @classmethod
    def variants(cls) -> Iterator[MobileNetV2]:
        return map(cls, V2_WIDTHS)


def check_width(net: Net, stem: int) -> None:
    """Raises ArchError unless the stem has a channel left, and no layer more than memory can hold."""
    if not 1 / stem <= net.width <= WIDEST:
        raise ArchError(f"{net.arch} has no width {net.width}: {1 / stem} to {WIDEST} is needed")


def rounded(channels: float) -> int:
    """The nearest multiple of 8, or the next one where that would be less than nine tenths."""
    nearest = max(MULTIPLE, int(channels + MULTIPLE / 2) // MULTIPLE * MULTIPLE)
    return nearest + MULTIPLE * (nearest < 0.9 * channels)
