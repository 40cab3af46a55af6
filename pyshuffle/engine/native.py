"""Machine code that is kept: the tiles, and the engine's one function. Compiled the first time, afterwards loaded without numba.

numba keeps a cache of its own, but to read it numba has to be imported and to set itself up, which takes most of a second: more than
all else that it takes to classify a photograph. So the code is kept as object files, which llvmlite alone can load.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from ..errors import PyShuffleError
from .machine import cpu

NAME = "pyshuffle_engine"
Function = Callable[[int, int], int]

_kept: list[object] = []  # what the functions live in


@functools.cache
def load() -> Function:
    """`function(address of the shared numbers, worker or -1 for the leader)`; it runs without holding the interpreter."""
    engine = loaded("engine", _compile)
    # As numba has it: addresses for a result and for an exception come before the arguments.
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    native, unused = kind(engine.get_function_address(NAME)), (ctypes.c_void_p * 2)()
    _kept.append(unused)
    return functools.partial(native, ctypes.addressof(unused), ctypes.addressof(unused) + 8)


def _compile() -> llvm.ModuleRef:
    """By numba to LLVM's language; and the tiles."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise PyShuffleError("NUMBA_DISABLE_JIT is set: the engine is nothing but compiled code; use the Reference backend")
    from . import library
    from .kernels import entry, signature

    entry.compile(signature)
    module = llvm.parse_assembly(entry.inspect_llvm(entry.signatures[0]))
    module.get_function(entry.overloads[entry.signatures[0]].fndesc.llvm_func_name).name = NAME
    module.link_in(library.module())
    return module


@functools.cache
def target() -> llvm.TargetMachine:
    """What to compile for."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = cpu()
    triple = llvm.Target.from_default_triple()
    return triple.create_target_machine(cpu=name, features=features, opt=3, reloc="pic", codemodel="jitdefault")


def loaded(name: str, make: Callable[[], llvm.ModuleRef]) -> llvm.ExecutionEngine:
    """The code of that name, ready to be called, for good: read, or else compiled, and kept if there is a place."""
    file = _file(name)
    code = _read(file)
    if code is None:
        code = target().emit_object(make())
        _write(file, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _kept.append(engine)
    return engine


@functools.cache
def _file(name: str) -> str:
    """A name for this very code: of the engine's sources, of what compiles them, of the processor and of the system."""
    files = {file.name: file for file in resources.files(__package__).iterdir()}  # maybe of an archive
    parts = [files[name].read_bytes() for name in sorted(files) if name.endswith(".py") and not name.startswith(".")]
    if not parts:
        raise PyShuffleError("the engine's sources are missing: kept code could be taken for that of another version")
    parts += [_numba(), repr((llvmlite.__version__, sys.version_info[:2], *cpu(), llvm.get_process_triple())).encode()]
    return f"{name}-{hashlib.sha256(b''.join(parts)).hexdigest()[:32]}.o"


def _numba() -> bytes:
    """What tells one version of numba from another. To import it would take too long, and to ask its metadata a fair part of that."""
    found = importlib.util.find_spec("numba")
    with contextlib.suppress(OSError):
        told = Path(found.origin).with_name("_version.py").read_bytes() if found and found.origin else b""
        if b'"version": "' in told:
            return told
    from importlib.metadata import version

    return version("numba").encode()


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
            with contextlib.suppress(OSError):
                part.unlink()  # of a full disk
            continue
        return
    warnings.warn("compiled code cannot be kept; set NUMBA_CACHE_DIR to a writable directory", stacklevel=2)
