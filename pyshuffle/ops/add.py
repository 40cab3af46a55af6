"""Sum of two maps: the residual connection. The ReLU that follows it in V1 may be part of it.
    y = a + b        or max(a + b, 0)                                    (V1, figure 2 (b))
    da = db = dy     or dy [a + b > 0]
a, b of one shape -> y of that shape. Both parts of a sum have the slope 1, so dy goes to each.

Cost: no multiply-add, but three values are read or written for each of y (V2, G4).
"""

import numpy as np
from numba import prange

from ..types import Array
from .check import check_gradient, check_same, require_float32
from .jit import kernel, rows
from .reading import ROWS, Map, block, cuts, read, source
from .sums import covary, remember, zero_sums


def forward_reference(a: Array, b: Array) -> Array:
    check_same(a, b)
    return a + b


def backward_reference(dy: Array, a: Array, b: Array) -> tuple[Array, Array]:
    check_same(a, b)
    check_gradient(dy, a.shape)
    return dy, dy


@kernel
def _forward(a, b, low, y):  # (P, C); low: 0 for a ReLU, else -inf
    for part in prange(-(-len(y) // ROWS)):
        first, last = part * ROWS, min((part + 1) * ROWS, len(y))
        out = y[first:last].reshape(-1)
        read(b, first, y[first:last], 0)
        lefts = block(a, first, np.empty((last - first, a.channels), np.float32)).reshape(-1)
        for k in range(len(out)):
            total = lefts[k] + out[k]
            out[k] = low if total < low else total  # NaN stays NaN


@kernel
def _backward(dy, z, b, ends, d, sums):  # of the sum with a ReLU, z; sums (parts, 2, C) of d and b, or (0, 0, 0)
    for part in prange(len(ends) - 1):
        for first in range(ends[part], ends[part + 1], ROWS):
            last = min(first + ROWS, ends[part + 1])
            given, made, out = dy[first:last].reshape(-1), z[first:last].reshape(-1), d[first:last].reshape(-1)
            for k in range(len(out)):
                out[k] = given[k] if made[k] > 0 else np.float32(0)
            if len(sums):
                covary(b, first, last, d, sums[part])


def forward(a: Map, b: Map, relu: bool = False) -> Array:
    """a, b of one shape, float32 -> y of that shape. Raises ShapeError."""
    check_same(a, b)
    require_float32(a, b)
    y = np.empty(a.shape, np.float32)
    _forward(source(a), source(b), np.float32(0 if relu else -np.inf), rows(y))
    return y


backward = backward_reference  # there is nothing to compute


def relu_forward(a: Map, b: Map) -> Array:
    """max(a + b, 0), as `forward` has it."""
    return forward(a, b, relu=True)


def relu_backward(dy: Array, a: Map, b: Map, z: Array) -> tuple[Array, Array]:
    """dy like z, what was made of a and b, float32 -> da, db. Raises ShapeError."""
    check_gradient(dy, z.shape)
    require_float32(dy)
    d, ends, branch = np.empty(z.shape, np.float32), cuts(z.size // z.shape[-1]), source(b)
    sums = zero_sums(branch, len(ends) - 1)
    _backward(rows(dy), rows(z), branch, ends, rows(d), sums)
    return d, remember(b, d, sums)
