"""Pooling: maximum and average over 3x3 windows with stride 2 and padding 1, and the mean of a whole map.
    maximum:  y[n, i, j, c] = max_{u, v} x[n, 2i + u - 1, 2j + v - 1, c]         inside the image          (V1, table 1; V2, table 5)
    average:  y[n, i, j, c] = 1/9 sum_{u, v} x[n, 2i + u - 1, 2j + v - 1, c]     zeros outside count too    (V1, figure 2 (c))
    mean:     y[n, c] = 1/(H W) sum_{h, l} x[n, h, l, c]                                                    (both papers)
x (N, H, W, C) -> y (N, ceil(H/2), ceil(W/2), C), or (N, C) for the mean.

The gradient of a maximum goes to the first pixel of its window, in row order, that attains it. An average sends dy / 9 to every
pixel of its window, the mean dy / (H W) to every pixel. What several windows send to one pixel adds up.

Cost: no multiply-add that the papers count; every value of x is read.
"""

import numpy as np
from numba import prange

from ..engine.intrinsics import maximum_gradient_tile
from ..engine.machine import FLOAT
from ..types import Array
from .check import check_gradient, check_map, out_shape, require_float32
from .jit import helper, kernel
from .panels import LANES, vector_starts
from .reading import Map, block, widened, widened_rows
from .sums import covary, remember, zero_sums
from .windows import fold, windows


def max_reference(x: Array) -> Array:
    """x (N, H, W, C) -> y (N, ceil(H/2), ceil(W/2), C). Raises ShapeError."""
    check_map(x)
    return windows(x, 3, 2, fill=-np.inf).max(axis=(3, 4))


def max_backward_reference(dy: Array, x: Array) -> tuple[Array]:
    """dy (N, ceil(H/2), ceil(W/2), C) -> dx like x. Raises ShapeError."""
    check_gradient(dy, out_shape(x, 2))
    view, inside = windows(x, 3, 2, fill=-np.inf), windows(np.ones_like(x), 3, 2)
    attains = (inside == 1) & ((view == view.max(axis=(3, 4), keepdims=True)) | np.isnan(view))  # (N, I, J, 3, 3, C)
    first = attains.reshape(*dy.shape[:3], 9, -1).argmax(axis=3)[:, :, :, None]  # (N, I, J, 1, C)
    sent = np.where(np.arange(9)[:, None] == first, dy[:, :, :, None], 0)
    return (fold(sent.reshape(view.shape), x.shape, 2),)


def average_reference(x: Array) -> Array:
    """x (N, H, W, C) -> y (N, ceil(H/2), ceil(W/2), C). Raises ShapeError."""
    check_map(x)
    return windows(x, 3, 2).sum(axis=(3, 4)) / 9


def average_backward_reference(dy: Array, x: Array) -> tuple[Array]:
    """dy (N, ceil(H/2), ceil(W/2), C) -> dx like x. Raises ShapeError."""
    check_gradient(dy, out_shape(x, 2))
    share = np.broadcast_to(dy[:, :, :, None, None] / 9, (*dy.shape[:3], 3, 3, dy.shape[3]))
    return (fold(share, x.shape, 2),)


def mean_reference(x: Array) -> Array:
    """x (N, H, W, C) -> y (N, C). Raises ShapeError."""
    check_map(x)
    return x.mean(axis=(1, 2))


def mean_backward_reference(dy: Array, x: Array) -> tuple[Array]:
    """dy (N, C) -> dx like x. Raises ShapeError."""
    check_gradient(dy, (x.shape[0], x.shape[3]))
    return (np.broadcast_to(dy[:, None, None] / (x.shape[1] * x.shape[2]), x.shape),)


@helper
def larger(a, b):
    """max(a, b); NaN if either is."""
    return a if a > b or np.isnan(a) else b


@kernel
def _max(x, height, width, y):
    images, rows, columns, channels = y.shape
    for n in prange(images):
        image = block(x, n * height * width, np.empty((height * width, channels), np.float32)).reshape(height, width * channels)
        highest = np.empty(width * channels, np.float32)  # of three rows
        for i in range(rows):
            highest[:] = image[2 * i]
            for h in range(max(2 * i - 1, 0), min(2 * i + 2, height)):
                row = image[h]
                for k in range(width * channels):
                    highest[k] = larger(row[k], highest[k])
            for j in range(columns):
                out, first = y[n, i, j], max(2 * j - 1, 0) * channels
                out[:] = highest[first : first + channels]
                for l in range(max(2 * j - 1, 0) + 1, min(2 * j + 2, width)):
                    given = highest[l * channels :]
                    for c in range(channels):
                        out[c] = larger(given[c], out[c])


