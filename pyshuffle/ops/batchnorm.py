"""Batch normalisation over every axis but the channels.
    xhat = (x - mean) / sqrt(var + eps)        y = gamma xhat + beta        (used after every convolution: V1, figure 2; V2, figure 3)
x (..., C), gamma, beta, mean, var (C,) -> y (..., C). In training mean and var are the batch's own, `statistics(x)` (var is the
mean square, divided by P = all pixels of all images); in inference they are the running averages that training has kept.
With `relu` it is max(y, 0), in the same pass over memory; the gradient then computes anew where y > 0, and y need not be kept.

The gradients, sums over all pixels:
    dbeta = sum dy        dgamma = sum dy xhat
    dx = gamma / sqrt(var + eps) * dy                                       in inference, where mean and var are constants
    dx = gamma / sqrt(var + eps) * (dy - dbeta / P - xhat dgamma / P)       in training: x also moves mean and var
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array, Shaped
from .check import EPS, check_gradient, require_float32
from .jit import BLOCKS, kernel, rows

CHUNK = 128  # pixels whose sums may be kept in float32, before they are added up in float64


def forward_reference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False, relu: bool = False
) -> Array:
    """x (..., C) -> y (..., C). `training` matters to the gradient alone. Raises ShapeError."""
    check(x, gamma, beta, mean, var)
    y = gamma * (x - mean) / np.sqrt(var + EPS) + beta
    return np.maximum(y, 0) if relu else y


def backward_reference(
    dy: Array, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False, relu: bool = False
) -> tuple[Array, Array, Array]:
    """dy (..., C) -> dx (..., C), dgamma, dbeta (C,). Raises ShapeError."""
    check(x, gamma, beta, mean, var, dy)
    pixels = tuple(range(x.ndim - 1))
    xhat = (x - mean) / np.sqrt(var + EPS)
    if relu:
        dy = dy * (gamma * xhat + beta > 0)
    dgamma, dbeta = (dy * xhat).sum(axis=pixels), dy.sum(axis=pixels)
    if training:
        count = x.size // x.shape[-1]
        dy = dy - dbeta / count - xhat * (dgamma / count)
    return gamma / np.sqrt(var + EPS) * dy, dgamma, dbeta


def statistics_reference(x: Array) -> tuple[Array, Array]:
    """x (..., C) -> the batch's mean and biased variance, both (C,)."""
    pixels = tuple(range(x.ndim - 1))
    return x.mean(axis=pixels), x.var(axis=pixels)


@kernel
def _forward(x, mean, scale, beta, relu, y):  # x, y (P, C), the rest (C,)
    low = np.float32(0) if relu else np.float32(-np.inf)
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            value = (x[p, c] - mean[c]) * scale[c] + beta[c]
            y[p, c] = low if value < low else value  # NaN stays NaN


