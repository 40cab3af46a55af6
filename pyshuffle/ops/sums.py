"""The sums over all pixels that the gradient of a batch normalisation begins with, in parts (batchnorm.py).
    dbeta = sum dz [z > low]        covariance = sum dz [z > low] (x - mean)
A kernel that computes the gradient with respect to a map takes them if it can, while it is in the cache, and leaves them with the
map. Where none has, or another gradient is added to that one, `batchnorm.gradient` takes them.
"""

import numpy as np

from ..engine.intrinsics import covary_tile
from ..engine.machine import FLOAT
from ..types import Array
from .jit import helper
from .moments import CHUNK, side_by_side
from .panels import LANES, MOST
from .reading import NORMALISED, Map, Normalised, Source

NO_SUMS = np.zeros((0, 0, 0))


@helper
def covary(x, begin, end, dz, sums):
    """Add to sums (2, C), float64, those of rows `begin` to before `end` of dz (P, C) and of what x normalises."""
    constants, low, channels, row, dz_row = x.constants, x.low, x.channels, x.x.shape[1] * FLOAT, dz.shape[1] * FLOAT
    source = x.x.ctypes.data + x.first * FLOAT
    total, product = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        if channels < LANES:
            total[:], product[:] = 0, 0
            for p in range(first, last):
                for c in range(channels):
                    above = x.x[p, x.first + c] - constants[0, c]
                    d = dz[p, c] if low == -np.inf or above * constants[1, c] + constants[2, c] > low else np.float32(0)
                    total[c] += d
                    product[c] += d * above
        for c in range(0, channels if channels >= LANES else 0, MOST * LANES):
            vectors, place = side_by_side(channels, c)
            at = c * FLOAT
            covary_tile(
                vectors,
                (source + at + first * row, row, place, dz.ctypes.data + at + first * dz_row, dz_row, constants.ctypes.data + at,
                 constants.shape[1] * FLOAT, last - first, total.ctypes.data + at, product.ctypes.data + at, low),
            )  # fmt: skip
        for c in range(channels):
            sums[0, c] += total[c]
            sums[1, c] += product[c]


def zero_sums(x: Source, parts: int) -> Array:
    """Sums (parts, 2, C) to be added to for the gradient with respect to x; none if nobody will ask for them."""
    return np.zeros((parts, 2, x.channels)) if x.kind == NORMALISED else NO_SUMS


def remember(x: Map, dx: Array, sums: Array) -> Array:
    """dx like x, whose sums are known to x from now on."""
    if isinstance(x, Normalised) and len(sums):
        x.gradient_and_sums = dx, sums
    return dx
