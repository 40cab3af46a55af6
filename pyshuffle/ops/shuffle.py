"""Channel shuffle, split and concat: the operations that move channels and compute nothing.

Shuffle with g groups of n = C/g channels: reshape C to (g, n), transpose to (n, g), flatten         (V1, section 3.1, figure 1)
    y[..., a g + b] = x[..., b n + a]        a < n, b < g
Afterwards every group of the next grouped convolution holds channels of every group of the last one. A shuffle is a permutation,
so its gradient is its inverse, and the inverse of a shuffle with g groups is the shuffle with n groups.

    split:   left, right = x[..., :C/2], x[..., C/2:]                                                (V2, figure 3 (c))
    concat:  y = [a | b] along the channels                                                          (V2, figure 3 (c), (d))
Each is the gradient of the other.
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array, Shaped
from .check import check_gradient, require_float32
from .jit import kernel, rows


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


def concat_backward_reference(dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    check_gradient(dy, check_concat(a, b))
    return dy[..., : a.shape[-1]], dy[..., a.shape[-1] :]


@kernel
def _shuffle(x, groups, y):  # (P, C)
    n = x.shape[1] // groups
    for p in prange(len(x)):
        if n > groups:  # the longer loop inside
            for b in range(groups):
                for a in range(n):
                    y[p, a * groups + b] = x[p, b * n + a]
        else:
            for a in range(n):
                for b in range(groups):
                    y[p, a * groups + b] = x[p, b * n + a]


@kernel
def _split(y, a, b):  # y (P, A + B), a (P, A), b (P, B)
    for p in prange(len(y)):
        for c in range(a.shape[1]):
            a[p, c] = y[p, c]
        for c in range(b.shape[1]):
            b[p, c] = y[p, a.shape[1] + c]


@kernel
def _concat(a, b, y):  # a (P, A), b (P, B), y (P, A + B)
    for p in prange(len(y)):
        for c in range(a.shape[1]):
            y[p, c] = a[p, c]
        for c in range(b.shape[1]):
            y[p, a.shape[1] + c] = b[p, c]


def shuffle(x: Array, groups: int) -> Array:
    """x (..., C), float32 -> y (..., C). Raises ShapeError."""
    group_size(x, groups)
    require_float32(x)
    y = np.empty(x.shape, np.float32)
    _shuffle(rows(x), groups, rows(y))
    return y


def shuffle_backward(dy: Array, x: Array, groups: int) -> tuple[Array]:
    check_gradient(dy, x.shape)
    return (shuffle(dy, group_size(x, groups)),)


def split(x: Array) -> tuple[Array, Array]:
    """x (..., C), float32 -> its two halves (..., C/2). Raises ShapeError."""
    half = group_size(x, 2)
    return _cut(x, half)


def split_backward(dleft: Array, dright: Array, x: Array) -> tuple[Array]:
    dx = concat(dleft, dright)
    check_gradient(dx, x.shape)
    return (dx,)


def concat(a: Array, b: Array) -> Array:
    """a (..., A), b (..., B), float32 -> y (..., A + B). Raises ShapeError."""
    y = np.empty(check_concat(a, b), np.float32)
    require_float32(a, b)
    _concat(rows(a), rows(b), rows(y))
    return y


def concat_backward(dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    check_gradient(dy, check_concat(a, b))
    return _cut(dy, a.shape[-1])


def _cut(y: Array, width: int) -> tuple[Array, Array]:
    require_float32(y)
    a = np.empty((*y.shape[:-1], width), np.float32)
    b = np.empty((*y.shape[:-1], y.shape[-1] - width), np.float32)
    _split(rows(y), rows(a), rows(b))
    return a, b


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
