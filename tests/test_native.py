"""Where the engine's machine code is kept, and what is not believed to be it."""

import pytest

from pyshuffle.engine import native


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


def test_another_processor_has_other_code(monkeypatch):
    here = native._key()
    native._key.cache_clear()
    monkeypatch.setenv("NUMBA_CPU_NAME", "some-other")
    try:
        assert native._key() != here
    finally:
        native._key.cache_clear()
