"""Depthwise 3x3 convolution, stride s = 1 or 2, zero padding 1, no bias: each channel is filtered alone.
    y[n, i, j, c] = sum_{u, v} x[n, s i + u - 1, s j + v - 1, c] * w[u, v, c]                    (V1, section 3.1)
x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C). It is the grouped convolution with G = C = O.

The gradients:
    dx[n, h, l, c] = sum_{u, v} dy[n, (h + 1 - u) / s, (l + 1 - v) / s, c] * w[u, v, c]          where s divides both
    dw[u, v, c]    = sum_{n, i, j} x[n, s i + u - 1, s j + v - 1, c] * dy[n, i, j, c]
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array
from .check import check_gradient, check_map, out_size, require_float32
from .jit import BLOCKS, kernel
from .windows import fold, windows


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
def _forward(x, w, stride, y):
    _, height, width, channels = x.shape
    images, rows, columns, _ = y.shape
    for row in prange(images * rows):
        n, i = row // rows, row % rows
        y[n, i] = 0
        for u in range(3):
            h = stride * i + u - 1
            if 0 <= h < height:
                for j in range(columns):
                    for v in range(3):
                        l = stride * j + v - 1
                        if 0 <= l < width:
                            for c in range(channels):
                                y[n, i, j, c] += x[n, h, l, c] * w[u, v, c]


@kernel
def _backward_x(dy, w, stride, dx):
    _, rows, columns, channels = dy.shape
    images, height, width, _ = dx.shape
    for row in prange(images * height):
        n, h = row // height, row % height
        dx[n, h] = 0
        for u in range(3):
            i = (h + 1 - u) // stride
            if stride * i == h + 1 - u and 0 <= i < rows:
                for l in range(width):
                    for v in range(3):
                        j = (l + 1 - v) // stride
                        if stride * j == l + 1 - v and 0 <= j < columns:
                            for c in range(channels):
                                dx[n, h, l, c] += dy[n, i, j, c] * w[u, v, c]


@kernel
def _backward_w(dy, x, stride, parts):  # parts (BLOCKS, 3, 3, C): each block of rows sums into its own
    images, rows, columns, channels = dy.shape
    _, height, width, _ = x.shape
    for block in prange(len(parts)):
        parts[block] = 0
        for row in range(block * images * rows // len(parts), (block + 1) * images * rows // len(parts)):
            n, i = row // rows, row % rows
            for u in range(3):
                h = stride * i + u - 1
                if 0 <= h < height:
                    for j in range(columns):
                        for v in range(3):
                            l = stride * j + v - 1
                            if 0 <= l < width:
                                for c in range(channels):
                                    parts[block, u, v, c] += x[n, h, l, c] * dy[n, i, j, c]


def forward(x: Array, w: Array, stride: int = 1) -> Array:
    """x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C), float32. Raises ShapeError."""
    y = np.empty(check(x, w, stride), np.float32)
    require_float32(x, w)
    _forward(np.ascontiguousarray(x), np.ascontiguousarray(w), stride, y)
    return y


def backward(dy: Array, x: Array, w: Array, stride: int = 1) -> tuple[Array, Array]:
    """dy (N, ceil(H/s), ceil(W/s), C) -> dx like x, dw like w, float32. Raises ShapeError."""
    check(x, w, stride, dy)
    require_float32(dy, x, w)
    dy, x, w = np.ascontiguousarray(dy), np.ascontiguousarray(x), np.ascontiguousarray(w)
    dx, parts = np.empty_like(x), np.empty((BLOCKS, *w.shape), np.float32)
    _backward_x(dy, w, stride, dx)
    _backward_w(dy, x, stride, parts)
    return dx, parts.sum(axis=0)


def check(x: Array, w: Array, stride: int, dy: Array | None = None) -> tuple[int, int, int, int]:
    """The shape of y. Raises ShapeError, naming the value and the rule."""
    check_map(x)
    if w.shape != (3, 3, x.shape[3]):
        raise ShapeError(f"w has shape {w.shape}: a depthwise filter of {x.shape[3]} channels has (3, 3, {x.shape[3]})")
    if stride not in (1, 2):
        raise ShapeError(f"stride={stride} is not 1 or 2")
    shape = (len(x), out_size(x.shape[1], stride), out_size(x.shape[2], stride), x.shape[3])
    check_gradient(dy, shape)
    return shape
