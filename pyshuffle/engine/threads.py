"""Threads that work on one call together: the few atomic operations, a barrier, and workers that wait without burning a core.

Between two calls a worker looks for the next one for a moment, and then sleeps on a lock; between two steps all threads meet at a
barrier, where they spin and, after a while, let others run, so that more threads than cores still finish. No Python is involved, so
neither Ctrl-C nor another thread that holds the interpreter can leave one of them behind.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import kernel
from .machine import on_x86
from .team import ARRIVED, ASLEEP, CALL, LET_RUN, LOCK, OPEN_LOCK, ROUND, TAKE_LOCK, THREADS, WORKER, WORKERS

SPINS = 500  # looks at a word, a pause between them, before others may run
LOOKS = 4000  # of a worker at the word that announces a call, before it sleeps: a few tenths of a millisecond


def _place(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
    words = context.make_array(signature.args[0])(context, builder, values[0])
    return builder.gep(words.data, [values[1]])


def _at_once(operation: str) -> Any:
    """The intrinsic (words, index, value) that applies an operation to words[index] atomically, and returns what was there."""

    def typed(_typing: Any, words: Any, _index: Any, _value: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
            return builder.atomic_rmw(operation, _place(context, builder, signature, values), values[2], "seq_cst")

        return types.int64(words, types.int64, types.int64), generate

    return intrinsic(typed)


exchange, increase = _at_once("xchg"), _at_once("add")


@intrinsic
def look(_typing: Any, words: Any, index: Any) -> Any:
    """words[index] as another thread may just have set it, with all that it had written before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
        return builder.load_atomic(_place(context, builder, signature, values), "acquire", 8)

    return types.int64(words, types.int64), generate


@intrinsic
def pause(_typing: Any) -> Any:
    """Tell the processor that this is a spinning loop."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, _values: Any) -> Any:
        # many ARMs ignore yield
        name, given = ("llvm.x86.sse2.pause", []) if on_x86() else ("llvm.aarch64.isb", [ir.IntType(32)(15)])
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def call(_typing: Any, function: Any, argument: Any, flag: Any) -> Any:
    """function(argument, flag), of an address: a C function that takes a pointer and an int, or less."""

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: list[ir.Value]) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, ir.IntType(32)])
        pointer = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(pointer, [builder.inttoptr(values[1], cgutils.voidptr_t), builder.trunc(values[2], ir.IntType(32))])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@kernel
def meet(words, threads):
    """Wait until all threads have come here."""
    if threads == 1:
        return
    now = look(words, ROUND)
    if increase(words, ARRIVED, 1) == threads - 1:
        exchange(words, ARRIVED, 0)
        increase(words, ROUND, 1)
        return
    spins = 0
    while look(words, ROUND) == now:
        if spins < SPINS:
            spins += 1
            pause()
        else:
            call(words[LET_RUN], 0, 0)


@kernel
def announce(words):
    """Begin a call: wake the workers."""
    increase(words, CALL, 1)
    for worker in range(words[THREADS] - 1):
        own = WORKERS + worker * WORKER
        if exchange(words, own + ASLEEP, 0) == 1:
            call(words[OPEN_LOCK], words[own + LOCK], 0)


@kernel
def await_call(words, worker, seen):
    """Wait until the call after the seen ones has begun."""
    own = WORKERS + worker * WORKER
    looks = 0
    while look(words, CALL) == seen:
        if looks < LOOKS:
            looks += 1
            pause()
            continue
        exchange(words, own + ASLEEP, 1)
        if look(words, CALL) == seen or exchange(words, own + ASLEEP, 0) == 0:
            call(words[TAKE_LOCK], words[own + LOCK], 1)  # somebody will open it
        looks = 0
