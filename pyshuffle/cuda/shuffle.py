"""Channel shuffle, split and concat: the kernel for ops/shuffle.py. In a compiled network they are no steps at all."""

from numba import cuda

from ..ops.check import check_gradient
from ..ops.shuffle import check_concat, group_size
from .launch import Tensor, blocks_for, kernel


@kernel("FFiiiiiii")
def _move(x, y, size, count, wide_x, first_x, wide_y, first_y, groups):
    """`count` channels of each pixel, from first_x on, to first_y on; within them b n + a goes to a g + b."""
    i = cuda.grid(1)
    if i < size:
        p, c = i // count, i % count
        each = count // groups
        y[p * wide_y + first_y + c % each * groups + c // each] = x[p * wide_x + first_x + c]


def move(x: Tensor, first_x: int, y: Tensor, first_y: int, count: int, groups: int = 1) -> None:
    size = x.size // x.shape[-1] * count
    _move(blocks_for(size), x, y, size, count, x.shape[-1], first_x, y.shape[-1], first_y, groups)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """x (..., C) -> y (..., C). Raises ShapeError."""
    group_size(x, groups)
    y = Tensor(x.shape)
    move(x, 0, y, 0, x.shape[-1], groups)
    return y


def shuffle_backward(dy: Tensor, x: Tensor, groups: int) -> tuple[Tensor]:
    check_gradient(dy, x.shape)
    return (shuffle(dy, group_size(x, groups)),)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., C) -> its two halves (..., C/2). Raises ShapeError."""
    return _cut(x, group_size(x, 2))


def split_backward(dleft: Tensor, dright: Tensor, x: Tensor) -> tuple[Tensor]:
    dx = concat(dleft, dright)
    check_gradient(dx, x.shape)
    return (dx,)


def concat(a: Tensor, b: Tensor) -> Tensor:
    """a (..., A), b (..., B) -> y (..., A + B). Raises ShapeError."""
    y = Tensor(check_concat(a, b))
    move(a, 0, y, 0, a.shape[-1])
    move(b, 0, y, a.shape[-1], b.shape[-1])
    return y


def concat_backward(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    check_gradient(dy, check_concat(a, b))
    return _cut(dy, a.shape[-1])


def _cut(y: Tensor, width: int) -> tuple[Tensor, Tensor]:
    a, b = Tensor((*y.shape[:-1], width)), Tensor((*y.shape[:-1], y.shape[-1] - width))
    move(y, 0, a, 0, width)
    move(y, width, b, 0, b.shape[-1])
    return a, b
