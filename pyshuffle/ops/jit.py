"""How kernels are compiled: on first use, in parallel, and cached on disk where a cache can be written.

Conventions that every kernel keeps, because numba punishes the alternatives:
- each `prange` owns the rows it writes and no sum is split over threads, so results do not depend on the thread count;
- where a sum over pixels must be split (weight gradients, statistics), it is split into BLOCKS parts whose number never
  changes, added up in order afterwards;
- an array is sliced before it is indexed with an offset: `x[i0 + i]` makes LLVM guard against negative indices.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

BLOCKS = 16  # parts of a sum over pixels, whatever the number of threads

_cache = True


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a parallel kernel at its first call."""
    return _compile(function, parallel=True)


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a serial function that kernels call."""
    return _compile(function, parallel=False)


def _compile(function: Callable[..., Any], parallel: bool) -> Callable[..., Any]:
    global _cache
    try:
        return numba.njit(parallel=parallel, cache=_cache, error_model="numpy", nogil=True, fastmath={"contract"})(function)
    except RuntimeError as error:  # numba found no directory to write to
        if not _cache:
            raise
        _cache = False
        warnings.warn(f"compiled kernels cannot be cached ({error}); set NUMBA_CACHE_DIR to a writable directory", stacklevel=3)
        return _compile(function, parallel)


def rows(x: np.ndarray) -> np.ndarray:
    """(..., C) -> (P, C), contiguous: what an operation sees that treats all pixels alike."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])
