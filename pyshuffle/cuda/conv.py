"""Dense and grouped convolution: the kernels for ops/conv.py, where the equations stand.

Each is a product of matrices, y = A w for every group, where a row of A is a pixel of y and a column a tap and an input channel.
A is never made: a tile of it is gathered into shared memory through a table that says where each channel lies, so that split,
concat and shuffle cost nothing to whoever reads through another table (../engine/cuda.py). A block computes TILE pixels by TILE
channels, a thread EACH by EACH of them, in registers; the pixels and channels of a thread lie SIDE apart, so that what neighbouring
threads read and write are neighbouring channels.

The gradient with respect to x is the same product: with w rotated by 180 degrees and transposed, and the pixels of dy `spread`
apart on the grid of x. That with respect to w is a product over pixels, which blocks share; their parts are then added up.
"""

import math

import numpy as np
from numba import cuda, float32, int32

from ..ops.conv import check
from .launch import Kernel, Tensor, blocks_for, kernel, parts_for, summed, table
from .relu import between

TILE = 32  # pixels or channels of a block
DEPTH = 16  # columns of A in shared memory at a time
SIDE = 8  # threads along either axis of a tile
EACH = TILE // SIDE
THREADS = SIDE * SIDE
PADDED = TILE + 2  # so that a warp that writes 16 rows of 2 columns of a tile writes to 32 banks of the memory
LOADS = TILE * DEPTH // THREADS  # values of a tile that a thread gathers
BIAS, RESIDUAL, RELU = 1, 2, 4  # what may follow the product, as bits


@cuda.jit(device=True, inline="always")
def source(i, j, tap, wide, spread, height, width):
    """The pixel of x under `tap` of the wide x wide window that begins at (i, j), on a grid where pixels of x lie `spread`, 1 or 2,
    apart; -1 where there is none. (By the spread nothing is divided, which is slow.)"""
    h, l, odd = i + tap // wide, j + tap % wide, spread - 1
    if h < 0 or l < 0 or (h | l) & odd or h >= height * spread or l >= width * spread:
        return -1
    return (h >> odd) * width + (l >> odd)


@cuda.jit(device=True, inline="always")
def clear(sums):
    for i in range(EACH):
        for j in range(EACH):
            sums[i, j] = 0


