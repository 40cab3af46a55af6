"""The tiles as functions that jitted code can call, each with its arguments as one tuple, in the order that tiles.py has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emitter import I64
from .machine import machine
from .tiles import average, dense, emit, maximum, peak, slope, window


def _call(context: Any, builder: ir.IRBuilder, kind: Callable[..., None], arguments: ir.Value, **shape: int) -> Any:
    function = emit(builder.module, kind, machine(), **shape)
    builder.call(function, [builder.extract_value(arguments, i) for i in range(len(function.args))])
    return context.get_dummy_value()


def _call_one(
    context: Any, builder: ir.IRBuilder, kind: Callable[..., None], values: list[ir.Value], shapes: dict[int, dict[str, int]]
) -> Any:
    """Call the tile whose number is the first of the values, on the arguments that are the second."""
    done = builder.append_basic_block("done")
    switch = builder.switch(values[0], done)
    for number, shape in shapes.items():
        block = builder.append_basic_block(f"tile{number}")
        switch.add_case(I64(number), block)
        builder.position_at_end(block)
        _call(context, builder, kind, values[1], **shape)
        builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


@intrinsic
def dense_tile(_typing: Any, number: Any, arguments: Any) -> Any:
    """`dense` on a tuple of its arguments. The number: twice the vectors, plus one for a tile of a single pixel."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> Any:
        heights = machine().heights
        tall = {2 * v: {"vectors": v, "pixels": pixels} for v, pixels in heights.items()}
        single = {2 * v + 1: {"vectors": v, "pixels": 1} for v in heights}
        return _call_one(context, builder, dense, values, tall | single)

    return types.void(types.int64, arguments), generate


@intrinsic
def window_tile(_typing: Any, number: Any, arguments: Any) -> Any:
    """`window` on a tuple of its arguments. The number: twice the stride, plus one for tiles of a single pixel."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> Any:
        shapes = {2 * s + one: {"stride": s, "pixels": 1 if one else machine().run} for s in (1, 2) for one in (0, 1)}
        return _call_one(context, builder, window, values, shapes)

    return types.void(types.int64, arguments), generate


@intrinsic
def slope_tile(_typing: Any, stride: Any, arguments: Any) -> Any:
    """`slope` on a tuple of its arguments."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> Any:
        return _call_one(context, builder, slope, values, {s: {"stride": s} for s in (1, 2)})

    return types.void(types.int64, arguments), generate


@intrinsic
def maximum_tile(_typing: Any, arguments: Any) -> Any:
    """`maximum` on a tuple of its arguments."""
    return types.void(arguments), lambda context, builder, _, values: _call(context, builder, maximum, values[0])


@intrinsic
def average_tile(_typing: Any, arguments: Any) -> Any:
    """`average` on a tuple of its arguments."""
    return types.void(arguments), lambda context, builder, _, values: _call(context, builder, average, values[0])


@intrinsic
def peak_tile(_typing: Any, arguments: Any) -> Any:
    """`peak` on a tuple of its arguments."""
    return types.void(arguments), lambda context, builder, _, values: _call(context, builder, peak, values[0])
