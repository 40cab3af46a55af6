"""A plan in the form that the engine runs: one row of numbers for each step, one for each piece of a step, and their data.

A piece is what is computed with one set of weights in registers or in the nearest cache: for a dense step a *panel* of a few vectors
of output channels, elsewhere a single vector. Addresses are in bytes and count from the begin of the arena, of `tables`, or of
`weights`, so that a program can be used with any number of arenas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from ..types import Array
from .layout import Vector, by_rows
from .machine import FLOAT, LINE, Machine
from .plan import Plan
from .steps import DENSE, OUTPUT, WINDOW, Step

NEAR = 24 * 1024  # bytes: most of the nearest cache, which has 32 KiB or more
FAR = 512 * 1024  # bytes: more than stays in the second cache while other things pass through it
SLACK = 8192  # bytes behind arena and weights: vectors are read, and lines fetched, a little beyond the end


def named(integers: str, floats: str = "") -> np.dtype[np.void]:
    """The type of a record: 64-bit integers and then floats, by their names."""
    fields = [*((name, np.int64) for name in integers.split()), *((name, np.float32) for name in floats.split())]
    return np.dtype((np.record, np.dtype(fields, align=True)))


# Units are what threads share out. By rows: rows, the same ones of every piece; else, of a small map, the units of all pieces in one
# line, which are tiles of a dense step, rows of the others.
STEP = named(
    "kind first last seams "  # its pieces: from first to before last; from there to before seams, those of `Encoder.seams`
    "by_rows total chunks "  # total: units of all pieces
    "height width target target_row target_pixel target_above "  # of the output; the first pixel written; `Layout.above`
    "halo_planes plane "  # the planes of the output if they have a halo; from one to the next
    "stride margin source_height "  # of what it reads; margin: rows above and below its own
    "span band meet ",  # so many steps are computed together, band rows at a time; whether all threads meet before them
    "low high",  # between which results are kept
)
PIECE = named(
    "units source source_row source_above tile weights bias "  # tile: its number (library.py)
    "unit count source_pixels offsets target_pixels columns "  # of a dense step; unit: its pixels; count, offsets: of the output too
    "residual residual_row residual_above residual_pixels residual_columns "  # residual: -1 if there is none
    "source_pixel source_width column"  # of the others
)


@dataclass(frozen=True)
class Program:
    """What the engine runs."""

    steps: npt.NDArray[np.void]
    pieces: npt.NDArray[np.void]
    tables: npt.NDArray[np.uint32]
    weights: Array
    arena: int  # bytes


class Encoder:
    """Collects the pieces of a plan and their data."""

    def __init__(self, machine: Machine, threads: int) -> None:
        self.machine, self.threads = machine, threads
        self.pieces: list[dict[str, int]] = []
        self.tables: list[npt.NDArray[np.uint32]] = []
        self.weights: list[Array] = []
        self.places: dict[bytes, int] = {}
        self.bytes = {"tables": 0, "weights": 0}

    def table(self, entries: Any) -> int:
        """The address of a table; of the one that is there already if there is. Raises ShapeError."""
        entries = np.asarray(entries)
        if entries.max(initial=0) >= 1 << 32:
            raise ShapeError("a map of the network would take 4 GiB or more: the images are too large")
        table = np.ascontiguousarray(entries, np.uint32).ravel()
        key = table.tobytes()
        if key not in self.places:
            self.places[key] = self.add("tables", self.tables, table)
        return self.places[key]

    def values(self, values: Array) -> int:
        """The address of weights or biases."""
        return self.add("weights", self.weights, np.ascontiguousarray(values, np.float32).ravel())

    def add(self, name: str, parts: list[Any], part: Any) -> int:
        """The address of a part, which begins with a cache line."""
        begin = self.bytes[name]
        parts += [part, np.zeros(-part.size % (LINE // part.itemsize), part.dtype)]
        self.bytes[name] += sum(array.nbytes for array in parts[-2:])
        return begin

    def step(self, step: Step) -> dict[str, float]:
        """A row of `Program.steps`, after adding the step's pieces."""
        first = len(self.pieces)
        encode = {DENSE: self.dense, OUTPUT: self.output}.get(step.kind, self.single)  # image and stem have no vectors
        self.pieces += encode(step)
        pieces = self.pieces[first:]
        last = len(self.pieces)
        self.pieces += self.seams(step)
        what, target = step.what, step.target
        layout = target.layout
        return {
            "kind": step.kind, "first": first, "last": last, "seams": len(self.pieces),
            "by_rows": by_rows(step, self.machine, self.threads), "total": sum(piece["units"] for piece in pieces),
            "chunks": self.chunks(step, pieces), "height": step.size[0], "width": step.size[1],
            "target": target.offset + layout.at(0, 0), "target_row": layout.row, "target_pixel": layout.pixel,
            "target_above": layout.above, "halo_planes": layout.halo * target.planes, "plane": layout.plane,
            "stride": what.stride, "margin": what.kernel // 2, "source_height": what.source.height,
            "span": step.span, "band": step.band, "low": 0 if what.relu else -np.inf, "high": what.limit,
        }  # fmt: skip

    def dense(self, step: Step) -> Iterator[dict[str, int]]:
        what, source, target = step.what, step.source, step.target.layout
        groups, taps, inputs, outputs = what.weight.shape
        height, width = step.size
        here, margin = source.buffers[0].layout, what.kernel // 2
        i, j = np.divmod(np.arange(height * width, dtype=np.int64), width)
        pixels = self.table(here.distance(i * what.stride, j * what.stride))
        base = min(buffer.offset for buffer in source.buffers)
        residual, rows = what.residual, by_rows(step, self.machine, self.threads)
        for group in range(groups):
            places = source.places[group * inputs : (group + 1) * inputs]
            # In the order in which they lie, as neighbours share a cache line. (Not by address: that depends on the threads.)
            lies = [(buffer.made, buffer.places[channel]) for buffer, channel in places]
            order = sorted(range(inputs), key=lies.__getitem__)
            tap_offsets = [here.distance(u, v) for u in range(what.kernel) for v in range(what.kernel)]
            offsets = self.table(np.add.outer(tap_offsets, [places[k][0].address(places[k][1]) - base for k in order]))
            weight = np.zeros((taps * inputs, groups * outputs), np.float32)  # of the group's outputs, at their numbers
            weight[:, group * outputs : (group + 1) * outputs] = what.weight[group][:, order].reshape(taps * inputs, outputs)
            vectors = [vector for vector in step.vectors if vector.channels[0] // outputs == group]
            for panel in panels(vectors, max(self.machine.heights)):
                tall = self.machine.tall(len(panel), height * width)
                piece = {
                    "units": height if rows else -(-height * width // tall),
                    "unit": width if rows else tall,
                    "source": base + here.at(-margin, -margin),
                    "source_row": here.row,
                    "source_above": here.above,
                    "tile": 2 * (2 * len(panel) - panel[-1].half) + (tall == 1),
                    "count": taps * inputs,
                    "weights": self.values(self.spread(weight, panel)),
                    "source_pixels": pixels,
                    "offsets": offsets,
                    "bias": self.values(self.spread(what.bias, panel)),
                    "target_pixels": self.table(target.distance(i, j)),
                    "columns": self.table([target.column(vector.column) for vector in panel]),
                    "residual": -1,
                }
                if residual:
                    shortcut, low = residual.buffers[0].layout, min(buffer.offset for buffer in residual.buffers)
                    starts = [residual.places[vector.channels[0]] for vector in panel]
                    piece["residual"], piece["residual_row"], piece["residual_above"] = low, shortcut.row, shortcut.above
                    piece["residual_pixels"] = self.table(shortcut.at(i, j))
                    piece["residual_columns"] = self.table([buffer.address(channel) - low for buffer, channel in starts])
                yield piece

    def seams(self, step: Step) -> Iterator[dict[str, int]]:
        """A piece for each plane of a map in the threads' own arenas that a step reads beyond its own rows: what `fetch` copies,
        across the seams where the rows of two threads meet."""
        if (step.what.kernel, step.what.stride, step.span) == (1, 1, 1):
            return
        for buffer in step.source.buffers:
            layout = buffer.layout
            for plane in range(buffer.planes if layout.above >= 0 else 0):
                begin = buffer.offset + plane * layout.plane + layout.at(0, -layout.halo)
                yield {"source": begin, "source_row": layout.row, "source_above": layout.above}

    def spread(self, values: Array, panel: list[Vector]) -> Array:
        """The channels (..., O) of a panel's vectors, side by side, zeros where a vector has fewer than its lanes."""
        lanes = self.machine.lanes
        out = np.zeros((*values.shape[:-1], len(panel) * lanes), np.float32)
        for v, vector in enumerate(panel):
            out[..., v * lanes : v * lanes + len(vector.channels)] = values.take(vector.channels, axis=-1)
        return out

    def single(self, step: Step) -> Iterator[dict[str, int]]:
        """The pieces of a step that sees each channel alone."""
        margin = 1 if step.kind == WINDOW else 0
        for vector in step.vectors:
            buffer, channel = step.source.places[vector.channels[0]]
            layout = buffer.layout
            piece = {
                "units": step.size[0],
                "source": buffer.address(channel) + layout.at(-margin, -margin),
                "source_row": layout.row,
                "source_above": layout.above,
                "source_pixel": layout.pixel,
                "source_width": layout.width,
                "column": step.target.layout.column(vector.column),
            }
            if step.kind == WINDOW:
                piece["tile"] = 2 * step.what.stride + (step.size[1] < self.machine.run)
                piece["weights"] = self.values(self.spread(step.what.weight, [vector]))
                piece["bias"] = self.values(self.spread(step.what.bias, [vector]))
            yield piece

    def output(self, step: Step) -> Iterator[dict[str, int]]:
        """One piece: where each logit lies."""
        yield {
            "units": 1,
            "count": len(step.source.places),
            "offsets": self.table([buffer.address(channel) for buffer, channel in step.source.places]),
        }

    def chunks(self, step: Step, pieces: list[dict[str, int]]) -> int:
        """In how many parts all pieces of a step are computed, one part after the other, rather than one piece after the other.

        The weights of small groups fit into the nearest cache together; then it is the maps that are to be read once. So it is where
        channels are seen alone and a map, or what a thread has of it, is large: neighbouring channels share pages, and are read
        together. Parts are of whole rows, and hold a tile at least.
        """
        height, width = step.size
        if step.kind not in (DENSE, WINDOW) or not by_rows(step, self.machine, self.threads):
            return 1
        if step.kind == WINDOW:
            layout = step.source.buffers[0].layout
            return max(1, height // self.threads // 2) if layout.plane > FAR else 1
        if sum(piece["count"] * (piece["tile"] // 2) for piece in pieces) * self.machine.lanes // 2 * FLOAT > NEAR:
            return 1
        channels = len(step.source.places) + step.what.channels * (2 if step.what.residual else 1)
        rows = -(-max(self.machine.heights.values()) // width)
        return max(1, min(height * width * channels * FLOAT // NEAR, height // self.threads // rows))


def panels(vectors: list[Vector], most: int) -> Iterator[list[Vector]]:
    """Vectors of one group in panels of `most` or, so that all are nearly alike, fewer. A half is the last of its panel."""
    ends = [number for number, vector in enumerate(vectors, start=1) if vector.half or number == len(vectors)]
    for begin, end in pairwise([0, *ends]):
        count = -(-(end - begin) // most)
        for panel in range(count):
            yield vectors[begin + panel * (end - begin) // count : begin + (panel + 1) * (end - begin) // count]


def encode(plan: Plan) -> Program:
    """The plan as arrays."""
    encoder = Encoder(plan.machine, plan.threads)
    steps = records([{**encoder.step(step), "meet": number in plan.meetings} for number, step in enumerate(plan.steps)], STEP)
    pieces = records(encoder.pieces, PIECE)
    weights = aligned(encoder.bytes["weights"] + SLACK)
    np.concatenate([*encoder.weights, np.zeros(0)], casting="same_kind", out=weights[: encoder.bytes["weights"] // FLOAT])
    arena = -(-(plan.arena + SLACK) // LINE) * LINE
    return Program(steps, pieces, np.concatenate(encoder.tables), weights, arena)


def records(values: list[dict[str, Any]], kind: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """As records, with 0 where there is no value."""
    out = np.zeros(len(values), kind)
    for row, given in zip(out, values, strict=True):
        for name, value in given.items():
            row[name] = value
    return out


def aligned(size: int) -> Array:
    """So many bytes of zeros that begin with a cache line: a vector across two of them takes twice as long to load."""
    raw = np.zeros(size // FLOAT + LINE // FLOAT, np.float32)
    begin = -raw.ctypes.data % LINE // FLOAT
    return raw[begin : begin + size // FLOAT]
