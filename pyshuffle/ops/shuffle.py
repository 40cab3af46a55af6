"""Channel shuffle, split and concat: the operations that move channels and compute nothing.

Shuffle with g groups of n = C/g channels: reshape C to (g, n), transpose to (n, g), flatten         (V1, section 3.1, figure 1)
    y[..., a g + b] = x[..., b n + a]        a < n, b < g
Afterwards every group of the next grouped convolution holds channels of every group of the last one. A shuffle is a permutation,
so its gradient is its inverse, and the inverse of a shuffle with g groups is the shuffle with n groups.

    split:   left, right = x[..., :C/2], x[..., C/2:]                                                (V2, figure 3 (c))
    concat:  y = [a | b] along the channels                                                          (V2, figure 3 (c), (d))
Each is the gradient of the other.

Cost: no multiply-add, but every value is read and written. The engine moves nothing: there a shuffle is the order of a list.
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array, Shaped
from .check import check_gradient, require_float32
from .jit import kernel, rows
from .reading import ROWS, Map, read, source, whole


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


@kernel
def _join(a, b, groups, y):  # [a | b] in the order of a shuffle -> y (P, C)
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
            else:
                for g in range(groups):
                    for k in range(n):
                        row[k * groups + g] = given[g * n + k]


@kernel
def _part(y, groups, a, b):  # the other way round
    n = y.shape[1] // groups
    for part in prange(-(-len(y) // ROWS)):
        given = np.empty(y.shape[1], np.float32)
        for p in range(part * ROWS, min((part + 1) * ROWS, len(y))):
            row = y[p]
            if groups == 2:
                for k in range(n):
                    given[k], given[n + k] = row[2 * k], row[2 * k + 1]
            else:
                for g in range(groups):
                    for k in range(n):
                        given[g * n + k] = row[k * groups + g]
            left, right = a[p], b[p]
            for c in range(len(left)):
                left[c] = given[c]
            for c in range(len(right)):
                right[c] = given[len(left) + c]


def shuffle(x: Map, groups: int) -> Array:
    """x (..., C), float32 -> y (..., C). Raises ShapeError."""
    group_size(x, groups)
    require_float32(x)
    y, given = np.empty(x.shape, np.float32), source(x)
    _join(given, given._replace(channels=0), groups, rows(y))
    return y


def shuffle_backward(dy: Array, x: Map, groups: int) -> tuple[Array]:
    check_gradient(dy, x.shape)
    return (shuffle(dy, group_size(x, groups)),)


def split(x: Array) -> tuple[Array, Array]:
    """x (..., C), float32 -> its two halves (..., C/2), which are not copied. Raises ShapeError."""
    require_float32(x)
    return split_reference(whole(x))


def split_backward(dleft: Array, dright: Array, x: Array) -> tuple[Array]:
    dx = concat(dleft, dright)
    check_gradient(dx, x.shape)
    return (dx,)


def concat(a: Map, b: Map) -> Array:
    """a (..., A), b (..., B), float32 -> y (..., A + B). Raises ShapeError."""
    return concat_shuffle(a, b, 1)


def concat_backward(dy: Array, a: Map, b: Map) -> tuple[Array, Array]:
    require_float32(dy)
    return concat_backward_reference(dy, a, b)


def concat_shuffle(a: Map, b: Map, groups: int) -> Array:
    """a (..., A), b (..., B), float32 -> the shuffle of [a | b], in one pass over memory. Raises ShapeError."""
    y = np.empty(check_concat(a, b), np.float32)
    group_size(y, groups)
    require_float32(a, b)
    _join(source(a), source(b), groups, rows(y))
    return y


def concat_shuffle_backward(dy: Array, a: Map, b: Map, groups: int) -> tuple[Array, Array]:
    check_gradient(dy, check_concat(a, b))
    require_float32(dy)
    da, db = np.empty(a.shape, np.float32), np.empty(b.shape, np.float32)
    _part(rows(dy), groups, rows(da), rows(db))
    return da, db


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
