"""A stricter simulated GPU, for tests with NUMBA_ENABLE_CUDASIM=1: it refuses what hardware would do quietly.

numba's simulator runs the threads of a block at once and lets them get away with much. Here they run one after the other from barrier
to barrier, and every access is looked at:
- one outside of its array, before its begin included;
- by two threads, one of them writing, with nothing to order them: in shared memory between two barriers of a block, in an array
  within a launch, as nothing orders blocks;
- a barrier that some threads of a block wait at and others never reach.
Memory that is handed out, shared or the device's, holds NaN: what is read before it is written, or never written, shows; of a
thread's own arrays nothing can be read that it has not written. And every array of the device lies between two bands of a pattern,
which are looked at after every launch that is given it: what comes to write there is seen whichever way it came.
"""

import functools
import sys
import threading
from typing import Any

import numpy as np
from numba.cuda.cudadrv.driver import CudaAPIError
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

from pyshuffle.backends.arrays import Arrays
from pyshuffle.backends.cuda import Cuda
from pyshuffle.cuda import launch, loss

ANYTHING = {"f": np.nan, "i": -(2**31)}  # what memory holds that nobody has written
BAND, PATTERN = 256, 0xFF  # bytes on either side of an array, and what is in each: read as a float, NaN
SPAN = 1 << 40  # of the numbers of threads, between two barriers
SEVERAL = SPAN - 1


class Watched:
    """An array as the threads of a kernel see it."""

    def __init__(self, array: np.ndarray, shared: bool) -> None:
        self.array, self.shared, self.indices = array, shared, indices(array.shape)
        self.written: dict[Any, int] = {}  # index -> by which thread, plus SPAN for every barrier so far
        self.read: dict[Any, int] = {}

    def __getitem__(self, index: Any) -> Any:
        if index not in self.indices:
            raise IndexError(f"index {index} is outside of an array of shape {self.array.shape}")
        begin = GPU.begin if self.shared else 0
        now = begin + GPU.thread
        if begin <= self.written.get(index, now) != now:
            raise RuntimeError(f"race: {index} of an array of shape {self.array.shape} is read while another thread writes it")
        self.read[index] = begin + SEVERAL if begin <= self.read.get(index, now) != now else now
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if index not in self.indices:
            raise IndexError(f"index {index} is outside of an array of shape {self.array.shape}")
        begin = GPU.begin if self.shared else 0
        now = begin + GPU.thread
        if begin <= self.written.get(index, now) != now or begin <= self.read.get(index, now) != now:
            raise RuntimeError(f"race: {index} of an array of shape {self.array.shape} is written while another thread uses it")
        self.written[index] = now
        self.array[index] = value


@functools.cache
def indices(shape: tuple[int, ...]) -> Any:
    """All that are in an array: negative ones are not."""
    return frozenset(np.ndindex(shape) if len(shape) > 1 else range(*shape))


class Local(dict):
    """An array of a thread's own: what it has written, by index."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.shape, self.kind = shape if isinstance(shape, tuple) else (shape,), np.dtype(str(dtype)).type
        GPU.locals.append(self)

    def __missing__(self, index: Any) -> Any:
        raise IndexError(f"index {index} is outside of a local array of shape {self.shape}, or read before it is written")

    def check(self) -> None:
        """After all is over, so that writing costs no more than with a dict."""
        if not self.keys() <= indices(self.shape):
            raise IndexError(f"index {max(self.keys() - indices(self.shape))} is outside of a local array of shape {self.shape}")
        if not {type(value) for value in self.values()} <= {self.kind, int}:
            raise TypeError(f"a local array of {self.kind.__name__} is given values of another type")


class Thread(threading.Thread):
    """One that runs when it is told to, until it ends or waits at a barrier. It plays one thread of a block, or several in turn."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.go, self.back = threading.Lock(), threading.Lock()
        self.go.acquire()
        self.back.acquire()
        self.waits = self.abandoned = False
        self.start()

    def run(self) -> None:
        while True:
            self.go.acquire()
            try:
                for number in self.numbers:
                    self.threadIdx = kernelapi.Dim3(number, 0, 0)
                    GPU.thread = self.number = number + self.first
                    self.task()
            except Exception as error:
                self.error = error
            self.waits = False
            self.back.release()

    def begin(self, task: Any, block: tuple[int, ...], numbers: Any) -> None:
        """Run the task as each of the threads of these numbers."""
        self.task, self.error, self.numbers = task, None, numbers
        self.blockIdx = kernelapi.Dim3(*block)
        self.number = self.first = 1024 * (block[0] + 2**20 * (block[1] + 2**5 * block[2]))
        self.advance()

    def advance(self) -> None:
        GPU.thread = self.number
        self.go.release()
        self.back.acquire()
        if self.error:
            raise self.error

    def syncthreads(self) -> None:
        if GPU.left_out:
            caller = sys._getframe(2)
            if GPU.left_out == (caller.f_code.co_filename, caller.f_lineno):
                return
        self.waits = True
        self.back.release()
        self.go.acquire()
        if self.abandoned:
            raise RuntimeError("another thread has failed")

    def abandon(self) -> None:
        """Have what waits at a barrier end there."""
        self.abandoned = True
        self.go.release()
        self.back.acquire()
        self.abandoned = False


