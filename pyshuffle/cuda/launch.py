"""Kernels, arrays and memory of the device: what every operation in this folder stands on.

A kernel sees flat arrays, by their address, and numbers. Its signature says which, so that it is compiled once: for the device at its
first launch, or without any for `check`.
    F, D, I    the address of float32, float64, int32        f, d, i    a number
An address costs numba the least to hand over: so a tuple of numbers is handed over as one too, of a table that stays on the device.

Everything runs on the default stream, one thing after another. So memory that is let go can be used again at once, though what was
launched before may still be reading it: `take` hands out what `Memory` gave back. Nothing is copied between host and device but by
`copy` and `fetch`.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda, float32, float64, int32, types, void

from .. import streams
from ..errors import DeviceError, ShapeError
from ..types import Array, Params

ARGUMENTS = {"F": types.CPointer(float32), "D": types.CPointer(float64), "I": types.CPointer(int32)} | {
    "f": float32, "d": float64, "i": int32
}  # fmt: skip
CONFIG: Any = cuda.config
SIMULATED = CONFIG.ENABLE_CUDASIM
warnings.filterwarnings("ignore", "Grid size .* under-utilization")  # the maps are small, and so are the grids
LANES = 32  # channels side by side in a block that sees each channel alone: a warp reads them at one go
TALL = 8  # rows of threads in such a block
THREADS = 256  # of a block that sees each value alone
PARTS = 64  # at most, of a sum over pixels that blocks share
PRODUCT = 1e-9  # seconds: less than a device takes for a product that waits for another
LONGEST = 0.05  # seconds of launching, at most, that a device is kept busy for
LARGEST = 2**31 - 1  # number of values that an int32 can point to
FAILURES = "CudaAPIError", "CudaDriverError", "CUDAError"  # as numba names what it raises and, at a launch, the library under it
FULL = "CUDA_ERROR_OUT_OF_MEMORY"

streams.require_one()


@contextmanager
def driver() -> Iterator[None]:
    """Whatever is asked of the driver. Raises DeviceError where it fails: often with what was launched before."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ not in FAILURES:
            raise
        if FULL in str(error):
            raise DeviceError("device cuda: its memory is full: fewer images at once are needed") from error
        raise DeviceError(f"device cuda: the driver fails: {error}") from error


class Kernel:
    """`kernel(blocks, *arguments)` launches it, with `threads` in a block."""

    launched = 0  # by all kernels together

    def __init__(self, function: Callable[..., None], arguments: str, threads: int) -> None:
        assert len(arguments) == function.__code__.co_argcount, function  # the simulator would not notice
        self.function, self.threads = function, threads
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self.signature = void(*(ARGUMENTS[letter] for letter in arguments))

    @cached_property
    def compiled(self) -> Any:
        try:
            return cuda.jit(self.signature)(self.function)
        except (ImportError, RuntimeError, ValueError) as error:  # no compiler, or none for this GPU
            raise DeviceError(
                f"device cuda: {self.name} cannot be compiled ({error}): pip install --upgrade 'pyshuffle[cuda]'"
            ) from error

    def __call__(self, blocks: int | tuple[int, ...], *arguments: Any) -> None:
        if blocks == 0:  # nothing to compute, which the driver refuses to launch
            return
        Kernel.launched += 1
        arguments = tuple(table(a) if isinstance(a, tuple) else a for a in arguments)
        with driver():
            self.compiled[blocks, self.threads](*(a.memory.pointer if isinstance(a, Tensor) else a for a in arguments))


def kernel(arguments: str, threads: int = THREADS) -> Callable[[Callable[..., None]], Kernel]:
    """Make a function a kernel with these arguments."""
    return lambda function: Kernel(function, arguments, threads)


