"""Maps that are computed when they are read.

Between a convolution and the next lie a batch normalisation and mostly a ReLU. Both are cheap and memory is slow, so in a network
they seldom run over memory: what the convolution made is kept, and most of those who read it normalise the rows they need in the
cache,
    z = max(low, scale (x - mean) + beta)        x: the y of conv_bn.py; low: 0 with a ReLU, else -inf
On the way back, once the sums over all pixels are known, the gradient with respect to x is computed where it is read, too
(batchnorm.py):
    dx = scale dz [z > low] + slope (x - mean) + offset
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import prange

from ..engine.intrinsics import differentiate_tile, normalise_tile
from ..engine.machine import FLOAT
from ..types import Array
from .check import EPS
from .jit import BLOCKS, helper, kernel, require_jit, rows
from .panels import LANES

PLAIN, NORMALISED, GRADIENT = range(3)
ROWS = 64  # of a part of a map: they stay in the near caches
NOTHING = np.empty((0, 0), np.float32)


class Source(NamedTuple):
    """Rows of channels as kernels take them: stored ones, or what has to be done to stored ones."""

    kind: int  # PLAIN: x; NORMALISED: z; GRADIENT: dx, of the equations above
    x: Array  # (P, C) or, of a part of its channels, (P, more)
    first: int  # of these channels
    channels: int
    dz: Array  # (P, C), of a gradient
    constants: Array  # (5, C): mean, scale, beta, slope, offset; 0, 1, -0 leave x as it is
    low: np.float32


class Normalised:
    """max(low, scale (x - mean) + beta), with scale = gamma / sqrt(var + eps), in the place of an array; np.asarray computes it."""

    def __init__(self, x: Array, mean: Array, var: Array, gamma: Array, beta: Array, relu: bool) -> None:
        require_jit()
        self.gradient_and_sums: tuple[Array, Array] | None = None  # a gradient with respect to it, and its sums (sums.py)
        self.x, self.mean, self.var, self.gamma = x, mean, var, gamma
        self.shape, self.ndim, self.size, self.dtype = x.shape, x.ndim, x.size, x.dtype
        constants = np.zeros((5, x.shape[-1]), np.float32)
        constants[:3] = mean, gamma / np.sqrt(var + np.float32(EPS)), beta
        low = np.float32(0 if relu else -np.inf)
        self.source = Source(NORMALISED, *place(x), x.shape[-1], NOTHING, constants, low)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return computed(self.source).reshape(self.shape).astype(dtype or self.dtype, copy=False)


Map: TypeAlias = Array | Normalised  # what operations take from one another


def source(x: Map) -> Source:
    """What stands for an array, as kernels take it. A part of the channels of a contiguous array is not copied."""
    if isinstance(x, Normalised):
        return x.source
    require_jit()
    return Source(PLAIN, *place(np.asarray(x)), x.shape[-1], NOTHING, unchanged(x.shape[-1]), np.float32(-np.inf))


def place(x: Array) -> tuple[Array, int]:
    """Contiguous rows that hold x, and the first of its channels there."""
    base, pixels = x.base, x.shape[:-1]
    if isinstance(base, np.ndarray) and base.ndim and base.flags.c_contiguous and base.dtype == x.dtype:
        row = base.shape[-1:]
        steps = [math.prod(pixels[axis + 1 :] + row) for axis in range(len(pixels))]
        if base.size == math.prod(pixels + row) and x.strides == tuple(x.itemsize * step for step in (*steps, 1)):
            return rows(base), (x.ctypes.data - base.ctypes.data) // x.itemsize
    return rows(x), 0


@lru_cache(maxsize=4096)
def unchanged(channels: int) -> Array:
    return np.array([[0], [1], [-0.0], [0], [0]], np.float32).repeat(channels, axis=1)


@helper
def read(source, begin, out, at):
    """Rows from `begin` on, at least one, become those of out (R, C or more), from channel `at` on."""
    if source.channels >= LANES:
        read_rows(source, begin, len(out), out.ctypes.data + at * FLOAT, out.shape[1] * FLOAT)
    elif source.kind == PLAIN and source.x.shape[1] == source.channels == out.shape[1]:
        given, goal = source.x[begin : begin + len(out)].reshape(-1), out.reshape(-1)
        for k in range(len(goal)):
            goal[k] = given[k]
    else:
        read_narrow(source, begin, out, at)


@helper
def read_rows(source, begin, count, target, target_row):
    """So many rows from `begin` on, at least one, of a vector's channels or more, to an address."""
    vectors, last = -(-source.channels // LANES), source.channels - LANES
    read_vectors(source, begin, count, vectors, 0, last, target, target_row, last * FLOAT)


@helper
def read_vectors(source, begin, count, vectors, first, last, target, target_row, target_last):
    """Of so many rows from `begin` on: vectors from channel `first` on, side by side, the last of them `last` channels further."""
    x_row, row = source.x.shape[1] * FLOAT, source.channels * FLOAT
    x = source.x.ctypes.data + begin * x_row + (source.first + first) * FLOAT
    constants = source.constants.ctypes.data + first * FLOAT
    if source.kind == GRADIENT:
        dz = source.dz.ctypes.data + begin * row + first * FLOAT
        differentiate_tile(
            (x, x_row, last * FLOAT, dz, row, constants, row, target, target_row, target_last, count, vectors, source.low)
        )
    else:
        normalise_tile((x, x_row, last * FLOAT, constants, row, target, target_row, target_last, count, vectors, source.low))


@helper
def read_narrow(source, begin, out, at):
    """As `read`, for fewer channels than a vector has."""
    constants, low = source.constants, source.low
    for r in range(len(out)):
        for c in range(source.channels):
            above = source.x[begin + r, source.first + c] - constants[0, c]
            value = above * constants[1, c] + constants[2, c]
            if source.kind == GRADIENT:
                d = source.dz[begin + r, c] if value > low else np.float32(0)
                out[r, at + c] = constants[1, c] * d + constants[3, c] * above + constants[4, c]
            else:
                out[r, at + c] = low if low > value else value  # NaN stays NaN


@helper
def block(source, begin, values):
    """The rows from `begin` on, as many as `values` (R, C) has: computed there, or where they lie."""
    if source.kind == PLAIN and source.x.shape[1] == source.channels:
        return source.x[begin : begin + len(values)]
    read(source, begin, values, 0)
    return values


@kernel
def _read(source, ends, y):
    for b in prange(len(ends) - 1):
        read(source, ends[b], y[ends[b] : ends[b + 1]], 0)


def computed(source: Source) -> Array:
    """The rows (P, C) that a source stands for."""
    y = np.empty((len(source.x), source.channels), np.float32)
    _read(source, cuts(len(y)), y)
    return y


def cuts(count: int) -> npt.NDArray[np.int64]:
    """Where parts of so many rows begin and end: BLOCKS of them, or fewer."""
    parts = min(BLOCKS, count)
    return np.arange(parts + 1) * count // max(1, parts)


def widened(x: Map | Source) -> Source:
    """Rows with at least a vector's channels. What is in those that x does not have, nobody may read."""
    x = x if isinstance(x, Source) else source(x)
    short = LANES - x.channels
    if short <= 0:
        return x
    if x.kind != GRADIENT and lies_wide(x):
        return x._replace(channels=LANES, constants=np.pad(x.constants, ((0, 0), (0, short))))
    return source(widened_rows(computed(x)))


def lies_wide(x: Source) -> bool:
    """Whether rows of less than a vector's channels are read a vector at a time where they lie."""
    return x.channels < LANES <= x.x.shape[1] - x.first


def widened_rows(x: Array) -> Array:
    """The same for an array alone: contiguous rows (P, C), or (P, LANES) with the channels of x in front."""
    short = LANES - x.shape[-1]
    if short <= 0:
        return rows(x)
    wide, first = place(x)
    return wide if (first, wide.shape[1]) == (0, LANES) else np.pad(rows(x), ((0, 0), (0, short)))
