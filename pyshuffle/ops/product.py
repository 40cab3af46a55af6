"""Products of matrices on the engine's tiles (engine/tiles.py): what every convolution but a depthwise one comes down to, both ways.
    y[p, o]  = sum_k x[p, k] w[k, o]          a convolution; with w transposed, its gradient with respect to these rows
    dw[k, o] = sum_p x[p, k] dy[p, o]         its gradient with respect to w: the same tile, with k and p in each other's place
A row p of x is a pixel, or the window around one (conv.py folds the gradient of that): a `View` says where it lies, so that neither
a group nor a window is copied. What a block of rows needs is read once, as it lies in memory, to which it is slow to come back; the
tiles then find it in the cache.

How columns o are dealt out to tiles is in panels.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import prange

from ..engine.intrinsics import dense_tile
from ..engine.machine import FLOAT, machine
from ..types import Array
from .jit import BLOCKS, helper, kernel
from .moments import measure
from .panels import LANES, MOST, TALL, Table, dx_panels, gradient_cuts, packed, panels, transpose, wide
from .reading import NOTHING, Source, read, read_narrow, read_vectors
from .sums import NO_SUMS, covary, zero_sums

HEIGHT = np.array([machine().heights.get(vectors, 0) for vectors in range(MOST + 1)])  # of a tile
ROWS = 16 * TALL  # of x in a block: they stay in the near caches while all panels are computed
PART = 384  # rows of x, at least, in a part of the sum over all of them; a part has a dw of its own, and there are at most BLOCKS
NONE, LOW, HIGH = np.int64(0), np.float32(-np.inf), np.float32(np.inf)
ZEROS = np.zeros(MOST * LANES, np.float32)
STORED = np.arange(MOST, dtype=np.uint32) * np.uint32(LANES * FLOAT)  # vectors side by side


class Band(NamedTuple):
    """What a block reads of a map (N, H, W, C): for windows, K rows of it with their border of zeros."""

    kernel: int  # K; 0 where rows are pixels
    stride: int
    height: int  # H
    width: int  # W
    rows: int  # of y in an image
    pixels: int  # that a block reads


class View(NamedTuple):
    """How an array is the rows of a matrix, block by block. Channel c of tap t of row r lies rows[r] + taps[t] + 4 c bytes from the
    beginning of its block."""

    size: int  # rows
    blocks: int
    rows: Table  # uint32, of a block
    taps: tuple[int, ...]  # of a window
    band: Band


@lru_cache(maxsize=4096)
def pixel_rows(count: int, channels: int) -> View:
    """Every pixel of an array (P, C) is a row; in blocks of ROWS, the last of which may have fewer."""
    rows = np.arange(min(ROWS, count), dtype=np.uint32) * np.uint32(channels * FLOAT)
    return View(count, -(-count // ROWS), rows, (0,), Band(0, 0, 0, 0, 0, len(rows)))


@lru_cache(maxsize=4096)
def window_rows(shape: tuple[int, int, int], source: tuple[int, ...], size: int, stride: int) -> View:
    """Every window of a map (N, H, W, C) = `source` with a border of zeros, one for each pixel of (N, I, J) = `shape`, is a row; J
    make a block, and look through a band of the map."""
    images, height, width = shape
    _, source_height, source_width, channels = source
    across, pixel = source_width + size // 2 * 2, channels * FLOAT
    taps = np.add.outer(np.arange(size) * across, np.arange(size)).ravel() * pixel
    rows = (np.arange(width) * stride * pixel).astype(np.uint32)
    band = Band(size, stride, source_height, source_width, height, size * across)
    return View(images * height * width, images * height, rows, tuple(taps.tolist()), band)


@helper
def tile(halves, rows, x, x_rows, x_columns, count, weights, y, y_rows, y_columns, before):
    """y[r] = before[r] + sum_k x[r, k] weights[k] for so many rows, one by one where they do not fill a tile. Arrays are given by
    their addresses; before 0 is none."""
    single = rows < HEIGHT[(halves + 1) // 2]
    dense_tile(
        2 * halves + single,
        (NONE, rows, x, x_rows, x_columns, count, weights, ZEROS.ctypes.data, y, y_rows, y_columns, before, y_rows, y_columns, LOW,
         HIGH),
    )  # fmt: skip


@helper
def read_block(x, band, b, first, count, out):
    """What block b reads: `count` pixels from `first` on, or a band of the map, some rows of pixels with their border."""
    size, stride, height, width, rows, _ = band
    if size == 0:
        read(x, first, out[:count], 0)
        return
    n, i = b // rows, b % rows
    out[:] = 0
    for u in range(size):
        h, begin = stride * i + u - size // 2, u * (width + size // 2 * 2) + size // 2
        if 0 <= h < height:
            read(x, (n * height + h) * width, out[begin : begin + width], 0)


@kernel
def _multiply(x, blocks, band, x_rows, size, p, weights, y_rows, y, moments):
    # y (size, O), moments (blocks, 3, O) or (0, 0, 0)
    for b in prange(blocks):
        first = b * len(x_rows)
        last = min(first + len(x_rows), size)
        values = np.empty((band.pixels, x.channels), np.float32)
        read_block(x, band, b, first, last - first, values)
        for panel in range(len(p.table)):
            halves, vector, _, source, at = p.table[panel]
            begin, end = p.begins[panel], p.begins[panel + 1]
            tile(
                halves, last - first, np.int64(values.ctypes.data) + source, x_rows.ctypes.data, p.columns.ctypes.data + begin * 4,
                end - begin, weights.ctypes.data + at * FLOAT, y.ctypes.data + first * y.shape[1] * FLOAT, y_rows.ctypes.data,
                p.places.ctypes.data + vector * 4, NONE,
            )  # fmt: skip
        if len(moments):
            measure(y, first, last, moments[b])


def multiply(x: Source, view: View, w: Array, groups: int, with_moments: bool = False) -> tuple[Array, Array]:
    """The rows of x times w (taps, C/G, O) -> y (P, O or LANES), and, if wanted, the moments of its blocks (B, 3, O)."""
    outputs = w.shape[2]
    w, groups = wide(w, groups)
    p = panels(view.taps, groups, w.shape[1], w.shape[2] // groups)
    y = np.empty((view.size, w.shape[2]), np.float32)
    moments = np.empty((view.blocks, 3, w.shape[2]) if with_moments else (0, 0, 0))
    weights, y_rows = packed(w, p, groups), places(len(view.rows), w.shape[2])
    _multiply(x, view.blocks, view.band, view.rows, view.size, p, weights, y_rows, y, moments)
    return y, moments[..., :outputs]


@lru_cache(maxsize=4096)
def places(rows: int, columns: int) -> Table:
    """Where the rows of a block begin that has so many columns."""
    return np.arange(rows, dtype=np.uint32) * np.uint32(columns * FLOAT)


@kernel
def _backward(dy, x, blocks, band, x_rows, size, c, inputs, parts, dy_rows, p, weights, dx_rows, before, dx, sums):
    # parts (BLOCKS or fewer, cuts, taps C/G and some more, vectors, LANES): of dw; dx (P, columns) or (0, 0); before: what dx begins
    # with, like it, or (0, 0); sums (parts, 2, C) of dx, or (0, 0, 0)
    count, cuts, length, vectors, _ = parts.shape
    row = vectors * LANES * FLOAT
    for part in prange(count):
        dy_values = np.zeros((cuts * len(x_rows), vectors * LANES), np.float32)
        x_values = np.empty((band.pixels, x.channels), np.float32)
        before_values = np.empty((len(x_rows) if len(before) else 0, dx.shape[1]), np.float32)
        first_block = part * blocks // count
        for b in range(first_block, (part + 1) * blocks // count):
            begin = b * len(x_rows)
            here = min(len(x_rows), size - begin)
            for cut in range(cuts):
                if dy.channels < LANES:
                    read_narrow(dy, begin, dy_values[cut * len(x_rows) : cut * len(x_rows) + here], 0)
                else:
                    target = dy_values.ctypes.data + cut * len(x_rows) * row
                    read_vectors(dy, begin, here, vectors, c.first[cut], c.last[cut], target, row, row - LANES * FLOAT)
            read_block(x, band, b, begin, here, x_values)
            if len(before):  # not into dx itself: where tiles and vectors overlap, they would add to it twice
                given, goal = before[begin : begin + here].reshape(-1), before_values.reshape(-1)
                for k in range(len(given)):
                    goal[k] = given[k]
            for panel in range(len(p.table) if len(dx) else 0):
                halves, vector, _, _, at = p.table[panel]
                tile(
                    halves, here, dy_values.ctypes.data, dy_rows.ctypes.data, p.columns.ctypes.data + p.begins[panel] * 4,
                    p.begins[panel + 1] - p.begins[panel], weights.ctypes.data + at * FLOAT,
                    dx.ctypes.data + begin * dx.shape[1] * FLOAT, dx_rows.ctypes.data, p.places.ctypes.data + vector * 4,
                    np.int64(before_values.ctypes.data) if len(before) else NONE,
                )  # fmt: skip
            if len(sums):
                covary(x, begin, begin + here, dx, sums[part])
            for cut in range(cuts):
                g = cut * (x.channels // inputs) // cuts
                source = np.int64(x_values.ctypes.data) + g * inputs * FLOAT
                out = np.int64(parts[part, cut].ctypes.data)
                tile(
                    2 * vectors, length // HEIGHT[vectors] * HEIGHT[vectors], source, c.cells.ctypes.data, x_rows.ctypes.data, here,
                    dy_values.ctypes.data + cut * len(x_rows) * row, out, c.targets.ctypes.data, STORED.ctypes.data,
                    NONE if b == first_block else out,
                )  # fmt: skip


@kernel
def _add_up(parts, runs, dw):
    # parts and runs as `_backward` and `Cuts` have them; dw (taps C/G, O)
    for k in prange(len(dw)):
        row = dw[k]
        for r in range(len(runs)):
            cut, vector, lane, first, channels = runs[r]
            out = row[first : first + channels]
            out[:] = parts[0, cut, k, vector, lane : lane + channels]
            for part in range(1, len(parts)):
                more = parts[part, cut, k, vector, lane:]
                for c in range(len(out)):
                    out[c] += more[c]


def backward(
    dy: Source, x: Source, view: View, w: Array, groups: int, need_dx: bool, before: Array = NOTHING
) -> tuple[Array | None, Array, Array]:
    """The rows of dy times w transposed -> dx (P, G taps C/G), if needed, and dw (taps, C/G, O); and the sums of dx, if its rows
    are pixels that x normalises. before: what is added to dx, of a vector's channels or more."""
    taps, inputs, outputs = len(view.taps), w.shape[1], w.shape[2] // groups
    cut = view.taps, inputs, groups, outputs, len(view.rows)
    c = gradient_cuts(*cut)
    count = max(1, min(BLOCKS, view.size // PART, view.blocks))
    parts = np.empty((count, len(c.first), len(c.cells), c.vectors, LANES), np.float32)
    columns = groups * taps * inputs
    transposed = np.empty((1, outputs, columns), np.float32)
    transpose(np.ascontiguousarray(w), groups, transposed[0])
    wide_w, wide_groups = wide(transposed, groups)
    p = dx_panels(cut, wide_groups, wide_w.shape[1], wide_w.shape[2] // wide_groups)
    dx = np.empty((view.size, wide_w.shape[2]) if need_dx else (0, 0), np.float32)
    fits = need_dx and dx.shape[1] == columns
    sums = zero_sums(x, count) if fits and view.band.kernel == 0 else NO_SUMS
    _backward(
        dy, x, view.blocks, view.band, view.rows, view.size, c, inputs, parts, places(len(view.rows), c.vectors * LANES),
        p, packed(wide_w, p, wide_groups), places(len(view.rows), wide_w.shape[2]), before, dx, sums,
    )  # fmt: skip
    dw = np.empty((taps * inputs, w.shape[2]), np.float32)
    _add_up(parts, c.runs, dw)
    if need_dx and not fits:
        dx = np.ascontiguousarray(dx[:, :columns])
    return dx if need_dx else None, dw.reshape(w.shape), sums
