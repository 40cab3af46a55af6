"""Softmax: p[n, k] = exp(z[n, k]) / sum_j exp(z[n, j]). Its gradient is part of that of the loss."""

import numpy as np

from ..types import Array


def log_softmax(logits: Array) -> Array:
    """log p. The largest logit of a row is taken from all of them, which changes no p, so that no exponential overflows."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: Array) -> Array:
    """(N, K) -> probabilities (N, K)."""
    return np.exp(log_softmax(logits))
