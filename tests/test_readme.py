"""The README and CONTRIBUTING say what is so: every command in them runs, and prints what is shown there.

A command is a line after `$ `, with what it prints under it; a line of a block that has no such line, where `[...]` may be left out
and `a|b` is a choice; or a piece of code in a sentence that begins like a command. Figures differ from machine to machine and are not
compared, but for those of the audit and of the gradient check, which are the same everywhere.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_bench import bench  # noqa: F401 (a fixture)

from pyshuffle import classify, cli, studies
from pyshuffle.__main__ import COMMANDS
from pyshuffle.engine import native

pytestmark = pytest.mark.compiled
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"(python|pip|pytest|coverage|ruff|mypy|twine|bash|pyshuffle[a-z-]*) ")

NOT_RUN = {  # and why
    "pip install .": "installs: a leg of .ci/run",
    "pip install '.[test]' && pytest": "is all of the tests",
    "pyshuffle classify": "is short for another: tests/test_packaging.py",
    "pip install '.[peers]'": "installs other runtimes",
    "pip install '.[plot]'": "installs what draws",
    "pip install '.[onnx]'": "installs: a leg of .ci/run",
    "pip install '.[cuda]'": "installs: a leg of .ci/run",
    "python -m pyshuffle.classify IMAGE... --device cuda": "needs a GPU: tests/test_cuda.py simulates one",
    "python -m pyshuffle.cuda.check --run": "needs a GPU",
    "python tests/arm.py DIR": "needs root, and takes an hour: a leg of .ci/run",
    "python -m pyshuffle.cuda.check": "needs an extra, and compiles for a minute: tests/test_check.py",
}
SHORTER = {  # what of a command -> what is run in its place, and why
    r"^(python bench\.py .*)$": (r"\1 --rounds 1", "one turn says what fifteen say"),
    r" --against \S+": ("", "other runtimes do not come with the tests: tests/test_export.py runs one"),
    r" --plot \S+": ("", "needs an extra: tests/test_bench.py draws where it is installed"),
    r" --batch 32": (
        " --batch 2 --no-startup",
        "a second for each call; what starting costs is in the first bench.py of the page",
    ),
    r" --train (.*) --size 128 --batch 64": (r" --train \1 --size 32 --batch 2", "seconds for each step"),
    r"pyshuffle\.accuracy DIR": ("pyshuffle.accuracy classes", "what has two classes is not for the weights that there are"),
    r"(pyshuffle\.train DIR --arch v2 --width 0\.5).*": (r"\1 --size 32 --epochs 1 --batch 4", "takes hours"),
}
PHOTO = "tests/photos/coffee.png"
STAND_FOR = {
    "IMAGE...": PHOTO,
    "PHOTO": PHOTO,
    "DIR": "images",
    "--weights FILE": "--weights weights.npz",
    "--labels FILE": "--labels labels.txt",
}
NEEDS = {"pyshuffle.export": "onnx"}  # an extra


class Command(NamedTuple):
    text: str
    shown: str | None = None  # what it is said to print


def commands(page: str) -> list[Command]:
    """All of a page, each once."""
    found = []
    for indent, language, block in BLOCK.findall(page):
        lines = re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        if not language and lines.startswith("$ "):
            found += [with_output(part) for part in re.split(r"^\$ ", lines, flags=re.MULTILINE)[1:]]
        elif not language:
            synopses = re.sub(r"\n {2,}", " ", lines).splitlines()
            found += [Command(text) for synopsis in synopses for text in choices(re.sub(r" +# .*", "", synopsis))]
    sentences = BLOCK.sub("", page)
    pieces = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", sentences)]
    return list(dict.fromkeys(found + [Command(piece) for piece in pieces if PROGRAM.match(piece)]))


def with_output(part: str) -> Command:
    """A command ends where its quotes are closed."""
    lines = part.splitlines()
    for end in range(1, len(lines) + 1):
        text = "\n".join(lines[:end])
        if text.count('"') % 2 == 0:
            return Command(text, "\n".join(lines[end:]))
    raise ValueError(f"quotes are open in {part!r}")


def choices(synopsis: str) -> list[str]:
    """A command with everything that may be left out, for each choice; and with nothing that may, where it says so."""
    without = re.sub(r" \[[^]]*\]", "", synopsis)
    full = [re.sub(r" \[([^]]*)\]", r" \1", synopsis)]
    for option in re.findall(r"\S+\|\S+", full[0]):
        full = [text.replace(option, choice) for text in full for choice in option.split("|")]
    return list(dict.fromkeys([without if "|" not in without else full[0], *full]))


def shortened(text: str) -> str:
    for pattern, (instead, _) in SHORTER.items():
        text = re.sub(pattern, instead, text)
    for name, thing in STAND_FOR.items():
        text = re.sub(rf"(?<=\s){re.escape(name)}(?=\s|$)", thing, text)
    return text


def quicken(bench, monkeypatch) -> None:  # noqa: F811
    """bench.py with fewer networks and rows in its tables, and with starts that find what is compiled."""
    warm, finished = os.environ.get("NUMBA_CACHE_DIR", str(Path(native.__file__).parent / "__pycache__")), bench.finished
    monkeypatch.setattr(bench, "finished", lambda line, _: finished(line, warm))
    few = {name: experiment._replace(lines=experiment.lines[:2], fastest=0) for name, experiment in studies.GUIDELINES.items()}
    monkeypatch.setattr(studies, "GUIDELINES", few)
    monkeypatch.setattr(studies, "TABLE8", studies.TABLE8[:1])
    monkeypatch.setattr(bench, "every_net", lambda nets=bench.every_net: list(nets())[:1])


def run(text: str, bench) -> int:  # noqa: F811
    """In this process where that is the same; the newcomer's command and what only a shell understands, in one of its own."""
    words = shlex.split(text)
    if text == NEWCOMER or words[:2] == ["python", "-c"] or "|" in words:
        return subprocess.run(["bash", "-c", f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n{text}']).returncode
    if words[:2] == ["python", "bench.py"]:
        return cli.run(bench.main, words[2:])
    assert words[:2] == ["python", "-m"], text
    return cli.run(importlib.import_module(words[2]).main, words[3:])


def comparable(text: str, exactly: bool) -> list[str]:
    """The lines without figures, bars, and the spaces that depend on them."""
    if exactly:
        return text.splitlines()
    text = re.sub(r"\d[\d.,]*", "#", re.sub(r"[ ▏▎▍▌▋▊▉█]+", " ", text))
    return [re.sub(r"\b(thread|core)s\b", r"\1", line).rstrip() for line in text.splitlines()]  # there may be one


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where the commands are run: a directory that has what a source tree has, and what the placeholders stand for."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("tests", "weights", "bench.py"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "images" / name / f"{i}.png")
    for label in range(200):
        (folder / "classes" / f"{label}").mkdir(parents=True)
        for i in range(2):
            (folder / "classes" / f"{label}" / f"{i}.png").symlink_to(folder / "images" / "one" / f"{i}.png")
    (folder / "weights.npz").symlink_to(ROOT / "weights" / classify.DEFAULT)
    (folder / "labels.txt").write_text("\n".join(f"label {i}" for i in range(200)))
    return folder


ALL = commands(README)
NEWCOMER = ALL[1].text
RUN: dict[str, Command] = {}
for command in ALL:
    if command.text not in NOT_RUN:
        RUN.setdefault(shortened(command.text), command)  # some are the same when shortened


@pytest.mark.parametrize(("text", "command"), RUN.items(), ids=[text.split("\n")[0] for text in RUN])
def test_a_command_prints_what_is_shown(text, command, place, bench, monkeypatch, capfd):  # noqa: F811
    for part, extra in NEEDS.items():
        if part in command.text:
            pytest.importorskip(extra)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    quicken(bench, monkeypatch)
    code = run(text, bench)
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    if command.shown is not None:
        exactly = "pyshuffle.audit" in text or "gradcheck" in text
        assert comparable(out, exactly) == comparable(command.shown, exactly)
    else:
        assert out


def test_what_is_not_run_is_there():
    assert NOT_RUN.keys() <= {command.text for command in ALL}
    for pattern in SHORTER:
        assert any(re.search(pattern, command.text) for command in ALL), pattern
    assert NEWCOMER.startswith("python -m pyshuffle.classify tests/photos/")


def test_every_option_that_is_named_is_one(bench, capsys):  # noqa: F811
    for main in (bench.main, *(importlib.import_module(f"pyshuffle.{command}").main for command in COMMANDS)):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
    known = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) <= known


@pytest.mark.parametrize("block", [block for _, language, block in BLOCK.findall(README) if language == "python"])
def test_the_python_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_commands_of_contributors_are_those_of_ci():
    legs = {line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()}
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = [line.strip() for _, _, block in BLOCK.findall(page) for line in block.splitlines()]
    assert lines
    for line in lines:
        assert re.sub(" +# .*", "", line) in legs, line
