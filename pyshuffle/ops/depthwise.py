"""Depthwise 3x3 convolution, stride s = 1 or 2, zero padding 1, no bias: each channel is filtered alone.
    y[n, i, j, c] = sum_{u, v} x[n, s i + u - 1, s j + v - 1, c] * w[u, v, c]                    (V1, section 3.1)
x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C). It is the grouped convolution with G = C = O.

The gradients:
    dx[n, h, l, c] = sum_{u, v} dy[n, (h + 1 - u) / s, (l + 1 - v) / s, c] * w[u, v, c]          where that is in y
    dw[u, v, c]    = sum_{n, i, j} x[n, s i + u - 1, s j + v - 1, c] * dy[n, i, j, c]
With stride 1, dx is dy filtered with w rotated by 180 degrees: put 2 - u for u and 2 - v for v.

Cost: 9 multiply-adds a value of y, where a convolution of C channels has 9 C; so few for each value read and written that memory
decides its speed (V1, section 3.2).
"""

import numpy as np
import numpy.typing as npt
from numba import prange

from ..engine.intrinsics import filter_gradient_tile, parities_tile, window_tile
from ..engine.machine import FLOAT, machine
from ..errors import ShapeError
from ..types import Array, Shaped
from .check import check_gradient, out_shape, require_float32
from .jit import BLOCKS, helper, kernel
from .moments import measure
from .panels import LANES, vector_starts
from .reading import Map, Source, read_rows, source, widened
from .sums import covary, remember, zero_sums
from .windows import fold, windows

