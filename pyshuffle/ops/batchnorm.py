"""Batch normalisation over every axis but the channels.
    xhat = (x - mean) / sqrt(var + eps)        y = gamma xhat + beta        (used after every convolution: V1, figure 2; V2, figure 3)
x (..., C), gamma, beta, mean, var (C,) -> y (..., C). In training mean and var are the batch's own, `statistics(x)`: var is
mean((x - mean)^2) over P = all pixels of all images. In inference they are running averages that training has kept, of mean and of
P / (P - 1) var. With `relu` it is max(y, 0); the mask [y > 0] is not stored, the backward recomputes it (reading.py).

The gradients, sums over all pixels:
    dbeta = sum dy        dgamma = sum dy xhat
    dx = gamma / sqrt(var + eps) * dy                                       in inference, where mean and var are constants
    dx = gamma / sqrt(var + eps) * (dy - dbeta / P - xhat dgamma / P)       in training: x also moves mean and var
The last two terms: a small step e of x changes xhat by (e - mean(e) - xhat mean(xhat e)) / sqrt(var + eps), since it changes mean by
mean(e) and var by 2 mean((x - mean) e). This linear map is its own transpose, so gamma dy goes back through the same one.

Cost: no multiply-add that the papers count; the engine folds it into the convolution before it.
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array, Shaped
from .check import EPS, check_gradient, require_float32
from .jit import helper, kernel, require_jit, rows
from .moments import measure, merged
from .reading import GRADIENT, Normalised, Source, computed, cuts, lies_wide, widened, widened_rows
from .sums import covary, zero_sums


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
        dy = np.where(gamma * xhat + beta > 0, dy, 0)
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
def _covary(x, dz, ends, sums):
    for part in prange(len(sums)):
        covary(x, ends[part], ends[part + 1], dz, sums[part])


@helper
def _gradient(sums, var, gamma, count, constants, dgamma, dbeta):
    # sums (parts, 2, C) of sums.py; count: of values that mean and var are of, or 0
    for c in range(len(var)):
        total, covariance = 0.0, 0.0
        for part in range(len(sums)):
            total += sums[part, 0, c]
            covariance += sums[part, 1, c]
        inverse = 1 / np.sqrt(np.float64(var[c]) + EPS)
        dbeta[c], dgamma[c] = total, covariance * inverse
        if count:
            constants[3, c] = -gamma[c] * inverse**3 * covariance / count
            constants[4, c] = -gamma[c] * inverse * total / count


@kernel
def _statistics(x, cuts, moments):  # moments (B, 3, C) of the rows between two cuts
    for b in prange(len(moments)):
        measure(x, cuts[b], cuts[b + 1], moments[b])


def forward(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False, relu: bool = False) -> Array:
    """x (..., C), the rest (C,), float32 -> y (..., C), or max(y, 0). Raises ShapeError."""
    check(x, gamma, beta, mean, var)
    require_float32(x, gamma, beta, mean, var)
    return np.asarray(Normalised(x, mean, var, gamma, beta, relu))


def backward(
    dy: Array, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, training: bool = False, relu: bool = False
) -> tuple[Array, Array, Array]:
    """dy (..., C), float32 -> dx (..., C), dgamma, dbeta (C,). Raises ShapeError."""
    check(x, gamma, beta, mean, var, dy)
    require_float32(dy, x, gamma, beta, mean, var)
    dx, dgamma, dbeta = gradient(dy, Normalised(x, mean, var, gamma, beta, relu), training)
    return computed(dx)[:, : x.shape[-1]].reshape(x.shape), dgamma, dbeta


def gradient(dy: Array, y: Normalised, training: bool) -> tuple[Source, Array, Array]:
    """dy like y -> the gradient with respect to what y normalises, to be computed where it is read; dgamma, dbeta (C,)."""
    x = y.source
    x, dz = (widened(x), widened_rows(dy)) if lies_wide(x) else (x, rows(dy))
    dx = x._replace(kind=GRADIENT, dz=dz, constants=x.constants.copy())
    remembered, y.gradient_and_sums = y.gradient_and_sums, None
    if remembered and remembered[0] is dy:
        sums = remembered[1]
    else:
        ends = cuts(len(dx.x))
        sums = zero_sums(x, len(ends) - 1)
        _covary(x, dz, ends, sums)
    dgamma, dbeta = np.empty((2, y.shape[-1]), np.float32)
    _gradient(sums, y.var, y.gamma, len(dx.x) if training else 0, dx.constants, dgamma, dbeta)
    return dx, dgamma, dbeta


def statistics(x: Array) -> tuple[Array, Array]:
    """x (..., C), float32 -> the batch's mean and biased variance, both (C,). Raises ShapeError."""
    require_float32(x)
    require_jit()
    wide = widened_rows(np.asarray(x))
    ends = cuts(len(wide))
    moments = np.empty((len(ends) - 1, 3, wide.shape[1]))
    _statistics(wide, ends, moments)
    return merged(moments[..., : x.shape[-1]], np.diff(ends))


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
