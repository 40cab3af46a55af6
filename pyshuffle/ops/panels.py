"""How the columns of a product are dealt out to register tiles, and its weights laid out for them.

Columns o are computed a vector at a time, in panels of a few vectors, the last of which may be a half (engine/machine.py). Groups of
fewer columns than a vector has share one: its inputs are those of all of them, and the weights between two groups are zero; so what
is infinite in one group makes NaN of its neighbours. For a gradient with respect to weights, dy is cut likewise.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..engine.machine import FLOAT, machine
from ..types import Array
from .jit import helper

LANES, HALVED = machine().lanes, machine().halved
MOST, TALL = max(machine().heights), max(machine().heights.values())

Table = npt.NDArray[np.integer]


class Panels(NamedTuple):
    """The panels of a product; a line of the table has: halves of vectors, the first vector, channels of a tap, bytes to them, place
    of the weights."""

    table: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]  # the first column of each vector
    columns: npt.NDArray[np.uint32]  # of x in bytes, for each panel one after the other
    begins: npt.NDArray[np.int64]  # where those of each panel begin, and where the last one's end
    places: npt.NDArray[np.uint32]  # the starts in bytes
    size: int  # floats of all weights


@lru_cache(maxsize=4096)
def panels(taps: tuple[int, ...], groups: int, inputs: int, outputs: int) -> Panels:
    """Of groups of so many inputs and outputs; all outputs are a vector's or more, and no vector goes beyond the last."""
    half = HALVED and outputs > LANES and 0 < outputs % LANES <= LANES // 2
    if outputs >= LANES:
        per_group = vector_starts(outputs)
        if half:  # the last, which ends with the last output as well
            per_group[-1] += LANES // 2
        count = -(-len(per_group) // MOST)
        cuts = [len(per_group) * i // count for i in range(count + 1)]
        lists = [per_group[a:b] + g * outputs for g in range(groups) for a, b in pairwise(cuts)]
    else:
        lists = [np.array([start]) for start in vector_starts(groups * outputs)]
    table, columns, vector, size = [], [], 0, 0
    for starts in lists:
        ends_with_half = half and starts[-1] % outputs == per_group[-1]
        halves = 2 * len(starts) - 1 if ends_with_half else 2 * len(starts)
        first, last = starts[0] // outputs, (starts[-1] + (LANES // 2 if ends_with_half else LANES) - 1) // outputs + 1
        channels = (last - first) * inputs
        table.append((halves, vector, channels, first * inputs * FLOAT, size))
        columns.append(np.add.outer(taps, np.arange(channels) * FLOAT).ravel().astype(np.uint32))
        vector += len(starts)
        size += len(taps) * channels * len(starts) * LANES
    begins = np.cumsum([0, *map(len, columns)])
    starts = np.concatenate(lists)
    return Panels(np.array(table), starts, np.concatenate(columns), begins, (starts * FLOAT).astype(np.uint32), size)


def vector_starts(channels: int) -> npt.NDArray[np.int64]:
    """The first channel of each vector of them; the last one is moved back so as to end with the last channel."""
    return np.minimum(np.arange(0, channels, LANES), channels - LANES)


@helper
def pack(w, table, starts, groups, weights):  # w (taps, C/G, O)
    taps, inputs, outputs = w.shape
    for panel in range(len(table)):
        halves, vector, channels, source, at = table[panel]
        for k in range(taps * channels):
            c = source // FLOAT + k % channels  # of x
            row = w[k // channels, c % inputs]
            for v in range((halves + 1) // 2):
                given, out = row[starts[vector + v] :], weights[at : at + LANES]
                at += LANES
                if 2 * v + 1 == halves:
                    for lane in range(LANES // 2):
                        out[lane] = given[lane]
                elif channels == inputs:
                    for lane in range(LANES):
                        out[lane] = given[lane]
                else:  # more groups than one
                    for lane in range(LANES):
                        own = (starts[vector + v] + lane) // (outputs // groups) == c // inputs
                        out[lane] = given[lane] if own else np.float32(0)


@helper
def transpose(w, groups, out):
    """w (taps, C/G, O) -> out (O/G, G taps C/G): block by block, as memory is read and written a line at a time."""
    taps, inputs, outputs = w.shape
    own, block = outputs // groups, np.empty((LANES, LANES), np.float32)
    for g, tap in np.ndindex(groups, taps):
        for first in range(0, own, LANES):
            for begin in range(0, inputs, LANES):
                width, height = min(LANES, own - first), min(LANES, inputs - begin)
                for c in range(height):
                    given, column = w[tap, begin + c, g * own + first :], block[:, c]
                    for o in range(width):
                        column[o] = given[o]
                for o in range(width):
                    given, row = block[o], out[first + o, (g * taps + tap) * inputs + begin :]
                    for c in range(height):
                        row[c] = given[c]


def wide(w: Array, groups: int) -> tuple[Array, int]:
    """w with so many outputs that they fill a vector, and its groups: columns more, that nobody reads, of one group for all."""
    taps, inputs, outputs = w.shape
    if outputs >= LANES:
        return w, groups
    more = np.zeros((taps, inputs * groups, LANES), np.float32)
    for g in range(groups):
        part = np.s_[g * outputs // groups : (g + 1) * outputs // groups]
        more[:, g * inputs : (g + 1) * inputs, part] = w[..., part]
    return more, 1


def packed(w: Array, p: Panels, groups: int) -> Array:
    """The weights panel by panel, as tiles read them."""
    weights = np.empty(p.size, np.float32)
    pack(np.ascontiguousarray(w), p.table, p.starts, groups, weights)
    return weights


class Cuts(NamedTuple):
    """How the channels of dy are dealt out to the tiles that sum dw: each has so many vectors of one group."""

    first: npt.NDArray[np.int64]  # channel of each cut
    last: npt.NDArray[np.int64]  # vector of each cut, in channels from the first
    vectors: int
    runs: npt.NDArray[np.int64]  # channels side by side: their cut, vector and first lane, the first of them, and how many
    cells: npt.NDArray[np.uint32]  # of a row of x in bytes, a few more than there are, so that they fill tiles
    targets: npt.NDArray[np.uint32]  # where the sums of each are kept
    offsets: npt.NDArray[np.uint32]  # of each channel in a block of dy that is cut in this way


@lru_cache(maxsize=4096)
def gradient_cuts(taps: tuple[int, ...], inputs: int, groups: int, outputs: int, rows: int) -> Cuts:
    """How dw is cut into tiles, and where a block of so many rows of dy lies for them."""
    starts = vector_starts(max(outputs, LANES))
    count = -(-len(starts) // MOST)
    vectors = -(-len(starts) // count)
    begins = np.minimum(np.arange(count) * vectors, len(starts) - vectors)  # of cuts, in vectors; the last may overlap
    first = np.add.outer(np.arange(groups) * outputs, starts[begins]).ravel()
    first = np.maximum(np.minimum(first, groups * outputs - LANES), 0)  # of narrow groups
    last = np.tile(starts[begins + vectors - 1] - starts[begins], groups)
    channel = np.arange(groups * outputs)
    vector = np.minimum(channel % outputs // LANES, len(starts) - 1)
    cut = np.minimum(vector // vectors, count - 1)
    own, vector = channel // outputs * count + cut, vector - begins[cut]
    lane = channel - first[own] - np.where(vector == vectors - 1, last[own], vector * LANES)
    begin = np.flatnonzero(np.diff(own * vectors + vector, prepend=-1))
    runs = np.stack((own[begin], vector[begin], lane[begin], begin, np.diff(begin, append=len(channel))), axis=1)
    cells = np.add.outer(taps, np.arange(inputs) * FLOAT).ravel()
    cells = np.pad(cells, (0, TALL - 1), mode="edge").astype(np.uint32)
    targets = np.arange(len(cells), dtype=np.uint32) * np.uint32(vectors * LANES * FLOAT)
    offsets = ((own * rows * vectors + vector) * LANES + lane) * FLOAT
    return Cuts(first, last, vectors, runs, cells, targets, offsets.astype(np.uint32))


@lru_cache(maxsize=4096)
def dx_panels(cut: tuple[tuple[int, ...], int, int, int, int], groups: int, inputs: int, outputs: int) -> Panels:
    """The panels of dx; their columns of dy lie where the cuts have put them."""
    p = panels((0,), groups, inputs, outputs)
    sources = np.repeat(p.table[:, 3], np.diff(p.begins))
    return p._replace(columns=gradient_cuts(*cut).offsets[(sources + p.columns) // FLOAT])
