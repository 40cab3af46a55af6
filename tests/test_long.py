"""Long runs: one process that classifies and trains for hours loses nothing, and a run that is killed often ends with the same bits.

`python tests/test_long.py --hours 2` works for so long in one process and looks at what it holds after each round.
`python tests/test_long.py --kills 100` kills runs of training so often, goes on with each, and compares what they end with.
"""

import argparse
import contextlib
import io
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_train import SMALL, assert_same_run, images  # noqa: F401 (a fixture)

from pyshuffle import classify, cli, run_files, train

PHOTOS = [ROOT / "tests" / "photos" / name for name in ("chelsea.png", "coffee.png")]
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
GROWTH = 4 << 20  # bytes that memory may differ by: habits of the allocator
TELL = 180  # seconds between two lines
STATES, DELAY = 8, 0.1  # so many states that a run writes, at most, and seconds more, before it is killed
FEWEST = 8  # rounds that can be judged

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to look into")


class Held(NamedTuple):
    """What this process holds."""

    memory: int  # bytes that are resident
    files: int
    threads: int

    @classmethod
    def now(cls) -> "Held":
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        return cls(resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))

    def __str__(self) -> str:
        return f"{self.memory / 1e6:.1f} MB, {self.files} files, {self.threads} threads"


def grown(marks: list[Held]) -> list[str]:
    """What grew from round to round, each in a line. The first quarter of the rounds is for warming up.

    Memory goes up and down by what the allocator keeps: the median of the last quarter is compared with that of the second. Files and
    threads are counted: after either of the last two rounds (a thread that has ended may be seen for a moment longer), no more may
    be left than after any round of the first quarter.
    """
    quarter = len(marks) // 4
    second, last = (np.median([mark.memory for mark in part]) for part in (marks[quarter : 2 * quarter], marks[-quarter:]))
    found = [f"memory from {second / 1e6:.1f} to {last / 1e6:.1f} MB"] if last - second > GROWTH else []
    for name in ("files", "threads"):
        counts = [getattr(mark, name) for mark in marks]
        before, after = max(counts[:quarter]), min(counts[-2:])
        found += [f"{name} from {before} to {after}"] if after > before else []
    return found


def parts_of_photos(folder: Path, count: int = 20, side: int = 96) -> Path:
    """The folder, with so many images in it of each test photo: a class each."""
    rng = np.random.default_rng(0)
    for photo in PHOTOS:
        (folder / photo.stem).mkdir(parents=True)
        with Image.open(photo) as picture:
            for i in range(count):
                left, top = (int(rng.integers(0, length - side)) for length in picture.size)
                picture.crop((left, top, left + side, top + side)).save(folder / photo.stem / f"{i}.png")
    return folder


class Mixed:
    """A round: train a small network for an epoch, and classify photographs with it and with the shipped one."""

    def __init__(self, folder: Path) -> None:
        self.images, self.out, self.rounds = parts_of_photos(folder / "images"), folder / "run", 0

    def __call__(self) -> None:
        self.rounds += 1
        quietly(train.main, self.images, *SMALL, "--epochs", 1, "--seed", self.rounds, "--out", self.out)
        quietly(classify.main, *PHOTOS)
        quietly(classify.main, *PHOTOS, "--weights", self.out / run_files.WEIGHTS)
        shutil.rmtree(self.out)


