"""Mean and variance of every channel, in parts: what batch normalisation asks of whoever makes a map, while it is in the cache.

A part of n rows has, in float64, near = one of them, a = sum (x - near) and b = sum (x - near)^2: what is summed is small, and
cancels little. All parts together have
    mean = sum n (near + a / n) / P        var = sum (b - a^2 / n + n (near + a / n - mean)^2) / P
"""

import numpy as np
import numpy.typing as npt

from ..engine.intrinsics import measure_tile
from ..engine.machine import FLOAT
from ..types import Array
from .jit import helper
from .panels import LANES, MOST

CHUNK = 128  # rows whose sums may be kept in float32, before they are added up in float64


@helper
def side_by_side(channels, first):
    """How many vectors a tile has of so many channels, from `first` on, and bytes to the last of them."""
    vectors = min(MOST, -(-(channels - first) // LANES))
    return vectors, min((vectors - 1) * LANES, channels - LANES - first) * FLOAT


@helper
def measure(x, first, end, moments):
    """moments (3, C) become those of rows `first` to before `end` of x (P, C), which has a vector's channels or more."""
    channels, row = x.shape[1], x.shape[1] * FLOAT
    for c in range(channels):
        moments[0, c], moments[1, c], moments[2, c] = x[first, c], 0, 0
    total, square = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for begin in range(first, end, CHUNK):
        count = min(CHUNK, end - begin)
        for c in range(0, channels, MOST * LANES):
            vectors, last = side_by_side(channels, c)
            data, near = x.ctypes.data + (begin * channels + c) * FLOAT, x.ctypes.data + (first * channels + c) * FLOAT
            measure_tile(
                vectors,
                (data, row, last, count, near, total.ctypes.data + c * FLOAT, square.ctypes.data + c * FLOAT),
            )  # fmt: skip
        for c in range(channels):
            moments[1, c] += total[c]
            moments[2, c] += square[c]


@helper
def _merged(moments, counts, mean, var):
    for c in range(len(mean)):
        total, whole = 0.0, 0.0
        for b in range(len(counts)):
            total += counts[b] * moments[b, 0, c] + moments[b, 1, c]
            whole += counts[b]
        mean[c] = total / whole
        spread = 0.0
        for b in range(len(counts)):
            own = moments[b, 1, c] / counts[b]
            spread += moments[b, 2, c] - counts[b] * own**2 + counts[b] * (moments[b, 0, c] + own - total / whole) ** 2
        var[c] = max(spread, 0.0) / whole


def merged(moments: Array, counts: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """moments (B, 3, C) of parts of so many rows (B,) -> mean and biased variance (C,), float32."""
    mean, var = np.empty((2, moments.shape[2]), np.float32)
    _merged(moments, counts, mean, var)
    return mean, var
