"""Where the package may find itself: a program that answers in this directory, as this user, must answer in all of them."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from conftest import INTERPRETED, ROOT, SIMULATED

from pyshuffle import classify, training
from pyshuffle.data import ImageFolder
from pyshuffle.engine import native
from pyshuffle.progress import Progress

PHOTO = ROOT / "tests" / "photos" / "coffee.png"
NOBODY = 54321  # a user whom no file knows: without a name and without a home
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # and so file names are ASCII to Python


class Places(NamedTuple):
    """Folders that anybody may read, with a package in each."""

    wheel: Path
    installed: Path
    photo: Path
    compiled: Path  # where the engine's code is kept


@pytest.fixture(scope="module")
def places(distributions) -> Iterator[Places]:
    if os.name == "nt" or SIMULATED or INTERPRETED:
        pytest.skip("the engine is run, as other users")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ein Ort, größer, 場所"
        installed, compiled, photo = root / "installed", root / "compiled", root / "ein Café.png"
        installed.mkdir(parents=True)
        wheel = Path(shutil.copy(distributions.wheel, root))
        shutil.copy(PHOTO, photo)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(installed)
        native.load()
        code = native._read(native._file("engine"))
        if code is None:
            pytest.skip("there is no place to keep what is compiled")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NUMBA_CACHE_DIR", str(compiled))
            native._write(native._file("engine"), code)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield Places(wheel, installed, photo, compiled)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)


@pytest.fixture(scope="module")
def answer() -> list[str]:
    """What is seen here, without the bars."""
    checkpoint = classify.shipped()
    pixels = classify.load(str(PHOTO), checkpoint.preprocess)
    top = classify.best(classify.predictor(checkpoint, pixels.shape[1])(pixels), checkpoint.labels, 3)
    return [f"{guess['probability']:.1%} {guess['label']}" for guess in top]


def start(package: Path, *arguments: str, user: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Python, with the package of that place and no other, in a directory that it cannot write to."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    home = kept if user else kept | {"HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [*(identity(user) if user else []), sys.executable, *arguments],
        capture_output=True,
        env=home | {"PYTHONPATH": str(package)} | environment,
        cwd=package if package.is_dir() else package.parent,
    )


def identity(user: int) -> list[str]:
    """What to put before a command to run it as that user."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


def seen(done: subprocess.CompletedProcess) -> list[str]:
    """The lines of an answer without the bars; nothing may have gone wrong."""
    assert (done.returncode, done.stderr) == (0, b"")
    _, *lines = done.stdout.decode().splitlines()
    return [f"{line[:7].strip()} {line[30:]}" for line in lines]


@pytest.fixture(scope="module")
def user(places) -> int:
    """Somebody who may write where anybody may, and has no home."""
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is needed to be somebody else")
    done = start(places.installed, "-c", "import numba, PIL", user=NOBODY)
    if done.returncode:
        pytest.skip(f"another user cannot run this Python: {done.stderr.decode().splitlines()[-1]}")
    return NOBODY


@pytest.mark.parametrize(
    ("place", "options", "environment"),
    [
        ("installed", [], {}),
        ("installed", ["-O"], {}),
        ("installed", [], BARE | {"PYTHONIOENCODING": "ascii"}),
        ("wheel", [], {}),
        ("wheel", [], BARE),
    ],
    ids=["installed", "without assertions", "ASCII only", "archive", "archive, locale C"],
)
def test_it_answers(place, options, environment, places, answer):
    arguments = [*options, "-m", "pyshuffle", "classify", str(places.photo), "--top", "3"]
    assert seen(start(getattr(places, place), *arguments, NUMBA_CACHE_DIR=str(places.compiled), **environment)) == answer


def test_it_answers_a_user_without_a_home_who_may_write_nowhere(places, user, answer):
    arguments = ["-m", "pyshuffle.classify", str(places.photo), "--top", "3"]
    assert seen(start(places.installed, *arguments, user=user, NUMBA_CACHE_DIR=str(places.compiled))) == answer


def test_a_user_without_a_home_is_told_once_that_nothing_is_kept(places, user):
    script = "from pyshuffle.engine import native; native._write('engine.o', b'code'); print(*native._folders(), sep='\\n')"
    done = start(places.installed, "-c", script, user=user)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [str(places.installed / "pyshuffle" / "engine" / "__pycache__")]
    assert done.stderr.count(b"compiled code cannot be kept; set NUMBA_CACHE_DIR") == 1


def test_from_an_archive_code_is_kept_in_the_users_cache(places, tmp_path):
    script = "from pyshuffle.engine import native; native._write('engine.o', b'code')"
    done = start(places.wheel, "-c", script, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "pyshuffle" / "engine.o").is_file()


def test_kernels_run_from_an_archive(places, tmp_path):
    script = "import numpy as np; from pyshuffle.ops import add; x = np.ones((4, 2), 'f'); print(add.forward(x, x).sum())"
    done = start(places.wheel, "-W", "ignore", "-c", script, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"16.0\n", b"")


def test_an_error_names_a_file_that_cannot_be_printed(places):
    done = start(places.installed, "-m", "pyshuffle.classify", "kein Café.png", NUMBA_CACHE_DIR=str(places.compiled), **BARE)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"classify: error: kein Caf")
    assert done.stderr.endswith(b"No such file or directory\n")


def test_classes_have_the_same_names_in_every_locale(tmp_path):
    for name in ("Äpfel", "梨"):
        (tmp_path / name).mkdir()
        shutil.copy(PHOTO, tmp_path / name)
    script = (
        "import sys; from pathlib import Path; from pyshuffle.data import ImageFolder\n"
        "print(ascii(ImageFolder.scan(Path(sys.argv[1])).classes))"
    )
    expected = ascii(ImageFolder.scan(tmp_path).classes)
    assert expected == ascii(("Äpfel", "梨"))
    for environment in ({}, BARE):
        assert start(ROOT, "-c", script, str(tmp_path), **environment).stdout.decode() == f"{expected}\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_overwrites_itself_on_a_terminal_only(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    progress = Progress(step=1, loss=2.0, right=1, seen=2, seconds=1.0)
    run = SimpleNamespace(reported_at=-1000, progress=progress, steps=3, batch=2, settings=SimpleNamespace(epochs=1))
    training.Run.report(run, 1)
    training.Run.report(run, 1)  # too soon
    out = capsys.readouterr().out
    assert out.endswith("\r" if terminal else "left\n")
    assert out.count("step 1/3  loss 1.000  accuracy 50.0%  2 images/s  0 min 02 s left") == 1
    assert ("\r" in out) is terminal
