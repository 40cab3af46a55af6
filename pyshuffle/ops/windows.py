"""The windows that a convolution or a pool looks through, and their adjoint.
windows(x)[n, i, j, u, v, c] = x[n, s i + u - p, s j + v - p, c]        p = K // 2, zero (or `fill`) outside the image
<fold(d), x> = <d, windows(x)> for every x and d: fold is the gradient of windows
"""

import numpy as np

from ..types import Array


def windows(x: Array, kernel: int, stride: int, fill: float = 0.0) -> Array:
    """x (N, H, W, C) -> a read-only view (N, ceil(H/s), ceil(W/s), K, K, C) of the padded image."""
    p = kernel // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))  # (N, H, W, C, K, K)
    return view[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def fold(d: Array, shape: tuple[int, ...], stride: int) -> Array:
    """d (N, I, J, K, K, C), a gradient with respect to windows -> that with respect to x of the given shape: overlaps add up."""
    n, height, width, channels = shape
    _, rows, columns, kernel, _, _ = d.shape
    p = kernel // 2
    padded = np.zeros((n, height + 2 * p, width + 2 * p, channels), d.dtype)
    for u in range(kernel):
        for v in range(kernel):
            padded[:, u : u + stride * rows : stride, v : v + stride * columns : stride] += d[:, :, :, u, v]
    return padded[:, p : p + height, p : p + width]
