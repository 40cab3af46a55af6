"""Batch normalisation over every axis but the channels.
    xhat = (x - mean) / sqrt(var + eps)        y = gamma xhat + beta        (used after every convolution: V1, figure 2; V2, figure 3)
x (..., C), gamma, beta, mean, var (C,) -> y (..., C). In training mean and var are the batch's own, `statistics(x)` (var is the
mean square, divided by P = all pixels of all images); in inference they are the running averages that training has kept.

The gradients, sums over all pixels:
    dbeta = sum dy        dgamma = sum dy xhat
    dx = gamma / sqrt(var + eps) * dy                                       in inference, where mean and var are constants
    dx = gamma / sqrt(var + eps) * (dy - dbeta / P - xhat dgamma / P)       in training: x also moves mean and var
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array
from .check import EPS, check_gradient, require_float32
from .jit import BLOCKS, kernel, rows


def forward_reference(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False) -> Array:
    """x (..., C) -> y (..., C). `training` matters to the gradient alone. Raises ShapeError."""
    check(x, gamma, beta, mean, var)
    return gamma * (x - mean) / np.sqrt(var + EPS) + beta


def backward_reference(
    dy: Array, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False
) -> tuple[Array, Array, Array]:
    """dy (..., C) -> dx (..., C), dgamma, dbeta (C,). Raises ShapeError."""
    check(x, gamma, beta, mean, var, dy)
    pixels = tuple(range(x.ndim - 1))
    xhat = (x - mean) / np.sqrt(var + EPS)
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
def _forward(x, mean, scale, beta, y):  # x, y (P, C), the rest (C,)
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            y[p, c] = (x[p, c] - mean[c]) * scale[c] + beta[c]


@kernel
def _backward_sums(dy, x, mean, parts):  # parts (BLOCKS, 2, C), float64: sum dy (x - mean) and sum dy
    for block in prange(len(parts)):
        parts[block] = 0
        for p in range(block * len(x) // len(parts), (block + 1) * len(x) // len(parts)):
            for c in range(x.shape[1]):
                parts[block, 0, c] += dy[p, c] * (x[p, c] - mean[c])
                parts[block, 1, c] += dy[p, c]


@kernel
def _backward_x(dy, x, mean, scale, slope, offset, dx):  # dx = scale dy + slope (x - mean) + offset
    for p in prange(len(x)):
        for c in range(x.shape[1]):
            dx[p, c] = scale[c] * dy[p, c] + slope[c] * (x[p, c] - mean[c]) + offset[c]


@kernel
def _statistics(x, parts):  # parts (BLOCKS, 2, C): sum x and sum x^2, in float64 because they are subtracted
    for block in prange(len(parts)):
        parts[block] = 0
        for p in range(block * len(x) // len(parts), (block + 1) * len(x) // len(parts)):
            for c in range(x.shape[1]):
                parts[block, 0, c] += x[p, c]
                parts[block, 1, c] += np.float64(x[p, c]) * x[p, c]


def forward(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False) -> Array:
    """x (..., C), the rest (C,), float32 -> y (..., C). Raises ShapeError."""
    check(x, gamma, beta, mean, var)
    require_float32(x, gamma, beta, mean, var)
    y = np.empty(x.shape, np.float32)
    _forward(rows(x), mean, gamma / np.sqrt(var + np.float32(EPS)), beta, rows(y))
    return y


def backward(
    dy: Array, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False
) -> tuple[Array, Array, Array]:
    """dy (..., C), float32 -> dx (..., C), dgamma, dbeta (C,). Raises ShapeError."""
    check(x, gamma, beta, mean, var, dy)
    require_float32(dy, x, gamma, beta, mean, var)
    pixels, channels = rows(x), x.shape[-1]
    parts = np.empty((BLOCKS, 2, channels))
    _backward_sums(rows(dy), pixels, mean, parts)
    covariance, dbeta = parts.sum(axis=0)
    inverse = 1 / np.sqrt(var + EPS)  # float64 from here on: a handful of numbers a channel
    scale, dgamma = gamma * inverse, covariance * inverse
    slope = offset = np.zeros(channels)
    if training:
        slope, offset = -scale * inverse * dgamma / len(pixels), -scale * dbeta / len(pixels)
    dx = np.empty(x.shape, np.float32)
    _backward_x(rows(dy), pixels, mean, *(a.astype(np.float32) for a in (scale, slope, offset)), rows(dx))
    return dx, dgamma.astype(np.float32), dbeta.astype(np.float32)


def statistics(x: Array) -> tuple[Array, Array]:
    """x (..., C), float32 -> the batch's mean and biased variance, both (C,). Raises ShapeError."""
    require_float32(x)
    pixels = rows(x)
    parts = np.empty((BLOCKS, 2, x.shape[-1]))
    _statistics(pixels, parts)
    mean, square = parts.sum(axis=0) / len(pixels)
    return mean.astype(np.float32), np.maximum(square - mean**2, 0).astype(np.float32)


def check(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, dy: Array | None = None) -> None:
    """Raises ShapeError, naming the value and the rule."""
    for name, value in (("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var)):
        if value.shape != x.shape[-1:]:
            raise ShapeError(f"{name} has shape {value.shape}: one value for each of the {x.shape[-1]} channels is needed")
    check_gradient(dy, x.shape)
