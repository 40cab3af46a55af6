"""Kernels as Python runs them, for tests with NUMBA_DISABLE_JIT=1: so every line of them can be looked at, and counted.

Without numba's compiler a kernel is a Python function like any other, but some of what kernels call is nothing but LLVM. For that
there are stand-ins here: the tiles are the machine code that they always are, called through ctypes; what the engine asks of memory
and of threads is the same in Python. Training takes the reference's operations: a step by kernels would take a second.
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pyshuffle import sgd
from pyshuffle.engine import intrinsics, jit, kernels, library, native, profile, team, threads  # noqa: F401 (all that has a kernel)
from pyshuffle.engine.emitter import Tile
from pyshuffle.ops import jit as ops_jit

LOCK = threading.Lock()


def tile(code: Any, kind: Tile, numbered: dict[int, library.Shape]) -> Callable[..., None]:
    """As kernels call it: with the number of its shape, where it has several, and the arguments in a tuple."""
    python = [float if name in ("low", "high", "share") else int for name in kind.arguments]
    prototype = ctypes.CFUNCTYPE(None, *(ctypes.c_float if of is float else ctypes.c_int64 for of in python))
    functions = {number: prototype(code.get_function_address(kind.name(**shape))) for number, shape in numbered.items()}

    def called(*given: Any) -> None:
        *number, arguments = given
        functions[int(*number)](*(of(argument) for of, argument in zip(python, arguments, strict=True)))

    return called


def array(address: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    memory = (ctypes.c_char * (int(np.prod(shape)) * np.dtype(dtype).itemsize)).from_address(int(address))
    return np.frombuffer(memory, dtype).reshape(shape)


def exchange(words: np.ndarray, index: int, value: int) -> int:
    with LOCK:
        before, words[index] = int(words[index]), value
        return before


def increase(words: np.ndarray, index: int, value: int) -> int:
    with LOCK:
        words[index] += value
        return int(words[index]) - value


def look(words: np.ndarray, index: int) -> int:
    return int(words[index])


def call(address: int, argument: int, flag: int) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(int(address))(int(argument), flag)


STAND_INS = {
    **{threads.exchange: exchange, threads.increase: increase, threads.look: look, threads.call: call},
    threads.pause: lambda: time.sleep(0),
    jit.array: array,
    native.load: lambda: kernels.entry,
    ops_jit.require_jit: lambda: None,
}


def begin() -> None:
    """Put the stand-ins wherever the package has a name for what they stand in for."""
    code = native.loaded("tiles", library.module)
    for kind, numbered in library.shapes().items():
        STAND_INS[getattr(intrinsics, f"{kind.body.__name__}_tile")] = tile(code, kind, numbered)
    for module in [module for name, module in sys.modules.items() if name.startswith("pyshuffle.")]:
        for name, value in list(vars(module).items()):
            if isinstance(value, Callable) and value in STAND_INS:
                setattr(module, name, STAND_INS[value])
    for name, by_numpy in vars(sgd.ReferenceTrainer).items():
        if name in ("arrays", "assess", "descend"):
            setattr(sgd.Trainer, name, by_numpy)
