"""What every operation asks of its arrays, and the errors that say so."""

import numpy as np

from ..errors import ShapeError
from ..types import Shaped

EPS = 1e-5  # added to the variance by every batch normalisation


def check_map(x: Shaped, name: str = "x") -> None:
    """Raises ShapeError unless x is a non-empty (N, H, W, C) array."""
    if x.ndim != 4 or 0 in x.shape:
        raise ShapeError(f"{name} has shape {x.shape}: a feature map (N, H, W, C) with no empty axis is needed")


def check_gradient(dy: Shaped | None, shape: tuple[int, ...]) -> None:
    """Raises ShapeError unless dy, where one is given, has the shape of y."""
    if dy is not None and dy.shape != shape:
        raise ShapeError(f"dy has shape {dy.shape}: the shape of y, {shape}, is needed")


def out_size(size: int, stride: int) -> int:
    """The length of an axis after a window of odd K with padding K // 2: ceil(size / stride)."""
    return -(-size // stride)


def out_shape(x: Shaped, stride: int, channels: int = 0) -> tuple[int, int, int, int]:
    """(N, ceil(H/s), ceil(W/s), channels or C). Raises ShapeError unless x is a map and the stride 1 or 2."""
    check_map(x)
    if stride not in (1, 2):
        raise ShapeError(f"stride={stride} is not 1 or 2")
    return len(x), out_size(x.shape[1], stride), out_size(x.shape[2], stride), channels or x.shape[3]


def check_same(a: Shaped, b: Shaped) -> None:
    """Raises ShapeError unless both arrays have one shape."""
    if a.shape != b.shape:
        raise ShapeError(f"shapes {a.shape} and {b.shape} differ: they must be the same")


def require_float32(*arrays: Shaped) -> None:
    """Raises ShapeError for arrays that the jitted kernels are not written for."""
    for array in arrays:
        if array.dtype != np.float32:
            raise ShapeError(f"an array is {array.dtype}: the kernels compute in float32, the reference in any float dtype")
