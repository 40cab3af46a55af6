"""The network as an ONNX graph, for the runtimes that read one: `python -m pyshuffle.export model.onnx`.

ONNX computes with channels first, so the graph takes (N, 3, H, W) images; N is free, H and W are fixed. Batch normalisation is
written as it is, not folded: every runtime folds it.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..nets import Net
from ..ops.check import EPS, out_size
from ..types import Array, Params
from .cost import check_params
from .ops import Ops

OPSET = 17
IR_VERSION = 8  # of the file format: the one that came with this opset
BATCH = "N"


class Value(NamedTuple):
    """A tensor of the graph."""

    name: str
    shape: tuple[int, ...]  # (C, H, W), or (C,)


class Graph(Ops[Value]):
    """`graph = Graph(params); net(graph, Value("image", (3, 224, 224)))`; then `graph.nodes` and `graph.constants`."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def conv(self, x: Value, name: str, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Value:
        weight = self.params[f"{name}.weight"].transpose(3, 2, 0, 1)  # (O, C/G, K, K)
        return self.convolve(x, name, weight, stride, groups)

    def depthwise(self, x: Value, name: str, stride: int = 1) -> Value:
        weight = self.params[f"{name}.weight"].transpose(2, 0, 1)[:, None]  # (C, 1, 3, 3)
        return self.convolve(x, name, weight, stride, groups=len(weight))

    def convolve(self, x: Value, name: str, weight: Array, stride: int, groups: int) -> Value:
        kernel = weight.shape[2]
        shape = (len(weight), out_size(x.shape[1], stride), out_size(x.shape[2], stride))
        settings = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        return self.node("Conv", shape, x.name, self.constant(f"{name}.weight", weight), **settings)

    def batchnorm(self, x: Value, name: str) -> Value:
        entries = [self.parameter(f"{name}.{entry}") for entry in ("weight", "bias", "running_mean", "running_var")]
        return self.node("BatchNormalization", x.shape, x.name, *entries, epsilon=EPS)

    def relu(self, x: Value, limit: float = math.inf) -> Value:
        if limit == math.inf:
            return self.node("Relu", x.shape, x.name)
        bounds = [self.constant(f"bound.{value}", np.array(value, np.float32)) for value in (0.0, limit)]
        return self.node("Clip", x.shape, x.name, *bounds)

    def maxpool(self, x: Value) -> Value:
        return self.pool("MaxPool", x)

    def avgpool(self, x: Value) -> Value:
        return self.pool("AveragePool", x, count_include_pad=1)

    def pool(self, op: str, x: Value, **settings: Any) -> Value:
        shape = (x.shape[0], out_size(x.shape[1], 2), out_size(x.shape[2], 2))
        return self.node(op, shape, x.name, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, **settings)

    def split(self, x: Value) -> tuple[Value, Value]:
        half = (x.shape[0] // 2, *x.shape[1:])
        sizes = self.constant(f"half.{half[0]}", np.array([half[0]] * 2))
        left, right = Value(f"{len(self.nodes)}.left", half), Value(f"{len(self.nodes)}.right", half)
        self.nodes.append(helper.make_node("Split", [x.name, sizes], [left.name, right.name], axis=1))
        return left, right

    def concat(self, a: Value, b: Value) -> Value:
        return self.node("Concat", (a.shape[0] + b.shape[0], *a.shape[1:]), a.name, b.name, axis=1)

    def shuffle(self, x: Value, groups: int) -> Value:
        channels, height, width = x.shape
        apart = self.reshape(x, (groups, channels // groups, height, width))
        swapped = self.node("Transpose", (channels // groups, groups, height, width), apart.name, perm=[0, 2, 1, 3, 4])
        return self.reshape(swapped, x.shape)

    def reshape(self, x: Value, shape: tuple[int, ...]) -> Value:
        target = self.constant(f"shape.{'.'.join(map(str, shape))}", np.array([0, *shape]))  # 0: as many as there are
        return self.node("Reshape", shape, x.name, target)

    def add(self, a: Value, b: Value) -> Value:
        return self.node("Add", a.shape, a.name, b.name)

    def mean(self, x: Value) -> Value:
        pooled = self.node("GlobalAveragePool", (x.shape[0], 1, 1), x.name)
        return self.node("Flatten", x.shape[:1], pooled.name)

    def linear(self, x: Value, name: str, out: int, bias: bool = True) -> Value:
        weight = self.constant(f"{name}.weight", self.params[f"{name}.weight"].T)
        return self.node("Gemm", (out,), x.name, weight, *([self.parameter(f"{name}.bias")] if bias else []), transB=1)

    def parameter(self, name: str) -> str:
        return self.constant(name, self.params[name])

    def constant(self, name: str, array: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, shape: tuple[int, ...], *inputs: str, **settings: Any) -> Value:
        value = Value(f"{len(self.nodes)}.{op.lower()}", shape)
        self.nodes.append(helper.make_node(op, list(inputs), [value.name], **settings))
        return value


def model(net: Net, params: Params, size: tuple[int, int] = (224, 224), labels: Sequence[str] = ()) -> onnx.ModelProto:
    """The checked ONNX model: `image` (N, 3, H, W) float32 -> `logits` (N, classes). The labels become a property of it.

    Raises WeightsError for params of another network.
    """
    check_params(net, params)
    graph = Graph(params)
    image = Value("image", (3, *size))
    last = net(graph, image)
    graph.nodes[-1].output[0] = "logits"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
        for name, shape in ((image.name, image.shape), ("logits", last.shape))
    ]
    content = helper.make_graph(graph.nodes, net.arch, ends[:1], ends[1:], list(graph.constants.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    made = helper.make_model(content, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pyshuffle")
    if labels:
        helper.set_model_props(made, {"labels": json.dumps(labels)})
    onnx.checker.check_model(made, full_check=True)
    return made
