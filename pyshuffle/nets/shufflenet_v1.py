"""ShuffleNet V1 (arXiv 1707.01083): table 1 and figure 2 (b), (c) as one function over a set of operations.

`order` says what the shuffle between a unit's two grouped convolutions does to its g n channels.
    paper    reshape to (g, n), transpose: section 3.1.
    authors  reshape to (n, g), transpose: the inverse, in the authors' released code.
For training the two are alike. For loading their weights they are not. Where n mod g is 0, 1 or g - 1, as for every g up to 3, a
permutation of weights within the groups turns one into the other. Elsewhere (g = 8 at 0.5x, 1.0x and 1.5x; g = 4) it does not, as
the two connect different numbers of channels from group to group. So the order belongs to the network. (That the authors shuffle
after the depthwise convolution and not before it is undone on loading: see weights.)
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

REPEATS = (4, 8, 4)  # units of stages 2, 3, 4
STAGE2 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # groups: output channels at 1.0x; each later stage doubles (table 1)
STEM = {0.25: 6, 0.5: 12, 0.75: 18, 1.0: 24, 1.5: 24, 2.0: 48}  # width: output channels of the first convolution
STEM_OF_AUTHORS = {(8, 0.5): 16}  # where plain scaling does not divide
TABLE1_MMACS = {1: 143, 2: 140, 3: 137, 4: 133, 8: 137}  # at 1.0x, without the linear layer
WIDER_MMACS = {(3, 1.5): 292, (3, 2.0): 524}  # with it


@dataclass(frozen=True)
class ShuffleNetV1(Net):
    """ShuffleNet V1. Calling it with operations and a (N, H, W, 3) image gives (N, classes) logits. Raises ArchError."""

    width: float = 1.0
    groups: int = 3
    classes: int = 1000
    order: str = "paper"
    bias: bool = True  # of the classifier; the authors' models have none
    shuffle: bool = True  # without it a group of a stage never sees another: the paper's ablation

    arch: ClassVar[str] = "v1"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"order": ("paper", "authors")}

    def __post_init__(self) -> None:
        self.check()
        if self.groups not in STAGE2:
            raise ArchError(f"v1 has no groups={self.groups}: choose one of {', '.join(map(str, STAGE2))}")
        widths = valid_widths(self.groups)
        if self.width not in widths:
            raise ArchError(
                f"v1 has no width {self.width} with groups={self.groups} (every channel count must be divisible by the groups): "
                f"choose one of {', '.join(map(str, widths))}"
            )

    def __call__(self, ops: Ops[T], x: T) -> T:
        channels, *stages = widths_of(self.groups, self.width)
        x = ops.conv_bn(x, "conv1.0", "conv1.1", channels, kernel=3, stride=2)
        x = ops.maxpool(x)
        for stage, (out, repeats) in enumerate(zip(stages, REPEATS, strict=True), start=2):
            # The first 1x1 of stage 2 is not grouped: its input channels are too few (section 3.3).
            first_groups = 1 if stage == 2 else self.groups
            x = self.unit_stride2(ops, x, f"stage{stage}.0", channels, out, first_groups)
            for i in range(1, repeats):
                x = self.unit_stride1(ops, x, f"stage{stage}.{i}", out)
            channels = out
        return ops.linear(ops.mean(x), "fc", self.classes, bias=self.bias)

    def unit_stride1(self, ops: Ops[T], x: T, name: str, channels: int) -> T:
        """Figure 2 (b)."""
        main = self.branch2(ops, x, name, channels // 4, channels, 1, self.groups)
        return ops.add_relu(x, main)

    def unit_stride2(self, ops: Ops[T], x: T, name: str, channels: int, out: int, first_groups: int) -> T:
        """Figure 2 (c). The pooled branch is not negative, so a ReLU before the concat does for one after it."""
        main = self.branch2(ops, x, name, out // 4, out - channels, 2, first_groups)
        return ops.concat(ops.avgpool(x), main)

    def branch2(self, ops: Ops[T], x: T, name: str, middle: int, out: int, stride: int, first_groups: int) -> T:
        """Grouped 1x1, shuffle, depthwise 3x3 without ReLU, grouped 1x1: the right-hand side of figure 2 (b), and of (c) with the
        ReLU."""
        x = ops.conv_bn(x, f"{name}.branch2.0", f"{name}.branch2.1", middle, groups=first_groups)
        if self.shuffle:
            x = ops.shuffle(x, self.groups if self.order == "paper" else middle // self.groups)
        x = ops.depthwise_bn(x, f"{name}.branch2.3", f"{name}.branch2.4", stride=stride)
        return ops.conv_bn(x, f"{name}.branch2.5", f"{name}.branch2.6", out, groups=self.groups, relu=stride == 2)

    @property
    def published(self) -> Published:
        notes = (
            "Stage repeats are often printed as 1, 3 / 1, 3 / 1, 7: stage 3 has 1 + 7 units, stage 4 has 1 + 3.",
            "The stride-2 bottleneck is often printed as (out - in) / 4 channels: it is out / 4.",
        )
        if self.width == 1.0:
            return Published(TABLE1_MMACS[self.groups], "V1, table 1", with_linear=False, notes=notes)
        return Published(WIDER_MMACS.get((self.groups, self.width)), "V1 paper", with_linear=True, notes=notes)

    @classmethod
    def variants(cls) -> Iterator[ShuffleNetV1]:
        for groups in STAGE2:
            for width in valid_widths(groups):
                for bias in (True, False):
                    yield cls(width, groups, bias=bias)


def widths_of(groups: int, width: float) -> tuple[int, ...]:
    """Output channels of the first convolution and of stages 2, 3, 4."""
    stage2 = int(STAGE2[groups] * width)
    return STEM_OF_AUTHORS.get((groups, width), STEM[width]), stage2, 2 * stage2, 4 * stage2


def valid_widths(groups: int) -> list[float]:
    """The widths at which every grouped convolution divides."""
    return [width for width in STEM if _divides(groups, width)]


def _divides(groups: int, width: float) -> bool:
    stem, stage2, *_ = widths_of(groups, width)
    return STAGE2[groups] * width % (4 * groups) == 0 and (stage2 - stem) % groups == 0
