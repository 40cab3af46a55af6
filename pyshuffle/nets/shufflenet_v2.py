"""ShuffleNet V2 (arXiv 1807.11164): table 5 and figure 3 (c), (d) as one function over a set of operations.

The published networks differ in two ways that names and figures hide:

`wiring`, the widths of the two branches of a stride-2 unit, and whether the classifier has a bias.
    paper        branch 1 keeps its `channels`, branch 2 makes the rest; no bias. The authors' code and the paper's FLOPs.
    torchvision  each branch makes half; with a bias.
`order`, which channels pass a stride-1 unit untouched.
    paper        the first half, and every unit ends with a shuffle: the paper's text, and torchvision.
    authors      the even ones, and no unit ends with a shuffle: the authors' code.
With equal branches the two orders are one graph up to a permutation of channels. With unequal ones (stage 2 at 1.0x: 24 + 92) they
are not: here all 24 of branch 1 pass the next unit, there 12 do. So the order belongs to the network and not to its weights.

Left out: the dropout of 0.2 before the classifier with which the authors trained 2.0x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ..errors import ArchError
from .net import Net, Published

if TYPE_CHECKING:
    from ..backends.ops import Ops

T = TypeVar("T")

STEM = 24
REPEATS = (4, 8, 4)  # units of stages 2, 3, 4
WIDTHS = {  # width: output channels of stages 2, 3, 4, and of conv5 (table 5; 0.25 and 0.33 are in use elsewhere)
    0.25: (24, 48, 96, 512),
    0.33: (32, 64, 128, 512),
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
PAPER_MMACS = {0.5: 41, 1.0: 146, 1.5: 299, 2.0: 591}


@dataclass(frozen=True)
class ShuffleNetV2(Net):
    """ShuffleNet V2. Calling it with operations and a (N, H, W, 3) image gives (N, classes) logits. Raises ArchError."""

    width: float = 1.0
    classes: int = 1000
    wiring: str = "paper"
    order: str = "paper"
    extra_depthwise: bool = False  # V2*, for detection: a 3x3 depthwise before the first 1x1 of each unit (section 4)
    bias: bool | None = None  # of the classifier; None: as the wiring has it
    shuffle: bool = True  # without it the same half passes every unit of a stage untouched

    arch: ClassVar[str] = "v2"
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"wiring": ("paper", "torchvision"), "order": ("paper", "authors")}

    def __post_init__(self) -> None:
        self.check()
        if self.width not in WIDTHS:
            raise ArchError(f"v2 has no width {self.width}: choose one of {', '.join(map(str, WIDTHS))}")
        if self.wiring == "paper" and WIDTHS[self.width][0] == STEM:
            raise ArchError(
                f"v2 {self.width} has no channels for branch 2 of its first unit in the wiring 'paper': choose 'torchvision'"
            )
        if self.bias is None:
            object.__setattr__(self, "bias", self.wiring == "torchvision")

    def __call__(self, ops: Ops[T], x: T) -> T:
        *stages, last = WIDTHS[self.width]
        x = ops.conv_bn(x, "conv1.0", "conv1.1", STEM, kernel=3, stride=2)
        x = ops.maxpool(x)
        channels = STEM
        for stage, (out, repeats) in enumerate(zip(stages, REPEATS, strict=True), start=2):
            x = self.unit_stride2(ops, x, f"stage{stage}.0", channels, out)
            for i in range(1, repeats):
                x = self.unit_stride1(ops, x, f"stage{stage}.{i}", out)
            channels = out
        x = ops.conv_bn(x, "conv5.0", "conv5.1", last)
        return ops.linear(ops.mean(x), "fc", self.classes, bias=bool(self.bias))

    def unit_stride1(self, ops: Ops[T], x: T, name: str, channels: int) -> T:
        """Figure 3 (c)."""
        half = channels // 2
        if self.shuffle and self.order == "authors":
            x = ops.shuffle(x, half)  # even channels first: the inverse of the shuffle with 2 groups
        left, right = ops.split(x)
        return self.join(ops, left, self.branch2(ops, right, name, half, half, stride=1))

    def unit_stride2(self, ops: Ops[T], x: T, name: str, channels: int, out: int) -> T:
        """Figure 3 (d)."""
        half = out // 2
        own = channels if self.wiring == "paper" else half
        left = ops.depthwise_bn(x, f"{name}.branch1.0", f"{name}.branch1.1", stride=2)
        left = ops.conv_bn(left, f"{name}.branch1.2", f"{name}.branch1.3", own)
        return self.join(ops, left, self.branch2(ops, x, name, half, out - own, stride=2))

    def branch2(self, ops: Ops[T], x: T, name: str, middle: int, out: int, stride: int) -> T:
        """1x1, depthwise 3x3 without ReLU, 1x1: the right-hand side of figure 3 (c) and (d)."""
        if self.extra_depthwise:
            x = ops.depthwise_bn(x, f"{name}.branch2.pre.0", f"{name}.branch2.pre.1")
        x = ops.conv_bn(x, f"{name}.branch2.0", f"{name}.branch2.1", middle)
        x = ops.depthwise_bn(x, f"{name}.branch2.3", f"{name}.branch2.4", stride=stride)
        return ops.conv_bn(x, f"{name}.branch2.5", f"{name}.branch2.6", out)

    def join(self, ops: Ops[T], left: T, right: T) -> T:
        if self.shuffle and self.order == "paper":
            return ops.concat_shuffle(left, right, 2)
        return ops.concat(left, right)

    @property
    def published(self) -> Published:
        notes = ["The stride-2 unit is often printed with a stride-1 depthwise in its main branch: it is stride 2."]
        if self.width == 2.0:
            notes.append("Often printed with 6.7M parameters: it has 7.4M. Some ports use 224 for 244 channels: wrong.")
        figure = None if self.extra_depthwise else PAPER_MMACS.get(self.width)
        return Published(figure, "V2 paper", with_linear=True, rounded_up=True, notes=tuple(notes))

    @classmethod
    def variants(cls) -> Iterator[ShuffleNetV2]:
        for width, wiring, extra, bias in product(WIDTHS, cls.choices["wiring"], (False, True), (False, True)):
            stage2 = WIDTHS[width][0]
            usual_bias = wiring == "torchvision"
            if not (stage2 == STEM and wiring == "paper") and not (stage2 == 2 * STEM and bias != usual_bias):
                yield cls(width, wiring=wiring, extra_depthwise=extra, bias=bias)  # at 0.5x nothing but the bias tells the wiring
