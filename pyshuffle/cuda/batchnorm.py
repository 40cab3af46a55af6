"""Batch normalisation, with ReLU if wanted: the kernels for ops/batchnorm.py, where the equations stand.

Sums over pixels have two stages: each block sums its part of the pixels of LANES channels, in float64, first every thread alone, then
across the threads in shared memory; one thread a channel adds the blocks' parts and computes what they are needed for.
"""

import math

import numpy as np
from numba import cuda, float64

from ..ops.batchnorm import check
from ..ops.check import EPS
from .launch import LANES, TALL, Tensor, blocks_for, kernel, parts_for

EPSILON = np.float32(EPS)
ZERO = np.float32(0)


@cuda.jit(device=True, inline="always")
def store_sums(first, second, sums, parts, c, channels):
    """parts[block, :, c] = the sums of both over the rows of threads; sums (2, TALL, LANES) is shared."""
    lane, row = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
    sums[0, row, lane] = first
    sums[1, row, lane] = second
    cuda.syncthreads()
    if row < 2 and c < channels:
        total = 0.0
        for other in range(TALL):
            total += sums[row, other, lane]
        parts[(cuda.blockIdx.x * 2 + row) * channels + c] = total


@cuda.jit(device=True, inline="always")
def add_sums(parts, c, channels, count):
    """Both sums of a channel, over all parts."""
    first, second = 0.0, 0.0
    for p in range(count):
        first += parts[2 * p * channels + c]
        second += parts[(2 * p + 1) * channels + c]
    return first, second


@kernel("FDiii", LANES * TALL)
def _sums(x, parts, pixels, channels, share):
    """Of x - near and its square, near being some value of the channel: what is summed is smaller then, and cancels less."""
    sums = cuda.shared.array((2, TALL, LANES), float64)
    c = cuda.blockIdx.y * LANES + cuda.threadIdx.x % LANES
    total, square = 0.0, 0.0
    if c < channels:
        near = x[pixels // 2 * channels + c]
        last = min((cuda.blockIdx.x + 1) * share, pixels)
        for p in range(cuda.blockIdx.x * share + cuda.threadIdx.x // LANES, last, TALL):
            d = float64(x[p * channels + c] - near)
            total += d
            square += d * d
    store_sums(total, square, sums, parts, c, channels)


@kernel("FDFFiii")
def _moments(x, parts, mean, var, pixels, channels, count):
    c = cuda.grid(1)
    if c < channels:
        total, square = add_sums(parts, c, channels, count)
        total /= pixels
        mean[c] = x[pixels // 2 * channels + c] + total
        var[c] = max(square / pixels - total * total, 0.0)


@kernel("FFFFffi")
def _follow(mean, var, batch_mean, batch_var, momentum, unbiased, channels):
    c = cuda.grid(1)
    if c < channels:
        mean[c] += momentum * (batch_mean[c] - mean[c])
        var[c] += momentum * (unbiased * batch_var[c] - var[c])


@kernel("FFFFFFiii")
def _forward(x, gamma, beta, mean, var, y, size, channels, relu):
    i = cuda.grid(1)
    if i < size:
        c = i % channels
        value = (x[i] - mean[c]) * (gamma[c] / math.sqrt(var[c] + EPSILON)) + beta[c]
        y[i] = ZERO if relu and value < 0 else value


@kernel("FFFFFFDiiii", LANES * TALL)
def _backward_sums(dy, x, gamma, beta, mean, var, parts, pixels, channels, relu, share):
    """Of dy and dy (x - mean)."""
    sums = cuda.shared.array((2, TALL, LANES), float64)
    c = cuda.blockIdx.y * LANES + cuda.threadIdx.x % LANES
    total, product = 0.0, 0.0
    if c < channels:
        scale = gamma[c] / math.sqrt(var[c] + EPSILON)
        last = min((cuda.blockIdx.x + 1) * share, pixels)
        for p in range(cuda.blockIdx.x * share + cuda.threadIdx.x // LANES, last, TALL):
            above = x[p * channels + c] - mean[c]
            if not relu or above * scale + beta[c] > 0:
                d = float64(dy[p * channels + c])
                total += d
                product += d * above
    store_sums(total, product, sums, parts, c, channels)


@kernel("DFFFFFFiiii")
def _backward_channels(parts, gamma, var, dgamma, dbeta, slope, offset, pixels, channels, training, count):
    c = cuda.grid(1)
    if c < channels:
        total, product = add_sums(parts, c, channels, count)
        inverse = 1 / math.sqrt(float64(var[c]) + EPS)
        dgamma[c] = product * inverse
        dbeta[c] = total
        slope[c] = -gamma[c] * inverse * inverse * inverse * product / pixels if training else 0.0
        offset[c] = -gamma[c] * inverse * total / pixels if training else 0.0


@kernel("FFFFFFFFFiii")
def _backward_x(dy, x, gamma, beta, mean, var, slope, offset, dx, size, channels, relu):
    """dx = scale dy + slope (x - mean) + offset"""
    i = cuda.grid(1)
    if i < size:
        c = i % channels
        scale, above = gamma[c] / math.sqrt(var[c] + EPSILON), x[i] - mean[c]
        d = dy[i] if not relu or above * scale + beta[c] > 0 else ZERO
        dx[i] = scale * d + slope[c] * above + offset[c]


def forward(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, training: bool = False, relu: bool = False
) -> Tensor:
    """x (..., C), the rest (C,) -> y (..., C), or max(y, 0). Raises ShapeError."""
    check(x, gamma, beta, mean, var)
    y = Tensor(x.shape)
    _forward(blocks_for(x.size), x, gamma, beta, mean, var, y, x.size, x.shape[-1], relu)
    return y


def backward(
    dy: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, training: bool = False, relu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """dy (..., C) -> dx (..., C), dgamma, dbeta (C,). Raises ShapeError."""
    check(x, gamma, beta, mean, var, dy)
    grid, parts, pixels, channels, share = _shared(x)
    _backward_sums(grid, dy, x, gamma, beta, mean, var, parts, pixels, channels, relu, share)
    dgamma, dbeta, slope, offset = (Tensor((channels,)) for _ in range(4))
    _backward_channels(
        blocks_for(channels), parts, gamma, var, dgamma, dbeta, slope, offset, pixels, channels, training, len(parts)
    )
    dx = Tensor(x.shape)
    _backward_x(blocks_for(x.size), dy, x, gamma, beta, mean, var, slope, offset, dx, x.size, channels, relu)
    return dx, dgamma, dbeta


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., C) -> the batch's mean and biased variance, both (C,)."""
    grid, parts, pixels, channels, share = _shared(x)
    _sums(grid, x, parts, pixels, channels, share)
    mean, var = Tensor((channels,)), Tensor((channels,))
    _moments(blocks_for(channels), x, parts, mean, var, pixels, channels, len(parts))
    return mean, var


def follow(running: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor], momentum: float, count: int) -> None:
    """Move the running mean and variance towards those of a batch of `count` values, in place."""
    channels = len(running[0])
    _follow(blocks_for(channels), *running, *batch, momentum, count / max(count - 1, 1), channels)  # the unbiased variance


def _shared(x: Tensor) -> tuple[tuple[int, int], Tensor, int, int, int]:
    """For sums over pixels: the blocks, room for their parts, the pixels, the channels, and how many pixels are a part."""
    channels = x.shape[-1]
    pixels = x.size // channels
    parts = Tensor((parts_for(pixels), 2, channels), np.float64)
    return (len(parts), blocks_for(channels, LANES)), parts, pixels, channels, blocks_for(pixels, len(parts))
