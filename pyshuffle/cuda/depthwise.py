"""Depthwise 3x3 convolution: the kernels for ops/depthwise.py, where the equations stand.

A block filters LANES channels of ROWS by COLUMNS pixels of y: the pixels that it needs, with their halo, are gathered into shared
memory once, neighbouring threads reading neighbouring channels; a thread then computes one row of one channel. The gradient with
respect to x is the same with the filter rotated by 180 degrees, and the pixels of dy `spread` apart on the grid of x. That with
respect to w is summed by blocks over parts of the pixels, which are then added up.
"""

import math

import numpy as np
from numba import cuda, float32

from ..ops.depthwise import check
from .conv import BIAS, RELU, source
from .launch import LANES, TALL, Kernel, Tensor, blocks_for, kernel, parts_for, summed, table
from .relu import between

ROWS, COLUMNS, TAPS = 4, 7, 9  # of a tile, of a filter; seven divides the maps of an image of 224 pixels
THREADS = LANES * ROWS


def _filter(stride: int) -> Kernel:
    """The filter for either stride: how much shared memory there is must be known when it is compiled."""
    HIGH, LONG = (ROWS - 1) * stride + 3, (COLUMNS - 1) * stride + 3

    def filter(x, offsets, w, bias, y, view, read, written, turned, follow, limit):
        rows, columns, height, width, spread = view[1], view[2], view[3], view[4], view[5]
        x_first, x_image, x_pixel = read[0], read[1], read[2]
        y_first, y_image, y_pixel, channels = written[0], written[1], written[2], written[3]
        seen = cuda.shared.array((HIGH, LONG, LANES), float32)
        lane, row = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        c = cuda.blockIdx.y * LANES + lane
        down, across = (rows + ROWS - 1) // ROWS, (columns + COLUMNS - 1) // COLUMNS
        image, tile = cuda.blockIdx.x // (down * across), cuda.blockIdx.x % (down * across)
        i0, j0 = tile // across * ROWS, tile % across * COLUMNS
        offset = 0
        if c < channels:
            offset = x_first + image * x_image + offsets[c]
        for h in range(row, HIGH, ROWS):
            for l in range(LONG):
                value = np.float32(0)
                p = source(i0 * stride + h - 1, j0 * stride + l - 1, 0, 3, spread, height, width)
                if c < channels and p >= 0:
                    value = x[offset + p * x_pixel]
                seen[h, l, lane] = value
        cuda.syncthreads()
        i = i0 + row
        if c < channels and i < rows:
            taps = cuda.local.array(TAPS, float32)
            for tap in range(TAPS):
                taps[tap] = w[(TAPS - 1 - tap if turned else tap) * channels + c]
            for jj in range(COLUMNS):
                j = j0 + jj
                if j < columns:
                    value = bias[c] if follow & BIAS else np.float32(0)
                    for tap in range(TAPS):
                        value += seen[row * stride + tap // 3, jj * stride + tap % 3, lane] * taps[tap]
                    if follow & RELU:
                        value = between(value, limit)
                    y[y_first + image * y_image + (i * columns + j) * y_pixel + c] = value

    filter.__name__ = f"filter_stride{stride}"
    return kernel("FIFFFIIIiif", THREADS)(filter)


filter_stride1, filter_stride2 = _filter(1), _filter(2)


@kernel("FFFIiii", LANES * TALL)
def backward_w(x, dy, parts, view, channels, stride, share):
    """parts[p, tap, c] = sum of x dy over `share` of the pixels of dy."""
    images, rows, columns, height, width = view[0], view[1], view[2], view[3], view[4]
    shared = cuda.shared.array((TALL, TAPS, LANES), float32)
    lane, row = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
    c = cuda.blockIdx.y * LANES + lane
    size = rows * columns
    sums = cuda.local.array(TAPS, float32)
    for tap in range(TAPS):
        sums[tap] = 0
    if c < channels:
        for p in range(cuda.blockIdx.x * share + row, min((cuda.blockIdx.x + 1) * share, images * size), TALL):
            d = dy[p * channels + c]
            i, j = p % size // columns * stride - 1, p % columns * stride - 1
            for tap in range(TAPS):
                seen = source(i, j, tap, 3, 1, height, width)
                if seen >= 0:
                    sums[tap] += x[(p // size * height * width + seen) * channels + c] * d
    for tap in range(TAPS):
        shared[row, tap, lane] = sums[tap]
    cuda.syncthreads()
    if c < channels:
        for tap in range(row, TAPS, TALL):
            total = np.float32(0)
            for other in range(TALL):
                total += shared[other, tap, lane]
            parts[(cuda.blockIdx.x * TAPS + tap) * channels + c] = total


def forward(x: Tensor, w: Tensor, stride: int = 1) -> Tensor:
    """x (N, H, W, C), w (3, 3, C) -> y (N, ceil(H/s), ceil(W/s), C). Raises ShapeError."""
    y = Tensor(check(x, w, stride))
    run(x, w, y, stride)
    return y


def backward(dy: Tensor, x: Tensor, w: Tensor, stride: int = 1) -> tuple[Tensor, Tensor]:
    """dy (N, ceil(H/s), ceil(W/s), C) -> dx like x, dw like w. Raises ShapeError."""
    images, rows, columns, channels = check(x, w, stride, dy)
    dx, pixels = Tensor(x.shape), images * rows * columns
    run(dy, w, dx, spread=stride, turned=1)
    parts = Tensor((parts_for(pixels), *w.shape))
    view, share = (images, rows, columns, *x.shape[1:3]), blocks_for(pixels, len(parts))
    backward_w((len(parts), blocks_for(channels, LANES)), x, dy, parts, view, channels, stride, share)
    return dx, summed(parts, w.shape)


def run(x: Tensor, w: Tensor, y: Tensor, stride: int = 1, spread: int = 1, turned: int = 0) -> None:
    """The filter for maps that lie in arrays of their own."""
    channels = y.shape[3]
    read, written = ((0, map_.size // len(map_), channels) for map_ in (x, y))
    view = (*y.shape[:3], *x.shape[1:3], spread)
    filtered(x, table(range(channels)), w, w, y, view, read, (*written, channels), stride, turned, 0)


def filtered(
    x: Tensor, offsets: Tensor, w: Tensor, bias: Tensor, y: Tensor, view: tuple[int, ...], read: tuple[int, ...],
    written: tuple[int, ...], stride: int, turned: int, follow: int,
    limit: float = math.inf,
) -> None:  # fmt: skip
    """One launch; the arguments are those of conv.product, but view has neither kernel nor stride, and written ends with all
    channels; read has no channels, and there is no residual. turned: whether w is rotated by 180 degrees."""
    images, rows, columns, *_ = view
    grid = images * blocks_for(rows, ROWS) * blocks_for(columns, COLUMNS), blocks_for(written[3], LANES)
    (filter_stride1 if stride == 1 else filter_stride2)(grid, x, offsets, w, bias, y, view, read, written, turned, follow, limit)
