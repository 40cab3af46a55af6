"""Pooling: the kernels for ops/pool.py, where the equations stand. A thread computes one value; neighbours, neighbouring channels.

Where windows overlap a gradient is gathered, not scattered: each pixel of dx asks the up to four windows that it is in. An average
is a depthwise convolution, all of whose weights are 1/9.
"""

import math
from functools import cache

import numpy as np
from numba import cuda

from ..ops.check import check_gradient, check_map, out_shape
from . import depthwise
from .launch import Tensor, blocks_for, kernel, table, upload

LEAST = np.float32(-np.inf)


@cuda.jit(device=True, inline="always")
def largest(x, begin, pixel, i, j, height, width):
    """The pixel of a window that a maximum takes: the first of the largest, or of those that are NaN."""
    winner, best = -1, LEAST
    for h in range(max(2 * i - 1, 0), min(2 * i + 2, height)):
        for l in range(max(2 * j - 1, 0), min(2 * j + 2, width)):
            value = x[begin + (h * width + l) * pixel]
            if winner < 0 or value > best or (math.isnan(value) and not math.isnan(best)):
                winner, best = h * width + l, value
    return winner


@kernel("FIFIII")
def maximum_of(x, offsets, y, view, read, written):
    """Through a table of channels, as in conv.py."""
    images, rows, columns, height, width = view[0], view[1], view[2], view[3], view[4]
    x_first, x_image, x_pixel = read[0], read[1], read[2]
    y_first, y_image, y_pixel, channels = written[0], written[1], written[2], written[3]
    index = cuda.grid(1)
    if index < images * rows * columns * channels:
        p, c = index // channels, index % channels
        image, i, j = p // (rows * columns), p % (rows * columns) // columns, p % columns
        begin = x_first + image * x_image + offsets[c]
        winner = largest(x, begin, x_pixel, i, j, height, width)
        y[y_first + image * y_image + (i * columns + j) * y_pixel + c] = x[begin + winner * x_pixel]


@kernel("FFFIi")
def _max_backward(dy, x, dx, view, channels):
    images, rows, columns, height, width = view[0], view[1], view[2], view[3], view[4]
    index = cuda.grid(1)
    if index < images * height * width * channels:
        p, c = index // channels, index % channels
        image, h, l = p // (height * width), p % (height * width) // width, p % width
        total = np.float32(0)
        for i in range(h // 2, min((h + 1) // 2 + 1, rows)):
            for j in range(l // 2, min((l + 1) // 2 + 1, columns)):
                if largest(x, image * height * width * channels + c, channels, i, j, height, width) == h * width + l:
                    total += dy[((image * rows + i) * columns + j) * channels + c]
        dx[index] = total


@kernel("FIFIIi")
def mean_of(x, offsets, y, read, written, images):
    """Through a table of channels. written: where y begins, what is from image to image, the channels, the pixels of x."""
    x_first, x_image, x_pixel = read[0], read[1], read[2]
    y_first, y_image, channels, pixels = written[0], written[1], written[2], written[3]
    index = cuda.grid(1)
    if index < images * channels:
        image, c = index // channels, index % channels
        begin, total = x_first + image * x_image + offsets[c], np.float32(0)
        for p in range(pixels):
            total += x[begin + p * x_pixel]
        y[y_first + image * y_image + c] = total / np.float32(pixels)


@kernel("FFiii")
def _mean_backward(dy, dx, size, pixels, channels):
    index = cuda.grid(1)
    if index < size:
        dx[index] = dy[index // (pixels * channels) * channels + index % channels] / np.float32(pixels)


def maximum(x: Tensor) -> Tensor:
    """x (N, H, W, C) -> y (N, ceil(H/2), ceil(W/2), C). Raises ShapeError."""
    y = Tensor(out_shape(x, 2))
    read, written = ((0, map_.size // len(map_), map_.shape[3]) for map_ in (x, y))
    maximum_of(blocks_for(y.size), x, table(range(x.shape[3])), y, _view(x, y), read, (*written, y.shape[3]))
    return y


def max_backward(dy: Tensor, x: Tensor) -> tuple[Tensor]:
    """dy (N, ceil(H/2), ceil(W/2), C) -> dx like x. Raises ShapeError."""
    check_gradient(dy, out_shape(x, 2))
    dx = Tensor(x.shape)
    _max_backward(blocks_for(x.size), dy, x, dx, _view(x, dy), x.shape[3])
    return (dx,)


def average(x: Tensor) -> Tensor:
    """x (N, H, W, C) -> y (N, ceil(H/2), ceil(W/2), C). Raises ShapeError."""
    y = Tensor(out_shape(x, 2))
    depthwise.run(x, ninths(x.shape[3]), y, stride=2)
    return y


def average_backward(dy: Tensor, x: Tensor) -> tuple[Tensor]:
    """dy (N, ceil(H/2), ceil(W/2), C) -> dx like x. Raises ShapeError."""
    check_gradient(dy, out_shape(x, 2))
    dx = Tensor(x.shape)
    depthwise.run(dy, ninths(x.shape[3]), dx, spread=2)
    return (dx,)


@cache
def ninths(channels: int) -> Tensor:
    weights: Tensor = upload(np.full(depthwise.TAPS * channels, 1 / 9, np.float32))
    return weights


def mean(x: Tensor) -> Tensor:
    """x (N, H, W, C) -> y (N, C). Raises ShapeError."""
    check_map(x)
    images, height, width, channels = x.shape
    y = Tensor((images, channels))
    read, written = (0, x.size // images, channels), (0, channels, channels, height * width)
    mean_of(blocks_for(y.size), x, table(range(channels)), y, read, written, images)
    return y


def mean_backward(dy: Tensor, x: Tensor) -> tuple[Tensor]:
    """dy (N, C) -> dx like x. Raises ShapeError."""
    images, height, width, channels = x.shape
    check_gradient(dy, (images, channels))
    dx = Tensor(x.shape)
    _mean_backward(blocks_for(x.size), dy, dx, x.size, height * width, channels)
    return (dx,)


def _view(x: Tensor, y: Tensor) -> tuple[int, ...]:
    return *y.shape[:3], *x.shape[1:3]
