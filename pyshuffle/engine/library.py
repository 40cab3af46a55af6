"""All tiles as one piece of machine code, which everything that is compiled here calls by name.

Were they a part of each function that calls them, LLVM would translate them anew for each; and three times for each that runs in
parallel, of which numba makes three. So they are compiled once, without numba, and kept (native.py). The engine's one function has a
copy of its own: it is loaded without the emitter.
"""

from __future__ import annotations

import functools

import llvmlite.binding as llvm
from llvmlite import ir

from . import native
from .emitter import Tile
from .machine import machine
from .tiles import average, dense, maximum, peak, window
from .training_tiles import covary, differentiate, filter_gradient, maximum_gradient, measure, normalise, parities

Shape = dict[str, int]


@functools.cache
def shapes() -> dict[Tile, dict[int, Shape]]:
    """The shapes in which there is a tile for this machine, by the number that callers give.

    dense: twice the halves of vectors, and window: twice the stride; plus one for tiles of a single pixel.
    """
    m, strides = machine(), (1, 2)
    by_vectors = {v: {"vectors": v} for v in m.heights}
    return {
        dense: {2 * h + one: {"halves": h, "pixels": 1 if one else m.heights[-(-h // 2)]} for h in m.widths for one in (0, 1)},
        window: {2 * s + one: {"stride": s, "pixels": 1 if one else m.run} for s in strides for one in (0, 1)},
        filter_gradient: {s: {"stride": s} for s in strides},
        **dict.fromkeys((measure, covary), by_vectors),
        **{tile: {0: {}} for tile in (maximum, average, peak, maximum_gradient, parities, normalise, differentiate)},
    }


def optimisations() -> llvm.PipelineTuningOptions:
    """Those that LLVM is to apply to tiles. A tile is as large as registers allow: unrolled, some loops would spill them."""
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False
    return options


def module() -> llvm.ModuleRef:
    """All of them, as LLVM improves them."""
    emitted = ir.Module("tiles")
    for tile, numbered in shapes().items():
        for shape in numbered.values():
            tile.define(emitted, machine(), **shape)
    parsed = llvm.parse_assembly(str(emitted))
    passes = llvm.create_pass_builder(native.target(), optimisations())
    passes.getModulePassManager().run(parsed, passes)
    return parsed


@functools.cache
def load() -> None:
    """Tell where they lie, for compiled code that calls them, whether numba compiles it now or has kept it."""
    engine = native.loaded("tiles", module)
    for tile, numbered in shapes().items():
        for shape in numbered.values():
            name = tile.name(**shape)
            llvm.add_symbol(name, engine.get_function_address(name))
