"""The engine's one function as machine code: compiled by numba the first time, afterwards loaded without it.

numba keeps a cache of its own, but to read it numba has to be imported and to set itself up, which takes most of a second: more than
all else that it takes to classify a photograph. So the code is kept as an object file, which llvmlite alone can load.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from ..errors import PyShuffleError
from .machine import cpu

NAME = "pyshuffle_engine"
SOURCES = (  # what it is made of
    "emitter", "intrinsics", "jit", "kernels", "layout", "machine", "native", "plan", "program", "team", "threads", "tiles",
)  # fmt: skip
Function = Callable[[int, int], int]

_kept: list[object] = []  # what the function lives in


@functools.cache
def load() -> Function:
    """`function(address of the shared numbers, worker or -1 for the leader)`; it runs without holding the interpreter."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = cpu()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=name, features=features, opt=3, reloc="pic", codemodel="jitdefault"
    )
    code = _read(_key()) or _compile(target)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    # As numba has it: addresses for a result and for an exception come before the arguments.
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    native, unused = kind(engine.get_function_address(NAME)), (ctypes.c_void_p * 2)()
    _kept.extend((engine, unused))
    return functools.partial(native, ctypes.addressof(unused), ctypes.addressof(unused) + 8)


def _compile(target: llvm.TargetMachine) -> bytes:
    """By numba to LLVM's language, from there to an object file, which is kept if there is a place."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise PyShuffleError("NUMBA_DISABLE_JIT is set: the engine is nothing but compiled code; use the Reference backend")
    from .kernels import entry, signature

    entry.compile(signature)
    module = llvm.parse_assembly(entry.inspect_llvm(entry.signatures[0]))
    symbol = entry.overloads[entry.signatures[0]].fndesc.llvm_func_name
    module.get_function(symbol).name = NAME
    code: bytes = target.emit_object(module)
    _write(_key(), code)
    return code


@functools.cache
def _key() -> str:
    """A name for this code: of its sources, of what compiles them, and of the processor."""
    here = resources.files(__package__)  # not always a folder: it may be part of an archive
    parts = [here.joinpath(f"{source}.py").read_bytes() for source in SOURCES]
    parts += [repr((version("numba"), llvmlite.__version__, sys.version_info[:2], *cpu())).encode()]
    return f"engine-{hashlib.sha256(b''.join(parts)).hexdigest()[:32]}.o"


def _folders() -> Iterator[Path]:
    """Where code may be kept: where numba's cache is told to be, else beside this file, else in the user's cache."""
    told = os.environ.get("NUMBA_CACHE_DIR")
    if told:
        yield Path(told)
        return
    yield Path(__file__).parent / "__pycache__"
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(caches):  # a user without a home has none
        yield Path(caches) / "pyshuffle"


def _read(name: str) -> bytes | None:
    """The code of that name, if it is there and whole."""
    for folder in _folders():
        try:
            content = (folder / name).read_bytes()
        except OSError:
            continue
        code, digest = content[:-32], content[-32:]
        if hashlib.sha256(code).digest() == digest:
            return code
    return None


def _write(name: str, code: bytes) -> None:
    """Keep code in the first folder that takes it; where none does, say so, once."""
    for folder in _folders():
        part = folder / f"{name}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(code + hashlib.sha256(code).digest())
            part.replace(folder / name)
        except OSError:
            continue
        return
    warnings.warn("the compiled engine cannot be kept; set NUMBA_CACHE_DIR to a writable directory", stacklevel=2)