@cuda.jit(device=True, inline="always")
def add_products(sums, a, b, t):
    """To the sums of a thread, those of DEPTH columns of the tiles, once all threads have gathered these; then all may go on."""
    right = cuda.local.array(EACH, float32)
    cuda.syncthreads()
    for k in range(DEPTH):
        for j in range(EACH):
            right[j] = b[k, t % SIDE + j * SIDE]
        for i in range(EACH):
            left = a[k, t // SIDE + i * SIDE]
            for j in range(EACH):
                sums[i, j] += left * right[j]
    cuda.syncthreads()


def _multiply(name: str, windowed: bool = False, by_input: bool = False) -> Kernel:
    """The product. windowed: for windows of any kind; faster without, where a row of A is the pixel of x that lies where y's does.

    by_input: weights of neighbouring inputs lie side by side, not those of neighbouring outputs: threads side by side then take them.
    """

    WIDTH = PADDED if by_input else TILE

    def multiply(x, offsets, w, bias, residual, residual_offsets, y, view, read, weights, written, added, follow, limit):
        images, rows, columns, height, width = view[0], view[1], view[2], view[3], view[4]
        wide, stride, spread = view[5], view[6], view[7]
        x_first, x_image, x_pixel, inputs = read[0], read[1], read[2], read[3]
        w_first, w_tap, w_input, w_output, w_group = weights[0], weights[1], weights[2], weights[3], weights[4]
        y_first, y_image, y_pixel, outputs = written[0], written[1], written[2], written[3]
        r_first, r_image, r_pixel = added[0], added[1], added[2]
        a = cuda.shared.array((DEPTH, PADDED), float32)
        b = cuda.shared.array((DEPTH, WIDTH), float32)
        t, group = cuda.threadIdx.x, cuda.blockIdx.z
        m0, n0 = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE
        size, depth = rows * columns, wide * wide * inputs
        begins = cuda.local.array(LOADS, int32)  # of the image, or of the pixel, or -1 where there is none
        at_i = cuda.local.array(LOADS, int32)
        at_j = cuda.local.array(LOADS, int32)
        for e in range(LOADS):
            m = m0 + t // DEPTH + e * (THREADS // DEPTH)
            begins[e] = -1
            if m < images * size:
                p = m % size
                begins[e] = x_first + m // size * x_image
                at_i[e] = p // columns * stride - wide // 2
                at_j[e] = p % columns * stride - wide // 2
                if not windowed:
                    begins[e] += p * x_pixel
        sums = cuda.local.array((EACH, EACH), float32)
        clear(sums)
        for k0 in range(0, depth, DEPTH):
            k = k0 + t % DEPTH
            tap, c, offset = 0, k, 0
            if windowed:
                tap, c = k // inputs, k % inputs
            if k < depth:
                offset = offsets[group * inputs + c]
            for e in range(LOADS):
                value = np.float32(0)
                if k < depth and begins[e] >= 0:
                    if windowed:
                        p = source(at_i[e], at_j[e], tap, wide, spread, height, width)
                        if p >= 0:
                            value = x[begins[e] + p * x_pixel + offset]
                    else:
                        value = x[begins[e] + offset]
                a[t % DEPTH, t // DEPTH + e * (THREADS // DEPTH)] = value
            for e in range(LOADS):
                if by_input:
                    row, column = t % DEPTH, t // DEPTH + e * (THREADS // DEPTH)
                else:
                    row, column = t // TILE + e * (THREADS // TILE), t % TILE
                k, n, value = k0 + row, n0 + column, np.float32(0)
                if k < depth and n < outputs:
                    at = w_first + group * w_group + n * w_output
                    if windowed:
                        at += k // inputs * w_tap + k % inputs * w_input
                    else:
                        at += k * w_input
                    value = w[at]
                b[row, column] = value
            add_products(sums, a, b, t)
        for i in range(EACH):
            m = m0 + t // SIDE + i * SIDE
            if m < images * size:
                n_image, p = m // size, m % size
                for j in range(EACH):
                    n = n0 + t % SIDE + j * SIDE
                    if n < outputs:
                        out, value = group * outputs + n, sums[i, j]
                        if follow & BIAS:
                            value += bias[out]
                        if follow & RESIDUAL:
                            value += residual[r_first + n_image * r_image + p * r_pixel + residual_offsets[out]]
                        if follow & RELU:
                            value = between(value, limit)
                        y[y_first + n_image * y_image + p * y_pixel + out] = value

    multiply.__name__ = name
    return kernel("FIFFFIFIIIIIif", THREADS)(multiply)


multiply, multiply_by_input = _multiply("multiply"), _multiply("multiply_by_input", by_input=True)
multiply_windows = _multiply("multiply_windows", windowed=True)


@kernel("FFFIiiii", THREADS)
def multiply_transposed(x, dy, parts, view, inputs, depth, outputs, share):
    """parts[p] = A^T dy over `share` of the pixels, for every group. x, dy and parts are contiguous."""
    images, rows, columns, height, width, wide, stride = view[0], view[1], view[2], view[3], view[4], view[5], view[6]
    a = cuda.shared.array((DEPTH, TILE), float32)
    b = cuda.shared.array((DEPTH, TILE), float32)
    t, groups, tiles = cuda.threadIdx.x, cuda.gridDim.z, (outputs + TILE - 1) // TILE
    part, group = cuda.blockIdx.y, cuda.blockIdx.z
    k0, n0 = cuda.blockIdx.x // tiles * TILE, cuda.blockIdx.x % tiles * TILE
    k, n = k0 + t % TILE, n0 + t % TILE
    tap, c = k // inputs, k % inputs
    last = min((part + 1) * share, images * rows * columns)
    sums = cuda.local.array((EACH, EACH), float32)
    clear(sums)
    for m0 in range(part * share, last, DEPTH):
        for e in range(LOADS):
            m = m0 + t // TILE + e * (THREADS // TILE)
            value, d = np.float32(0), np.float32(0)
            if m < last:
                p = m % (rows * columns)
                i, j = p // columns * stride - wide // 2, p % columns * stride - wide // 2
                if k < depth:
                    seen = source(i, j, tap, wide, 1, height, width)
                    if seen >= 0:
                        value = x[((m // (rows * columns) * height * width + seen) * groups + group) * inputs + c]
                if n < outputs:
                    d = dy[(m * groups + group) * outputs + n]
            a[t // TILE + e * (THREADS // TILE), t % TILE] = value
            b[t // TILE + e * (THREADS // TILE), t % TILE] = d
        add_products(sums, a, b, t)
    for i in range(EACH):
        k = k0 + t // SIDE + i * SIDE
        for j in range(EACH):
            n = n0 + t % SIDE + j * SIDE
            if k < depth and n < outputs:
                parts[((part * depth + k) * groups + group) * outputs + n] = sums[i, j]


def forward(x: Tensor, w: Tensor, stride: int = 1, groups: int = 1, bias: Tensor | None = None) -> Tensor:
    """x (N, H, W, C), w (K, K, C/G, O), bias (O,) -> y (N, ceil(H/s), ceil(W/s), O). Raises ShapeError."""
    y = Tensor(check(x, w, stride, groups))
    size, _, inputs, out = w.shape
    view, weights = (*y.shape[:3], *x.shape[1:3], size, stride, 1), (0, inputs * out, out, 1, out // groups)
    _run(x, w, w if bias is None else bias, y, view, weights, groups, 0 if bias is None else BIAS)
    return y


def backward(
    dy: Tensor, x: Tensor, w: Tensor, stride: int = 1, groups: int = 1, need_dx: bool = True
) -> tuple[Tensor | None, Tensor]:
    """dy (N, ceil(H/s), ceil(W/s), O) -> dx like x (None if not needed), dw like w. Raises ShapeError."""
    images, rows, columns, out = check(x, w, stride, groups, dy)
    size, _, inputs, _ = w.shape
    depth, outputs, pixels = size * size * inputs, out // groups, images * rows * columns
    parts = Tensor((parts_for(pixels), *w.shape))
    tiles = blocks_for(depth, TILE) * blocks_for(outputs, TILE)
    view = (images, rows, columns, x.shape[1], x.shape[2], size, stride)
    share = blocks_for(pixels, len(parts))
    multiply_transposed((tiles, len(parts), groups), x, dy, parts, view, inputs, depth, outputs, share)
    dw = summed(parts, w.shape)
    if not need_dx:
        return None, dw
    dx = Tensor(x.shape)
    back = (*x.shape[:3], rows, columns, size, 1, stride)
    _run(dy, w, w, dx, back, ((size * size - 1) * inputs * out, -inputs * out, 1, out, outputs), groups, 0)
    return dx, dw


def _run(
    x: Tensor, w: Tensor, bias: Tensor, y: Tensor, view: tuple[int, ...], weights: tuple[int, ...], groups: int, follow: int
) -> None:
    """The product for maps that lie in arrays of their own."""
    read, written = ((0, map_.size // len(map_), map_.shape[3]) for map_ in (x, y))
    channels, outputs = table(range(x.shape[3])), y.shape[3] // groups
    product(
        x, channels, w, bias, y, channels, y, view, (*read, x.shape[3] // groups), weights, (*written, outputs), (0, 0, 0), follow,
        groups,
    )  # fmt: skip


def product(
    x: Tensor, offsets: Tensor, w: Tensor, bias: Tensor, residual: Tensor, residual_offsets: Tensor, y: Tensor,
    view: tuple[int, ...], read: tuple[int, ...], weights: tuple[int, ...], written: tuple[int, ...], added: tuple[int, ...],
    follow: int, groups: int, limit: float = math.inf,
) -> None:  # fmt: skip
    """One launch: for every group y = A w and what is to follow.

    offsets, residual_offsets: how far each channel of x and of the residual lies from where its pixel begins. view: images, rows and
    columns of y, rows and columns of x, kernel, stride, spread. read, written, added: where x, y, the residual begin, what is from
    image to image, and from pixel to pixel; then the channels of a group of x, and of y. weights: where w begins, and what is from
    tap to tap, from input to input, from output to output, from group to group. limit: of a ReLU.
    """
    plain = multiply if weights[3] == 1 else multiply_by_input
    grid = blocks_for(math.prod(view[:3]), TILE), blocks_for(written[3], TILE), groups
    (plain if view[5:] == (1, 1, 1) else multiply_windows)(
        grid, x, offsets, w, bias, residual, residual_offsets, y, view, read, weights, written, added, follow, limit
    )
