"""Where machine code is kept, and what is not believed to be it."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numba
import pytest

from pyshuffle.engine import library, native
from pyshuffle.errors import PyShuffleError
from pyshuffle.ops import jit, product


def test_what_is_kept_is_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new" / "folder"))
    native._write("engine.o", b"code")
    assert native._read("engine.o") == b"code"
    assert native._read("other.o") is None
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["engine.o"]


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"x" + content[1:], lambda content: b""])
def test_damaged_code_is_not_loaded(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    native._write("engine.o", b"some code")
    file = tmp_path / "engine.o"
    file.write_bytes(damage(file.read_bytes()))
    assert native._read("engine.o") is None


def test_a_place_that_cannot_be_written_is_one_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept; set NUMBA_CACHE_DIR") as warned:
        native._write("engine.o", b"code")
    assert len(warned) == 1


def test_a_disk_that_is_full_keeps_no_part(monkeypatch, tmp_path):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match="cannot be kept"):
        native._write("engine.o", b"code")
    assert list(tmp_path.iterdir()) == []


def test_code_is_named_by_the_engines_sources(monkeypatch, tmp_path):
    """Else that of another version, with other tables, would be run. Hidden files beside them do not count."""
    monkeypatch.setattr(native.resources, "files", lambda _: tmp_path)
    for file in Path(native.__file__).parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    here = native._file("engine")
    native._file.cache_clear()
    (tmp_path / ".#layout.py").write_text("what an editor leaves")
    assert native._file("engine") == here
    native._file.cache_clear()
    with (tmp_path / "layout.py").open("a") as file:
        file.write("# changed\n")
    try:
        assert native._file("engine") != here
    finally:
        native._file.cache_clear()


def test_without_its_sources_no_code_is_taken_for_the_engines(monkeypatch, tmp_path):
    monkeypatch.setattr(native.resources, "files", lambda _: tmp_path)
    native._file.cache_clear()
    with pytest.raises(PyShuffleError, match="sources are missing"):
        native._file("engine")


@pytest.mark.parametrize("other", ["processor", "system"])
def test_another_machine_has_other_code(monkeypatch, other):
    here = native._file("engine")
    native._file.cache_clear()
    if other == "processor":
        monkeypatch.setenv("NUMBA_CPU_NAME", "some-other")
    else:
        monkeypatch.setattr(llvm, "get_process_triple", lambda: "x86_64-pc-windows-msvc-elf")
    try:
        assert native._file("engine") != here
    finally:
        native._file.cache_clear()


def test_code_is_of_a_version_of_numba(monkeypatch):
    told = native._numba()
    assert numba.__version__.encode() in told
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"def get_versions(): ...")  # of a checkout of numba
    assert native._numba() == numba.__version__.encode()


@pytest.mark.compiled
def test_compiled_kernels_are_of_all_the_sources_that_they_stand_on():
    """numba asks for the kernel's own file; what it calls, and the tiles, count as well."""
    kept = product._multiply._cache._cache_file
    assert kept._source_stamp[-1] == jit.SOURCES
    names = {"product.py", "reading.py", "windows.py", "jit.py", "machine.py", "emitter.py", "tiles.py", "intrinsics.py"}
    names |= {"library.py", "training_tiles.py"}
    assert {path.name for path in jit.KERNEL_SOURCES} >= names


def test_kernels_without_compiled_code():
    script = (
        "import numpy as np; from pyshuffle.errors import PyShuffleError; from pyshuffle.ops import conv, depthwise\n"
        "x = np.ones((1, 4, 4, 2), np.float32)\n"
        "for call in (conv.forward, x, np.ones((1, 1, 2, 2), np.float32)), (depthwise.forward, x, np.ones((3, 3, 2), np.float32)):\n"
        "    try: call[0](*call[1:])\n"
        "    except PyShuffleError as error: print(error)\n"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True).stdout
    assert lines.count("NUMBA_DISABLE_JIT is set: these kernels are nothing but compiled code; use the Reference backend") == 2


def test_every_tile_that_is_called_by_name_is_in_the_library():
    defined = {function.name for function in library.module().functions if not function.is_declaration}
    assert {tile.name(**shape) for tile, shapes in library.shapes().items() for shape in shapes.values()} == defined - {""}


def test_kernels_of_another_processor_are_not_taken_for_those_of_this_one():
    """Not even where numba calls both by one name."""
    command = [sys.executable, "-c", "from pyshuffle.ops import jit; print(jit.SOURCES)"]
    machines = [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"}]
    stamps = [subprocess.run(command, capture_output=True, text=True, env=os.environ | m, check=True).stdout for m in machines]
    assert len({jit.SOURCES, *(stamp.strip() for stamp in stamps)}) == 3
