"""What is published: that the wheel holds what is needed to run and no more, and the source what is needed to build and test."""

import configparser
import importlib
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from pyshuffle import __main__ as program
from pyshuffle import __version__, classify


def names(*folders: str) -> set[str]:
    """The files of the tree in those folders."""
    found = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_its_weights_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions.wheel) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert wheel.read("pyshuffle/py.typed") == b""
        assert wheel.read(f"pyshuffle/pretrained/{classify.DEFAULT}") == (ROOT / "weights" / classify.DEFAULT).read_bytes()
        (licence,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert held == names("pyshuffle") | {name.replace("weights", "pyshuffle/pretrained") for name in names("weights")}


def test_the_source_holds_all_that_builds_and_tests_it(distributions):
    with tarfile.open(distributions.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert names("pyshuffle", "tests", "weights") <= held
    assert {"pyproject.toml", "MANIFEST.in", "README.md", "CONTRIBUTING.md", "LICENSE", "bench.py", ".ci/run"} <= held
    assert not [name for name in held if name.endswith((".pyc", ".nbi", ".nbc"))]


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (member for member in archive.namelist() if member.endswith(f".dist-info/{name}"))
        return archive.read(file).decode()


def test_the_metadata(distributions):
    lines = metadata(distributions.wheel, "METADATA").splitlines()
    assert {f"Version: {__version__}", "Requires-Python: >=3.10", "License-Expression: MIT"} <= set(lines)
    needed = {line.split(" ")[1].split(">")[0] for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line}
    assert needed == {"numpy", "numba", "pillow"}


def test_every_command_is_installed(distributions):
    scripts = configparser.ConfigParser()
    scripts.read_string(metadata(distributions.wheel, "entry_points.txt"))
    commands = [command for command in program.COMMANDS if "." not in command]
    assert set(scripts["console_scripts"]) == {"pyshuffle", *(f"pyshuffle-{command}" for command in commands)}
    for target in scripts["console_scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_every_program_is_a_command():
    programs = {path for path in (ROOT / "pyshuffle").rglob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    named = {ROOT / "pyshuffle" / f"{command.replace('.', '/')}.py" for command in program.COMMANDS}
    assert programs == named | {ROOT / "pyshuffle" / "__main__.py"}


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_version():
    done = python("-m", "pyshuffle", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pyshuffle {__version__}\n", "")


def test_a_command_that_is_missing_or_unknown():
    for arguments in ([], ["nothing"]):
        done = python("-m", "pyshuffle", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("pyshuffle: error: ")
    assert "classify" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [["/usr/bin/pyshuffle", "audit"], ["/usr/bin/pyshuffle-audit"], ["C:\\pyshuffle\\pyshuffle-audit.exe"]],
    ids=["sub-command", "script", "script on Windows"],
)
def test_a_command_gets_its_arguments_and_gives_its_exit_code(argv, monkeypatch, capsys):
    ran = []

    def run_module(name, run_name, alter_sys):
        ran.append((name, run_name, sys.argv[1:]))
        sys.exit(3)

    monkeypatch.setattr(runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", [argv[0].replace("\\", "/"), *argv[1:], "--size", "3"])
    with pytest.raises(SystemExit, match="3"):
        program.program()
    assert ran == [("pyshuffle.audit", "__main__", ["--size", "3"])]


def test_a_command_says_what_is_wrong_in_its_own_name():
    done = python("-m", "pyshuffle", "audit", "--size", "3")
    assert (done.returncode, done.stderr) == (2, "audit: error: size=3 is too small: 32 to 65536 pixels are needed\n")
