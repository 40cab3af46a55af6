"""The memory of a model and the threads that work on it, and the numbers through which they talk to the compiled function."""

from __future__ import annotations

import ctypes
import os
import threading

import numpy as np

from ..errors import PyShuffleError
from .native import load
from .program import Program, aligned

# The numbers that are shared. Each lies alone in its cache line, so that a thread that waits for one does not slow down another.
WORD = 8  # numbers in a line
(
    ARRIVED, ROUND,  # of the barrier: threads that are there, meetings so far
    CALL, CLOSED,  # how many calls have begun, whether there will be no more
    IMAGES, LOGITS, BATCH, ROUNDS,  # the call: addresses, images, and how many of them each thread computes alone
    FROM, UNTIL, FAULT,  # the steps that are run, whether an image has a fault
    WEIGHTS, ARENAS, ARENA,  # addresses, and the size of an arena
    THREADS, TAKE_LOCK, OPEN_LOCK, LET_RUN,  # how many there are; addresses of C functions
    PROGRAMS,  # from here on those of the two programs, and then those of the workers
) = range(0, 19 * WORD, WORD)  # fmt: skip
STEPS, STEP_COUNT, PIECES, PIECE_COUNT, TABLES, PROGRAM = range(0, 6 * WORD, WORD)  # of a program: addresses and sizes
ALONE, TOGETHER = 0, 1  # the programs: of one thread, of all
WORKERS = PROGRAMS + 2 * PROGRAM
ASLEEP, LOCK, WORKER = range(0, 3 * WORD, WORD)  # of a worker: whether it sleeps, and its lock


class Team:
    """What a model needs to run in one process: `team.run(images, logits)`, and `team.close()` in the end."""

    def __init__(self, together: Program, threads: int, alone: Program | None = None) -> None:
        """`alone`, a program for one thread with the same weights: with it, images are shared out whole while there are enough."""
        self.process, self.threads, self.programs = os.getpid(), threads, (alone or together, together)
        self.splits = alone is not None or threads == 1
        self.lock = threading.Lock()  # nothing is closed while workers are on their way to a call
        self.function = load()
        arena = max(program.arena for program in self.programs)
        self.arenas = aligned(threads * arena)
        self.locks = [_locked() for _ in range(threads - 1)]
        self.words = words = np.zeros(WORKERS + threads * WORKER, np.int64)
        for number, program in enumerate(self.programs):
            of_program = words[PROGRAMS + number * PROGRAM :]
            arrays = program.steps, program.pieces, program.tables
            of_program[[STEPS, PIECES, TABLES]] = [array.ctypes.data for array in arrays]
            of_program[[STEP_COUNT, PIECE_COUNT]] = len(program.steps), len(program.pieces)
        words[WEIGHTS], words[ARENAS], words[ARENA] = together.weights.ctypes.data, self.arenas.ctypes.data, arena
        words[UNTIL], words[THREADS] = len(together.steps), threads
        words[TAKE_LOCK], words[OPEN_LOCK], words[LET_RUN] = _functions()
        words[WORKERS + LOCK :: WORKER][: threads - 1] = self.locks
        self.workers: list[threading.Thread] = []
        try:
            for worker in range(threads - 1):
                thread = threading.Thread(target=self.function, args=(words.ctypes.data, worker), daemon=True)
                thread.start()
                self.workers.append(thread)
        except RuntimeError as error:  # the system allows no more
            self.close()
            raise PyShuffleError(
                f"threads={threads}: of so many, only {len(self.workers) + 1} can be at work ({error})"
            ) from None

    def run(self, images: np.ndarray, logits: np.ndarray) -> bool:
        """One call; whether all images are finite. The arrays are contiguous and fit the program. Raises
        PyShuffleError where it has been closed, as the program is ending."""
        words = self.words
        with self.lock:
            if words[CLOSED]:
                raise PyShuffleError("the model is closed: the program is ending")
            words[IMAGES], words[LOGITS], words[BATCH], words[FAULT] = images.ctypes.data, logits.ctypes.data, len(images), 0
            words[ROUNDS] = len(images) // self.threads if self.splits else 0
            self.function(words.ctypes.data, -1)
            return not words[FAULT]

    def close(self) -> None:
        """End the workers, after the call that they are at; unless this is a forked child, which has none."""
        if os.getpid() != self.process:
            return
        with self.lock:
            self.words[CLOSED] = 1
            self.function(self.words.ctypes.data, -1)
            for worker in self.workers:
                worker.join()
            for lock in self.locks:
                ctypes.pythonapi.PyThread_free_lock(ctypes.c_void_p(lock))


def _locked() -> int:
    """The address of one of the interpreter's own locks, taken. They work wherever it does, and without it."""
    allocate = ctypes.pythonapi.PyThread_allocate_lock
    allocate.restype = ctypes.c_void_p
    lock = allocate()
    ctypes.pythonapi.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return int(lock)


def _functions() -> tuple[int, ...]:
    """The addresses of three C functions: take a lock, open one, let other threads run."""
    yields = ctypes.windll.kernel32.SwitchToThread if os.name == "nt" else ctypes.CDLL(None).sched_yield  # type: ignore[attr-defined]
    python = ctypes.pythonapi
    found = (python.PyThread_acquire_lock, python.PyThread_release_lock, yields)
    return tuple(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found)
