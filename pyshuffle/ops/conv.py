"""Dense and grouped convolution, 1x1 or 3x3, stride s = 1 or 2, zero padding p = K // 2, no bias.
    y[n, i, j, o] = sum_{u, v, c} x[n, s i + u - p, s j + v - p, g (C/G) + c] * w[u, v, c, o]        g = floor(o / (O/G))
x (N, H, W, C), w (K, K, C/G, O) -> y (N, ceil(H/s), ceil(W/s), O). Output channel o belongs to group g and sees only the C/G
input channels of that group (V1, section 3.1): a grouped convolution is G small dense ones side by side.

The gradients follow from the same sum, read from the side of x and of w:
    dx[n, h, l, g (C/G) + c] = sum_{u, v, o in g} dy[n, (h + p - u) / s, (l + p - v) / s, o] * w[u, v, c, o]   where that is in y
    dw[u, v, c, o]           = sum_{n, i, j} x[n, s i + u - p, s j + v - p, g (C/G) + c] * dy[n, i, j, o]
each term of y holds one x and one w, so it hands dy times the one to the other.

Cost: K^2 (C/G) O multiply-adds for each pixel of y, and each gradient as many again. A 1x1 on h x w pixels reads and writes
h w (C + O) + (C/G) O values: for the same multiply-adds the least where C = O (V2, G1), and more with more groups (V2, G2).
"""

import numpy as np

from ..errors import ShapeError
from ..types import Array, Shaped
from . import product
from .check import check_gradient, out_shape, require_float32
from .jit import rows
from .panels import LANES
from .reading import NOTHING, Map, Source, source
from .sums import remember
from .windows import fold, windows


def forward_reference(x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
    """x (N, H, W, C), w (K, K, C/G, O) -> y (N, ceil(H/s), ceil(W/s), O), in the dtype of x. Raises ShapeError."""
    shape = check(x, w, stride, groups)
    patches = by_group(windows(x, len(w), stride), groups)
    return np.einsum("nijuvgc,uvcgo->nijgo", patches, by_group(w, groups), optimize=True).reshape(shape)


def backward_reference(
    dy: Array, x: Array, w: Array, stride: int = 1, groups: int = 1, need_dx: bool = True
) -> tuple[Array | None, Array]:
    """dy (N, ceil(H/s), ceil(W/s), O) -> dx like x (None if not needed), dw like w. Raises ShapeError."""
    check(x, w, stride, groups, dy)
    patches, w_by_group, dy_by_group = (by_group(a, groups) for a in (windows(x, len(w), stride), w, dy))
    dw = np.einsum("nijuvgc,nijgo->uvcgo", patches, dy_by_group, optimize=True).reshape(w.shape)
    if not need_dx:
        return None, dw
    dpatches = np.einsum("nijgo,uvcgo->nijuvgc", dy_by_group, w_by_group, optimize=True)
    return fold(dpatches.reshape(*dpatches.shape[:5], -1), x.shape, stride), dw


def by_group(array: Array, groups: int) -> Array:
    """(..., C) -> (..., G, C/G)."""
    return array.reshape(*array.shape[:-1], groups, -1)


def forward(x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
    """x (N, H, W, C), w (K, K, C/G, O) -> y (N, ceil(H/s), ceil(W/s), O), float32. Raises ShapeError."""
    return np.ascontiguousarray(convolved(x, w, stride, groups, with_moments=False)[0])


def backward(dy: Array, x: Array, w: Array, stride: int = 1, groups: int = 1, need_dx: bool = True) -> tuple[Array | None, Array]:
    """dy (N, ceil(H/s), ceil(W/s), O) -> dx like x (None if not needed), dw like w, float32. Raises ShapeError."""
    check(x, w, stride, groups, dy)
    require_float32(dy)
    return backpropagated(source(dy), x, w, stride, groups, need_dx)


def convolved(x: Map, w: Array, stride: int = 1, groups: int = 1, with_moments: bool = True) -> tuple[Array, tuple[Array, Array]]:
    """y as `forward` has it and, if asked for, its moments in parts, with the rows in each. Raises ShapeError."""
    shape = check(x, w, stride, groups)
    require_float32(x, w)
    pixels, view = viewed(x, len(w), stride, shape)
    y, moments = product.multiply(pixels, view, w.reshape(-1, *w.shape[2:]), groups, with_moments)
    counts = np.minimum(len(view.rows), view.size - np.arange(view.blocks) * len(view.rows))
    return y.reshape(*shape[:3], -1)[..., : shape[3]], (moments, counts)


def backpropagated(
    dy: Source, x: Map, w: Array, stride: int = 1, groups: int = 1, need_dx: bool = True, before: Array | None = None
) -> tuple[Array | None, Array]:
    """dx and dw as `backward` has them; before: a gradient like x, which is added to dx. Raises ShapeError."""
    shape = check(x, w, stride, groups)
    require_float32(x, w)
    pixels, view = viewed(x, len(w), stride, shape)
    of_pixels = len(w) == stride == 1
    begin = rows(before) if before is not None and need_dx and of_pixels and x.shape[3] >= LANES else NOTHING  # for the tiles
    dx, dw, sums = product.backward(dy, pixels, view, w.reshape(-1, *w.shape[2:]), groups, need_dx, begin)
    dw = dw.reshape(w.shape)
    if dx is None:
        return None, dw
    if of_pixels:
        dx = remember(x, dx.reshape(x.shape), sums)
    else:
        dpatches = dx.reshape(*shape[:3], groups, len(w), len(w), -1)
        dx = fold(np.moveaxis(dpatches, 3, 5).reshape(*shape[:3], len(w), len(w), -1), x.shape, stride)
    return dx if before is None or len(begin) else dx + before, dw


def viewed(x: Map, size: int, stride: int, shape: tuple[int, int, int, int]) -> tuple[Source, product.View]:
    """x as a matrix with a row for each pixel of y."""
    if size == stride == 1:
        return source(x), product.pixel_rows(x.size // x.shape[3], x.shape[3])
    return source(x), product.window_rows(shape[:3], x.shape, size, stride)


def check(x: Shaped, w: Shaped, stride: int, groups: int, dy: Shaped | None = None) -> tuple[int, int, int, int]:
    """The shape of y. Raises ShapeError, naming the value and the rule."""
    if w.ndim != 4 or w.shape[0] != w.shape[1] or len(w) not in (1, 3) or 0 in w.shape:
        raise ShapeError(f"w has shape {w.shape}: (K, K, C/G, O) with K = 1 or 3 is needed")
    shape, channels, out = out_shape(x, stride, w.shape[3]), x.shape[3], w.shape[3]
    if groups < 1 or channels % groups or out % groups:
        raise ShapeError(f"in_channels={channels} or out_channels={out} is not divisible by groups={groups}")
    if w.shape[2] * groups != channels:
        raise ShapeError(
            f"w has shape {w.shape}: with groups={groups} and {channels} input channels its third axis must be {channels // groups}"
        )
    check_gradient(dy, shape)
    return shape
