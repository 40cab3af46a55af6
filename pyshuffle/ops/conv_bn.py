"""A convolution, the batch normalisation of what it makes and, mostly, a ReLU, as one operation: what networks consist of.
    y = conv(x, w)        z = gamma (y - mean) / sqrt(var + eps) + beta, or max(z, 0)                   (V1, figure 2; V2, figure 3)
The same as one operation after the other. But memory is passed over less often: the convolution measures the mean and the variance
of what it has just made, z is computed by whoever reads it, and on the way back so is dy (reading.py). Only y is kept.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..types import Array
from . import batchnorm, conv, depthwise
from .check import check_gradient, require_float32
from .moments import merged
from .reading import Map, Normalised


def fused(convolution: ModuleType) -> tuple[Callable[..., Normalised], Callable[..., tuple[Array | None, ...]]]:
    """Forward and backward for one kind of convolution."""

    def forward(
        x: Map, w: Array, gamma: Array, beta: Array, used: tuple[Array, Array] | None, relu: bool, **settings: Any
    ) -> Normalised:
        """x, w and settings as the convolution has them, gamma and beta (O,) -> z. used: mean and variance; None: the batch's.
        Raises ShapeError."""
        require_float32(gamma, beta, *(used or ()))
        y, moments = convolution.convolved(x, w, **settings, with_moments=used is None)
        mean, var = merged(*moments) if used is None else used
        batchnorm.check(y, gamma, beta, mean, var)
        return Normalised(y, mean, var, gamma, beta, relu)

    def backward(
        dz: Array, x: Map, w: Array, gamma: Array, beta: Array, z: Normalised, used: object, **settings: Any
    ) -> tuple[Array | None, ...]:
        """dz like z, float32 -> dx like x (None if not needed), dw like w, dgamma, dbeta (O,). Raises ShapeError."""
        check_gradient(dz, z.shape)
        require_float32(dz)
        settings.pop("relu")  # z knows
        dy, dgamma, dbeta = batchnorm.gradient(dz, z, training=used is None)
        return *convolution.backpropagated(dy, x, w, **settings), dgamma, dbeta

    return forward, backward


conv_bn, depthwise_bn = fused(conv), fused(depthwise)
