"""Sum of two maps: the kernel for ops/add.py."""

from numba import cuda

from ..ops.add import backward_reference
from ..ops.check import check_same
from .launch import Tensor, blocks_for, kernel


@kernel("FFFi")
def _forward(a, b, y, size):
    i = cuda.grid(1)
    if i < size:
        y[i] = a[i] + b[i]


def forward(a: Tensor, b: Tensor) -> Tensor:
    """a, b of one shape -> y of that shape. Raises ShapeError."""
    check_same(a, b)
    y = Tensor(a.shape)
    _forward(blocks_for(y.size), a, b, y, y.size)
    return y


backward = backward_reference  # there is nothing to compute
