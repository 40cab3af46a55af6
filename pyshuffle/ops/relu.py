"""Rectified linear unit.
    y = max(x, 0)                                                        (V1, figure 2; V2, figure 3)
    dx = dy [x > 0]
x of any shape -> y of that shape. The gradient at exactly 0 is taken as 0. A NaN stays a NaN, so that a broken run shows.
"""

import numpy as np
from numba import prange

from ..types import Array
from .check import check_gradient, require_float32
from .jit import kernel, rows


def forward_reference(x: Array) -> Array:
    return np.maximum(x, 0)


def backward_reference(dy: Array, x: Array) -> tuple[Array]:
    check_gradient(dy, x.shape)
    return (dy * (x > 0),)


@kernel
def _forward(x, y):  # (P, C)
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            y[p, c] = np.float32(0) if x[p, c] < 0 else x[p, c]


@kernel
def _backward(dy, x, dx):  # (P, C)
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            dx[p, c] = dy[p, c] if x[p, c] > 0 else np.float32(0)


def forward(x: Array) -> Array:
    """x of any shape, float32 -> y like x. Raises ShapeError."""
    require_float32(x)
    y = np.empty(x.shape, np.float32)
    _forward(rows(x), rows(y))
    return y


def backward(dy: Array, x: Array) -> tuple[Array]:
    """dy like x, float32 -> dx. Raises ShapeError."""
    check_gradient(dy, x.shape)
    require_float32(dy, x)
    dx = np.empty(x.shape, np.float32)
    _backward(rows(dy), rows(x), rows(dx))
    return (dx,)
