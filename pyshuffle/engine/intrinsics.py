"""The tiles as functions that jitted code can call, each with its arguments as one tuple, in the order that it has there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emitter import I64
from .machine import machine
from .tiles import average, dense, maximum, peak, window
from .training_tiles import covary, differentiate, maximum_slope, measure, normalise, slope


def _call(context: Any, builder: ir.IRBuilder, kind: Callable[..., Any], arguments: ir.Value, **shape: int) -> Any:
    function = kind(builder.module, machine(), **shape)
    builder.call(function, [builder.extract_value(arguments, i) for i in range(len(function.args))])
    return context.get_dummy_value()


def _call_one(
    context: Any, builder: ir.IRBuilder, kind: Callable[..., Any], values: list[ir.Value], shapes: dict[int, dict[str, int]]
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


def _one(kind: Callable[..., Any]) -> Any:
    """The intrinsic that calls the one tile of a kind."""

    def typed(_typing: Any, arguments: Any) -> Any:
        return types.void(arguments), lambda context, builder, _, values: _call(context, builder, kind, values[0])

    typed.__name__ = f"{kind.__name__}_tile"
    return intrinsic(typed)


def _some(kind: Callable[..., Any]) -> Any:
    """The intrinsic that calls the tile of a kind for as many vectors as its first argument says."""

    def typed(_typing: Any, number: Any, arguments: Any) -> Any:
        shapes = {v: {"vectors": v} for v in machine().heights}
        return types.void(types.int64, arguments), lambda context, builder, _, values: _call_one(
            context, builder, kind, values, shapes
        )

    typed.__name__ = f"{kind.__name__}_tile"
    return intrinsic(typed)


maximum_tile, average_tile, peak_tile = _one(maximum), _one(average), _one(peak)
maximum_slope_tile, measure_tile, covary_tile = _one(maximum_slope), _one(measure), _one(covary)
normalise_tile, differentiate_tile = _some(normalise), _some(differentiate)
