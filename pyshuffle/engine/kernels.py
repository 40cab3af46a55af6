"""The one jitted function that runs a program: what the table of steps says, tile by tile.

All of a call happens in compiled code that does not hold the interpreter: one thread leads, the others follow, and they meet where
one needs what another computed. Every number is computed whole by one thread (at the edge of its rows of a band by two, each for
itself), and in an order that does not depend on which one that is or on how many there are: so results are the same bits for any
number of threads, and for any batch. Images of a batch are shared out whole while there are enough of them; the rest are worked on
together.
"""

import numpy as np
from numba import types

from . import program as at
from . import team
from .intrinsics import average_tile, dense_tile, maximum_tile, window_tile
from .jit import array, kernel
from .machine import FLOAT, machine
from .steps import DENSE, MAXIMUM, MEAN, OUTPUT, STEM, WINDOW
from .threads import announce, await_call, exchange, look, meet

ZERO = np.float32(0)
SOLE, ONE = np.int64(0), np.int64(1)  # the first thread of one; typed, since for literal numbers all is compiled once more
INFINITY = np.int32(0x7F800000)  # as bits; above it is what is not a number
MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
RUN = machine().run


@kernel
def share(step, units, begin, thread, threads):
    """The units of a piece that are a thread's, first and last: where all pieces' units lie in one line, this one's from `begin`."""
    if step[at.BY_ROWS]:
        return units * thread // threads, units * (thread + 1) // threads
    total = step[at.TOTAL]
    first, last = total * thread // threads - begin, total * (thread + 1) // threads - begin
    return min(max(first, 0), units), min(max(last, 0), units)


@kernel
def bounds(step):
    """Between which a step's results are kept."""
    return np.int32(step[at.LOW]).view(np.float32), np.int32(step[at.HIGH]).view(np.float32)


@kernel
def run_dense(step, piece, tables, weights, arena, source, target, first, last):
    """Pixels first to last of a panel. Source and target are the arena, or where it would begin for a band to lie right."""
    arguments = (
        first, last,
        source + piece[at.SOURCE], tables + piece[at.SOURCE_PIXELS], tables + piece[at.OFFSETS], piece[at.COUNT],
        weights + piece[at.WEIGHTS], weights + piece[at.BIAS],
        target + step[at.TARGET], tables + piece[at.TARGET_PIXELS], tables + piece[at.COLUMNS],
        piece[at.RESIDUAL] + arena if piece[at.RESIDUAL] >= 0 else 0, tables + piece[at.RESIDUAL_PIXELS],
        tables + piece[at.RESIDUAL_COLUMNS], *bounds(step),
    )  # fmt: skip
    dense_tile(2 * piece[at.HALVES] + (piece[at.TALL] == 1), arguments)


@kernel
def run_window(step, piece, weights, source, target, first, last):
    """Rows first to last of a vector of channels."""
    stride, width, rows = step[at.STRIDE], step[at.WIDTH], piece[at.SOURCE_ROW]
    arguments = (
        source + piece[at.SOURCE] + first * stride * rows, rows, piece[at.SOURCE_PIXEL],
        weights + piece[at.WEIGHTS], weights + piece[at.BIAS],
        target + step[at.TARGET] + piece[at.COLUMN] + first * step[at.TARGET_ROW], step[at.TARGET_ROW], step[at.TARGET_PIXEL],
        last - first, width, *bounds(step),
    )  # fmt: skip
    window_tile(2 * stride + (width < RUN), arguments)


@kernel
def run_maximum(step, piece, source, target, row, height):
    """A row of a vector of channels, from a map of the given height."""
    rows, pixel = piece[at.SOURCE_ROW], piece[at.SOURCE_PIXEL]
    x = source + piece[at.SOURCE]
    above, middle, below = max(2 * row - 1, 0), 2 * row, min(2 * row + 1, height - 1)
    maximum_tile((
        x + above * rows, x + middle * rows, x + below * rows, pixel, (piece[at.SOURCE_WIDTH] - 1) * pixel,
        target + step[at.TARGET] + piece[at.COLUMN] + row * step[at.TARGET_ROW], step[at.TARGET_PIXEL], step[at.WIDTH],
    ))  # fmt: skip


@kernel
def run_mean(piece, arena, target):
    """The mean of one vector of channels."""
    height, width = piece[at.SOURCE_HEIGHT], piece[at.SOURCE_WIDTH]
    share = np.float32(1) / np.float32(height * width)
    average_tile((arena + piece[at.SOURCE], piece[at.SOURCE_ROW], piece[at.SOURCE_PIXEL], height, width, share, target))


@kernel
def clear_line(line, pixel, whole):
    """Zeros in a row of a map, or in its first and last pixel."""
    if whole:
        line[:] = 0
    else:
        line[:pixel] = 0
        line[len(line) - pixel :] = 0


