"""Where the time of a compiled network goes, step by step, and how much the processor could do at best."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..types import Array
from .layout import spans
from .machine import FLOAT, machine
from .plan import Plan
from .program import aligned, encode
from .steps import DENSE, IMAGE, OUTPUT, STEM, WINDOW, Step, multiply_adds
from .team import FROM, UNTIL, Team

ROUNDS = 100_000  # of the loop that measures the peak: long enough for the processor to settle, short enough to be undisturbed

LONGER = 10  # times as long, for more threads than one
SYSTEM = Path("/sys/devices/system/cpu")


class Row(NamedTuple):
    """A line of the profile."""

    name: str
    kind: str
    size: tuple[int, int]
    macs: int
    seconds: float


def profile(plan: Plan, image: Array, rounds: int = 20) -> list[Row]:
    """The median seconds that one thread takes for each step of a plan made for one thread, for one image (H, W, 3)."""
    images, logits = np.ascontiguousarray(image[None], np.float32), np.empty((1, plan.classes), np.float32)
    together = list(spans(plan.steps))
    ranges = [(steps[0].target.made, steps[-1].target.made + 1) for steps in together]
    team = Team(encode(plan), threads=1)
    times = np.empty((rounds, len(ranges)))
    for part in times:
        for n, (team.words[FROM], team.words[UNTIL]) in enumerate([(1, 0), *ranges]):  # first a call that does nothing
            began = time.perf_counter()
            team.run(images, logits)
            took = time.perf_counter() - began
            if n == 0:
                call = took
            else:
                part[n - 1] = max(took - call, 0)
    team.close()
    return [
        Row(steps[0].name, kind(steps[0]), steps[0].size, sum(map(multiply_adds, steps)), float(median))
        for steps, median in zip(together, np.median(times, axis=0), strict=True)
    ]


def kind(step: Step) -> str:
    """What the papers call it, in their breakdown of run time; the stem is image, first convolution and max-pool together, and a
    convolution may be computed together with the depthwise one behind it."""
    if step.kind == STEM:
        return "stem"
    if step.band:
        return "conv + depthwise"
    if step.kind == DENSE:
        return "linear" if step.source.height == step.source.width == 1 else "convolution"
    if step.kind == WINDOW:
        return "depthwise" if multiply_adds(step) else "elementwise"
    return "data movement" if step.kind in (IMAGE, OUTPUT) else "elementwise"


def peak(threads: int = 1) -> float:
    """The most that so many threads can do at once just now: multiply-adds in registers, nothing else. In GFLOP/s, two a
    multiply-add.

    It is measured on all of them together: two processors of a rented machine may be one core, now and then. Each has a processor of
    its own: left to itself, the system may keep two new ones on one for longer than they run.
    """
    lanes, sums, loop = _peak()
    values = [aligned((1 + sums) * lanes * FLOAT) for _ in range(threads)]
    loop(1, values[0].ctypes.data)  # the first call compiles it
    rounds = ROUNDS if threads == 1 else LONGER * ROUNDS  # threads do not wake at once
    start = threading.Barrier(threads)
    places = processors()

    def one(own: Array, number: int) -> tuple[float, float]:
        if threads > 1 and places:
            os.sched_setaffinity(0, {places[number % len(places)]})  # this thread's, which ends with the measurement
        start.wait()
        began = time.perf_counter()
        loop(rounds, own.ctypes.data)
        return began, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        began, ended = zip(*pool.map(one, values, range(threads)), strict=True)
    return 2 * lanes * sums * rounds * threads / (max(ended) - min(began)) / 1e9


def processors() -> list[int]:
    """Those that this process may run on, one of each core before the second of any; none where that cannot be told."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    mine = sorted(os.sched_getaffinity(0))
    files = [SYSTEM / f"cpu{number}" / "topology" / "thread_siblings_list" for number in mine]
    cores = [file.read_text() if file.exists() else str(number) for number, file in zip(mine, files, strict=True)]
    return [number for _, number in sorted((cores[:i].count(core), mine[i]) for i, core in enumerate(cores))]


@functools.cache
def _peak() -> tuple[int, int, Callable[..., Any]]:
    import numba

    from .intrinsics import peak_tile
    from .tiles import PEAK_SUMS

    @numba.njit(nogil=True)
    def loop(rounds, target):
        peak_tile((rounds, target))

    return machine().lanes, PEAK_SUMS, loop
