"""Stochastic gradient descent: the kernel for ../ops/sgd.py, where the equations stand."""

from numba import cuda

from ..ops.check import check_same
from .launch import Tensor, blocks_for, kernel


@kernel("FFFfffi")
def _descend(w, velocity, gradient, rate, momentum, decay, size):
    i = cuda.grid(1)
    if i < size:
        v = momentum * velocity[i] + (gradient[i] + decay * w[i])
        velocity[i] = v
        w[i] -= rate * v


def descend(w: Tensor, velocity: Tensor, gradient: Tensor, rate: float, momentum: float, decay: float) -> None:
    """Move a parameter and its velocity, in place. Raises ShapeError."""
    check_same(w, velocity)
    check_same(w, gradient)
    _descend(blocks_for(w.size), w, velocity, gradient, rate, momentum, decay, w.size)
