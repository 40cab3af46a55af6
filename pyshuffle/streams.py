"""The one stream on which everything runs on a GPU: memory that is given back is used again in its order (cuda/launch.py)."""

import os

from .errors import DeviceError

PER_THREAD = "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"


def require_one() -> None:
    """Raises DeviceError where each thread gets a stream of its own."""
    if os.environ.get(PER_THREAD, "0") not in ("", "0"):
        raise DeviceError(
            f"device cuda: {PER_THREAD} gives each thread a stream of its own, and the kernels need one for all: unset it"
        )
