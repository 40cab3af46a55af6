"""Softmax cross-entropy: the kernel for ops/loss.py, where the equations stand. A block computes an image's loss and gradient."""

import math
from typing import Any

import numpy as np
from numba import cuda, float64

from ..ops.loss import Labels, check
from .launch import Tensor, download, kernel, upload

THREADS = 128


@cuda.jit(device=True, inline="always")
def across(value, shared, largest):
    """The sum, or the largest, of what all threads of a block have."""
    t = cuda.threadIdx.x
    cuda.syncthreads()  # whoever reads the last result has read it
    shared[t] = value
    cuda.syncthreads()
    half = THREADS // 2
    while half:
        if t < half:
            shared[t] = max(shared[t], shared[t + half]) if largest else shared[t] + shared[t + half]
        cuda.syncthreads()
        half //= 2
    return shared[0]


@kernel("FIdDIFii", THREADS)
def _loss(logits, labels, smoothing, losses, right, dlogits, images, classes):
    shared = cuda.shared.array(THREADS, float64)
    n, t = cuda.blockIdx.x, cuda.threadIdx.x
    begin, label = n * classes, labels[n]
    top = -math.inf
    for k in range(t, classes, THREADS):
        top = max(top, float64(logits[begin + k]))
    top = across(top, shared, True)
    total, linear, first = 0.0, 0.0, -math.inf
    for k in range(t, classes, THREADS):
        above = logits[begin + k] - top
        total += math.exp(above)
        linear += above
        if above == 0:
            first = max(first, -float64(k))
    total, linear, first = across(total, shared, False), across(linear, shared, False), across(first, shared, True)
    for k in range(t, classes, THREADS):
        target = (1 - smoothing if k == label else 0) + smoothing / classes
        dlogits[begin + k] = (math.exp(logits[begin + k] - top) / total - target) / images
    if t == 0:
        losses[n] = math.log(total) - (1 - smoothing) * (logits[begin + label] - top) - smoothing / classes * linear
        right[n] = -first == label


def run(logits: Tensor, labels: Labels, smoothing: float = 0.0) -> tuple[float, int, Any]:
    """logits (N, K), labels (N,) -> the mean loss, how many images are named rightly, dlogits (N, K). Raises ShapeError.

    The first two are on the host, which waits for them.
    """
    check(logits, labels, smoothing)
    losses, right, dlogits = Tensor(labels.shape, np.float64), Tensor(labels.shape, np.int32), Tensor(logits.shape)
    _loss(len(labels), logits, upload(labels, np.int32), smoothing, losses, right, dlogits, *logits.shape)
    return float(download(losses).mean()), int(download(right).sum()), dlogits
