"""The one jitted function that runs a program: what the table of steps says, tile by tile.

All of a call happens in compiled code that does not hold the interpreter: one thread leads, the others follow, and they meet where
one needs what another computed. Every number is computed whole by one thread (at the edge of its rows of a band by two, each for
itself), and in an order that does not depend on which one that is or on how many there are: so results are the same bits for any
number of threads, and for any batch. Images of a batch are shared out whole while there are enough of them; the rest are worked on
together, by another program: of maps with many rows, each thread has a place for its own in its own arena.

Ranges go from `first` to before `last`.
"""

import numpy as np
from numba import types

from . import layout, team
from .intrinsics import average_tile, dense_tile, maximum_tile, window_tile
from .jit import array, kernel
from .machine import FLOAT
from .program import PIECE, STEP
from .steps import DENSE, MAXIMUM, MEAN, OUTPUT, STEM, WINDOW
from .threads import announce, await_call, exchange, look, meet

NIL, ONE = np.int64(0), np.int64(1)  # typed, since for literal numbers all is compiled once more
ALONE, TOGETHER = np.int64(team.ALONE), np.int64(team.TOGETHER)
NO_SHORTCUT = np.int64(0)  # an address
INFINITY = np.int32(0x7F800000)  # as bits; above it is what is not a number
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
STRIP = 28  # max-pooled pixels: the vectors that a row of them is made of, three times 57, fill half of the nearest cache at most


part_of, reach = kernel(layout.part_of), kernel(layout.reach)


@kernel
def share(step, units, begin, thread, threads):
    """The units of a piece that are a thread's, first and last: where all pieces' units lie in one line, this one's from `begin`."""
    if step.by_rows:
        return part_of(units, thread, threads)
    first, last = part_of(step.total, thread, threads)
    return min(max(first - begin, 0), units), min(max(last - begin, 0), units)


