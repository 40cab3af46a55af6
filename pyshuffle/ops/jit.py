"""How kernels are compiled: on first use, in parallel, and cached on disk where a cache can be written.

Conventions that every kernel keeps, because numba punishes the alternatives:
- each round of a `prange` writes rows of its own, so results do not depend on the thread count;
- a sum over pixels that several rounds share (weight gradients, statistics) is made in parts, whose number depends on the shapes
  alone, and the parts are added up in order afterwards;
- an array is sliced before it is indexed with an offset: `x[i0 + i]` makes LLVM guard against negative indices.
"""

import hashlib
import math
import warnings
from collections.abc import Callable
from importlib import resources
from typing import Any

import numba
import numpy as np

from ..engine.machine import cpu, machine
from ..errors import PyShuffleError

BLOCKS = 16  # parts of a sum over pixels, at most, where the parts are not blocks of rows or images
PACKAGE = resources.files("pyshuffle")  # not always a folder: it may be part of an archive
TILES = ("emitter.py", "intrinsics.py", "library.py", "machine.py", "tiles.py", "training_tiles.py")  # of the engine
OPS = sorted(file.name for file in (PACKAGE / "ops").iterdir() if file.name.endswith(".py"))
KERNEL_SOURCES = (*(PACKAGE / "ops" / name for name in OPS), *(PACKAGE / "engine" / name for name in TILES))
# numba looks at a kernel's own file alone to see whether what it has compiled is of this source. But kernels call into others, and
# into the tiles that this processor has, by name.
SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in KERNEL_SOURCES) + repr((machine(), cpu())).encode()).hexdigest()

_cache = True


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a parallel kernel at its first call."""
    return _compile(function, parallel=True)


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a serial function, mostly for kernels to call."""
    return _compile(function, parallel=False)


def _compile(function: Callable[..., Any], parallel: bool) -> Callable[..., Any]:
    global _cache
    try:
        compiled = numba.njit(parallel=parallel, cache=_cache, error_model="numpy", nogil=True, fastmath={"contract"})(function)
        kept = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
        if kept is not None:
            kept._source_stamp = (*kept._source_stamp, SOURCES)
        return compiled
    except RuntimeError as error:  # numba found no directory to write to
        if not _cache:
            raise
        _cache = False
        warnings.warn(f"compiled kernels cannot be cached ({error}); set NUMBA_CACHE_DIR to a writable directory", stacklevel=3)
        return _compile(function, parallel)


def require_jit() -> None:
    """Raises PyShuffleError where kernels that stand on the engine's tiles cannot run."""
    if numba.config.DISABLE_JIT:
        raise PyShuffleError("NUMBA_DISABLE_JIT is set: these kernels are nothing but compiled code; use the Reference backend")


def rows(x: np.ndarray) -> np.ndarray:
    """(..., C) -> (P, C), contiguous: what an operation sees that treats all pixels alike."""
    return np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
