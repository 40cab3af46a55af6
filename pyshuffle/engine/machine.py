"""What the engine has to know of the processor."""

from __future__ import annotations

import os
from typing import NamedTuple

import llvmlite.binding as llvm

FLOAT = 4  # bytes
LINE = 64  # bytes of a cache line


class Machine(NamedTuple):
    """What a tile has to know of the processor."""

    lanes: int  # floats in a vector register
    registers: int  # vector registers
    pumped: bool = False  # whether the two halves of a vector are worked on one after the other, as by a Zen 4

    @property
    def heights(self) -> dict[int, int]:
        """The tiles of `dense`, vectors -> pixels. Seven divides the maps of a 224-pixel image: 56, 28, 14 and 7."""
        return {1: 7, 2: 7, 3: 7, 4: 7 if self.lanes == 16 else 6} if self.registers == 32 else {1: 6, 2: 6}

    @property
    def halved(self) -> bool:
        """Whether half a vector is worth a tile of its own: it takes half of the time where vectors are worked on in halves, and on
        other processors with registers of 512 bits as long as all of it."""
        return self.lanes == 16

    @property
    def widths(self) -> range:
        """Of the tiles of `dense`, in halves of vectors."""
        return range(1, 2 * max(self.heights) + 1) if self.halved else range(2, 2 * max(self.heights) + 1, 2)

    def parts(self, halves: int) -> list[int]:
        """The halves of vectors that are computed at once, in a panel of so many: whole vectors, and at last a half where it is odd.

        Three separate halves where vectors are worked on in halves. With a vector and a half, loads of activations get in the way of
        products (12.2 cycles for each input and 7 pixels, where the products take 10.5): a whole vector takes a load of its own, two
        halves one together (10.7 cycles). One vector gains nothing by it: there are more sums to load and store.
        """
        return [1, 1, 1] if self.pumped and halves == 3 else [2] * (halves // 2) + [1] * (halves % 2)

    def tall(self, vectors: int, pixels: int) -> int:
        """Pixels in a tile of so many vectors, of a map of so many pixels: one where they do not fill one."""
        return self.heights[vectors] if pixels >= self.heights[vectors] else 1

    @property
    def run(self) -> int:
        """Pixels side by side in a tile of `window`, which holds nine weights besides; without AVX a product needs a register too."""
        return 7 if self.registers == 32 else 3 if self.lanes == 8 else 2


def cpu() -> tuple[str, str]:
    """The name and the features of the processor to compile for: this one, unless numba's variables say otherwise."""
    told, features = os.environ.get("NUMBA_CPU_NAME", ""), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None and told.lower() == "generic":  # any processor, as numba has it
        features = ""
    return told or llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten() if features is None else features


def on_x86() -> bool:
    return bool(llvm.get_process_triple().startswith(("x86", "i686", "amd64")))


def machine() -> Machine:
    """That processor."""
    if not on_x86():
        return Machine(lanes=4, registers=32)
    has = set(cpu()[1].split(","))
    if "+avx512f" in has:
        return Machine(16, 32, pumped=cpu()[0] == "znver4")
    return Machine(8 if "+avx" in has else 4, 16)
