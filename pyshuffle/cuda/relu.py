"""Rectified linear unit: the kernels for ops/relu.py, where the equations stand."""

import numpy as np
from numba import cuda

from ..ops.check import check_gradient
from .launch import Tensor, blocks_for, kernel


@kernel("FFi")
def _forward(x, y, size):
    i = cuda.grid(1)
    if i < size:
        y[i] = np.float32(0) if x[i] < 0 else x[i]  # NaN stays NaN


@kernel("FFFi")
def _backward(dy, x, dx, size):
    i = cuda.grid(1)
    if i < size:
        dx[i] = dy[i] if x[i] > 0 else np.float32(0)


def forward(x: Tensor) -> Tensor:
    """x of any shape -> y like x."""
    y = Tensor(x.shape)
    _forward(blocks_for(x.size), x, y, x.size)
    return y


def backward(dy: Tensor, x: Tensor) -> tuple[Tensor]:
    """dy like x -> dx. Raises ShapeError."""
    check_gradient(dy, x.shape)
    dx = Tensor(x.shape)
    _backward(blocks_for(x.size), dy, x, dx, x.size)
    return (dx,)