@kernel
def clear_halo(step, arena, thread, threads):
    """Zeros around the map that a step writes, if it has a halo."""
    height = step[at.PIXELS] // step[at.WIDTH]
    row, pixel = step[at.TARGET_ROW] // FLOAT, step[at.TARGET_PIXEL] // FLOAT
    for plane in range(step[at.HALO_PLANES]):
        begin = (step[at.TARGET] + plane * step[at.PLANE]) // FLOAT - row - pixel
        for i in range((height + 2) * thread // threads, (height + 2) * (thread + 1) // threads):
            clear_line(arena[begin + i * row :][:row], pixel, i == 0 or i == height + 1)


@kernel
def run_image(step, arena, image, begin, first, last):
    """Copy rows of the image, as bits, to where row `begin` is the first, zeros around it; whether one value is not finite."""
    pixel, row_length, width = step[at.TARGET_PIXEL] // FLOAT, step[at.TARGET_ROW] // FLOAT, step[at.WIDTH]
    largest = np.int32(0)
    for row in range(first, last):
        place = step[at.TARGET] // FLOAT - pixel + (row - begin) * row_length
        target = arena[place : place + row_length]
        if row < 0 or row * width * 3 >= len(image):
            target[:] = 0
            continue
        source = image[row * width * 3 : (row + 1) * width * 3]
        target[:pixel] = 0
        target[row_length - pixel :] = 0
        if pixel == 3:
            inner = target[3 : row_length - 3]
            for k in range(len(source)):
                inner[k] = source[k]
        else:  # it lies in a wider map
            for k in range(len(source)):
                target[pixel + k // 3 * pixel + k % 3] = source[k]
        for k in range(len(source)):
            largest = max(largest, source[k] & MAGNITUDE)
    return largest >= INFINITY


@kernel
def run_stem(steps, pieces, tables, weights, arena, own, image, thread, threads):
    """Image, first convolution and max-pool, in bands of rows whose maps are the thread's own; whether the image has a fault."""
    copy, conv, pool, band = steps[0], steps[1], steps[2], steps[0, at.BAND]
    rows, height, width = pool[at.PIXELS] // pool[at.WIDTH], conv[at.PIXELS] // conv[at.WIDTH], conv[at.WIDTH]
    last = rows * (thread + 1) // threads
    fault, mine = False, own.ctypes.data
    clear_halo(pool, arena, thread, threads)
    for begin in range(rows * thread // threads, last, band):
        end = min(begin + band, last)
        fault |= run_image(copy, own.view(np.int32), image, 4 * begin - 2, 4 * begin - 3, 4 * end)
        shown, shifted = mine - (4 * begin - 2) * copy[at.TARGET_ROW], mine - (2 * begin - 1) * conv[at.TARGET_ROW]
        first, until = max(2 * begin - 1, 0) * width, min(2 * end, height) * width
        for number in range(conv[at.FIRST], conv[at.LAST]):
            run_dense(conv, pieces[number], tables.ctypes.data, weights, mine, shown, shifted, first, until)
        for number in range(pool[at.FIRST], pool[at.LAST]):
            for row in range(begin, end):
                run_maximum(pool, pieces[number], shifted, arena.ctypes.data, row, height)
    return fault


@kernel
def run_step(step, pieces, tables, weights, arena, logits, thread, threads):
    """A thread's share of a step."""
    kind = step[at.KIND]
    memory = arena.ctypes.data
    clear_halo(step, arena, thread, threads)
    for chunk in range(step[at.CHUNKS]):
        begin = SOLE
        for number in range(step[at.FIRST], step[at.LAST]):
            piece = pieces[number]
            first, last = share(step, piece[at.UNITS], begin, thread, threads)
            begin += piece[at.UNITS]
            units = last - first
            first, last = first + units * chunk // step[at.CHUNKS], first + units * (chunk + 1) // step[at.CHUNKS]
            if first >= last:
                continue
            if kind == DENSE:
                unit = piece[at.UNIT]
                end = min(last * unit, step[at.PIXELS])
                run_dense(step, piece, tables.ctypes.data, weights, memory, memory, memory, first * unit, end)
            elif kind == WINDOW:
                run_window(step, piece, weights, memory, memory, first, last)
            elif kind == MAXIMUM:
                for row in range(first, last):
                    run_maximum(step, piece, memory, memory, row, piece[at.SOURCE_HEIGHT])
            elif kind == MEAN:
                run_mean(piece, memory, memory + step[at.TARGET] + piece[at.COLUMN])
            elif kind == OUTPUT:
                places = tables[piece[at.OFFSETS] // 4 :][: len(logits)]
                for k in range(len(logits)):
                    logits[k] = arena[places[k] // FLOAT]


@kernel
def run_pair(conv, window, pieces, tables, weights, arena, own, thread, threads):
    """A convolution and the depthwise step behind it, in bands of rows; the map between them is the thread's own."""
    memory, mine = np.int64(arena.ctypes.data), np.int64(own.ctypes.data)
    height, width, stride, band = conv[at.PIXELS] // conv[at.WIDTH], conv[at.WIDTH], window[at.STRIDE], conv[at.BAND]
    row, pixel = conv[at.TARGET_ROW], conv[at.TARGET_PIXEL] // FLOAT
    length = stride * (band - 1) + 3
    lines = array(mine + conv[at.TARGET] - row - conv[at.TARGET_PIXEL], ZERO, (length, row // FLOAT))  # with those of the halo
    clear_halo(window, arena, thread, threads)
    for i in range(length):
        clear_line(lines[i], pixel, False)
    rows, done = window[at.PIXELS] // window[at.WIDTH], SOLE
    last = rows * (thread + 1) // threads
    for begin in range(rows * thread // threads, last, band):
        end = min(begin + band, last)
        before = stride * begin - 1  # the row of the map that is the band's first
        shifted = mine - stride * begin * row
        first, until = max(before, done), min(stride * (end - 1) + 2, height)
        for number in range(conv[at.FIRST], conv[at.LAST] if first < until else SOLE):
            run_dense(conv, pieces[number], tables.ctypes.data, weights, memory, memory, shifted, first * width, until * width)
        done = until
        if begin == 0:
            clear_line(lines[0], pixel, True)
        if stride * (end - 1) + 2 > height:
            clear_line(lines[height - before], pixel, True)
        for number in range(window[at.FIRST], window[at.LAST]):
            run_window(window, pieces[number], weights, shifted, memory, begin, end)
        for i in range(3 - stride):  # the next band needs them as well
            line, moved = lines[i], lines[stride * (end - begin) + i]
            for k in range(len(line)):
                line[k] = moved[k]


@kernel
def run_begin(steps, pieces, tables, weights, arena, own, image, thread, threads):
    """A thread's share of the steps that read the image; whether it has a fault."""
    if steps[0, at.KIND] == STEM:
        return run_stem(steps, pieces, tables, weights, arena, own, image, thread, threads)
    rows = steps[0, at.PIXELS] // steps[0, at.WIDTH]
    first, last = rows * thread // threads, rows * (thread + 1) // threads  # as every step shares them out
    return run_image(steps[0], arena.view(np.int32), image, SOLE, first - (thread == 0), last + (thread == threads - 1))


@kernel
def run(words, thread):
    """A thread's share of a call."""
    threads, count = words[team.THREADS], words[team.BATCH]
    steps = array(words[team.STEPS], SOLE, (words[team.STEP_COUNT], at.STEP))
    pieces = array(words[team.PIECES], SOLE, (words[team.PIECE_COUNT], at.PIECE))
    tables = array(words[team.TABLES], np.uint32(0), (words[team.TABLE_SIZE],))
    weights, size = words[team.WEIGHTS], words[team.ARENA] // FLOAT
    arenas = array(words[team.ARENAS], ZERO, (threads, size))
    images = array(words[team.IMAGES], np.int32(0), (count, steps[0, at.PIXELS] * 3))  # their bits
    logits = array(words[team.LOGITS], ZERO, (count, pieces[-1, at.COUNT]))
    rounds = count // threads  # in which there is an image for each thread; then all threads work on one
    for turn in range(rounds + count % threads):
        alone = turn < rounds
        n = turn * threads + thread if alone else turn + rounds * (threads - 1)
        arena, part, parts = (arenas[thread], SOLE, ONE) if alone else (arenas[0], thread, threads)
        if not alone:
            meet(words, threads)
        if words[team.FROM] == 0 and run_begin(steps, pieces, tables, weights, arena, arenas[thread], images[n], part, parts):
            exchange(words, team.FAULT, 1)
        s = max(steps[0, at.SPAN], words[team.FROM])
        while s < words[team.UNTIL]:
            if steps[s, at.MEET] and not alone:
                meet(words, threads)
            if steps[s, at.SPAN] == 1:
                run_step(steps[s], pieces, tables, weights, arena, logits[n], part, parts)
            else:
                run_pair(steps[s], steps[s + 1], pieces, tables, weights, arena, arenas[thread], part, parts)
            s += steps[s, at.SPAN]
    meet(words, threads)


@kernel
def entry(address, worker):
    """One call, led; or, for a worker from 0 on, a share of every call until the model is closed."""
    threads = array(address, SOLE, (team.WORKERS,))[team.THREADS]
    words = array(address, SOLE, (team.WORKERS + threads * team.WORKER,))
    calls = SOLE
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
