"""Products of matrices on the engine's register tiles: what every convolution comes down to, forward and backward.
    y[p, o]  = sum_k x[p, k] w[k, o]          a convolution; with w transposed, its gradient by x
    dw[k, o] = sum_p x[p, k] dy[p, o]         its gradient by w: the same tile, with k and p in each other's place
A row p of x is a pixel, or the window around one: a `View` says where it lies, so that neither a group nor a window is ever copied.

Columns o are computed a vector at a time, in panels of a few vectors. Groups of fewer columns than a vector has share one: its inputs
are those of all of them, and the weights between two groups are zero; so what is infinite in one group makes NaN of its neighbours.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import prange

from ..engine.intrinsics import dense_tile
from ..engine.machine import FLOAT, machine
from ..types import Array
from .jit import BLOCKS, helper, kernel, require_jit

LANES, HEIGHTS = machine().lanes, machine().heights
MOST, TALL = max(HEIGHTS), max(HEIGHTS.values())
HEIGHT = np.array([HEIGHTS.get(vectors, 0) for vectors in range(MOST + 1)])
ROWS = 16 * TALL  # of x in a block: they stay in the nearest cache while all panels are computed
DEPTH = 128  # rows of x that a tile of dw sums before it is stored
PART = 2048  # rows of x, about, in a part of the sum over all of them; a part has a dw of its own, and there are at most BLOCKS
NONE, LOW, HIGH = np.int64(0), np.float32(-np.inf), np.float32(np.inf)

Table = npt.NDArray[np.integer]


class View(NamedTuple):
    """Where the rows of a matrix lie in an array, in bytes: for row r of block b, channel c of tap t is at
    blocks[b] + rows[r] + taps[t] + 4 c."""

    size: int  # rows
    blocks: Table  # int64
    rows: Table  # uint32, of a block
    taps: tuple[int, ...]  # of a window


@lru_cache(maxsize=4096)
def pixel_rows(count: int, channels: int, rows: int) -> View:
    """Every pixel of an array (P, C) is a row; in blocks of so many, the last of which may have fewer."""
    blocks = np.arange(0, count, rows, dtype=np.int64) * channels * FLOAT
    return View(count, blocks, np.arange(min(rows, count), dtype=np.uint32) * np.uint32(channels * FLOAT), (0,))


@lru_cache(maxsize=4096)
def window_rows(shape: tuple[int, int, int], source: tuple[int, ...], size: int, stride: int) -> View:
    """Every window of a padded map (N, H, W, C) = `source`, one for each pixel of (N, I, J) = `shape`, is a row; J make a block."""
    images, height, width = shape
    _, source_height, source_width, channels = source
    pixel = channels * FLOAT
    n, i = np.divmod(np.arange(images * height, dtype=np.int64), height)
    blocks = (n * source_height + i * stride) * source_width * pixel
    taps = np.add.outer(np.arange(size) * source_width, np.arange(size)).ravel() * pixel
    rows = np.arange(width) * stride * pixel
    return View(images * height * width, blocks, rows.astype(np.uint32), tuple(taps.tolist()))


class Panels(NamedTuple):
    """The panels of a product; a line of the table has: vectors, the first of them, channels of a tap, bytes to them, place of the
    weights."""

    table: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]  # the first column of each vector
    columns: npt.NDArray[np.uint32]  # of x in bytes, for each panel one after the other
    begins: npt.NDArray[np.int64]  # where those of each panel begin, and where the last one's end
    size: int  # floats of all weights


@lru_cache(maxsize=4096)
def panels(taps: tuple[int, ...], groups: int, inputs: int, outputs: int) -> Panels:
    """Of groups of so many inputs and outputs; all outputs are a vector's or more, and no vector goes beyond the last."""
    if outputs >= LANES:
        per_group = vector_starts(outputs)
        count = -(-len(per_group) // MOST)
        cuts = [len(per_group) * i // count for i in range(count + 1)]
        lists = [per_group[a:b] + g * outputs for g in range(groups) for a, b in pairwise(cuts)]
    else:
        lists = [np.array([start]) for start in vector_starts(groups * outputs)]
    table, columns, vector, size = [], [], 0, 0
    for starts in lists:
        first, last = starts[0] // outputs, (starts[-1] + LANES - 1) // outputs + 1
        channels = (last - first) * inputs
        table.append((len(starts), vector, channels, first * inputs * FLOAT, size))
        columns.append(np.add.outer(taps, np.arange(channels) * FLOAT).ravel().astype(np.uint32))
        vector += len(starts)
        size += len(taps) * channels * len(starts) * LANES
    begins = np.cumsum([0, *map(len, columns)])
    return Panels(np.array(table), np.concatenate(lists), np.concatenate(columns), begins, size)


def vector_starts(channels: int) -> npt.NDArray[np.int64]:
    """The first channel of each vector of them; the last one is moved back so as to end with the last channel."""
    return np.minimum(np.arange(0, channels, LANES), channels - LANES)


@kernel
def _pack(w, table, starts, groups, weights):  # w (taps, C/G, O)
    taps, inputs, outputs = w.shape
    for panel in prange(len(table)):
        vectors, vector, channels, source, at = table[panel]
        first = source // FLOAT  # channel of x
        for k in range(taps * channels):
            c = first + k % channels
            row = w[k // channels, c % inputs]
            for v in range(vectors):
                start, out = starts[vector + v], weights[at : at + LANES]
                at += LANES
                for lane in range(LANES):
                    out[lane] = row[start + lane]
                if channels > inputs:  # more groups than one
                    for lane in range(LANES):
                        if (start + lane) // (outputs // groups) != c // inputs:
                            out[lane] = 0


@helper
def tile(vectors, rows, x, x_rows, x_columns, count, weights, bias, y, y_rows, y_columns, before):
    """y[r] = before[r] + sum_k x[r, k] weights[k] for all of y's rows, one by one where they do not fill a tile; addresses."""
    single = rows < HEIGHT[vectors]
    dense_tile(
        2 * vectors + single,
        (NONE, rows, x, x_rows, x_columns, count, weights, bias, y, y_rows, y_columns, before, y_rows, y_columns, LOW, HIGH),
    )


@kernel
def _multiply(x, blocks, rows, columns, begins, table, starts, weights, bias, y, targets, places):
    for b in prange(len(blocks)):
        for panel in range(len(table)):
            vectors, vector, _, source, at = table[panel]
            begin, end = begins[panel], begins[panel + 1]
            tile(
                vectors, np.int64(len(rows)), x.ctypes.data + blocks[b] + source, rows.ctypes.data, columns.ctypes.data + begin * 4,
                end - begin, weights.ctypes.data + at * FLOAT, bias.ctypes.data, y.ctypes.data + targets[b], places.ctypes.data,
                starts.ctypes.data + vector * 4, NONE,
            )  # fmt: skip


def multiply(x: Array, view: View, w: Array, groups: int, shape: tuple[int, ...]) -> Array:
    """The rows of x times w (taps, C/G, O) -> y of the shape, (..., O). Raises PyShuffleError without compiled code."""
    require_jit()
    taps, inputs, outputs = w.shape
    if outputs < LANES:  # not one whole vector: some columns more, that nobody reads
        wide = np.zeros((taps, inputs * groups, LANES), np.float32)
        for g in range(groups):
            part = np.s_[g * outputs // groups : (g + 1) * outputs // groups]
            wide[:, g * inputs : (g + 1) * inputs, part] = w[..., part]
        return np.ascontiguousarray(multiply(x, view, wide, 1, (*shape[:-1], LANES))[..., :outputs])
    table, starts, columns, begins, size = panels(view.taps, groups, inputs, outputs // groups)
    weights = np.empty(size, np.float32)
    _pack(np.ascontiguousarray(w), table, starts, groups, weights)
    y = np.empty(shape, np.float32)
    rows, row = len(view.rows), outputs * FLOAT
    # The last block of an array's pixels is moved back to be as long as the others: some rows are computed twice, alike.
    back = np.maximum(np.arange(len(view.blocks)) * rows + rows - view.size, 0)
    places = np.arange(rows, dtype=np.uint32) * np.uint32(row)
    _multiply(
        x, view.blocks - back * inputs * groups * FLOAT, view.rows, columns, begins, table,
        (starts * FLOAT).astype(np.uint32), weights, np.zeros(MOST * LANES, np.float32), y,
        (np.arange(len(view.blocks)) * rows - back) * row, places,
    )  # fmt: skip
    return y


@kernel
def _multiply_transposed(x, blocks, rows, columns, size, dy, inputs, bias, places, starts, parts):
    # parts (BLOCKS or fewer, G, taps C/G and some more, vectors, LANES): of dw; columns: of x, as many; dy (P, G, O/G)
    count, groups, length, vectors, _ = parts.shape
    outputs = dy.shape[2]
    cuts = -(-vectors // MOST)
    for task in prange(count * groups * cuts):
        part, g, cut = task // (groups * cuts), task // cuts % groups, task % cuts
        first, last = cut * vectors // cuts, (cut + 1) * vectors // cuts
        packed = np.zeros((len(rows), last - first, LANES), np.float32)
        whole = length // HEIGHT[last - first] * HEIGHT[last - first]
        out, before = parts[part, g].ctypes.data + first * LANES * FLOAT, NONE
        for b in range(part * len(blocks) // count, (part + 1) * len(blocks) // count):
            here = min(len(rows), size - b * len(rows))
            for r in range(here):
                row = dy[b * len(rows) + r, g]
                for v in range(first, last):
                    values = packed[r, v - first]
                    if outputs < LANES:
                        for o in range(outputs):
                            values[o] = row[o]
                    else:
                        given = row[min(v * LANES, outputs - LANES) :]
                        for lane in range(LANES):
                            values[lane] = given[lane]
            tile(
                last - first, whole, x.ctypes.data + blocks[b] + g * inputs * FLOAT, columns.ctypes.data, rows.ctypes.data, here,
                packed.ctypes.data, bias.ctypes.data, out, places.ctypes.data, starts.ctypes.data, before,
            )  # fmt: skip
            before = out


def multiply_transposed(x: Array, view: View, dy: Array, inputs: int, groups: int) -> Array:
    """dw (taps, C/G, O) for the rows of x, and of dy (..., O). Raises PyShuffleError without compiled code."""
    require_jit()
    taps, dy = len(view.taps), dy.reshape(view.size, groups, -1)
    outputs, used = dy.shape[2], taps * inputs
    begins = vector_starts(max(outputs, LANES))
    columns = np.add.outer(view.taps, np.arange(inputs) * FLOAT).ravel()
    columns = np.pad(columns, (0, TALL - 1), mode="edge").astype(np.uint32)  # so that they fill tiles
    count = max(1, min(BLOCKS, view.size // PART, len(view.blocks)))
    parts = np.empty((count, groups, len(columns), len(begins), LANES), np.float32)
    places = np.arange(len(columns), dtype=np.uint32) * np.uint32(len(begins) * LANES * FLOAT)
    starts = np.arange(MOST, dtype=np.uint32) * np.uint32(LANES * FLOAT)
    bias = np.zeros(MOST * LANES, np.float32)
    _multiply_transposed(x, view.blocks, view.rows, columns, view.size, dy, inputs, bias, places, starts, parts)
    total = parts[:, :, :used].sum(axis=0)
    dw = np.empty((taps, inputs, groups, outputs), np.float32)
    for v, begin in enumerate(begins):
        vector = total[:, :, v].reshape(groups, taps, inputs, LANES)[..., :outputs]
        dw[..., begin : begin + LANES] = np.moveaxis(vector, 0, 2)
    return dw.reshape(taps, inputs, groups * outputs)
