"""Rectified linear unit: the kernels for ops/relu.py, where the equations stand."""

import math

import numpy as np
from numba import cuda

from ..ops.check import check_gradient
from .launch import Tensor, blocks_for, kernel


@cuda.jit(device=True, inline="always")
def between(x, limit):
    """min(max(x, 0), limit); NaN stays NaN."""
    above = np.float32(0) if x < 0 else x
    return limit if above > limit else above


@kernel("FFfi")
def _forward(x, y, limit, size):
    i = cuda.grid(1)
    if i < size:
        y[i] = between(x[i], limit)


@kernel("FFFfi")
def _backward(dy, x, dx, limit, size):
    i = cuda.grid(1)
    if i < size:
        dx[i] = dy[i] if x[i] > 0 and x[i] < limit else np.float32(0)


def forward(x: Tensor, limit: float = math.inf) -> Tensor:
    """x of any shape -> y like x."""
    y = Tensor(x.shape)
    _forward(blocks_for(x.size), x, y, limit, x.size)
    return y


def backward(dy: Tensor, x: Tensor, limit: float = math.inf) -> tuple[Tensor]:
    """dy like x -> dx. Raises ShapeError."""
    check_gradient(dy, x.shape)
    dx = Tensor(x.shape)
    _backward(blocks_for(x.size), dy, x, dx, limit, x.size)
    return (dx,)
