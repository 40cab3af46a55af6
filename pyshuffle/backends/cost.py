"""The network by counting: parameters, multiply-adds, bytes moved and receptive field, layer by layer, without computing anything.

Multiply-adds are those of convolutions and of the linear layer only, as both papers count; but V1's table 1 leaves the linear layer
out. Bytes are those of a runtime that does one operation after another in float32: every operation reads its inputs and parameters
once and writes its output once.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ..errors import WeightsError
from ..nets import Net
from ..ops.check import out_size
from ..types import Params
from .ops import Ops

FLOAT = 4  # bytes


class Shape(NamedTuple):
    """What stands for an array."""

    shape: tuple[int, ...]
    field: int = 1  # receptive field: pixels of the image, along one axis, that a value depends on
    jump: int = 1  # distance in the image, in pixels, of two neighbouring values

    def seen_through(self, kernel: int, stride: int, channels: int) -> "Shape":
        n, height, width, _ = self.shape
        shape = (n, out_size(height, stride), out_size(width, stride), channels)
        return Shape(shape, self.field + (kernel - 1) * self.jump, self.jump * stride)


class Row(NamedTuple):
    """One operation of the table."""

    name: str  # of the layer; empty where the operation has none
    op: str
    output: Shape
    params: int  # trainable ones: not the running statistics
    macs: int
    read: int  # bytes
    written: int  # bytes


class Cost(Ops[Shape]):
    """`cost = Cost(); net(cost, Shape((1, 224, 224, 3)))`; then `cost.rows`, and `cost.shapes` for the shape of every parameter."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def conv(self, x: Shape, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Shape:
        y = x.seen_through(kernel, stride, out)
        weight = (kernel, kernel, x.shape[-1] // groups, out)
        return self.record("conv", y, (x,), name, {"weight": weight}, macs=math.prod(y.shape) * math.prod(weight[:3]))

    def depthwise(self, x: Shape, name: str, stride: int = 1) -> Shape:
        y = x.seen_through(3, stride, x.shape[-1])
        return self.record("depthwise", y, (x,), name, {"weight": (3, 3, x.shape[-1])}, macs=math.prod(y.shape) * 9)

    def batchnorm(self, x: Shape, name: str) -> Shape:
        entries = ("weight", "bias", "running_mean", "running_var")
        return self.record("batchnorm", x, (x,), name, dict.fromkeys(entries, x.shape[-1:]))

    def relu(self, x: Shape, limit: float = math.inf) -> Shape:
        return self.record("relu", x, (x,))

    def maxpool(self, x: Shape) -> Shape:
        return self.record("maxpool", x.seen_through(3, 2, x.shape[-1]), (x,))

    def avgpool(self, x: Shape) -> Shape:
        return self.record("avgpool", x.seen_through(3, 2, x.shape[-1]), (x,))

    def split(self, x: Shape) -> tuple[Shape, Shape]:
        half = x._replace(shape=(*x.shape[:-1], x.shape[-1] // 2))
        self.record("split", x, (x,))
        return half, half

    def concat(self, a: Shape, b: Shape) -> Shape:
        shape = (*a.shape[:-1], a.shape[-1] + b.shape[-1])
        return self.record("concat", Shape(shape, max(a.field, b.field), a.jump), (a, b))

    def shuffle(self, x: Shape, groups: int) -> Shape:
        return self.record("shuffle", x, (x,))

    def add(self, a: Shape, b: Shape) -> Shape:
        return self.record("add", a._replace(field=max(a.field, b.field)), (a, b))

    def mean(self, x: Shape) -> Shape:
        n, height, _, channels = x.shape
        return self.record("mean", Shape((n, channels), x.field + (height - 1) * x.jump, x.jump * height), (x,))

    def linear(self, x: Shape, name: str, out: int, bias: bool = True) -> Shape:
        weight = (x.shape[1], out)
        parameters = {"weight": weight, "bias": (out,)} if bias else {"weight": weight}
        y = x._replace(shape=(x.shape[0], out))
        return self.record("linear", y, (x,), name, parameters, macs=x.shape[0] * math.prod(weight))

    def record(
        self,
        op: str,
        y: Shape,
        inputs: tuple[Shape, ...],
        name: str = "",
        parameters: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
        macs: int = 0,
    ) -> Shape:
        self.shapes |= {f"{name}.{entry}": shape for entry, shape in parameters.items()}
        trained = sum(math.prod(shape) for entry, shape in parameters.items() if not entry.startswith("running"))
        held = sum(math.prod(shape) for shape in parameters.values())
        read = FLOAT * (held + sum(math.prod(x.shape) for x in inputs))
        self.rows.append(Row(name, op, y, trained, macs, read, FLOAT * math.prod(y.shape)))
        return y


def count(net: Net, size: int = 224, batch: int = 1) -> list[Row]:
    """The table of a network for images of size x size pixels."""
    cost = Cost()
    net(cost, Shape((batch, size, size, 3)))
    return cost.rows


class Totals(NamedTuple):
    """The sums over rows of a table."""

    params: int
    macs: int
    macs_without_linear: int
    read: int  # bytes
    written: int  # bytes


def add_up(rows: Sequence[Row]) -> Totals:
    params, macs, read, written = (sum(getattr(row, column) for row in rows) for column in ("params", "macs", "read", "written"))
    return Totals(params, macs, macs - sum(row.macs for row in rows if row.op == "linear"), read, written)


@functools.lru_cache(maxsize=256)
def parameter_shapes(net: Callable[[Ops[Shape], Shape], Shape]) -> Mapping[str, tuple[int, ...]]:
    """The name and shape of every parameter of a network, running statistics included, in the order in which it reads them."""
    cost = Cost()
    net(cost, Shape((1, 32, 32, 3)))
    return MappingProxyType(cost.shapes)


def check_params(net: Net, params: Params) -> None:
    """Raises WeightsError unless every parameter of the network is there, in its shape."""
    for name, shape in parameter_shapes(net).items():
        if name not in params:
            raise WeightsError(f"the network needs a parameter {name!r} and the weights have none")
        if params[name].shape != shape:
            raise WeightsError(f"{name} has the shape {params[name].shape}: the network needs {shape}")
