"""The model that a user calls."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import ShapeError
from ..nets import Net
from ..types import Array, Params
from .machine import machine
from .plan import Plan, size_of
from .program import encode
from .team import Team


class Model:
    """A compiled network: `model(x) -> logits`.

    x (N, H, W, 3) float32, any N from 1 on, the H and W it was compiled for -> logits (N, classes), float32. Raises ShapeError for an
    array of another shape or dtype and for one that holds a value that is not finite, and PyShuffleError once the program is ending.
    Python threads that call it at once take turns.
    """

    def __init__(self, plan: Plan, alone: Plan | None = None) -> None:
        """`alone`: the same for one thread. With it, images of a batch are shared out whole while there are enough of them."""
        self.plan, self.threads = plan, plan.threads
        self.program = encode(plan)
        self.alone = replace(encode(alone), weights=self.program.weights) if alone else None  # theirs are the same
        self._lock = threading.Lock()
        self._begin()
        _models.add(self)

    def _begin(self) -> None:
        self.team = Team(self.program, self.threads, self.alone)
        self._end = weakref.finalize(self, self.team.close)

    def __call__(self, x: Array) -> Array:
        x = np.asarray(x)
        self.plan.check(x)
        x = np.ascontiguousarray(x)
        logits = np.empty((len(x), self.plan.classes), np.float32)
        with self._lock:
            if os.getpid() != self.team.process:
                self._begin()  # a forked child has the memory, but not the threads
            finite = self.team.run(x, logits)
        if not finite:
            raise ShapeError("x holds a value that is not finite")
        return logits


_models: weakref.WeakSet[Model] = weakref.WeakSet()


def _open_locks() -> None:
    """In a forked child: a thread that held one is not there to open it."""
    for model in _models:
        model._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_locks)


def compile(net: Net, params: Params, input_shape: Sequence[int], threads: int | None = None) -> Model:
    """The network with these parameters as a `Model`, for images of `input_shape`, (N, H, W, 3) or (H, W, 3).

    It takes any number of images. With N at least the number of threads, it is faster for batches that large, and slower to compile.
    threads: how many work on a call, the caller's among them; by default as many as numba would use (NUMBA_NUM_THREADS, or all
    cores); their shares are equal, so that slow cores hold up fast ones. Raises ShapeError for another shape, images with maps of 4
    GiB, or fewer than one thread, ArchError for a size too small or too large, WeightsError for parameters of another network,
    PyShuffleError for more threads than there can be.
    """
    images, height, width = size_of(input_shape)
    if threads is None:
        threads = default_threads()
    if threads < 1:
        raise ShapeError(f"threads={threads}: at least 1 is needed")
    plan = Plan(net, params, height, width, machine(), threads)
    return Model(plan, Plan(net, params, height, width, machine()) if images >= threads > 1 else None)


def default_threads() -> int:
    """As many as numba would use: NUMBA_NUM_THREADS, or the cores that this process may run on."""
    told = os.environ.get("NUMBA_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
