"""Where everything lies: columns for channels, a layout for maps that are read together, a place in the arena for each buffer.

An arena is a thread's memory for maps. Of a map whose rows threads share out, each has its own rows in its own arena, at the same
place in all, with copies of its neighbours' that a 3x3 reads; all other maps lie in the first thread's arena, for all.

A buffer holds a map as (planes, H, W, columns), with a border of zeros (a halo) around it where a 3x3 other than a maximum reads it.
Most have one plane.
Buffers that one convolution reads through one table share a layout, so that a channel's offset is the same for every pixel; were each
of them as wide as the widest, most of the memory that is fetched with a pixel would be unused, so the wide ones have several planes.

A run of channels that is shorter than a vector gets a whole vector's columns. Where a longer run of a convolution does not end with a
whole vector, and another run follows, its last vector is moved back and computes a few channels a second time, so that no vector ever
writes over what is not its own. Where a convolution is left with half a vector's channels or fewer, that vector is a half, and costs
half as much on some processors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from .machine import FLOAT, LINE, Machine

if TYPE_CHECKING:
    from .steps import Step

CLASH = 1024  # bytes: pixels that lie a multiple of it apart compete for the same few lines of the nearest cache
ROWS_EACH = 3  # a step is shared out by rows where each thread gets so many of them: then it mostly reads what it wrote
HEAVY = 5_000_000  # multiply-adds of a step that is worth a meeting, for all threads to have as much of it


class Layout:
    """What buffers that are read together have in common."""

    def __init__(self, height: int, width: int, halo: bool) -> None:
        self.height, self.width = height, width  # of the map; with bands or threads, at last, the rows that have a place
        self.halo = int(halo)  # pixels of zeros on each side
        self.above = -1  # where each thread has its own rows: so many above these; -1: all lies in one arena
        self.columns = 0  # of a plane; 0 as long as the widest buffer may still get wider
        self.buffers: list[Buffer] = []

    @property
    def pixel(self) -> int:
        """Bytes from one pixel to the next."""
        return (self.columns or max(buffer.columns for buffer in self.buffers)) * FLOAT

    @property
    def row(self) -> int:
        """Bytes from one row to the next."""
        return (self.width + 2 * self.halo) * self.pixel

    @property
    def plane(self) -> int:
        """Bytes from one plane to the next."""
        return (self.height + 2 * self.halo) * self.row

    def distance(self, i: Any, j: Any) -> Any:
        """Bytes from a pixel to the one i rows and j columns on."""
        return i * self.row + j * self.pixel

    def at(self, i: Any, j: Any) -> Any:
        """Bytes from a plane's begin to pixel (i, j); -1 and the height or width are the halo's."""
        return self.distance(i + self.halo, j + self.halo)

    def column(self, column: int) -> int:
        """Bytes from a buffer's begin to a column of its first pixel."""
        plane, within = divmod(column, self.pixel // FLOAT)
        return plane * self.plane + within * FLOAT

    def join(self, other: Layout) -> None:
        """Give this layout to the other's buffers."""
        if other is not self:
            self.halo = max(self.halo, other.halo)
            for buffer in other.buffers:
                buffer.layout = self
            self.buffers += other.buffers


class Buffer:
    """A piece of the arena, written by one step."""

    def __init__(self, size: tuple[int, int], channels: int, made: int, plain: bool, halo: bool) -> None:
        self.layout = Layout(*size, halo)
        self.layout.buffers.append(self)
        self.channels = channels
        self.made = self.needed = made  # the step that writes it, the last one that reads it
        self.plain = plain  # whether all its vectors begin with a multiple of the lanes, so that it may have planes
        self.places: list[int] = list(range(channels))  # the column of each channel
        self.columns = channels
        self.over: Buffer | None = None  # the buffer that this one replaces, value by value
        self.offset = 0  # bytes from the arena's begin

    @property
    def planes(self) -> int:
        return -(-self.columns * FLOAT // self.layout.pixel)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.planes * self.layout.plane

    @property
    def root(self) -> Buffer:
        """The first of the buffers in whose memory this one lies."""
        return self.over.root if self.over else self

    def address(self, channel: int) -> int:
        """Bytes from the arena's begin to a channel of the first pixel, or of the halo's."""
        return self.offset + self.layout.column(self.places[channel])


Place = tuple[Buffer, int]  # a channel of a map: a buffer, and the number of the channel in it


class Vector(NamedTuple):
    """Channels of a step's output that are computed together, one to a lane: no more than there are lanes, maybe fewer."""

    channels: list[int]
    column: int  # of the buffer
    half: bool = False  # whether the first half of the lanes holds all of them, and the others are not computed


def arrange(steps: list[Step], machine: Machine) -> None:
    """Give every channel its column, and every step its vectors."""
    for layout in layouts(steps):
        if len(layout.buffers) > 1 and all(buffer.plain for buffer in layout.buffers):
            whole = Counter(-(-buffer.channels // machine.lanes) * machine.lanes for buffer in layout.buffers)
            most = max(whole, key=lambda columns: (whole[columns], columns))  # what most of them need
            layout.columns = uncrowded(most, machine)
    for step in steps:
        if not step.computes:
            continue
        step.vectors.extend(cut(list(runs(step)), machine.lanes, dense=not step.apart, halved=machine.halved))
        for vector in step.vectors:
            for lane, channel in enumerate(vector.channels):
                step.target.places[channel] = vector.column + lane
        step.target.columns = max(vector.column for vector in step.vectors) + machine.lanes
        if replaces(step, machine):
            step.target.over = step.reads[-1]
            step.target.over.layout.join(step.target.layout)
    for layout in layouts(steps):  # no buffer gets wider from here on
        layout.columns = layout.columns or uncrowded(max(buffer.columns for buffer in layout.buffers), machine)


def uncrowded(columns: int, machine: Machine) -> int:
    """So many columns of a pixel, or a vector more where pixels would clash."""
    return columns + machine.lanes if columns * FLOAT % CLASH == 0 else columns


def layouts(steps: list[Step]) -> list[Layout]:
    """Those of all buffers, each once."""
    return list({id(step.target.layout): step.target.layout for step in steps}.values())


def runs(step: Step) -> Iterator[list[int]]:
    """The output channels in the order in which they are computed, each run of those that lie side by side in what is read.

    A step that sees each channel alone takes them as they lie, whatever their numbers. Where a dense step adds a residual, its own
    channels are cut where those of the residual are; and a group's channels are never in one run with another's.
    """
    read = step.source if step.apart else step.what.residual
    columns = [(buffer.made, buffer.places[channel]) for buffer, channel in read.places] if read else []
    widths = [buffer.layout.columns for buffer, _ in read.places] if read else []
    order = sorted(range(len(columns)), key=columns.__getitem__) if step.apart else list(range(step.what.channels))
    group = step.what.channels if step.apart else step.what.weight.shape[3]
    run = order[:1]
    for before, c in pairwise(order):
        gap = columns and columns[c] != (columns[before][0], columns[before][1] + 1)
        new_plane = columns and widths[c] and columns[c][1] % widths[c] == 0
        if gap or new_plane or c // group != before // group:
            yield run
            run = []
        run.append(c)
    yield run


def cut(runs: list[list[int]], lanes: int, dense: bool, halved: bool) -> list[Vector]:
    """The vectors of runs of channels, side by side. `dense`: a run's last vector may be moved back instead of left incomplete, and,
    with `halved`, may be a half."""
    vectors, column = [], 0
    for number, run in enumerate(runs, start=1):
        starts = list(range(0, len(run), lanes))
        half = dense and halved and len(run) - starts[-1] <= lanes // 2
        moved = dense and lanes < len(run) and number < len(runs)
        if moved:
            starts[-1] = len(run) - (lanes // 2 if half else lanes)
        vectors += [Vector(run[start : start + lanes], column + start, half and start == starts[-1]) for start in starts]
        column += len(run) if moved else starts[-1] + lanes
    return vectors


def replaces(step: Step, machine: Machine) -> bool:
    """Whether a sum can take the place of its residual, so that a large map is in the caches once and not twice: each value is
    computed once, from the one it replaces, and that is not needed any more."""
    residual = step.what.residual
    if not residual or len(residual.buffers) > 1:
        return False
    replaced = residual.buffers[0]
    if replaced.needed > step.target.made or replaced.root in [buffer.root for buffer in step.source.buffers]:
        return False  # it is still needed: by a later step, or by other pixels and channels of this one
    if not replaced.made:
        return False  # the image: its columns are not padded to vectors
    height, width = step.size
    once = sum(len(vector.channels) for vector in step.vectors) == step.what.channels
    tiled = all(width % machine.tall(vectors, height * width) == 0 for vectors in machine.heights)
    return once and tiled and [buffer.places[channel] for buffer, channel in residual.places] == step.target.places


def by_rows(step: Step, machine: Machine, threads: int) -> bool:
    """Whether each thread has its own rows of a step's output, the same for every channel: ROWS_EACH at least, which hold a tile.

    Seven rows for two threads are four and three: one of them waits for a quarter of the time that the other works. In a heavy step
    that is more than it takes to meet, and to read what the other wrote: there the tiles of all pieces are shared out, in one line.
    Where two cores are near each other, whole networks take 0.94 to 1.00 of the time; where data goes a long way, 1.01 to 1.07.
    """
    height, width = step.size
    uneven = 8 * -(-height // threads) * threads > 9 * height
    if uneven and height * width * step.what.weight.size >= HEAVY:
        return False
    return height >= ROWS_EACH * threads and height // threads * width >= max(machine.heights.values())


def divide(steps: list[Step], machine: Machine, threads: int) -> None:
    """Give each thread its own rows of the maps whose rows are shared out, in its own arena.

    Memory that two threads write, if only by turns, for one map and then for another, moves from core to core each time. But where
    one step that touches a map does not share out its rows, as they are too few, a thread may need any pixel: it lies in one arena.
    """
    touching: dict[Layout, list[Step]] = {}
    for together in spans(steps):
        for buffer in [*together[0].reads, together[-1].target]:
            touching.setdefault(buffer.layout, []).append(together[-1])
    for layout, those in touching.items():
        if threads > 1 and all(by_rows(step, machine, threads) for step in those):
            own = [part_of(layout.height, thread, threads) for thread in range(threads)]
            needed = [needs(layout, steps, thread, threads) for thread in range(threads)]
            layout.above = max(begin - first for (begin, _), (first, _) in zip(own, needed, strict=True))
            layout.height = max(last - max(begin - layout.above, 0) for (begin, _), (_, last) in zip(own, needed, strict=True))


def needs(layout: Layout, steps: list[Step], thread: int, threads: int) -> tuple[int, int]:
    """The rows of a map that a thread writes or reads, from the first to before the last. Of a shortcut it reads those that it
    writes of the sum."""
    first, last = part_of(layout.height, thread, threads)
    for together in spans(steps):
        if layout in [buffer.layout for buffer in together[0].source.buffers]:
            begin, end = part_of(together[-1].size[0], thread, threads)
            for step in reversed(together):
                begin, end = step.reach(begin, end)
            first, last = min(first, begin), max(last, end)
    return first, last


def part_of(count: int, thread: int, threads: int) -> tuple[int, int]:
    """A thread's part of so many: from the first to before the last."""
    return count * thread // threads, count * (thread + 1) // threads


def reach(stride: int, margin: int, height: int, first: int, last: int) -> tuple[int, int]:
    """The rows, of so many, that windows need for their rows from the first to before the last."""
    return max(stride * first - margin, 0), min(stride * (last - 1) + margin + 1, height)


def spans(steps: list[Step]) -> Iterator[list[Step]]:
    """The steps, those together that are computed together."""
    number = 0
    while number < len(steps):
        yield steps[number : number + steps[number].span]
        number += steps[number].span


def meetings(steps: list[Step], machine: Machine, threads: int) -> Iterator[int]:
    """The steps before which all threads meet: those that touch what another thread may be working on.

    A 1x1 convolution whose rows are shared out as those of the step before it needs only what its own thread computed.
    """
    touched: dict[Buffer, list[tuple[Step, bool]]] = {}  # since the last meeting; whether it was written
    for together in spans(steps) if threads > 1 else ():
        step = together[-1]
        reads = [buffer.root for part in together for buffer in part.reads]
        at_risk = [touch for buffer in reads for touch in touched.get(buffer, []) if touch[1]]
        if step.target.over:
            at_risk += touched.get(step.target.root, [])
        own = step.pixelwise and by_rows(step, machine, threads)
        if not all(
            own and before.size == step.size and by_rows(before, machine, threads) and (written or before.pixelwise)
            for before, written in at_risk
        ):
            touched.clear()
            yield together[0].target.made
        for buffer in reads:
            touched.setdefault(buffer, []).append((step, False))
        touched.setdefault(step.target.root, []).append((step, True))


def place(steps: list[Step], meetings: set[int], threads: int) -> int:
    """Give every buffer the lowest place in the arena that no buffer holds while it is needed. Returns the arena's size in bytes.

    Between two meetings some threads are ahead of others: what one of them reads must not be overwritten before the next.
    """
    ends = [number for number in range(len(steps)) if threads == 1 or number + 1 in meetings] + [len(steps)]
    buffers = [step.target for step in steps]
    for buffer in buffers:
        buffer.root.needed = max(buffer.root.needed, next(end for end in ends if end >= buffer.needed))
    placed: list[Buffer] = []
    for buffer in buffers:
        if buffer.over:
            buffer.offset = buffer.over.offset
            continue
        for other in sorted(placed, key=lambda other: other.offset):
            at_once = other.made <= buffer.needed and buffer.made <= other.needed
            apart = buffer.offset + buffer.size <= other.offset or other.offset + other.size <= buffer.offset
            if at_once and not apart:
                buffer.offset = -(-(other.offset + other.size) // LINE) * LINE
        placed.append(buffer)
    return max(buffer.offset + buffer.size for buffer in placed)