def quietly(main: cli.Main, *arguments: object) -> None:
    """The command line; what it prints is shown where it fails. Raises RuntimeError there, KeyboardInterrupt for Ctrl-C."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = cli.run(main, [str(argument) for argument in arguments])
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"exit code {code}: {printed.getvalue()}")


def rounds(work: Callable[[], object]) -> Iterator[Held]:
    """What is held after each round of work, for ever."""
    while True:
        work()
        yield Held.now()


@pytest.mark.compiled
@needs_proc
def test_training_and_classifying_leave_nothing_behind(tmp_path):
    work = Mixed(tmp_path)
    work()  # loads what is compiled
    assert grown(list(islice(rounds(work), 2 * FEWEST))) == []


def leave_memory(kept: list) -> None:
    memory = mmap.mmap(-1, GROWTH)
    np.frombuffer(memory, np.uint8)[:] = 1
    kept.append(memory)


def leave_a_file(kept: list) -> None:
    kept.append(open(os.devnull))  # noqa: SIM115 (that is the fault)


def leave_a_thread(kept: list) -> None:
    wanted = threading.Event()
    threading.Thread(target=wanted.wait, daemon=True).start()
    kept.append(SimpleNamespace(close=wanted.set))


@needs_proc
@pytest.mark.parametrize(("leave", "word"), [(leave_memory, "memory"), (leave_a_file, "files"), (leave_a_thread, "threads")])
def test_what_is_left_behind_is_noticed(leave, word):
    kept: list = []
    found = grown(list(islice(rounds(lambda: leave(kept)), FEWEST)))
    for thing in kept:
        thing.close()
    assert [line.split()[0] for line in found] == [word]


class Kills(NamedTuple):
    """What was done to runs of training so far."""

    kills: int = 0
    torn: int = 0  # of the kills, those that left half of a state
    runs: int = 0  # that came to their end


def kill(arguments: tuple, whole: Path, folder: Path, kills: int, seed: int = 0) -> Iterator[Kills]:
    """Kill runs at random moments, so often in all; go on with each, and compare it with `whole`, which was left alone.

    A moment is a time after a number of states, one of which is written before the first step; half of the kills wait, from there on,
    for the next state that is being written. A run may come to its end before it is killed: then there is another.
    """
    rng, done = np.random.default_rng(seed), Kills()
    while done.kills < kills:
        out = folder / str(done.runs)
        state, part = out / run_files.STATE, out / f".{run_files.STATE}.part"
        ended = False
        while not ended:
            going_on = ("--resume", out) if state.exists() else (*arguments, "--out", out)
            command = [*map(str, going_on), "--save-every", "0"]
            if done.kills == kills:
                quietly(train.main, *command)
                break
            process = subprocess.Popen([sys.executable, "-m", "pyshuffle.train", *command], stdout=subprocess.DEVNULL)
            for _ in range(rng.integers(1, STATES + 1)):
                before = changed(state)
                await_(process, lambda: changed(state) != before)  # noqa: B023 (it is called at once)
            time.sleep(rng.uniform(0, DELAY))
            if rng.random() < 0.5:
                await_(process, part.exists)
            process.kill()
            ended = process.wait() != -signal.SIGKILL
            assert process.returncode in (0, -signal.SIGKILL), f"exit code {process.returncode} after {done.kills} kills"
            if not ended:
                done = done._replace(kills=done.kills + 1, torn=done.torn + part.exists())
                yield done
        assert_same_run(whole, out)
        done = done._replace(runs=done.runs + 1)
    yield done


def changed(file: Path) -> int:
    """When it was written last, 0 if never."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return 0


def await_(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    """Wait until that has happened, or the process has ended."""
    while not happened() and process.poll() is None:
        time.sleep(0.0002)


@pytest.mark.compiled
def test_a_run_that_is_killed_ends_with_the_same_bits(images, tmp_path):  # noqa: F811
    arguments = (images, *SMALL, "--epochs", 20)
    quietly(train.main, *arguments, "--out", tmp_path / "whole")
    *_, done = kill(arguments, tmp_path / "whole", tmp_path / "killed", 3)
    assert (done.kills, done.runs > 0) == (3, True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, help="classify and train for so long")
    parser.add_argument("--kills", type=int, help="kill runs of training so often")
    args = parser.parse_args()
    if (args.hours is None) == (args.kills is None):
        parser.error("either --hours or --kills is needed")
    with tempfile.TemporaryDirectory() as folder:
        if args.hours is not None:
            return mixed(Path(folder), 3600 * args.hours)
        return killed(Path(folder), args.kills)


def mixed(folder: Path, seconds: float) -> int:
    """Rounds for so long, or until Ctrl-C; 1 if something grew."""
    began = told = time.monotonic()
    work, marks = Mixed(folder), []
    with contextlib.suppress(KeyboardInterrupt):
        for mark in rounds(work):
            marks.append(mark)
            now = time.monotonic()
            if now - told >= TELL:
                told = now
                print(f"{(now - began) / 60:.0f} min, {len(marks)} rounds: {mark}", flush=True)
            if now - began >= seconds and len(marks) >= FEWEST:
                break
    print(f"{len(marks)} rounds in {(time.monotonic() - began) / 60:.1f} min", end=": ")
    if len(marks) < FEWEST:
        print(f"too few to judge: {FEWEST} are needed")
        return 1
    after = marks[len(marks) // 4]
    faults = grown(marks)
    print(f"after a quarter {after}; in the end {marks[-1]};", *(faults or ["nothing grew"]))
    return int(bool(faults))


def killed(folder: Path, kills: int) -> int:
    """1 if no state was half written: so many kills say too little."""
    arguments = (parts_of_photos(folder / "images"), *SMALL, "--epochs", 20)
    quietly(train.main, *arguments, "--out", folder / "whole")
    told = time.monotonic()
    for done in kill(arguments, folder / "whole", folder / "killed", kills):
        if time.monotonic() - told >= TELL:
            told = time.monotonic()
            print(f"{done.kills} kills", flush=True)
    print(f"{done.kills} kills, {done.torn} of them while a state was written: {done.runs} runs ended with the same bits")
    return int(not done.torn)


if __name__ == "__main__":
    sys.exit(main())
