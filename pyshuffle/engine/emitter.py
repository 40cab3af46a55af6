"""An LLVM instruction builder that knows the machine's vectors: what the tiles are written with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

from .machine import FLOAT, Machine

I32, I64, F32, VOID = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.VoidType()


class Emitter:
    """An LLVM instruction builder that knows vectors of the machine's width."""

    def __init__(self, function: ir.Function, machine: Machine) -> None:
        self.module = function.module
        self.build = ir.IRBuilder(function.append_basic_block("entry"))
        self.machine, self.lanes = machine, machine.lanes
        self.vector = ir.VectorType(F32, self.lanes)
        self.half = ir.VectorType(F32, self.lanes // 2)
        self.size = self.lanes * FLOAT
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)

    def pointer(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """To something of that kind, `offset` bytes behind the address."""
        behind = I64(offset) if isinstance(offset, int) else offset
        return self.build.inttoptr(self.build.add(address, behind), kind.as_pointer())

    def load(self, address: ir.Value, offset: ir.Value | int = 0, kind: ir.Type | None = None) -> ir.Value:
        """What lies there: a vector, if no other kind is asked for. Vectors need no alignment."""
        return self.build.load(self.pointer(address, offset, kind or self.vector), align=FLOAT)

    def vectors(self, address: ir.Value, count: int) -> list[ir.Value]:
        """Vectors that lie one behind the other."""
        return [self.load(address, v * self.size) for v in range(count)]

    def entry(self, table: ir.Value, index: int) -> ir.Value:
        """table[index], of unsigned 32-bit numbers."""
        return self.build.zext(self.load(table, index * 4, I32), I64)

    def store(self, value: ir.Value, address: ir.Value, offset: ir.Value | int = 0) -> None:
        self.build.store(value, self.pointer(address, offset, value.type), align=FLOAT)

    def everywhere(self, scalar: ir.Value, kind: ir.Type | None = None) -> ir.Value:
        """A scalar in all lanes: of a vector, if no other kind is asked for."""
        kind = kind or self.vector
        nothing, zeros = ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return self.build.shuffle_vector(self.build.insert_element(nothing, scalar, I32(0)), nothing, zeros)

    def low_lanes(self, value: ir.Value, kind: ir.Type) -> ir.Value:
        """As many lanes of a vector as there are in one of that kind: it lies in the same register."""
        if value.type == kind:
            return value
        lanes = ir.Constant(ir.VectorType(I32, kind.count), list(range(kind.count)))
        return self.build.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), lanes)

    def in_register(self, value: ir.Value) -> ir.Value:
        """A vector of an x86 processor, computed here and now: else LLVM fills a register for its first half as well."""
        return self.build.asm(ir.FunctionType(value.type, [value.type]), "", "=v,0", [value], side_effect=False)

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """a b + c: one instruction where the machine has it, else two."""
        return self.call(f"llvm.fmuladd.v{c.type.count}f32", c.type, a, b, c)

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """max(a, b) lane by lane; b where either is not a number."""
        return self.build.select(self.build.fcmp_ordered(">", a, b), a, b)

    def between(self, low: ir.Value, x: ir.Value, high: ir.Value) -> ir.Value:
        """min(max(low, x), high) lane by lane; what is not a number stays."""
        x = self.larger(low, x)
        return self.build.select(self.build.fcmp_ordered("<", high, x), high, x)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """min(a, b) of whole numbers from 0 on."""
        return self.build.select(self.build.icmp_unsigned("<", a, b), a, b)

    def prefetch(self, address: ir.Value, offset: ir.Value | int = 0) -> None:
        """Ask for a cache line that will be read later."""
        pointer = self.pointer(address, offset, ir.IntType(8))
        self.call("llvm.prefetch.p0", VOID, pointer, I32(0), I32(2), I32(1))  # a read, into L2, of data

    def forget(self) -> None:
        """An empty instruction that claims to change memory: no load moves across it, and what was loaded before is loaded again."""
        self.build.asm(ir.FunctionType(VOID, []), "", "~{memory}", [], side_effect=True)

    def step(self, address: ir.Value, by: ir.Value) -> ir.Value:
        """address + by, computed here and now: else LLVM keeps all the multiples of a stride in registers, more than there are."""
        kind = ir.FunctionType(I64, [I64])
        return self.build.asm(kind, "", "=r,0", [self.build.add(address, by)], side_effect=False)

    def neighbours(self, column: ir.Value, pixel: ir.Value, last: ir.Value) -> list[ir.Value]:
        """Where the pixel before, this one and the one behind lie in a row, the last of which lies at `last`; outside: this one."""
        inside = self.build.icmp_unsigned("<", column, last)
        before = self.build.select(self.build.icmp_unsigned("!=", column, I64(0)), self.build.sub(column, pixel), column)
        return [before, column, self.build.select(inside, self.build.add(column, pixel), column)]

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """An instruction that LLVM spells as a function."""
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [value.type for value in arguments]), name)
        return self.build.call(function, arguments)

    @contextmanager
    def loop(self, count: ir.Value, begin: Sequence[ir.Value]) -> Iterator[tuple[list[ir.Value], list[ir.Value]]]:
        """`count` rounds, at least one. Yields the values of this round and an empty list, to be filled with those of the next."""
        before, body, after = self.build.block, *(self.build.append_basic_block(name) for name in ("loop", "after"))
        self.build.branch(body)
        self.build.position_at_end(body)
        left, *now = [self.build.phi(value.type) for value in (count, *begin)]
        following: list[ir.Value] = []
        yield now, following
        fewer = self.build.sub(left, I64(1))
        for phi, first, then in zip((left, *now), (count, *begin), (fewer, *following), strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(then, self.build.block)
        self.build.cbranch(self.build.icmp_unsigned("!=", fewer, I64(0)), body, after)
        self.build.position_at_end(after)

    def choose(self, condition: ir.Value, yes: Callable[[], list[ir.Value]], no: Callable[[], list[ir.Value]]) -> list[ir.Value]:
        """What `yes` emits and returns if the condition holds, and what `no` does if not."""
        done, coming = self.build.append_basic_block("done"), []
        blocks = [self.build.append_basic_block(name) for name in ("yes", "no")]
        self.build.cbranch(condition, *blocks)
        for block, emit in zip(blocks, (yes, no), strict=True):
            self.build.position_at_end(block)
            coming.append((emit(), self.build.block))
            self.build.branch(done)
        self.build.position_at_end(done)
        merged = [self.build.phi(value.type) for value in coming[0][0]]
        for values, block in coming:
            for phi, value in zip(merged, values, strict=True):
                phi.add_incoming(value, block)
        return merged


Arguments = dict[str, ir.Value]


class Tile:
    """An inner loop, emitted anew for each of its shapes. Of its arguments, `low`, `high` and `share` are floats, the others whole
    numbers or addresses."""

    def __init__(self, body: Callable[..., None], arguments: str) -> None:
        self.body, self.arguments, self.__doc__ = body, arguments.split(), body.__doc__

    def name(self, **shape: int) -> str:
        return "_".join(("pyshuffle", self.body.__name__, *map(str, shape.values())))

    def declare(self, module: ir.Module, **shape: int) -> ir.Function:
        """The tile as a function that lies elsewhere."""
        name = self.name(**shape)
        kinds = [F32 if argument in ("low", "high", "share") else I64 for argument in self.arguments]
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(VOID, kinds), name)

    def define(self, module: ir.Module, machine: Machine, **shape: int) -> ir.Function:
        """The tile as a function of the module."""
        function = self.declare(module, **shape)
        e = Emitter(function, machine)
        self.body(e, dict(zip(self.arguments, function.args, strict=True)), **shape)
        e.build.ret_void()
        return function


def tile(arguments: str) -> Callable[[Callable[..., None]], Tile]:
    """Makes a tile, whose arguments have these names, of a function that emits its instructions."""
    return lambda body: Tile(body, arguments)
