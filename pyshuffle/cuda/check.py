"""Whether every kernel compiles, and what it needs: `python -m pyshuffle.cuda.check`. No GPU is needed.

Each kernel is compiled to PTX for the compute capabilities in TARGETS. Where `ptxas`, NVIDIA's assembler, is on the path, it makes
machine code of that, and a table says what each kernel takes of a multiprocessor, and what part of the warps that a multiprocessor
has room for it may have there at once. A kernel fails that spills registers, keeps an array in local memory, needs more than a block
may have, or so much that fewer than LEAST of the warps have room. With `--run`, on a GPU, it is report.py that is run instead.

What is launched is made in another way, by NVIDIA's nvJitLink for the very GPU, and may take other registers than are shown.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from .. import cli, device
from ..errors import PyShuffleError

SHARED, THREADS = 48 * 1024, 1024  # that a block may have, on all of them
REGISTERS, QUARTERS = 65536, 4  # of a multiprocessor; its quarters have their own, from which a warp is given them
WARP, UNIT = 32, 256  # threads; registers that are given at one go
LEAST = 1 / 8  # of the warps there is room for: of 64 two for each quarter, so that one computes while another waits


class Limits(NamedTuple):
    """What a multiprocessor has room for; of shared memory, bytes."""

    warps: int
    blocks: int
    shared: int
    reserved: int  # of each block, for the system
    unit: int  # of what a block is given


TARGETS = {  # CUDA C++ Programming Guide, technical specifications per compute capability; cuda_occupancy.h
    (7, 5): Limits(32, 16, 64 * 1024, 0, 256),
    (8, 0): Limits(64, 32, 164 * 1024, 1024, 128),
    (9, 0): Limits(64, 32, 228 * 1024, 1024, 128),
    (10, 0): Limits(64, 32, 228 * 1024, 1024, 128),
}


class Needs(NamedTuple):
    """What ptxas says that a kernel takes."""

    registers: int  # of a thread
    shared: int  # bytes of a block
    local: int  # bytes of a thread: what is spilled, and arrays that are not in registers

    def occupancy(self, threads: int, target: tuple[int, int]) -> float:
        """The part of the warps of a multiprocessor that can be there at once, in blocks of so many threads; 0 if no block can."""
        limits, warps = TARGETS[target], -(-threads // WARP)
        by_registers = REGISTERS // QUARTERS // rounded(self.registers * WARP, UNIT) * QUARTERS // warps
        by_shared = limits.shared // (rounded(self.shared + limits.reserved, limits.unit) or 1)
        return min(by_registers, by_shared, limits.warps // warps, limits.blocks) * warps / limits.warps

    def too_much(self, threads: int, target: tuple[int, int]) -> bool:
        few = self.occupancy(threads, target) < LEAST
        return few or bool(self.local) or self.shared > SHARED or threads > THREADS


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m pyshuffle.cuda.check", description="Check the kernels for NVIDIA's GPUs.")
    parser.add_argument("--run", action="store_true", help="on a GPU: compare with the reference, and time")
    args = parser.parse_args(argv)
    if args.run:
        device.require("cuda")
        from .report import run

        return run()
    device.require_compiler()
    return compile_all()


def compile_all() -> int:
    """Prints a line for each kernel. The exit code: 1 if one takes too much."""
    kernels, assembler = all_kernels(), shutil.which("ptxas")
    titles = [f"{a}.{b}" for a, b in TARGETS]
    print(f"{'':<28} {'':>7} {'':>7} {'':>6}   {'registers at':<23}   of the warps at")
    print(f"{'kernel':<28} {'threads':>7} {'shared':>7} {'local':>6} ", *(f"{title:>5}" for title in titles * 2))
    failed = False
    for kernel in kernels:
        texts = {target: ptx(kernel, target) for target in TARGETS}
        if assembler is None:
            print(f"{kernel.name:<28} {kernel.threads:>7}   compiled to PTX")
            continue
        found = {target: needs(assembler, text, target) for target, text in texts.items()}
        wrong = any(need.too_much(kernel.threads, target) for target, need in found.items())
        failed |= wrong
        shared, local = max(need.shared for need in found.values()), max(need.local for need in found.values())
        registers = [f"{need.registers:>5}" for need in found.values()]
        parts = [f"{need.occupancy(kernel.threads, target):>5.0%}" for target, need in found.items()]
        print(
            f"{kernel.name:<28} {kernel.threads:>7} {shared:>7} {local:>6} ", *registers, *parts, "TOO MUCH" * wrong, flush=True
        )
    print(f"{len(kernels)} kernels compiled to PTX for compute capabilities {', '.join(titles)}")
    if assembler is None:
        print("ptxas is not on the path: what the kernels take was not looked at")
    return int(failed)


def rounded(amount: int, unit: int) -> int:
    """Up to whole units."""
    return -(-amount // unit) * unit


def all_kernels() -> list[Any]:
    from . import add, batchnorm, conv, depthwise, launch, loss, pool, relu, sgd, shuffle

    modules = (conv, depthwise, shuffle, batchnorm, relu, pool, add, loss, sgd, launch)
    return [value for module in modules for value in vars(module).values() if isinstance(value, launch.Kernel)]


def ptx(kernel: Any, target: tuple[int, int]) -> str:
    """The kernel in NVIDIA's assembly language. Raises PyShuffleError where it does not compile."""
    from numba import cuda

    try:
        text: str = cuda.compile(kernel.function, kernel.signature, device=False, abi="numba", cc=target, output="ptx")[0]
    except Exception as error:
        raise PyShuffleError(f"{kernel.name} does not compile for {target}: {error}") from None
    return text


def needs(assembler: str, text: str, target: tuple[int, int]) -> Needs:
    """What a kernel takes as machine code. Raises PyShuffleError where there is no way to make it that."""
    said = assembled(assembler, text, target)
    older = re.search(r"Unsupported \.version.*current version is '([\d.]+)'", said)
    if older:  # an assembler older than numba's compiler: nothing that was added since is used
        said = assembled(assembler, re.sub(r"\.version [\d.]+", f".version {older[1]}", text, count=1), target)
    used = re.search(r"Used (\d+) registers", said)
    if used is None:
        raise PyShuffleError(f"ptxas fails: {said}")
    shared, stack, spilled = (re.search(rf"(\d+) bytes {what}", said) for what in ("smem", "stack frame", "spill stores"))
    return Needs(int(used[1]), int(shared[1]) if shared else 0, sum(int(found[1]) for found in (stack, spilled) if found))


def assembled(assembler: str, text: str, target: tuple[int, int]) -> str:
    """What the assembler says."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        command = [assembler, "-v", f"-arch=sm_{target[0]}{target[1]}", str(source), "-o", str(source.with_suffix(".cubin"))]
        return subprocess.run(command, capture_output=True, text=True).stderr


if __name__ == "__main__":
    sys.exit(cli.run(main))
