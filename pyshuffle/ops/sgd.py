"""Stochastic gradient descent with momentum, as both papers train:
    g = dloss/dw + decay w        v = momentum v + g        w = w - rate v
of weights w, their velocities v and their gradients, of one shape; w and v are moved in place. decay w is the gradient of
decay/2 |w|^2: weights that the loss does not hold where they are shrink.
"""

import numpy as np

from ..errors import ShapeError
from ..types import Array
from .check import check_same, require_float32
from .jit import helper


def descend_reference(w: Array, velocity: Array, gradient: Array, rate: float, momentum: float, decay: float) -> None:
    """Move w and its velocity. Raises ShapeError."""
    check_same(w, velocity)
    check_same(w, gradient)
    velocity *= momentum
    velocity += gradient + decay * w
    w -= rate * velocity


@helper
def _descend(w, velocity, gradient, rate, momentum, decay):
    for i in range(len(w)):
        velocity[i] = momentum * velocity[i] + (gradient[i] + decay * w[i])
        w[i] -= rate * velocity[i]


def descend(w: Array, velocity: Array, gradient: Array, rate: float, momentum: float, decay: float) -> None:
    """Move w and its velocity, float32. Raises ShapeError."""
    check_same(w, velocity)
    check_same(w, gradient)
    require_float32(w, velocity, gradient)
    if not (w.flags.c_contiguous and velocity.flags.c_contiguous):
        raise ShapeError("weights and velocities are moved where they lie: they must be contiguous")
    _descend(w.reshape(-1), velocity.reshape(-1), gradient.reshape(-1), *map(np.float32, (rate, momentum, decay)))