@kernel
def origin(height, row, above, arenas, thread, threads):
    """The address from which addresses in a map count: that of the first arena; or, of a map whose rows threads have each in their
    own, that from which the thread's arena would begin if the whole map had a place there."""
    if above < 0:
        return np.int64(arenas[0].ctypes.data)
    return np.int64(arenas[thread].ctypes.data) - max(height * thread // threads - above, 0) * row


@kernel
def target_origin(step, arenas, thread, threads):
    """That of the map which a step writes."""
    return origin(step.height, step.target_row, step.target_above, arenas, thread, threads)


@kernel
def source_origin(step, piece, arenas, thread, threads):
    """That of the map which a piece of a step reads."""
    return origin(step.source_height, piece.source_row, piece.source_above, arenas, thread, threads)


@kernel
def run_dense(step, piece, tables, weights, source, target, residual, first, last):
    """Pixels first to last of a panel. Source, target and residual are arenas, or where one would begin for a band to lie right."""
    dense_tile(piece.tile, (
        first, last,
        source + piece.source, tables + piece.source_pixels, tables + piece.offsets, piece.count,
        weights + piece.weights, weights + piece.bias,
        target + step.target, tables + piece.target_pixels, tables + piece.columns,
        piece.residual + residual if piece.residual >= 0 else 0, tables + piece.residual_pixels,
        tables + piece.residual_columns, step.low, step.high,
    ))  # fmt: skip


@kernel
def run_window(step, piece, weights, source, target, first, last):
    """Rows first to last of a vector of channels."""
    window_tile(piece.tile, (
        source + piece.source + first * step.stride * piece.source_row, piece.source_row, piece.source_pixel,
        weights + piece.weights, weights + piece.bias,
        target + step.target + piece.column + first * step.target_row, step.target_row, step.target_pixel,
        last - first, step.width, step.low, step.high,
    ))  # fmt: skip


@kernel
def run_maximum(step, piece, source, target, first, last):
    """Rows first to last of a vector of channels; in strips, so that a row stays in the nearest cache until the next one needs it."""
    rows, pixel, height = piece.source_row, piece.source_pixel, step.source_height
    x, y = source + piece.source, target + step.target + piece.column
    for begin in range(0, step.width, STRIP):
        for row in range(first, last):
            above, middle, below = max(2 * row - 1, 0), 2 * row, min(2 * row + 1, height - 1)
            maximum_tile((
                x + above * rows, x + middle * rows, x + below * rows, pixel, 2 * begin * pixel, (piece.source_width - 1) * pixel,
                y + row * step.target_row + begin * step.target_pixel, step.target_pixel, min(STRIP, step.width - begin),
            ))  # fmt: skip


@kernel
def run_mean(step, piece, source, target):
    """The mean of one vector of channels."""
    height, width = step.source_height, piece.source_width
    share = np.float32(1) / np.float32(height * width)
    goal = target + step.target + piece.column
    average_tile((source + piece.source, piece.source_row, piece.source_pixel, height, width, share, goal))


@kernel
def clear_line(line, pixel, whole):
    """Zeros in a row of a map, or in its first and last pixel."""
    if whole:
        line[:] = 0
    else:
        line[:pixel] = 0
        line[len(line) - pixel :] = 0


@kernel
def clear_halo(step, target, thread, threads):
    """Zeros around a thread's rows of the map that a step writes, if it has a halo."""
    height, row, pixel = step.height, step.target_row, step.target_pixel
    first, last = part_of(height, thread, threads)
    for plane in range(step.halo_planes):
        begin = target + step.target + plane * step.plane - pixel
        for i in range(first - (thread == 0), last + (thread == threads - 1)):
            clear_line(array(begin + i * row, np.float32, (row // FLOAT,)), pixel // FLOAT, i == -1 or i == height)


@kernel
def read_of(step, first, last):
    """The rows of what a step reads that it needs for its rows first to last."""
    return reach(step.stride, step.margin, step.source_height, first, last)


@kernel
def fetch(step, pieces, arenas, thread, threads, first, last):
    """Copy what other threads have of the rows first to last that a step reads: each has its own rows in its own arena."""
    height = step.source_height
    for number in range(step.last, step.seams):
        piece = pieces[number]
        row = piece.source_row
        for other in range(threads):
            begin, end = part_of(height, other, threads)
            for i in range(max(first, begin), min(last, end)):
                if other != thread:
                    place = piece.source + i * row
                    here = array(place + source_origin(step, piece, arenas, thread, threads), np.float32, (row // FLOAT,))
                    there = array(place + source_origin(step, piece, arenas, other, threads), np.float32, (row // FLOAT,))
                    for k in range(len(here)):
                        here[k] = there[k]


@kernel
def run_image(step, target, image, first, last):
    """Copy rows of the image, as bits, zeros around it; whether one value is not finite."""
    pixel, row_length, width = step.target_pixel // FLOAT, step.target_row // FLOAT, step.width
    largest, begin = np.int32(0), target + step.target - step.target_pixel
    for row in range(first, last):
        line = array(begin + row * step.target_row, np.int32, (row_length,))
        outside = row < 0 or row >= step.height
        clear_line(line, pixel, outside)
        if outside:
            continue
        source = image[row * width * 3 : (row + 1) * width * 3]
        if pixel == 3:
            inner = line[3 : row_length - 3]
            for k in range(len(source)):
                inner[k] = source[k]
                largest = max(largest, source[k] & MAGNITUDE)
        else:  # it lies in a wider map
            for k in range(len(source)):
                line[pixel + k // 3 * pixel + k % 3] = source[k]
                largest = max(largest, source[k] & MAGNITUDE)
    return largest >= INFINITY


@kernel
def run_stem(steps, pieces, tables, weights, arenas, image, thread, threads):
    """Image, first convolution and max-pool, in bands of rows whose maps are the thread's own; whether the image has a fault."""
    copy, conv, pool, band = steps[0], steps[1], steps[2], steps[0].band
    height, width = conv.height, conv.width
    own, last = part_of(pool.height, thread, threads)
    fault, mine, target = False, np.int64(arenas[thread].ctypes.data), target_origin(pool, arenas, thread, threads)
    clear_halo(pool, target, thread, threads)
    for begin in range(own, last, band):
        end = min(begin + band, last)
        shown, shifted = mine - (4 * begin - 2) * copy.target_row, mine - (2 * begin - 1) * conv.target_row
        fault |= run_image(copy, shown, image, 4 * begin - 3, 4 * end)
        first, until = max(2 * begin - 1, 0) * width, min(2 * end, height) * width
        for number in range(conv.first, conv.last):
            run_dense(conv, pieces[number], tables, weights, shown, shifted, NO_SHORTCUT, first, until)
        for number in range(pool.first, pool.last):
            run_maximum(pool, pieces[number], shifted, target, begin, end)
    return fault


@kernel
def run_step(step, pieces, tables, weights, arenas, logits, thread, threads):
    """A thread's share of a step."""
    target = target_origin(step, arenas, thread, threads)
    fetch(step, pieces, arenas, thread, threads, *read_of(step, *part_of(step.height, thread, threads)))
    clear_halo(step, target, thread, threads)
    for chunk in range(step.chunks):
        begin = NIL
        for number in range(step.first, step.last):
            piece = pieces[number]
            first, last = share(step, piece.units, begin, thread, threads)
            begin += piece.units
            units = last - first
            first, last = first + units * chunk // step.chunks, first + units * (chunk + 1) // step.chunks
            if first >= last:
                continue
            source = source_origin(step, piece, arenas, thread, threads)
            if step.kind == DENSE:
                unit = piece.unit
                end = min(last * unit, step.height * step.width)
                residual = origin(step.height, piece.residual_row, piece.residual_above, arenas, thread, threads)
                run_dense(step, piece, tables, weights, source, target, residual, first * unit, end)
            elif step.kind == WINDOW:
                run_window(step, piece, weights, source, target, first, last)
            elif step.kind == MAXIMUM:
                run_maximum(step, piece, source, target, first, last)
            elif step.kind == MEAN:
                run_mean(step, piece, source, target)
            elif step.kind == OUTPUT:
                places = array(tables + piece.offsets, np.uint32, (len(logits),))
                for k in range(len(logits)):
                    logits[k] = arenas[0, places[k] // FLOAT]


@kernel
def run_pair(conv, window, pieces, tables, weights, arenas, thread, threads):
    """A convolution and the depthwise step behind it, in bands of rows; the map between them is the thread's own."""
    mine, target = np.int64(arenas[thread].ctypes.data), target_origin(window, arenas, thread, threads)
    source = source_origin(conv, pieces[conv.first], arenas, thread, threads)
    height, width, stride, band = conv.height, conv.width, window.stride, conv.band
    row, pixel = conv.target_row, conv.target_pixel // FLOAT
    length = stride * (band - 1) + 3
    lines = array(mine + conv.target - row - conv.target_pixel, np.float32, (length, row // FLOAT))  # with those of the halo
    own, last = part_of(window.height, thread, threads)
    done = NIL
    fetch(conv, pieces, arenas, thread, threads, *read_of(conv, *read_of(window, own, last)))
    clear_halo(window, target, thread, threads)
    for i in range(length):
        clear_line(lines[i], pixel, False)
    for begin in range(own, last, band):
        end = min(begin + band, last)
        before = stride * begin - 1  # the row of the map that is the band's first
        shifted = mine - stride * begin * row
        first, until = max(before, done), min(stride * (end - 1) + 2, height)
        for number in range(conv.first, conv.last if first < until else NIL):
            run_dense(conv, pieces[number], tables, weights, source, shifted, NO_SHORTCUT, first * width, until * width)
        done = until
        if begin == 0:
            clear_line(lines[0], pixel, True)
        if stride * (end - 1) + 2 > height:
            clear_line(lines[height - before], pixel, True)
        for number in range(window.first, window.last):
            run_window(window, pieces[number], weights, shifted, target, begin, end)
        for i in range(3 - stride):  # the next band needs them as well
            line, moved = lines[i], lines[stride * (end - begin) + i]
            for k in range(len(line)):
                line[k] = moved[k]


@kernel
def run_begin(steps, pieces, tables, weights, arenas, image, thread, threads):
    """A thread's share of the steps that read the image; whether it has a fault."""
    step = steps[0]
    if step.kind == STEM:
        return run_stem(steps, pieces, tables, weights, arenas, image, thread, threads)
    first, last = part_of(step.height, thread, threads)  # as every step shares them out
    target = target_origin(step, arenas, thread, threads)
    return run_image(step, target, image, first - (thread == 0), last + (thread == threads - 1))


@kernel
def run_program(words, number, n, arenas, thread, threads):
    """A thread's share of the n-th image, by one of the two programs: for a thread alone, or for all together."""
    program = words[team.PROGRAMS + number * team.PROGRAM :]
    steps = array(program[team.STEPS], STEP, (program[team.STEP_COUNT],))
    pieces = array(program[team.PIECES], PIECE, (program[team.PIECE_COUNT],))
    tables, weights = program[team.TABLES], words[team.WEIGHTS]
    image = array(words[team.IMAGES], np.int32, (words[team.BATCH], steps[0].height * steps[0].width * 3))[n]  # its bits
    logits = array(words[team.LOGITS], np.float32, (words[team.BATCH], pieces[-1].count))[n]
    meet(words, threads)
    if words[team.FROM] == 0 and run_begin(steps, pieces, tables, weights, arenas, image, thread, threads):
        exchange(words, team.FAULT, 1)
    s = max(steps[0].span, words[team.FROM])
    while s < words[team.UNTIL]:
        if steps[s].meet:
            meet(words, threads)
        if steps[s].span == 1:
            run_step(steps[s], pieces, tables, weights, arenas, logits, thread, threads)
        else:
            run_pair(steps[s], steps[s + 1], pieces, tables, weights, arenas, thread, threads)
        s += steps[s].span


@kernel
def run(words, thread):
    """A thread's share of a call."""
    threads, rounds = words[team.THREADS], words[team.ROUNDS]
    arenas = array(words[team.ARENAS], np.float32, (threads, words[team.ARENA] // FLOAT))
    for turn in range(rounds):
        run_program(words, ALONE, turn * threads + thread, arenas[thread : thread + 1], NIL, ONE)
    for n in range(rounds * threads, words[team.BATCH]):
        run_program(words, TOGETHER, n, arenas, thread, threads)
    meet(words, threads)


@kernel
def entry(address, worker):
    """One call, led; or, for a worker from 0 on, a share of every call until the model is closed."""
    threads = array(address, np.int64, (team.WORKERS,))[team.THREADS]
    words = array(address, np.int64, (team.WORKERS + threads * team.WORKER,))
    calls = NIL
    if worker < 0:
        announce(words)
    while True:
        if worker >= 0:
            await_call(words, worker, calls)
        if look(words, team.CLOSED):
            return
        run(words, worker + 1)
        if worker < 0:
            return
        calls += 1


signature = types.void(types.int64, types.int64)
