"""Gradients: the network runs on another interpretation, every operation is recorded, and the record is replayed backwards.

An array that several operations read receives the sum of what they send back. Gradients go to the parameters and to the arrays
named in `wrt`; what reaches any other array that no operation made is dropped.
"""

from typing import Any, NamedTuple

import numpy as np

from ..errors import ShapeError
from ..ops.shuffle import Joined
from ..types import Array, Params
from .arrays import Arrays

LOOK_BACK = "conv_bn", "depthwise_bn", "add_relu"  # whose gradients want to know what was made
TAKE_HALVES = "concat", "concat_shuffle", "shuffle"  # whose backward takes apart what a split has sent back in halves


class Record(NamedTuple):
    """One operation that ran: what it read and what it made."""

    op: str
    inputs: tuple[Array, ...]
    names: tuple[str, ...]
    settings: dict[str, Any]
    outputs: tuple[Array, ...]


class Tape(Arrays):
    """`tape = Tape(Numba(params, training=True)); y = net(tape, x); gradients, _ = tape.backward(y, dy)`."""

    def __init__(self, ops: Arrays) -> None:
        super().__init__(ops.params, ops.training, ops.momentum)
        self.functions, self.statistics, self.follow, self.zeros_like = ops.functions, ops.statistics, ops.follow, ops.zeros_like
        self.records: list[Record] = []

    def run(self, op: str, inputs: tuple[Array, ...], names: tuple[str, ...] = (), **settings: Any) -> Any:
        y = super().run(op, inputs, names, **settings)
        if op in LOOK_BACK:
            settings["z"] = y
        self.records.append(Record(op, inputs, names, settings, y if isinstance(y, tuple) else (y,)))
        return y

    def backward(self, y: Array, dy: Array, wrt: tuple[Array, ...] = ()) -> tuple[Params, list[Array]]:
        """The gradients of <dy, y>: of every parameter that y depends on, by name, and of the arrays in `wrt`, in order.

        The record is used up: an operation's arrays are let go as soon as its gradients are known. Raises ShapeError for a y or
        an array in `wrt` that is not in it.
        """
        if not any(made is y for record in self.records for made in record.outputs):
            raise ShapeError("y was not made by what this tape has recorded, or a backward has used up its record")
        by_name: Params = {}
        by_array = {id(y): dy}  # what is still to be replayed holds its arrays, so that no id is given twice
        kept, made_here = {id(array) for array in wrt}, {id(made) for record in self.records for made in record.outputs}
        if not kept <= made_here | {id(read) for record in self.records for read in record.inputs}:
            raise ShapeError("an array in wrt was neither read nor made by what this tape has recorded")
        followed = kept | made_here
        while self.records:
            op, inputs, names, settings, outputs = self.records.pop()
            arrived = [by_array.get(id(made)) if id(made) in kept else by_array.pop(id(made), None) for made in outputs]
            if all(d is None for d in arrived):
                continue  # nothing that y depends on
            douts = [self.zeros_like(made) if d is None else d for made, d in zip(outputs, arrived, strict=True)]
            if op not in TAKE_HALVES:
                douts = list(map(whole, douts))
            if op in ("conv", "conv_bn") and id(inputs[0]) not in followed:
                settings["need_dx"] = False  # the first layer: nobody asks for the gradient of the image, which is costly
            elif op == "conv_bn" and id(inputs[0]) in by_array:
                settings["before"] = by_array.pop(id(inputs[0]))  # what has come from elsewhere is added on the way
            sent = self.functions[op][1](*douts, *inputs, *map(self.param, names), **settings)
            for name, d in zip(names, sent[len(inputs) :], strict=True):
                self.add_to(by_name, name, d)
            for array, d in zip(inputs, sent, strict=False):
                if id(array) in followed:
                    self.add_to(by_array, id(array), d)
        return by_name, [whole(by_array.get(id(array), self.zeros_like(array))) for array in wrt]

    def add_to(self, sums: dict[Any, Array], key: Any, d: Array) -> None:
        """Where an array fans out, what comes back is summed. Never in place: d may be somebody else's array."""
        sums[key] = self.functions["add"][0](sums[key], d) if key in sums else d


def whole(d: Any) -> Array:
    """A gradient as an array."""
    return np.asarray(d) if isinstance(d, Joined) else d
