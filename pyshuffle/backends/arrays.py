"""What the interpretations over arrays share: they look up parameters and call the operations; which functions, each says itself."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import WeightsError
from ..ops import batchnorm
from ..types import Array, Params
from .ops import Ops

BN_MOMENTUM = 0.1  # of the running statistics


class Arrays(Ops[Array]):
    """A network over arrays.

    params: parameter name -> array, as `weights` has them. With `training`, batch normalisation uses the statistics of the batch
    and moves the running ones in `params` towards them, in place, by `momentum` of the way. A missing parameter raises
    WeightsError, one that does not fit the arrays it meets ShapeError; `cost.check_params` compares all with what the network wants.
    """

    functions: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]  # operation -> its forward and its backward
    statistics: Callable[..., Any]
    follow: Callable[..., None] = staticmethod(batchnorm.follow)
    zeros_like: Callable[..., Any] = staticmethod(np.zeros_like)

    def __init__(self, params: Params, training: bool = False, momentum: float = BN_MOMENTUM) -> None:
        self.params = params
        self.training = training
        self.momentum = momentum

    def run(self, op: str, inputs: tuple[Array, ...], names: tuple[str, ...] = (), **settings: Any) -> Any:
        """One operation on arrays and on the parameters of the given names. Everything below comes through here."""
        return self.functions[op][0](*inputs, *map(self.param, names), **settings)

    def param(self, name: str) -> Array:
        if name not in self.params:
            raise WeightsError(f"the network needs a parameter {name!r} and the weights have none")
        return self.params[name]

    def conv(self, x: Array, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Array:
        return self.run("conv", (x,), (f"{name}.weight",), stride=stride, groups=groups)

    def depthwise(self, x: Array, name: str, stride: int = 1) -> Array:
        return self.run("depthwise", (x,), (f"{name}.weight",), stride=stride)

    def conv_bn(
        self, x: Array, conv: str, bn: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> Array:
        if "conv_bn" in self.functions:
            return self.fused("conv_bn", x, conv, bn, relu=relu, stride=stride, groups=groups)
        return self.batchnorm(self.conv(x, conv, out, kernel, stride, groups), bn, relu)

    def depthwise_bn(self, x: Array, depthwise: str, bn: str, stride: int = 1) -> Array:
        if "depthwise_bn" in self.functions:
            return self.fused("depthwise_bn", x, depthwise, bn, relu=False, stride=stride)
        return super().depthwise_bn(x, depthwise, bn, stride)

    def fused(self, op: str, x: Array, conv: str, bn: str, **settings: Any) -> Any:
        running = self.param(f"{bn}.running_mean"), self.param(f"{bn}.running_var")
        names = (f"{conv}.weight", f"{bn}.weight", f"{bn}.bias")
        z = self.run(op, (x,), names, used=None if self.training else running, **settings)
        if self.training:
            batchnorm.check(z, self.param(names[1]), self.param(names[2]), *running)
            self.follow(running, (z.mean, z.var), self.momentum, z.size // z.shape[-1])
        return z

    def batchnorm(self, x: Array, name: str, relu: bool = False) -> Array:
        running = self.param(f"{name}.running_mean"), self.param(f"{name}.running_var")
        used = running
        if self.training:
            batchnorm.check(x, self.param(f"{name}.weight"), self.param(f"{name}.bias"), *running)
            used = self.statistics(x)
            self.follow(running, used, self.momentum, x.size // x.shape[-1])
        settings = {"mean": used[0], "var": used[1], "training": self.training, "relu": relu}
        return self.run("batchnorm", (x,), (f"{name}.weight", f"{name}.bias"), **settings)

    def relu(self, x: Array, limit: float = math.inf) -> Array:
        return self.run("relu", (x,), limit=limit)

    def maxpool(self, x: Array) -> Array:
        return self.run("maxpool", (x,))

    def avgpool(self, x: Array) -> Array:
        return self.run("avgpool", (x,))

    def split(self, x: Array) -> tuple[Array, Array]:
        return self.run("split", (x,))

    def concat(self, a: Array, b: Array) -> Array:
        return self.run("concat", (a, b))

    def shuffle(self, x: Array, groups: int) -> Array:
        return self.run("shuffle", (x,), groups=groups)

    def concat_shuffle(self, a: Array, b: Array, groups: int) -> Array:
        if "concat_shuffle" in self.functions:
            return self.run("concat_shuffle", (a, b), groups=groups)
        return super().concat_shuffle(a, b, groups)

    def add(self, a: Array, b: Array) -> Array:
        return self.run("add", (a, b))

    def add_relu(self, a: Array, b: Array) -> Array:
        return self.run("add_relu", (a, b)) if "add_relu" in self.functions else super().add_relu(a, b)

    def mean(self, x: Array) -> Array:
        return self.run("mean", (x,))

    def linear(self, x: Array, name: str, out: int, bias: bool = True) -> Array:
        return self.run("linear", (x,), (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",))
