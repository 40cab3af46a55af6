"""Rectified linear unit, with a limit if need be: ReLU6 has 6.
    y = min(max(x, 0), limit)                                            (V1, figure 2; V2, figure 3; no limit there)
    dx = dy [0 < x < limit]
x (..., C) -> y of that shape. The gradient at exactly 0 or the limit is 0. A NaN stays a NaN, so that a broken run shows.

Cost: no multiply-add, but every value is read and written (V2, G4), unless it is folded into the operation before it.
"""

import numpy as np
from numba import prange

from ..types import Array
from .check import check_gradient, require_float32
from .jit import kernel, rows
from .reading import Map


def forward_reference(x: Array, limit: float = np.inf) -> Array:
    return np.minimum(np.maximum(x, 0), limit)


def backward_reference(dy: Array, x: Array, limit: float = np.inf) -> tuple[Array]:
    check_gradient(dy, x.shape)
    return (np.where((x > 0) & (x < limit), dy, 0),)


@kernel
def _forward(x, limit, y):  # (P, C)
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            above = np.float32(0) if x[p, c] < 0 else x[p, c]
            y[p, c] = limit if above > limit else above


@kernel
def _backward(dy, x, limit, dx):  # (P, C)
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            dx[p, c] = dy[p, c] if 0 < x[p, c] < limit else np.float32(0)


def forward(x: Map, limit: float = np.inf) -> Array:
    """x (..., C), float32 -> y like x. Raises ShapeError."""
    require_float32(x)
    y = np.empty(x.shape, np.float32)
    _forward(rows(np.asarray(x)), np.float32(limit), rows(y))
    return y


def backward(dy: Array, x: Map, limit: float = np.inf) -> tuple[Array]:
    """dy like x, float32 -> dx. Raises ShapeError."""
    check_gradient(dy, x.shape)
    require_float32(dy, x)
    dx = np.empty(x.shape, np.float32)
    _backward(rows(dy), rows(np.asarray(x)), np.float32(limit), rows(dx))
    return (dx,)