class Memory:
    """A piece of device memory that goes back to the pool when nothing holds it any more."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        self.values = take(size, dtype)
        # As kernels are given it; the simulator has no addresses.
        self.pointer = self.values if SIMULATED else self.values.device_ctypes_pointer.value

    def __del__(self) -> None:
        if POOL is not None and hasattr(self, "values"):  # at exit, globals go before what they hold
            POOL[self.values.size, self.values.dtype].append(self.values)


Pool = dict[tuple[int, np.dtype[Any]], list[Any]]
POOL: Pool = defaultdict(list)  # what is free, by size: a step of training repeats those of the one before


def take(size: int, dtype: np.dtype[Any]) -> Any:
    """A flat device array with anything in it. Raises DeviceError."""
    with suppress(IndexError):
        return POOL[size, dtype].pop()
    with driver():
        try:
            return cuda.device_array(size, dtype)
        except Exception as error:
            if FULL not in str(error):
                raise
        release()
        return cuda.device_array(size, dtype)


def release() -> None:
    """Give back to the driver what is free, of sizes that were needed before."""
    POOL.clear()


class Tensor:
    """A contiguous array on the device, float32 unless it is said otherwise. What it holds at first is anything."""

    def __init__(self, shape: tuple[int, ...], dtype: Any = np.float32, memory: Memory | None = None) -> None:
        self.shape, self.dtype = tuple(map(int, shape)), np.dtype(dtype)
        if self.size > LARGEST:
            raise ShapeError(f"an array of shape {self.shape} has more than {LARGEST} values: fewer images at once are needed")
        self.memory = memory or Memory(self.size, self.dtype)

    @property
    def values(self) -> Any:
        """As kernels see it."""
        return self.memory.values

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(shape, self.dtype, self.memory)


def upload(array: npt.NDArray[Any], dtype: Any = np.float32) -> Any:
    """A copy on the device. Raises ShapeError for a float64 array: what is cut off is to be cut off knowingly."""
    if np.dtype(dtype).kind == "f" and array.dtype != dtype:
        raise ShapeError(f"an array is {array.dtype}: the kernels compute in float32, the reference in any float dtype")
    tensor = Tensor(array.shape, dtype)
    if tensor.size:
        copy(np.ascontiguousarray(array, dtype), tensor.values)
    return tensor


def copy(array: npt.NDArray[Any], values: Any) -> None:
    """To the device."""
    with driver():
        values.copy_to_device(array.reshape(-1))


def download(tensor: Tensor) -> Array:
    """A copy on the host."""
    return fetch(tensor.values).reshape(tensor.shape)


def fetch(values: Any) -> Array:
    """From the device, once all that was launched is done."""
    with driver():
        host: Array = values.copy_to_host()
    return host


def on_device(params: Params) -> dict[str, Any]:
    return {name: upload(array) for name, array in params.items()}


@cache
def table(numbers: tuple[int, ...] | range) -> Tensor:
    """Numbers that kernels look up, kept on the device."""
    return upload(np.array(numbers), np.int32)


def wait() -> None:
    """Until all that was launched is done."""
    with driver():
        cuda.synchronize()


@kernel("Ffi", threads=1)
def _linger(y, factor, count):
    """Keep the device busy: so many products, each of the one before."""
    value = y[0]
    for _ in range(count):
        value *= factor
    y[0] = value


def milliseconds(run: Callable[[], object], rounds: int) -> list[float]:
    """What the device takes for each of so many calls, by its own clock.

    To launch a kernel takes the host longer than most take the device. So the device is kept busy until all of a call is launched;
    but where a call itself waits for the device, the host's time from there on is in it.
    """
    times, y = [], zeros_like(Tensor((1,)))
    began = perf_counter()
    run()
    count = 1 if SIMULATED else int(2 * min(perf_counter() - began, LONGEST) / PRODUCT)
    for _ in range(rounds):
        with driver():
            begin, end = cuda.event(), cuda.event()
            wait()
            _linger(1, y, 1.0, count)
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return times


def blocks_for(size: int, each: int = THREADS) -> int:
    """Blocks for so many values."""
    return -(-size // each)


def parts_for(pixels: int) -> int:
    """In how many parts pixels are summed: a number that depends on nothing else, so that the sum never does."""
    return min(PARTS, blocks_for(pixels, 128))


@kernel("Fi")
def _zero(y, size):
    i = cuda.grid(1)
    if i < size:
        y[i] = 0


def zeros_like(x: Tensor) -> Tensor:
    y = Tensor(x.shape)
    _zero(blocks_for(y.size), y, y.size)
    return y


@kernel("FFii")
def add_parts(parts, y, size, count):
    """y[i] = sum_p parts[p, i]: the second stage of a sum that blocks have shared."""
    i = cuda.grid(1)
    if i < size:
        total = 0.0
        for p in range(count):
            total += parts[p * size + i]
        y[i] = total


def summed(parts: Tensor, shape: tuple[int, ...]) -> Tensor:
    """parts (P, ...) -> their sum, of that shape."""
    y = Tensor(shape)
    add_parts(blocks_for(y.size), parts, y, y.size, len(parts))
    return y
