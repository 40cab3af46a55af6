"""Times on a machine that is shared and drifts: of several things in turn, so that what disturbs one disturbs all."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TURN = 0.3  # seconds that each of two sides is timed for before it is the other's turn


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turn(runs: Sequence[Callable[[], Any]], rounds: int) -> npt.NDArray[np.float64]:
    """Seconds (rounds, runs): every run in every round, the median of some calls."""
    for run in runs:
        seconds(run)  # compiles
    calls = [max(1, round(TURN / 6 / seconds(run))) for run in runs]
    return np.array(
        [[np.median([seconds(run) for _ in range(n)]) for run, n in zip(runs, calls, strict=True)] for _ in range(rounds)]
    )
