"""Where the time of a compiled network goes, step by step, and how much the processor could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..ops.jit import helper
from ..types import Array
from .plan import DENSE, OUTPUT, STEM, WINDOW, Step, multiply_adds
from .program import COUNT, WIDTH, aligned
from .run import Model, run_begin, run_step
from .tiles import FLOAT, PEAK_SUMS, machine, peak_tile

ROUNDS = 100_000  # of the loop that measures the peak: long enough for the processor to settle, short enough to be undisturbed


@helper
def _peak(rounds, target):
    peak_tile((rounds, target))


def peak() -> float:
    """The most that one core can do just now: multiply-adds of registers, nothing else, in GFLOP/s. An addition counts as one more."""
    lanes = machine().lanes
    values = aligned((1 + PEAK_SUMS) * lanes * FLOAT)
    _peak(1, values.ctypes.data)  # compiles
    began = time.perf_counter()
    _peak(ROUNDS, values.ctypes.data)
    return 2 * lanes * PEAK_SUMS * ROUNDS / (time.perf_counter() - began) / 1e9


class Row(NamedTuple):
    """A line of the profile."""

    name: str
    kind: str
    size: tuple[int, int]
    macs: int
    seconds: float


def profile(model: Model, image: Array, rounds: int = 20) -> list[Row]:
    """The median seconds that one thread takes for each step of a model, for one image (H, W, 3)."""
    steps, pieces, tables, weights, arenas, *_ = model.team.arguments
    data = pieces, tables, weights, arenas[0]
    pixels, logits = np.ascontiguousarray(image, np.float32).ravel(), np.empty(int(pieces[-1, COUNT]), np.float32)
    begun = 3 if model.plan.steps[0].kind == STEM else 1
    nothing = np.zeros_like(steps[0])
    nothing[WIDTH] = 1
    times = []
    for _ in range(rounds + 1):
        seconds = [_seconds(run_step, nothing, *data, logits, 0, 1), _seconds(run_begin, steps, *data, arenas[0], pixels, 0, 1)]
        times.append(seconds + [_seconds(run_step, step, *data, logits, 0, 1) for step in steps[begun:]])
    call, *medians = np.median(times[1:], axis=0)  # the first round compiled
    first, *others = model.plan.steps[:1] + model.plan.steps[begun:]
    rows = [Row(first.name, "stem", first.size, sum(map(multiply_adds, model.plan.steps[:begun])), max(medians[0] - call, 0.0))]
    return rows + [
        Row(step.name, kind(step), step.size, multiply_adds(step), max(median - call, 0.0))
        for step, median in zip(others, medians[1:], strict=True)
    ]


def kind(step: Step) -> str:
    """What the papers call it, in their breakdown of run time."""
    if step.kind == DENSE:
        return "linear" if step.source and step.source.height == step.source.width == 1 and step.size == (1, 1) else "convolution"
    if step.kind == WINDOW:
        return "depthwise" if multiply_adds(step) else "elementwise"
    return "data movement" if step.kind == OUTPUT else "elementwise"


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began