@kernel
def _backward_sums(dy, x, mean, scale, beta, relu, parts):  # parts (BLOCKS, 2, C), float64: sum dy and sum dy (x - mean)
    for block in prange(len(parts)):
        total, product = np.empty((2, x.shape[1]), np.float32)
        parts[block] = 0
        last = (block + 1) * len(x) // len(parts)
        for begin in range(block * len(x) // len(parts), last, CHUNK):
            total[:] = 0
            product[:] = 0
            for p in range(begin, min(begin + CHUNK, last)):
                for c in range(x.shape[1]):
                    above = x[p, c] - mean[c]
                    d = dy[p, c] if not relu or above * scale[c] + beta[c] > 0 else np.float32(0)
                    total[c] += d
                    product[c] += d * above
            parts[block, 0] += total
            parts[block, 1] += product


@kernel
def _backward_x(dy, x, mean, scale, beta, relu, slope, offset, dx):  # dx = scale dy + slope (x - mean) + offset
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            above = x[p, c] - mean[c]
            d = dy[p, c] if not relu or above * scale[c] + beta[c] > 0 else np.float32(0)
            dx[p, c] = scale[c] * d + slope[c] * above + offset[c]


@kernel
def _statistics(x, near, parts):  # parts (BLOCKS, 2, C), float64: sum x - near and sum (x - near)^2
    for block in prange(len(parts)):
        total, square = np.empty((2, x.shape[1]), np.float32)
        parts[block] = 0
        last = (block + 1) * len(x) // len(parts)
        for begin in range(block * len(x) // len(parts), last, CHUNK):
            total[:] = 0
            square[:] = 0
            for p in range(begin, min(begin + CHUNK, last)):
                for c in range(x.shape[1]):
                    d = x[p, c] - near[c]
                    total[c] += d
                    square[c] += d * d
            parts[block, 0] += total
            parts[block, 1] += square


def forward(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False, relu: bool = False) -> Array:
    """x (..., C), the rest (C,), float32 -> y (..., C), or max(y, 0). Raises ShapeError."""
    check(x, gamma, beta, mean, var)
    require_float32(x, gamma, beta, mean, var)
    y = np.empty(x.shape, np.float32)
    _forward(rows(x), mean, gamma / np.sqrt(var + np.float32(EPS)), beta, relu, rows(y))
    return y


def backward(
    dy: Array, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False, relu: bool = False
) -> tuple[Array, Array, Array]:
    """dy (..., C), float32 -> dx (..., C), dgamma, dbeta (C,). Raises ShapeError."""
    check(x, gamma, beta, mean, var, dy)
    require_float32(dy, x, gamma, beta, mean, var)
    pixels, channels, scale = rows(x), x.shape[-1], gamma / np.sqrt(var + np.float32(EPS))
    parts = np.empty((BLOCKS, 2, channels))
    _backward_sums(rows(dy), pixels, mean, scale, beta, relu, parts)
    dbeta, covariance = parts.sum(axis=0)
    inverse = 1 / np.sqrt(var + EPS)  # float64 from here on: a handful of numbers a channel
    dgamma = covariance * inverse
    slope = offset = np.zeros(channels)
    if training:
        slope, offset = -gamma * inverse**2 * dgamma / len(pixels), -gamma * inverse * dbeta / len(pixels)
    dx = np.empty(x.shape, np.float32)
    _backward_x(rows(dy), pixels, mean, scale, beta, relu, slope.astype(np.float32), offset.astype(np.float32), rows(dx))
    return dx, dgamma.astype(np.float32), dbeta.astype(np.float32)


def statistics(x: Array) -> tuple[Array, Array]:
    """x (..., C), float32 -> the batch's mean and biased variance, both (C,). Raises ShapeError."""
    require_float32(x)
    pixels = rows(x)
    near = pixels[len(pixels) // 2]  # some value of each channel: what is summed is smaller, and cancels less
    parts = np.empty((BLOCKS, 2, x.shape[-1]))
    _statistics(pixels, near, parts)
    mean, square = parts.sum(axis=0) / len(pixels)
    return (near + mean).astype(np.float32), np.maximum(square - mean**2, 0).astype(np.float32)


def follow(running: tuple[Array, Array], batch: tuple[Array, Array], momentum: float, count: int) -> None:
    """Move the running mean and variance towards those of a batch of `count` values a channel, in place."""
    mean, var = batch
    for average, now in zip(running, (mean, var * (count / max(count - 1, 1))), strict=True):  # the unbiased variance
        average += momentum * (now - average)


def check(x: Shaped, gamma: Shaped, beta: Shaped, mean: Shaped, var: Shaped, dy: Shaped | None = None) -> None:
    """Raises ShapeError, naming the value and the rule."""
    for name, value in (("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var)):
        if value.shape != x.shape[-1:]:
            raise ShapeError(f"{name} has shape {value.shape}: one value for each of the {x.shape[-1]} channels is needed")
    check_gradient(dy, x.shape)
