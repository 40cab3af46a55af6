"""Linear layer: a 1x1 convolution of maps of one pixel, as in ops/linear.py."""

from ..ops.linear import check
from . import conv
from .launch import Tensor, summed


def forward(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x (N, I), w (I, O), b (O,) -> y (N, O). Raises ShapeError."""
    check(x, w, b)
    return conv.forward(_map(x), w.reshape(1, 1, *w.shape), bias=b).reshape(len(x), w.shape[1])


def backward(dy: Tensor, x: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...]:
    """dy (N, O) -> dx, dw and, where there is a bias, db. Raises ShapeError."""
    check(x, w, b, dy)
    dx, dw = conv.backward(_map(dy), _map(x), w.reshape(1, 1, *w.shape))
    assert dx is not None  # it was asked for
    gradients = dx.reshape(*x.shape), dw.reshape(*w.shape)
    return gradients if b is None else (*gradients, summed(dy, b.shape))


def _map(x: Tensor) -> Tensor:
    return x.reshape(len(x), 1, 1, x.shape[1])
