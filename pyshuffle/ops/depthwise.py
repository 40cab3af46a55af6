"""Depthwise 3x3 convolution, stride s = 1 or 2, zero padding 1, no bias: each channel is filtered alone.
    y[n, i, j, c] = sum_{u, v} x[n, s i + u - 1, s j + v - 1, c] * w[u, v, c]                    (V1, section 3.1)
x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C). It is the grouped convolution with G = C = O.

The gradients:
    dx[n, h, l, c] = sum_{u, v} dy[n, (h + 1 - u) / s, (l + 1 - v) / s, c] * w[u, v, c]          where s divides both
    dw[u, v, c]    = sum_{n, i, j} x[n, s i + u - 1, s j + v - 1, c] * dy[n, i, j, c]
"""

import numpy as np
from numba import prange

from ..engine.intrinsics import slope_tile, window_tile
from ..engine.machine import FLOAT, machine
from ..errors import ShapeError
from ..types import Array, Shaped
from .check import check_gradient, check_map, out_size, require_float32
from .jit import BLOCKS, kernel, require_jit
from .product import vector_starts
from .windows import fold, pad, windows

LANES, RUN, LEAST = machine().lanes, machine().run, np.float32(-np.inf)


def forward_reference(x: Array, w: Array, stride: int = 1) -> Array:
    """x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C), in the dtype of x. Raises ShapeError."""
    check(x, w, stride)
    return np.einsum("nijuvc,uvc->nijc", windows(x, 3, stride), w)


def backward_reference(dy: Array, x: Array, w: Array, stride: int = 1) -> tuple[Array, Array]:
    """dy (N, ceil(H/s), ceil(W/s), C) -> dx like x, dw like w. Raises ShapeError."""
    check(x, w, stride, dy)
    dw = np.einsum("nijuvc,nijc->uvc", windows(x, 3, stride), dy)
    return fold(np.einsum("nijc,uvc->nijuvc", dy, w), x.shape, stride), dw


@kernel
def _filter(x, spread, weights, starts, stride, y):  # weights (vectors, 9, LANES), starts: their first channels
    images, rows, columns, channels = y.shape
    pixel, bias = channels * FLOAT, np.zeros(LANES, np.float32)
    for n in prange(images):
        padded = np.empty((stride * (rows - 1) + 3, stride * (columns - 1) + 3, channels), np.float32)
        pad(x[n], spread, padded)
        for v in range(len(starts)):
            source, out = padded.ctypes.data + starts[v] * FLOAT, y[n].ctypes.data + starts[v] * FLOAT
            window_tile(
                2 * stride + (columns < RUN),
                (source, padded.shape[1] * pixel, pixel, weights[v].ctypes.data, bias.ctypes.data, out, columns * pixel, pixel,
                 rows, columns, LEAST),
            )  # fmt: skip


@kernel
def _backward_w(dy, x, starts, stride, parts):  # parts (BLOCKS, vectors, 9, LANES): each block of images sums into its own
    images, rows, columns, channels = dy.shape
    pixel = channels * FLOAT
    for block in prange(len(parts)):
        parts[block] = 0
        padded = np.empty((stride * (rows - 1) + 3, stride * (columns - 1) + 3, channels), np.float32)
        for n in range(block * images // len(parts), (block + 1) * images // len(parts)):
            pad(x[n], 1, padded)
            for v in range(len(starts)):
                source, gradient = padded.ctypes.data + starts[v] * FLOAT, dy[n].ctypes.data + starts[v] * FLOAT
                slope_tile(
                    stride,
                    (source, padded.shape[1] * pixel, pixel, gradient, columns * pixel, pixel, rows, columns,
                     parts[block, v].ctypes.data),
                )  # fmt: skip


def forward(x: Array, w: Array, stride: int = 1) -> Array:
    """x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C), float32. Raises ShapeError."""
    shape = check(x, w, stride)
    require_float32(x, w)
    return filtered(x, 1, w, stride, shape)


def backward(dy: Array, x: Array, w: Array, stride: int = 1) -> tuple[Array, Array]:
    """dy (N, ceil(H/s), ceil(W/s), C) -> dx like x, dw like w, float32. Raises ShapeError."""
    check(x, w, stride, dy)
    require_float32(dy, x, w)
    require_jit()
    channels, wide_dy, wide_x = x.shape[3], widened(dy), widened(x)
    starts = vector_starts(wide_x.shape[3])
    parts = np.empty((BLOCKS, len(starts), 9, LANES), np.float32)
    _backward_w(wide_dy, wide_x, starts, stride, parts)
    dw = np.empty((3, 3, wide_x.shape[3]), np.float32)
    for start, total in zip(starts, parts.sum(axis=0), strict=True):
        dw[..., start : start + LANES] = total.reshape(3, 3, LANES)
    # The other way round: a window of pixels of dy, `stride` apart on the grid of x, and the filter turned by half a circle.
    return filtered(dy, stride, w[::-1, ::-1], 1, x.shape), np.ascontiguousarray(dw[..., :channels])


def filtered(x: Array, spread: int, w: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """y of the shape (N, I, J, C): the map x, its pixels `spread` apart with zeros between them and around, under the filter."""
    require_jit()
    channels, x, w = shape[3], widened(x), widened(w)
    starts = vector_starts(w.shape[2])
    weights = np.stack([w[..., start : start + LANES].reshape(9, LANES) for start in starts])
    y = np.empty((*shape[:3], w.shape[2]), np.float32)
    _filter(x, spread, weights, starts, stride, y)
    return y if y.shape[3] == channels else np.ascontiguousarray(y[..., :channels])


def widened(array: Array) -> Array:
    """An array (..., C), contiguous, with at least a vector's channels."""
    short = LANES - array.shape[-1]
    return np.ascontiguousarray(np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, short)]) if short > 0 else array)


def check(x: Shaped, w: Shaped, stride: int, dy: Shaped | None = None) -> tuple[int, int, int, int]:
    """The shape of y. Raises ShapeError, naming the value and the rule."""
    check_map(x)
    if w.shape != (3, 3, x.shape[3]):
        raise ShapeError(f"w has shape {w.shape}: a depthwise filter of {x.shape[3]} channels has (3, 3, {x.shape[3]})")
    if stride not in (1, 2):
        raise ShapeError(f"stride={stride} is not 1 or 2")
    shape = (len(x), out_size(x.shape[1], stride), out_size(x.shape[2], stride), x.shape[3])
    check_gradient(dy, shape)
    return shape