class GPU:
    """What is running, and numba's BlockManager: it is made for each block."""

    threads: list[Thread] = []
    arrays: dict[int, Watched] = {}  # by address: arguments may be one array
    shared: dict[Any, Watched] = {}  # by the line that asks for it
    locals: list["Local"] = []  # of the block's threads
    begin = 0  # SPAN for every barrier so far
    thread = 0
    left_out: tuple[str, int] | None = None  # a barrier, by file and line, that no thread waits at

    def __init__(self, function: Any, grid: Any, block: tuple[int, ...], debug: bool) -> None:
        self.function, self.size = function, block[0]
        assert block[1:] == (1, 1)

    def run(self, block: tuple[int, ...], *arguments: Any) -> None:
        if not any(block):  # the first one of a launch
            GPU.arrays.clear()
        GPU.shared.clear()
        GPU.locals.clear()
        GPU.begin += SPAN
        watched = [watch(a._item._ary) if isinstance(a, kernel.FakeWithinKernelCUDAArray) else a for a in arguments]
        while len(self.threads) < self.size:
            self.threads.append(Thread())
        try:
            self.play(lambda: self.function(*watched), block, self.threads[: self.size])
        finally:
            for thread in self.threads:
                if thread.waits:
                    thread.abandon()
        for local in GPU.locals:
            local.check()

    def play(self, task: Any, block: tuple[int, ...], threads: list[Thread]) -> None:
        threads[0].begin(task, block, [0])
        if not threads[0].waits:  # a kernel without barriers: one Python thread will do
            threads[0].begin(task, block, range(1, self.size))
        else:
            for number, thread in enumerate(threads[1:], start=1):
                thread.begin(task, block, [number])
        waiting = [thread for thread in threads if thread.waits]
        while waiting:
            if len(waiting) < self.size:
                raise RuntimeError(f"{len(waiting)} of {self.size} threads wait at a barrier that the others do not reach")
            GPU.begin += SPAN
            for thread in threads:
                thread.advance()
            waiting = [thread for thread in threads if thread.waits]


def watch(array: np.ndarray) -> Watched:
    return GPU.arrays.setdefault(array.ctypes.data, Watched(array, shared=False))


def shared_array(_: Any, shape: Any, dtype: Any) -> Watched:
    caller = sys._getframe(1)
    where = caller.f_code, caller.f_lineno
    if where not in GPU.shared:
        GPU.shared[where] = Watched(filled(np.empty(shape, str(dtype))), shared=True)
    return GPU.shared[where]


def filled(array: np.ndarray) -> np.ndarray:
    array.fill(ANYTHING[array.dtype.kind])
    return array


def device_array(size: int, dtype: np.dtype) -> FakeCUDAArray:
    bytes_ = np.full(2 * BAND + size * np.dtype(dtype).itemsize, PATTERN, np.uint8)
    return FakeCUDAArray(bytes_.view(dtype)[BAND // np.dtype(dtype).itemsize :][:size])


def check_bands(array: np.ndarray) -> None:
    for band, where in ((array.base[:BAND], "before"), (array.base[-BAND:], "behind")):
        if (band != PATTERN).any():
            band[:] = PATTERN  # others are to use this memory
            raise IndexError(f"a launch has written {where} an array of {(array.base.size - 2 * BAND) // array.itemsize} values")


def take(size: int, dtype: np.dtype) -> Any:
    values = usual_take(size, dtype)
    filled(values._ary)
    return values


def call(self: Any, *arguments: Any) -> Any:
    """A device function, or a launch."""
    if self._device:
        return self.fn(*arguments)
    usual_call(self, *arguments)
    for argument in arguments:
        if isinstance(argument, FakeCUDAArray):
            check_bands(argument._ary)


usual_take, launch.take = launch.take, take
launch.cuda.device_array = device_array
usual_call, kernel.FakeCUDAKernel.__call__ = kernel.FakeCUDAKernel.__call__, call
kernel.BlockManager = GPU
kernelapi.FakeCUDAShared.array = shared_array
kernelapi.FakeCUDALocal.array = Local


def from_host(function: Any) -> Any:
    """A function on the device's arrays as one on NumPy's."""

    def up(value: Any) -> Any:
        return launch.upload(value) if isinstance(value, np.ndarray) else value

    def down(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(down, value))
        return launch.download(value) if isinstance(value, launch.Tensor) else value

    return lambda *arrays, **settings: down(function(*map(up, arrays), **{name: up(value) for name, value in settings.items()}))


def of_loss(which: int) -> Any:
    """The loss (0), or its gradient (2), by logits and labels of NumPy's."""

    def run(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> Any:
        found = loss.run(launch.upload(logits), labels, smoothing)[which]
        return launch.download(found) if which else found

    return run


LOSS = of_loss(0), of_loss(2)


def follow(running: tuple[np.ndarray, ...], batch: tuple[np.ndarray, ...], momentum: float, count: int) -> None:
    tensors = [launch.upload(array) for array in (*running, *batch)]
    Cuda.follow(tuple(tensors[:2]), tuple(tensors[2:]), momentum, count)
    for array, tensor in zip(running, tensors, strict=False):
        array[:] = launch.download(tensor)


class Simulated(Arrays):
    """Cuda for the tests that all interpretations share: operation by operation, on NumPy's arrays."""

    functions = {op: (from_host(forward), from_host(backward)) for op, (forward, backward) in Cuda.functions.items()}
    statistics = staticmethod(from_host(Cuda.statistics))
    zeros_like = staticmethod(from_host(Cuda.zeros_like))
    follow = staticmethod(follow)


class Small:
    """A network of one convolution of each kind, for what takes a network and not a real one."""

    arch, width, classes = "small", 1.0, 3

    def __call__(self, ops, x):
        x = ops.depthwise_bn(x, "depthwise", "bn1", stride=2)
        x = ops.conv_bn(x, "conv", "bn2", 4, stride=2)
        return ops.linear(ops.mean(x), "fc", self.classes)


def failing(code, name):
    """What asks the driver for something, and is refused."""

    def fail(*_):
        raise CudaAPIError(f"[{code}] Call to cuSomething results in {name}")

    return fail