RUN, LOW, HIGH = machine().run, np.float32(-np.inf), np.float32(np.inf)


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
def _filter(x, height, width, weights, starts, stride, y, moments):
    # weights (vectors, 9, LANES), starts: their first channels; moments (N, 3, C) or (0, 0, 0)
    images, rows, columns, channels = y.shape
    bias, flat = np.zeros(LANES, np.float32), y.reshape(-1, channels)
    parts = min(images, BLOCKS)
    for part in prange(parts):
        padded = np.zeros((stride * (rows - 1) + 3, stride * (columns - 1) + 3, channels), np.float32)
        for n in range(part * images // parts, (part + 1) * images // parts):
            read_image(x, n, height, width, 1, padded)
            filter_image(padded, weights, starts, stride, y[n], bias)
            if len(moments):
                measure(flat, n * rows * columns, (n + 1) * rows * columns, moments[n])


@helper
def read_image(x, n, height, width, begin, padded):
    """The pixels of image n into a map of zeros, from (begin, begin) on."""
    pixel = x.channels * FLOAT
    for h in range(height):
        target = padded.ctypes.data + ((begin + h) * padded.shape[1] + begin) * pixel
        read_rows(x, (n * height + h) * width, width, target, pixel)


@helper
def filter_image(padded, weights, starts, stride, y, bias):
    """y of a padded image, one vector of channels after the other."""
    rows, columns, channels = y.shape
    pixel = channels * FLOAT
    for v in range(len(starts)):
        window_tile(
            2 * stride + (columns < RUN),
            (padded.ctypes.data + starts[v] * FLOAT, padded.shape[1] * pixel, pixel, weights[v].ctypes.data, bias.ctypes.data,
             y.ctypes.data + starts[v] * FLOAT, columns * pixel, pixel, rows, columns, LOW, HIGH),
        )  # fmt: skip


@helper
def unfilter_image(dy_map, filters, starts, both, dx):
    """dx of an image, with stride 2. both: room for two rows of it, a pixel wider than dx where that is odd."""
    height, width, channels = dx.shape
    pixel, row = channels * FLOAT, dy_map.shape[1] * channels * FLOAT
    for i in range(len(dy_map) - 1):
        for v in range(len(starts)):
            at = starts[v] * FLOAT
            parities_tile(
                (dy_map.ctypes.data + i * row + at, row, pixel, filters[v].ctypes.data, both.ctypes.data + at,
                 both.shape[1] * pixel, both.shape[1] // 2)
            )  # fmt: skip
        dx[2 * i : 2 * i + 2] = both[: height - 2 * i, :width]


@kernel
def _backward(dy, x, rows, columns, filters, starts, stride, parts, dx, sums):
    # filters (vectors, 9, LANES): w, rotated by 180 degrees where the stride is 1; parts (BLOCKS or fewer, vectors, 9, LANES): each
    # block of images sums its dw there; sums (parts, 2, C) of dx, or (0, 0, 0)
    images, height, width, channels = dx.shape
    pixel, bias, flat = channels * FLOAT, np.zeros(LANES, np.float32), dx.reshape(-1, channels)
    begin = 2 - stride  # of dy in its map of zeros: a border is on all sides or, with stride 2, behind
    for part in prange(len(parts)):
        padded = np.zeros((stride * (rows - 1) + 3, stride * (columns - 1) + 3, channels), np.float32)
        dy_map = np.zeros((rows + 1 + begin, columns + 1 + begin, channels), np.float32)
        both = np.empty((2, 2 * columns, channels), np.float32)  # rows of dx
        row = dy_map.shape[1] * pixel
        for n in range(part * images // len(parts), (part + 1) * images // len(parts)):
            read_image(x, n, height, width, 1, padded)
            read_image(dy, n, rows, columns, begin, dy_map)
            for v in range(len(starts)):
                at = starts[v] * FLOAT
                filter_gradient_tile(
                    stride,
                    (padded.ctypes.data + at, padded.shape[1] * pixel, pixel, dy_map.ctypes.data + begin * (row + pixel) + at, row,
                     pixel, rows, columns, parts[part, v].ctypes.data),
                )  # fmt: skip
            if stride == 1:
                filter_image(dy_map, filters, starts, 1, dx[n], bias)
            else:
                unfilter_image(dy_map, filters, starts, both, dx[n])
            if len(sums):
                covary(x, n * height * width, (n + 1) * height * width, flat, sums[part])


def forward(x: Map, w: Array, stride: int = 1) -> Array:
    """x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C), float32. Raises ShapeError."""
    return np.ascontiguousarray(convolved(x, w, stride, with_moments=False)[0])


def backward(dy: Array, x: Map, w: Array, stride: int = 1) -> tuple[Array, Array]:
    """dy (N, ceil(H/s), ceil(W/s), C) -> dx like x, dw like w, float32. Raises ShapeError."""
    check(x, w, stride, dy)
    require_float32(dy)
    dx, dw = backpropagated(source(dy), x, w, stride)
    return np.ascontiguousarray(dx), dw


def convolved(x: Map, w: Array, stride: int = 1, with_moments: bool = True) -> tuple[Array, tuple[Array, Array]]:
    """y as `forward` has it and, if asked for, its moments in parts, with the rows in each. Raises ShapeError."""
    shape = check(x, w, stride)
    require_float32(x, w)
    channels, filters, starts = shape[3], *by_vector(w)
    y = np.empty((*shape[:3], max(channels, LANES)), np.float32)
    moments = np.empty((len(x), 3, y.shape[3]) if with_moments else (0, 0, 0))
    _filter(widened(x), *x.shape[1:3], filters, starts, stride, y, moments)
    return y[..., :channels], (moments[..., :channels], np.full(len(x), shape[1] * shape[2]))


def backpropagated(dy: Source, x: Map, w: Array, stride: int = 1) -> tuple[Array, Array]:
    """dx and dw as `backward` has them. Raises ShapeError."""
    shape = check(x, w, stride)
    require_float32(x, w)
    channels, filters, starts = shape[3], *by_vector(w[::-1, ::-1] if stride == 1 else w)
    parts = np.zeros((min(BLOCKS, len(x)), len(starts), 9, LANES), np.float32)
    dx = np.empty((*x.shape[:3], max(channels, LANES)), np.float32)
    given = widened(x)
    sums = zero_sums(given, len(parts))
    _backward(widened(dy), given, *shape[1:3], filters, starts, stride, parts, dx, sums)
    vectors, lanes = np.divmod(np.arange(channels), LANES)
    lanes += vectors * LANES - starts[vectors]  # the last vector was moved back
    dw = parts.sum(axis=0)[vectors, :, lanes].T.reshape(3, 3, channels)
    return remember(x, dx[..., :channels], sums), np.ascontiguousarray(dw)


def by_vector(w: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """w (3, 3, C) -> (vectors, 9, LANES), with zeros where there are not as many channels, and the first channel of each vector."""
    w = w.reshape(9, -1)
    if w.shape[1] < LANES:
        w = np.pad(w, ((0, 0), (0, LANES - w.shape[1])))
    starts = vector_starts(w.shape[1])
    return np.ascontiguousarray(w[:, starts[:, None] + np.arange(LANES)].swapaxes(0, 1)), starts


def check(x: Shaped, w: Shaped, stride: int, dy: Shaped | None = None) -> tuple[int, int, int, int]:
    """The shape of y. Raises ShapeError, naming the value and the rule."""
    shape = out_shape(x, stride)
    if w.shape != (3, 3, x.shape[3]):
        raise ShapeError(f"w has shape {w.shape}: a depthwise filter of {x.shape[3]} channels has (3, 3, {x.shape[3]})")
    check_gradient(dy, shape)
    return shape
