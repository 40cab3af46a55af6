"""Channel shuffle, split and concat: the operations that move channels and compute nothing.

Shuffle with g groups of n = C/g channels: reshape C to (g, n), transpose to (n, g), flatten         (V1, section 3.1, figure 1)
    y[..., a g + b] = x[..., b n + a]        a < n, b < g
Afterwards every group of the next grouped convolution holds channels of every group of the last one, or of n of them where n < g
(V1 0.5x with 8 groups has n = 6 in stage 2). A shuffle is a permutation, so its gradient is its inverse, and the inverse of a
shuffle with g groups is the shuffle with n groups.

    split:   left, right = x[..., :C/2], x[..., C/2:]                                                (V2, figure 3 (c))
    concat:  y = [a | b] along the channels                                                          (V2, figure 3 (c), (d))
Each is the gradient of the other.

Cost: no multiply-add, but every value is read and written. A split copies nothing, though the kernels' computes first what is not
computed yet (the audit counts it all the same); the engine moves nothing at all: there a shuffle is the order of a list.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import prange

from ..errors import ShapeError
from ..types import Array, Shaped
from .check import check_gradient, require_float32
from .jit import kernel, rows
from .reading import ROWS, Map, cuts, read, source
from .sums import NO_SUMS, covary, remember, zero_sums

T = TypeVar("T")


def shuffle_reference(x: Array, groups: int) -> Array:
    """x (..., C) -> y (..., C) with the channels in the order of the equation. Raises ShapeError."""
    n = group_size(x, groups)
    return x.reshape(*x.shape[:-1], groups, n).swapaxes(-1, -2).reshape(x.shape)


def shuffle_backward_reference(dy: Array, x: Array, groups: int) -> tuple[Array]:
    check_gradient(dy, x.shape)
    return (shuffle_reference(dy, group_size(x, groups)),)


def split_reference(x: Array) -> tuple[Array, Array]:
    """x (..., C) -> its two halves (..., C/2). Raises ShapeError."""
    half = group_size(x, 2)
    return x[..., :half], x[..., half:]


def split_backward_reference(dleft: Array, dright: Array, x: Array) -> tuple[Array]:
    dx = concat_reference(dleft, dright)
    check_gradient(dx, x.shape)
    return (dx,)


def concat_reference(a: Array, b: Array) -> Array:
    """a (..., A), b (..., B) -> y (..., A + B). Raises ShapeError."""
    check_concat(a, b)
    return np.concatenate((a, b), axis=-1)


def concat_backward_reference(dy: Array, a: Map, b: Map) -> tuple[Array, Array]:
    check_gradient(dy, check_concat(a, b))
    return dy[..., : a.shape[-1]], dy[..., a.shape[-1] :]


class Joined:
    """[left | right] along the channels, in the place of an array; np.asarray joins them."""

    def __init__(self, left: Array, right: Array) -> None:
        self.left, self.right = left, right
        self.shape, self.dtype = check_concat(left, right), left.dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return concat(self.left, self.right).astype(dtype or self.dtype, copy=False)


@lru_cache(maxsize=4096)
def order(channels: int, groups: int) -> npt.NDArray[np.uintp]:
    """For each channel that comes out of a shuffle, the one of those that went in."""
    return np.arange(channels, dtype=np.uintp).reshape(groups, -1).T.ravel()


@kernel
def _join(a, b, groups, order, y):  # [a | b] in the order of a shuffle -> y (P, C)
    n = y.shape[1] // groups
    for part in prange(-(-len(y) // ROWS)):
        first, last = part * ROWS, min((part + 1) * ROWS, len(y))
        joined = y[first:last] if groups == 1 else np.empty((last - first, y.shape[1]), np.float32)
        read(a, first, joined, 0)
        read(b, first, joined, a.channels)
        for r in range(last - first if groups > 1 else 0):
            given, row = joined[r], y[first + r]
            if groups == 2:  # known beforehand: whole vectors are woven
                for k in range(n):
                    row[2 * k], row[2 * k + 1] = given[k], given[n + k]
            elif groups == 3:
                for k in range(n):
                    row[3 * k], row[3 * k + 1], row[3 * k + 2] = given[k], given[n + k], given[2 * n + k]
            else:
                for c in range(len(row)):
                    row[c] = given[order[c]]


@kernel
def _unjoin(left, right, groups, order, ends, a, b, a_map, b_map, a_sums, b_sums):
    # The other way round: of [left | right], with the order of the inverse. The sums (parts, 2, C), or (0, 0, 0), are of a and b
    channels, width = left.shape[1] + right.shape[1], a.shape[1]
    n = channels // groups
    for part in prange(len(ends) - 1):
        joined = np.empty(channels, np.float32)
        for first in range(ends[part], ends[part + 1], ROWS):
            last = min(first + ROWS, ends[part + 1])
            for p in range(first, last):
                given, a_row, b_row = left[p], a[p], b[p]
                if len(given) < channels:
                    more, given = right[p], joined
                    for c in range(channels - len(more)):
                        given[c] = left[p, c]
                    for c in range(len(more)):
                        given[channels - len(more) + c] = more[c]
                if groups == 2 and 2 * width == channels:
                    for c in range(width):
                        a_row[c], b_row[c] = given[2 * c], given[2 * c + 1]
                elif groups == 3 and width == channels:
                    for c in range(n):
                        a_row[c], a_row[n + c], a_row[2 * n + c] = given[3 * c], given[3 * c + 1], given[3 * c + 2]
                else:
                    for c in range(width):
                        a_row[c] = given[order[c]]
                    for c in range(width, channels):
                        b_row[c - width] = given[order[c]]
            if len(a_sums):
                covary(a_map, first, last, a, a_sums[part])
            if len(b_sums):
                covary(b_map, first, last, b, b_sums[part])


def shuffle(x: Map, groups: int) -> Array:
    """x (..., C), float32 -> y (..., C). Raises ShapeError."""
    group_size(x, groups)
    require_float32(x)
    y, given = np.empty(x.shape, np.float32), source(x)
    _join(given, given._replace(channels=0), groups, order(x.shape[-1], groups), rows(y))
    return y


def shuffle_backward(dy: Array | Joined, x: Map, groups: int) -> tuple[Array, ...]:
    check_gradient(dy, x.shape)
    require_float32(dy)
    return unjoin(dy, groups, x)


def split(x: Array) -> tuple[Array, Array]:
    """x (..., C), float32 -> its two halves (..., C/2), which are not copied. Raises ShapeError."""
    require_float32(x)
    return split_reference(np.ascontiguousarray(x))


def split_backward(dleft: Array, dright: Array, x: Array) -> tuple[Joined]:
    require_float32(dleft, dright)
    dx = Joined(dleft, dright)
    check_gradient(dx, x.shape)
    return (dx,)


def concat(a: Map, b: Map) -> Array:
    """a (..., A), b (..., B), float32 -> y (..., A + B). Raises ShapeError."""
    return concat_shuffle(a, b, 1)


def concat_backward(dy: Array | Joined, a: Map, b: Map) -> tuple[Array, ...]:
    return concat_shuffle_backward(dy, a, b, 1)


def concat_shuffle(a: Map, b: Map, groups: int) -> Array:
    """a (..., A), b (..., B), float32 -> the shuffle of [a | b], in one pass over memory. Raises ShapeError."""
    y = np.empty(check_concat(a, b), np.float32)
    group_size(y, groups)
    require_float32(a, b)
    _join(source(a), source(b), groups, order(y.shape[-1], groups), rows(y))
    return y


def concat_shuffle_backward(dy: Array | Joined, a: Map, b: Map, groups: int) -> tuple[Array, ...]:
    check_gradient(dy, check_concat(a, b))
    require_float32(dy)
    return unjoin(dy, groups, a, b)


def unjoin(dy: Array | Joined, groups: int, *maps: Map) -> tuple[Array, ...]:
    """Undo a shuffle -> the gradients with respect to one map, or to two that were joined."""
    pixels, channels = dy.size // dy.shape[-1], dy.shape[-1]
    halves, nothing = [dy.left, dy.right] if isinstance(dy, Joined) else [dy], np.empty((pixels, 0), np.float32)
    gradients, sources, ends = [np.empty(x.shape, np.float32) for x in maps], [source(x) for x in maps], cuts(pixels)
    sums = [zero_sums(x, len(ends) - 1) for x in sources]
    _unjoin(
        *two(map(rows, halves), nothing), groups, order(channels, group_size(dy, groups)), ends, *two(map(rows, gradients), nothing),
        *two(sources, sources[0]), *two(sums, NO_SUMS),
    )  # fmt: skip
    return tuple(map(remember, maps, gradients, sums))


def two(given: Iterable[T], none: T) -> list[T]:
    """One thing and nothing, or two."""
    return [*given, none][:2]


def group_size(x: Shaped, groups: int) -> int:
    """C/g. Raises ShapeError."""
    if groups < 1 or x.shape[-1] % groups:
        raise ShapeError(f"channels={x.shape[-1]} is not divisible by groups={groups}")
    return x.shape[-1] // groups


def check_concat(a: Shaped, b: Shaped) -> tuple[int, ...]:
    """The shape of [a | b]. Raises ShapeError."""
    if a.shape[:-1] != b.shape[:-1]:
        raise ShapeError(f"shapes {a.shape} and {b.shape} differ before the channels: they cannot be concatenated")
    return (*a.shape[:-1], a.shape[-1] + b.shape[-1])
