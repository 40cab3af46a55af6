"""Dense and grouped convolution, 1x1 or 3x3, stride s = 1 or 2, zero padding p = K // 2, no bias.
    y[n, i, j, o] = sum_{u, v, c} x[n, s i + u - p, s j + v - p, g C/G + c] * w[u, v, c, o]        g = floor(o / (O/G))
x (N, H, W, C), w (K, K, C/G, O) -> y (N, ceil(H/s), ceil(W/s), O). Output channel o belongs to group g and sees only the C/G
input channels of that group (V1, section 3.1): a grouped convolution is G small dense ones side by side.

The gradients follow from the same sum, read from the side of x and of w:
    dx[n, h, l, g C/G + c] = sum_{u, v, o in g} dy[n, (h + p - u) / s, (l + p - v) / s, o] * w[u, v, c, o]   where s divides both
    dw[u, v, c, o]         = sum_{n, i, j} x[n, s i + u - p, s j + v - p, g C/G + c] * dy[n, i, j, o]
"""

import numpy as np
from numba import prange

from ..errors import ShapeError
from ..types import Array
from .check import check_gradient, check_map, out_size, require_float32
from .jit import helper, kernel
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


@helper
def add_product(x, w, y):
    """y[o] += sum_c x[c] * w[c, o]: the one inner loop of all three kernels.

    Eight rows of w a pass: y is then loaded and stored once for eight products, and the loop over o becomes vector code.
    """
    whole = len(x) // 8 * 8
    for c in range(0, whole, 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[c], x[c + 1], x[c + 2], x[c + 3], x[c + 4], x[c + 5], x[c + 6], x[c + 7]
        for o in range(len(y)):
            y[o] += (
                (x0 * w[c, o] + x1 * w[c + 1, o])
                + (x2 * w[c + 2, o] + x3 * w[c + 3, o])
                + (x4 * w[c + 4, o] + x5 * w[c + 5, o])
                + (x6 * w[c + 6, o] + x7 * w[c + 7, o])
            )
    for c in range(whole, len(x)):
        for o in range(len(y)):
            y[o] += x[c] * w[c, o]


@kernel
def _forward(x, w, stride, y):  # x (G, N, H, W C/G), w (G, K, K C/G, O/G), y (G, N, I, J, O/G)
    groups, images, rows, columns, _ = y.shape
    height, size = x.shape[2], w.shape[1]
    channels = w.shape[2] // size
    width = x.shape[3] // channels
    for row in prange(groups * images * rows):
        g, n, i = row // (images * rows), row // rows % images, row % rows
        for j in range(columns):
            out = y[g, n, i, j]
            out[:] = 0
            l = stride * j - size // 2
            first, last = max(0, -l), min(size, width - l)  # the taps v whose pixel l + v lies in the image:
            for u in range(size):  # they and their channels are neighbours in memory, one product for the row
                h = stride * i + u - size // 2
                if 0 <= h < height:
                    pixels = x[g, n, h, (l + first) * channels : (l + last) * channels]
                    add_product(pixels, w[g, u, first * channels : last * channels], out)


@kernel
def _backward_x(dy, w, stride, dx):  # dy (G, N, I, J, O/G), w (G, K, K, O/G, C/G): transposed, dx (G, N, H, W, C/G)
    _, _, rows, columns, _ = dy.shape
    groups, images, height, width, _ = dx.shape
    size = w.shape[1]
    for row in prange(groups * images * height):
        g, n, h = row // (images * height), row // height % images, row % height
        for l in range(width):
            out = dx[g, n, h, l]
            out[:] = 0
            for u in range(size):
                i = (h + size // 2 - u) // stride
                for v in range(size):
                    j = (l + size // 2 - v) // stride
                    on_grid = stride * i == h + size // 2 - u and stride * j == l + size // 2 - v
                    if on_grid and 0 <= i < rows and 0 <= j < columns:
                        add_product(dy[g, n, i, j], w[g, u, v], out)


@kernel
def _backward_w(dy, x, stride, dw):  # dy (G, N, I, J, O/G), x (G, N, H, W, C/G), dw (G, K, K, C/G, O/G)
    _, images, rows, columns, _ = dy.shape
    _, _, height, width, _ = x.shape
    groups, size, _, channels, _ = dw.shape
    for task in prange(groups * size * size * channels):
        g, u, v, c = task // (size * size * channels), task // (size * channels) % size, task // channels % size, task % channels
        out = dw[g, u, v, c]
        out[:] = 0
        first = max(0, -(-(size // 2 - v) // stride))  # the columns j whose pixel s j + v - p lies in the image
        last = min(columns, (width - 1 + size // 2 - v) // stride + 1)
        left = stride * first + v - size // 2
        for n in range(images):
            for i in range(rows):
                h = stride * i + u - size // 2
                if 0 <= h < height:
                    add_product(x[g, n, h, left::stride, c][: last - first], dy[g, n, i, first:last], out)


def forward(x: Array, w: Array, stride: int = 1, groups: int = 1) -> Array:
    """x (N, H, W, C), w (K, K, C/G, O) -> y (N, ceil(H/s), ceil(W/s), O), float32. Raises ShapeError."""
    shape = check(x, w, stride, groups)
    require_float32(x, w)
    y = np.empty((groups, *shape[:3], shape[3] // groups), np.float32)
    x, w = groups_first(x, groups), groups_first(w, groups)
    _forward(x.reshape(*x.shape[:3], -1), w.reshape(*w.shape[:2], -1, w.shape[4]), stride, y)
    return groups_last(y)


def backward(dy: Array, x: Array, w: Array, stride: int = 1, groups: int = 1, need_dx: bool = True) -> tuple[Array | None, Array]:
    """dy (N, ceil(H/s), ceil(W/s), O) -> dx like x (None if not needed), dw like w, float32. Raises ShapeError."""
    check(x, w, stride, groups, dy)
    require_float32(dy, x, w)
    dy, x, w = groups_first(dy, groups), groups_first(x, groups), groups_first(w, groups)
    dx, dw = None, np.empty_like(w)
    if need_dx:
        dx = np.empty_like(x)
        _backward_x(dy, np.ascontiguousarray(w.swapaxes(-1, -2)), stride, dx)
        dx = groups_last(dx)
    if w.shape[1] == stride == 1:  # a 1x1 convolution does not know where its pixels are: one long row has no short ends
        dy, x = (a.reshape(groups, 1, 1, -1, a.shape[-1]) for a in (dy, x))
    _backward_w(dy, x, stride, dw)
    return dx, groups_last(dw)


def groups_first(array: Array, groups: int) -> Array:
    """(..., C) -> (G, ..., C/G), contiguous: the G small dense convolutions."""
    return np.ascontiguousarray(np.moveaxis(by_group(array, groups), -2, 0))


def groups_last(array: Array) -> Array:
    """(G, ..., C/G) -> (..., C), contiguous."""
    return np.ascontiguousarray(np.moveaxis(array, 0, -2)).reshape(*array.shape[1:-1], -1)


def check(x: Array, w: Array, stride: int, groups: int, dy: Array | None = None) -> tuple[int, int, int, int]:
    """The shape of y. Raises ShapeError, naming the value and the rule."""
    check_map(x)
    if w.ndim != 4 or w.shape[0] != w.shape[1] or len(w) not in (1, 3):
        raise ShapeError(f"w has shape {w.shape}: (K, K, C/G, O) with K = 1 or 3 is needed")
    if stride not in (1, 2):
        raise ShapeError(f"stride={stride} is not 1 or 2")
    channels, out = x.shape[3], w.shape[3]
    if groups < 1 or channels % groups or out % groups:
        raise ShapeError(f"in_channels={channels} or out_channels={out} is not divisible by groups={groups}")
    if w.shape[2] * groups != channels:
        raise ShapeError(
            f"w has shape {w.shape}: with groups={groups} and {channels} input channels its third axis must be {channels // groups}"
        )
    shape = (len(x), out_size(x.shape[1], stride), out_size(x.shape[2], stride), out)
    check_gradient(dy, shape)
    return shape