@kernel
def _max_backward(dy, x, starts, dx, sums):  # sums (N, 2, C) of dx, or (0, 0, 0)
    images, rows, columns, channels = dy.shape
    _, height, width, _ = dx.shape
    pixel, row = channels * FLOAT, width * channels * FLOAT
    for n in prange(images):  # windows overlap, so one thread owns a whole image
        image = block(x, n * height * width, np.empty((height * width, channels), np.float32))
        dx_image = dx[n].reshape(height * width, channels)
        for start in starts:
            dx_image[:, start : start + LANES] = 0  # also what the vector before has written of these
            at, apart = np.int64(image.ctypes.data + start * FLOAT), np.int64(dx_image.ctypes.data) - np.int64(image.ctypes.data)
            for i in range(rows):
                above, middle, below = max(2 * i - 1, 0) * row, 2 * i * row, min(2 * i + 1, height - 1) * row
                maximum_gradient_tile(
                    (at + above, at + middle, at + below, apart, pixel, row - pixel, dy[n, i].ctypes.data + start * FLOAT, pixel,
                     columns)
                )  # fmt: skip
        if len(sums):
            covary(x, n * height * width, (n + 1) * height * width, dx.reshape(-1, channels), sums[n])


@kernel
def _average(x, y):
    _, height, width, channels = x.shape
    images, rows, columns, _ = y.shape
    for row in prange(images * rows):
        n, i = row // rows, row % rows
        y[n, i] = 0
        for h in range(max(2 * i - 1, 0), min(2 * i + 2, height)):
            for j in range(columns):
                for l in range(max(2 * j - 1, 0), min(2 * j + 2, width)):
                    for c in range(channels):
                        y[n, i, j, c] += x[n, h, l, c] * np.float32(1 / 9)


@kernel
def _average_backward(dy, dx):
    _, rows, columns, channels = dy.shape
    images, height, width, _ = dx.shape
    for row in prange(images * height):
        n, h = row // height, row % height
        dx[n, h] = 0
        for i in range(h // 2, min((h + 1) // 2 + 1, rows)):
            for l in range(width):
                for j in range(l // 2, min((l + 1) // 2 + 1, columns)):
                    for c in range(channels):
                        dx[n, h, l, c] += dy[n, i, j, c] * np.float32(1 / 9)


def maximum(x: Map) -> Array:
    """x (N, H, W, C), float32 -> y (N, ceil(H/2), ceil(W/2), C). Raises ShapeError."""
    shape = out_shape(x, 2)
    require_float32(x)
    given = widened(x)
    y = np.empty((*shape[:3], given.channels), np.float32)
    _max(given, *x.shape[1:3], y)
    return np.ascontiguousarray(y[..., : shape[3]])


def max_backward(dy: Array, x: Map) -> tuple[Array]:
    """dy (N, ceil(H/2), ceil(W/2), C), float32 -> dx like x. Raises ShapeError."""
    check_gradient(dy, out_shape(x, 2))
    require_float32(dy, x)
    given, wide_dy = widened(x), widened_rows(dy).reshape(*dy.shape[:3], -1)
    dx, sums = np.empty((*x.shape[:3], given.channels), np.float32), zero_sums(given, len(x))
    _max_backward(wide_dy, given, vector_starts(given.channels), dx, sums)
    return (remember(x, dx[..., : x.shape[3]], sums),)


def average(x: Map) -> Array:
    """x (N, H, W, C), float32 -> y (N, ceil(H/2), ceil(W/2), C). Raises ShapeError."""
    y = np.empty(out_shape(x, 2), np.float32)
    require_float32(x)
    _average(np.ascontiguousarray(x), y)
    return y


def average_backward(dy: Array, x: Map) -> tuple[Array]:
    """dy (N, ceil(H/2), ceil(W/2), C), float32 -> dx like x. Raises ShapeError."""
    check_gradient(dy, out_shape(x, 2))
    require_float32(dy, x)
    dx = np.empty(x.shape, np.float32)
    _average_backward(np.ascontiguousarray(dy), dx)
    return (dx,)


def mean(x: Map) -> Array:
    """x (N, H, W, C), float32 -> y (N, C). Raises ShapeError."""
    require_float32(x)
    with np.errstate(all="ignore"):  # what is not finite shows in the mean
        return mean_reference(np.asarray(x))


mean_backward = mean_backward_reference  # a division and a broadcast: nothing for a kernel
