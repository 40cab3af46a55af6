"""Diagonalwise refactorisation (arXiv 1803.09926): a depthwise convolution is a dense one, in any number of groups, whose weight is
diagonal: w'[u, v, i, o] = w[u, v, o] where channel o of its group is i, else 0."""

import numpy as np
import pytest
from conftest import assert_close, draw

GROUPS = (1, 2, 3, 6, 12)  # of 12 channels; the last is the depthwise convolution as conv has it


def spread(w, groups):
    """(3, 3, C) -> (3, 3, C/G, C)."""
    each = w.shape[2] // groups
    return w[:, :, None] * (np.arange(each)[:, None] == np.arange(w.shape[2]) % each).astype(w.dtype)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", GROUPS)
def test_a_depthwise_convolution_is_a_diagonal_dense_one(backend, groups, stride):
    """Forward, and both gradients: that by w is the diagonal of the dense one's."""
    x, w = draw(2, 7, 6, 12, dtype=backend.dtype), draw(3, 3, 12, dtype=backend.dtype, seed=1)
    depthwise, depthwise_backward = backend.kind.functions["depthwise"]
    conv, conv_backward = backend.kind.functions["conv"]
    y = depthwise(x, w, stride)
    assert_close(conv(x, spread(w, groups), stride, groups), y, backend.tolerance)
    dy = draw(*y.shape, dtype=backend.dtype, seed=2)
    dx, dw = depthwise_backward(dy, x, w, stride)
    dense_dx, dense_dw = conv_backward(dy, x, spread(w, groups), stride, groups)
    assert_close(dense_dx, dx, backend.tolerance)
    channels = np.arange(12)
    assert_close(dense_dw[:, :, channels % (12 // groups), channels], dw, backend.tolerance)
