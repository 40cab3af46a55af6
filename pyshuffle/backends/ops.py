"""The operations that a network is a function over, written down once.

T is the tensor of an interpretation: an array, a shape, a channel list, a graph node. Shapes below are those of the array it
stands for, (N, H, W, C). `name` is the name of a layer; its parameters are `name.weight`, `name.bias` and, for a batch
normalisation, `name.running_mean`, `name.running_var`.
"""

import math
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ops(Protocol[T]):
    """An interpretation of a network implements these; the composites below them may be overridden by one that fuses."""

    def conv(self, x: T, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> T:
        """(N, H, W, C) -> (N, ceil(H/s), ceil(W/s), out); weight (K, K, C/G, out)."""
        ...

    def depthwise(self, x: T, name: str, stride: int = 1) -> T:
        """(N, H, W, C) -> (N, ceil(H/s), ceil(W/s), C); weight (3, 3, C)."""
        ...

    def batchnorm(self, x: T, name: str) -> T:
        """(..., C) -> (..., C); weight, bias, running_mean, running_var (C,)."""
        ...

    def relu(self, x: T, limit: float = math.inf) -> T:
        """(..., C) -> (..., C), from 0 to the limit."""
        ...

    def maxpool(self, x: T) -> T:
        """3x3, stride 2, padding 1: (N, H, W, C) -> (N, ceil(H/2), ceil(W/2), C)."""
        ...

    def avgpool(self, x: T) -> T:
        """3x3, stride 2, padding 1 and counted: (N, H, W, C) -> (N, ceil(H/2), ceil(W/2), C)."""
        ...

    def split(self, x: T) -> tuple[T, T]:
        """(..., C) -> two of (..., C/2)."""
        ...

    def concat(self, a: T, b: T) -> T:
        """(..., A), (..., B) -> (..., A + B)."""
        ...

    def shuffle(self, x: T, groups: int) -> T:
        """(..., C) -> (..., C): channel b C/g + a moves to a g + b."""
        ...

    def add(self, a: T, b: T) -> T:
        """Two of (..., C) -> (..., C)."""
        ...

    def mean(self, x: T) -> T:
        """(N, H, W, C) -> (N, C)."""
        ...

    def linear(self, x: T, name: str, out: int, bias: bool = True) -> T:
        """(N, I) -> (N, out); weight (I, out), bias (out,)."""
        ...

    def conv_bn(
        self, x: T, conv: str, bn: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> T:
        """Convolution, batch normalisation and, unless told otherwise, ReLU."""
        x = self.batchnorm(self.conv(x, conv, out, kernel, stride, groups), bn)
        return self.relu(x) if relu else x

    def depthwise_bn(self, x: T, depthwise: str, bn: str, stride: int = 1) -> T:
        """Depthwise convolution and batch normalisation."""
        return self.batchnorm(self.depthwise(x, depthwise, stride), bn)

    def concat_shuffle(self, a: T, b: T, groups: int) -> T:
        """Concatenation and shuffle."""
        return self.shuffle(self.concat(a, b), groups)

    def add_relu(self, a: T, b: T) -> T:
        """The residual connection and the ReLU behind it."""
        return self.relu(self.add(a, b))
