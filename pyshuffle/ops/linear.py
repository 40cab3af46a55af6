"""Linear layer: the classifier.
    y[n, o] = sum_i x[n, i] w[i, o] + b[o]                               (V1, table 1; V2, table 5: "FC")
    dx = dy w^T        dw = x^T dy        db = sum_n dy[n]
x (N, I), w (I, O), b (O,) or absent -> y (N, O). It is a 1x1 convolution of maps of one pixel, so the kernels are those of conv.
The gradients: y[n, o] holds x[n, i] once, times w[i, o], so dx[n, i] = sum_o dy[n, o] w[i, o]; likewise w[i, o], times x[n, i].

Cost: I O multiply-adds an image, on I O weights that are used once each: memory decides its speed.
"""

from ..errors import ShapeError
from ..types import Array, Shaped
from . import conv
from .check import check_gradient, require_float32


def forward_reference(x: Array, w: Array, b: Array | None = None) -> Array:
    """x (N, I), w (I, O), b (O,) -> y (N, O). Raises ShapeError."""
    check(x, w, b)
    return x @ w if b is None else x @ w + b


def backward_reference(dy: Array, x: Array, w: Array, b: Array | None = None) -> tuple[Array, ...]:
    """dy (N, O) -> dx, dw and, where there is a bias, db. Raises ShapeError."""
    check(x, w, b, dy)
    gradients = dy @ w.T, x.T @ dy
    return gradients if b is None else (*gradients, dy.sum(axis=0))


def forward(x: Array, w: Array, b: Array | None = None) -> Array:
    """x (N, I), w (I, O), b (O,), float32 -> y (N, O). Raises ShapeError."""
    check(x, w, b)
    y = conv.forward(x[:, None, None], w[None, None])[:, 0, 0]
    if b is None:
        return y
    require_float32(b)
    return y + b


def backward(dy: Array, x: Array, w: Array, b: Array | None = None) -> tuple[Array, ...]:
    """dy (N, O), float32 -> dx, dw and, where there is a bias, db. Raises ShapeError."""
    check(x, w, b, dy)
    dx, dw = conv.backward(dy[:, None, None], x[:, None, None], w[None, None])
    assert dx is not None  # it was asked for
    gradients = dx[:, 0, 0], dw[0, 0]
    return gradients if b is None else (*gradients, dy.sum(axis=0))


def check(x: Shaped, w: Shaped, b: Shaped | None, dy: Shaped | None = None) -> None:
    """Raises ShapeError, naming the value and the rule."""
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ShapeError(f"x {x.shape} and w {w.shape} do not fit: (N, I) and (I, O) are needed")
    if b is not None and b.shape != w.shape[1:]:
        raise ShapeError(f"b has shape {b.shape}: one value for each of the {w.shape[1]} outputs is needed")
    check_gradient(dy, (len(x), w.shape[1]))
