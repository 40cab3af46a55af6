"""The inner loops that training needs besides those of tiles.py, in the machine's vectors of channels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from .emitter import I32, I64, Arguments, Emitter, tile


@tile("source source_row source_pixel gradient gradient_row gradient_pixel rows width target")
def filter_gradient(e: Emitter, given: Arguments, stride: int) -> None:
    """dw[u, v] += sum_{i, j} x[s i + u, s j + v] * dy[i, j] for one vector of channels: the gradient of `window` by its weights."""
    sums = e.vectors(given["target"], 9)
    with e.loop(given["rows"], [given["source"], given["gradient"], *sums]) as ((source, gradient, *sums), below):
        with e.loop(given["width"], [source, gradient, *sums]) as ((begin, out, *sums), following):
            following += [e.build.add(begin, e.build.mul(given["source_pixel"], I64(stride)))]
            following += [e.build.add(out, given["gradient_pixel"])]
            d = e.load(out)
            for u in range(3):
                x = begin
                for v in range(3):
                    following.append(e.multiply_add(e.load(x), d, sums[3 * u + v]))
                    x = e.build.add(x, given["source_pixel"])
                begin = e.build.add(begin, given["source_row"])
        below += [
            e.build.add(source, e.build.mul(given["source_row"], I64(stride))),
            e.build.add(gradient, given["gradient_row"]),
        ]
        below += following[2:]
    for place, total in enumerate(below[2:]):
        e.store(total, given["target"], place * e.size)


@tile("source source_row pixel weights target target_row width")
def parities(e: Emitter, given: Arguments) -> None:
    """dx[h, l] = sum_{u, v} dy[(h + 1 - u) / 2, (l + 1 - v) / 2] * w[u, v] where 2 divides both, for one vector of channels: the
    gradient of `window` with stride 2 by its input. Of a row of dy and the one below come two rows of dx: an even h has u = 1 alone,
    an odd one u = 2 of the row and u = 0 of the one below; likewise l."""
    w, below = e.vectors(given["weights"], 9), e.build.add(given["source"], given["source_row"])
    begin = [given["source"], given["target"], e.load(given["source"]), e.load(below)]
    with e.loop(given["width"], begin) as ((source, target, here, under), following):
        source = e.build.add(source, given["pixel"])
        right, across = e.load(source), e.load(source, given["source_row"])
        even, odd = target, e.build.add(target, given["target_row"])
        e.store(e.build.fmul(here, w[4]), even)
        e.store(e.multiply_add(right, w[3], e.build.fmul(here, w[5])), even, given["pixel"])
        e.store(e.multiply_add(under, w[1], e.build.fmul(here, w[7])), odd)
        corner = e.multiply_add(under, w[2], e.multiply_add(right, w[6], e.build.fmul(here, w[8])))
        e.store(e.multiply_add(across, w[0], corner), odd, given["pixel"])
        following += [source, e.build.add(target, e.build.mul(given["pixel"], I64(2))), right, across]


@tile("source source_row source_last constants constants_row target target_row target_last rows vectors low")
def normalise(e: Emitter, given: Arguments) -> None:
    """z = max(low, scale (x - mean) + beta) for rows x, with the constants mean, scale and beta; NaN stays NaN.

    The vectors of a row lie side by side, but the last of them may overlap the one before. Memory is read row after row, as it
    lies there, which is faster than to keep the constants of a few vectors in registers.
    """
    low = e.everywhere(given["low"])
    ahead = e.build.mul(given["rows"], given["source_row"])  # what will be read next comes meanwhile
    with e.loop(given["rows"], [given["source"], given["target"]]) as ((source, target), following):
        with each_vector(e, given) as (place, goal):
            mean, scale, beta = constants(e, given, place, 3)
            value = e.multiply_add(e.build.fsub(e.load(source, place), mean), scale, beta)
            e.prefetch(e.build.add(source, place), ahead)
            e.store(e.larger(low, value), target, goal)
        following += [e.build.add(source, given["source_row"]), e.build.add(target, given["target_row"])]


@tile(
    "source source_row source_last gradient gradient_row constants constants_row target target_row target_last rows vectors low"
)
def differentiate(e: Emitter, given: Arguments) -> None:
    """dx = scale dz [z > low] + slope (x - mean) + offset for rows x and dz, with z as `normalise` has it; and two constants more."""
    low = e.everywhere(given["low"])
    ahead = e.build.mul(given["rows"], given["source_row"])
    with e.loop(given["rows"], [given["source"], given["gradient"], given["target"]]) as ((source, gradient, target), following):
        with each_vector(e, given) as (place, goal):
            mean, scale, beta, slope, offset = constants(e, given, place, 5)
            above = e.build.fsub(e.load(source, place), mean)
            passed = e.build.fcmp_ordered(">", e.multiply_add(above, scale, beta), low)
            d = e.build.select(passed, e.load(gradient, place), e.zero)
            e.prefetch(e.build.add(source, place), ahead)
            e.prefetch(e.build.add(gradient, place), ahead)
            e.store(e.multiply_add(d, scale, e.multiply_add(above, slope, offset)), target, goal)
        following += [e.build.add(source, given["source_row"]), e.build.add(gradient, given["gradient_row"])]
        following.append(e.build.add(target, given["target_row"]))


@contextmanager
def each_vector(e: Emitter, given: Arguments) -> Iterator[tuple[ir.Value, ir.Value]]:
    """A round for each vector of a row: where it lies in one that is read, and in one that is written."""
    with e.loop(given["vectors"], [I64(0), I64(0)]) as ((place, goal), following):
        yield place, goal
        following += [e.smaller(e.build.add(place, I64(e.size)), given["source_last"])]
        following += [e.smaller(e.build.add(goal, I64(e.size)), given["target_last"])]


@tile("source source_row source_last rows near total square")
def measure(e: Emitter, given: Arguments, vectors: int) -> None:
    """total = sum (x - near), square = sum (x - near)^2 over rows x, in vectors as `beside` has them."""
    places = beside(e, given, vectors)
    near = [e.load(given["near"], place) for place in places]
    with e.loop(given["rows"], [given["source"], *[e.zero] * (2 * vectors)]) as ((source, *sums), following):
        above = [e.build.fsub(e.load(source, p), n) for p, n in zip(places, near, strict=True)]
        following.append(e.build.add(source, given["source_row"]))
        following += [e.build.fadd(total, x) for total, x in zip(sums, above, strict=False)]
        following += [e.multiply_add(x, x, square) for square, x in zip(sums[vectors:], above, strict=True)]
    keep_sums(e, given, places, following[1:], "total", "square")


@tile("source source_row source_last gradient gradient_row constants constants_row rows total product low")
def covary(e: Emitter, given: Arguments, vectors: int) -> None:
    """total = sum d, product = sum d (x - mean) over rows x and dz, where d = dz [z > low], with z as `normalise` has it."""
    places = beside(e, given, vectors)
    known = [constants(e, given, place, 3) for place in places]
    ahead = e.build.mul(given["rows"], given["source_row"])
    low = e.everywhere(given["low"])
    linear = e.build.fcmp_ordered("==", low, ir.Constant(e.vector, [-math.inf] * e.lanes))  # then all passes, whatever it is
    begin = [given["source"], given["gradient"], *[e.zero] * (2 * vectors)]
    with e.loop(given["rows"], begin) as ((source, gradient, *sums), following):
        following += [e.build.add(source, given["source_row"]), e.build.add(gradient, given["gradient_row"])]
        products = []
        for place, (mean, scale, beta), total, product in zip(places, known, sums[:vectors], sums[vectors:], strict=True):
            above = e.build.fsub(e.load(source, place), mean)
            e.prefetch(e.build.add(source, place), ahead)
            passed = e.build.or_(linear, e.build.fcmp_ordered(">", e.multiply_add(above, scale, beta), low))
            d = e.build.select(passed, e.load(gradient, place), e.zero)
            following.append(e.build.fadd(total, d))
            products.append(e.multiply_add(d, above, product))
        following += products
    keep_sums(e, given, places, following[2:], "total", "product")


def beside(e: Emitter, given: Arguments, vectors: int) -> list[ir.Value]:
    """Where vectors lie side by side, the last of which may overlap the one before."""
    return [*(I64(v * e.size) for v in range(vectors - 1)), given["source_last"]]


def keep_sums(e: Emitter, given: Arguments, places: list[ir.Value], sums: list[ir.Value], *goals: str) -> None:
    """Store sums of as many kinds as there are goals, where the channels they are of lie."""
    for total, (goal, place) in zip(sums, itertools.product(goals, places), strict=True):
        e.store(total, given[goal], place)


def constants(e: Emitter, given: Arguments, place: ir.Value, count: int) -> list[ir.Value]:
    """The same vector of the rows of a table of constants."""
    first = e.build.add(given["constants"], place)
    return [e.load(first, e.build.mul(given["constants_row"], I64(i))) for i in range(count)]


@tile("row0 row1 row2 apart pixel last gradient gradient_pixel count")
def maximum_gradient(e: Emitter, given: Arguments) -> None:
    """dx[u, 2j + v - 1] += dy[j] for the first u, v at which x is largest, or not a number: the gradient of `maximum`, for a row of
    `count` pixels j. apart: from a pixel of x to that of dx."""
    with e.loop(given["count"], [I64(0), given["gradient"]]) as ((column, gradient), following):
        columns = e.neighbours(column, given["pixel"], given["last"])
        places = [(u, x) for u in range(3) for x in columns]
        whole = ir.VectorType(I32, e.lanes)
        winner = ir.Constant(whole, [0] * e.lanes)
        largest = e.load(given["row0"], columns[0])
        for number, (u, x) in enumerate(places[1:], start=1):
            value = e.load(given[f"row{u}"], x)
            above = e.build.and_(e.build.fcmp_unordered(">", value, largest), e.build.fcmp_ordered("==", largest, largest))
            largest = e.build.select(above, value, largest)
            winner = e.build.select(above, ir.Constant(whole, [number] * e.lanes), winner)
        d = e.load(gradient)
        for number, (u, x) in enumerate(places):
            place = e.build.add(e.build.add(given[f"row{u}"], x), given["apart"])
            won = e.build.icmp_signed("==", winner, ir.Constant(whole, [number] * e.lanes))
            e.store(e.build.fadd(e.load(place), e.build.select(won, d, e.zero)), place)
        following += [e.step(e.step(column, given["pixel"]), given["pixel"]), e.build.add(gradient, given["gradient_pixel"])]
