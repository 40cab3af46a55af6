"""Softmax cross-entropy with label smoothing e, the mean over the batch.
    p[n, k] = exp(z[n, k]) / sum_j exp(z[n, j])        q[n, k] = (1 - e) [k = label n] + e / K
    loss = -1/N sum_{n, k} q[n, k] log p[n, k]         dz = (p - q) / N
The gradient: d log p[k] / d z[j] = [k = j] - p[j]. The sum of that over k, weighted with q[k], is q[j] - p[j], as q sums to 1.
z (N, K) logits, labels (N,) integers -> a float. The authors' code trains with e = 0.1.
"""

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from ..types import Array, Shaped
from .check import require_float32
from .softmax import log_softmax

Labels = npt.NDArray[np.integer]


def forward_reference(logits: Array, labels: Labels, smoothing: float = 0.0) -> float:
    """logits (N, K), labels (N,) -> the mean loss. Raises ShapeError."""
    check(logits, labels, smoothing)
    return float(-(targets(logits, labels, smoothing) * log_softmax(logits)).sum() / len(logits))


def backward_reference(logits: Array, labels: Labels, smoothing: float = 0.0) -> Array:
    """logits (N, K), labels (N,) -> dlogits (N, K). Raises ShapeError."""
    check(logits, labels, smoothing)
    return (np.exp(log_softmax(logits)) - targets(logits, labels, smoothing)) / len(logits)


def run_reference(logits: Array, labels: Labels, smoothing: float = 0.0) -> tuple[float, int, Array]:
    """logits (N, K), labels (N,) -> the mean loss, how many labels are the likeliest, dlogits (N, K). Raises ShapeError."""
    value, dlogits = forward_reference(logits, labels, smoothing), backward_reference(logits, labels, smoothing)
    return value, named_rightly(logits, labels), dlogits


def named_rightly(logits: Array, labels: Labels) -> int:
    return int((logits.argmax(axis=1) == labels).sum())


def targets(logits: Array, labels: Labels, smoothing: float) -> Array:
    """q, in the dtype of the logits."""
    classes = logits.shape[1]
    return ((1 - smoothing) * (labels[:, None] == np.arange(classes)) + smoothing / classes).astype(logits.dtype)


def run(logits: Array, labels: Labels, smoothing: float = 0.0) -> tuple[float, int, Array]:
    """logits (N, K), float32, labels (N,) -> what `run_reference` gives, computed in float64. Raises ShapeError."""
    require_float32(logits)
    with np.errstate(invalid="ignore"):  # of logits that are not finite: it shows in the loss
        value, right, dlogits = run_reference(logits.astype(np.float64), labels, smoothing)
    return value, right, dlogits.astype(np.float32)


def check(logits: Shaped, labels: Labels, smoothing: float) -> None:
    """Raises ShapeError, naming the value and the rule."""
    if logits.ndim != 2 or 0 in logits.shape or labels.shape != logits.shape[:1]:
        raise ShapeError(f"logits {logits.shape} and labels {labels.shape} do not fit: (N, K) and (N,) are needed")
    if labels.dtype.kind not in "iu":
        raise ShapeError(f"labels are {labels.dtype}: integers are needed")
    if not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ShapeError(f"labels run from {labels.min()} to {labels.max()}: they must lie in 0..{logits.shape[1] - 1}")
    if not 0 <= smoothing < 1:
        raise ShapeError(f"smoothing={smoothing} is not in [0, 1)")
