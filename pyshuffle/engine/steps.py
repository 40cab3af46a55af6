"""What a plan consists of: maps, operations that wait for what may be folded into them, and steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..ops.check import out_size
from ..types import Array
from .layout import Buffer, Place, Vector, reach

KINDS = ("image", "dense", "window", "maximum", "mean", "output", "stem")
IMAGE, DENSE, WINDOW, MAXIMUM, MEAN, OUTPUT, STEM = range(len(KINDS))


@dataclass(frozen=True, eq=False)
class Map:
    """An activation map: where each of its channels lies. Features (N, C) are a map of one pixel."""

    height: int
    width: int
    places: tuple[Place, ...]

    @cached_property
    def buffers(self) -> list[Buffer]:
        return list(dict.fromkeys(buffer for buffer, _ in self.places))


@dataclass(frozen=True, eq=False)
class Pending:
    """An operation that is not a step yet, as more may be folded into it. Its numbers are in float64, those of a step in float32."""

    kind: int
    name: str
    source: Map
    weight: Array = field(default_factory=lambda: np.zeros((0, 0)))  # dense: (G, K K, C/G, O/G), window: (9, C)
    bias: Array = field(default_factory=lambda: np.zeros(0))  # (O,)
    kernel: int = 1
    stride: int = 1
    relu: bool = False
    limit: float = np.inf  # of a ReLU
    residual: Map | None = None
    learnt: bool = False  # whether the weight is one of the network's parameters

    @property
    def channels(self) -> int:
        return 3 if self.kind == IMAGE else len(self.bias) or len(self.source.places)

    @property
    def size(self) -> tuple[int, int]:
        """Of the output."""
        if self.kind == MEAN:
            return 1, 1
        return out_size(self.source.height, self.stride), out_size(self.source.width, self.stride)

    @property
    def linear(self) -> bool:
        """Whether something linear can still be folded in."""
        return self.kind in (DENSE, WINDOW) and not self.relu and self.residual is None


class Step(NamedTuple):
    """A line of the program: an operation, the buffer that it writes, and, once all is arranged, the vectors that it computes."""

    kind: int  # that of `what`, or STEM
    what: Pending
    target: Buffer
    size: tuple[int, int]  # of the output
    vectors: list[Vector]
    span: int = 1  # so many steps, from this one on, are computed together (bands.py)
    band: int = 0  # rows of the last of them at a time

    @property
    def name(self) -> str:
        return self.what.name

    @property
    def source(self) -> Map:
        return self.what.source

    @property
    def reads(self) -> list[Buffer]:
        return self.source.buffers + (self.what.residual.buffers if self.what.residual else [])

    @property
    def computes(self) -> bool:
        """Whether it makes vectors of channels."""
        return self.kind in (DENSE, WINDOW, MAXIMUM, MEAN)

    @property
    def apart(self) -> bool:
        """Whether it sees each channel alone."""
        return self.kind in (WINDOW, MAXIMUM, MEAN)

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """The rows of what it reads that it needs for its rows from the first to before the last."""
        return reach(self.what.stride, self.what.kernel // 2, self.source.height, first, last)

    @property
    def pixelwise(self) -> bool:
        """Whether it sees each pixel alone."""
        return self.kind == DENSE and self.what.kernel == self.what.stride == 1


def multiply_adds(step: Step) -> int:
    """Those of convolutions and of the linear layer."""
    height, width = step.what.size
    return height * width * step.what.weight.size if step.what.learnt else 0
