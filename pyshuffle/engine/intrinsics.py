"""The tiles as functions that jitted code can call, each with its arguments as one tuple, in the order that it has there."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from . import library
from .emitter import I64, VOID, Tile
from .tiles import average, dense, maximum, peak, window
from .training_tiles import covary, differentiate, filter_gradient, maximum_gradient, measure, normalise, parities


def _call(context: Any, builder: ir.IRBuilder, tile: Tile, shape: library.Shape, arguments: ir.Value) -> Any:
    function = tile.declare(builder.module, **shape)
    builder.call(function, [builder.extract_value(arguments, i) for i in range(len(function.args))])
    return context.get_dummy_value()


def _sole(tile: Tile) -> Any:
    """The intrinsic that calls the one tile of a kind."""

    def typed(_typing: Any, arguments: Any) -> Any:
        return types.void(arguments), lambda context, builder, _, values: _call(context, builder, tile, {}, values[0])

    return intrinsic(typed)


def _numbered(tile: Tile) -> Any:
    """The intrinsic that calls the tile of a kind whose number (library.py) is its first argument."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> Any:
        done, none = (builder.append_basic_block(name) for name in ("done", "none"))
        switch = builder.switch(values[0], none)
        for number, shape in library.shapes()[tile].items():
            block = builder.append_basic_block(f"tile{number}")
            switch.add_case(I64(number), block)
            builder.position_at_end(block)
            _call(context, builder, tile, shape, values[1])
            builder.branch(done)
        builder.position_at_end(none)  # there is no such tile
        builder.call(builder.module.declare_intrinsic("llvm.trap", (), ir.FunctionType(VOID, [])), [])
        builder.unreachable()
        builder.position_at_end(done)
        return context.get_dummy_value()

    def typed(_typing: Any, number: Any, arguments: Any) -> Any:
        return types.void(types.int64, arguments), generate

    return intrinsic(typed)


if not config.DISABLE_JIT:
    library.load()
dense_tile, window_tile, filter_gradient_tile = _numbered(dense), _numbered(window), _numbered(filter_gradient)
normalise_tile, differentiate_tile = _sole(normalise), _sole(differentiate)
measure_tile, covary_tile = _numbered(measure), _numbered(covary)
maximum_tile, average_tile, peak_tile = _sole(maximum), _sole(average), _sole(peak)
maximum_gradient_tile, parities_tile = _sole(maximum_gradient), _sole(parities)
