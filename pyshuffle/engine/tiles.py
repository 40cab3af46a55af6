"""The inner loops of the engine, written in the machine's own vectors.

A vector register holds `lanes` floats (16 with AVX-512, 8 with AVX2, 4 with SSE or NEON), and one instruction, the fused
multiply-add a * b + c, works on all lanes at once. A core starts two of them per cycle at best, each takes about four cycles, and
loading an operand costs as much as multiplying it. So a fast loop keeps a rectangle of results, a *tile*, in registers: about eight
independent sums or more, and several products for every value loaded. Channels lie in the lanes (activations are channels last):

                     vectors of output channels
                  w[k, 0:16]  w[k, 16:32]  ...          for every k: load one row of weights, then for every pixel
    pixel 0  a_0     sum          sum                   load one activation into all lanes (a broadcast), and
    pixel 1  a_1     sum          sum                   multiply-add it to the pixel's row of sums
    ...

A tile may be as large as there are registers: the sums, one row of weights and one activation. One register too many, and the
compiler spills sums to the stack in the innermost loop; tests/test_tiles.py reads the assembly and fails if it does. The tile of
7 pixels by 4 vectors has one too many, so that `dense` loads the last vector of weights anew for each pixel, and no activation before
it has done with the one before.

A loop written in Python cannot say "keep these in registers", so the tiles are emitted as LLVM instructions, by the functions below:
`dense` for every convolution that mixes channels and for the linear layer, `window` for depthwise 3x3 and average pooling, `maximum`
for max-pooling, `average` for the mean of a map; what training needs besides is in training_tiles.py. LLVM translates them for
whatever processor it finds; `Machine` says how many lanes and registers it has. All addresses, strides and offsets are in bytes.
"""

from __future__ import annotations

from llvmlite import ir

from .emitter import F32, I64, Arguments, Emitter, tile
from .machine import LINE

PEAK_SUMS = 12  # independent sums that keep any processor busy, and that fit into its registers


@tile(
    "first last source source_pixels offsets count weights bias target target_pixels columns "
    "residual residual_pixels residual_columns low high"
)
def dense(e: Emitter, given: Arguments, halves: int, pixels: int) -> None:
    """out[m, n] = bias[n] + residual[m, n] + sum_k a[m, k] * w[k, n] for some pixels m of a panel of channels n.

    It is kept between low and high. a[m, k] lies at source + source_pixels[m] + offsets[k]. The table of offsets makes this one
    tile serve every layer: a 1x1 convolution lists the channels it reads, wherever split, concat and shuffle left them; a grouped
    one those of its group; a 3x3 one its 9 C taps. Where the pixels do not fill the last tile, it is moved back and computes some
    of them, or of those before the first, a second time: `last` is at least a tile's. A residual at address 0 is none.

    A panel is so many halves of vectors wide; where that is odd, of its last vector only the first half of the lanes is computed.
    """
    parts = e.machine.parts(halves)
    mixed = len(set(parts)) == 2
    kinds = [e.vector if part == 2 else e.half for part in parts]
    starts = [sum(parts[:v]) * e.size // 2 for v in range(len(parts))]  # bytes from a panel's first channel
    cells = [(p, v) for p in range(pixels) for v in range(len(parts))]
    row = -(-halves // 2) * e.size  # bytes of the weights of an input
    panel = e.build.mul(given["count"], I64(row))
    tiles = e.build.udiv(e.build.add(e.build.sub(given["last"], given["first"]), I64(pixels - 1)), I64(pixels))
    end = e.build.sub(given["last"], I64(pixels))
    with e.loop(tiles, [I64(0), e.smaller(given["first"], end)]) as ((number, begin), further):
        further += [e.build.add(number, I64(1)), e.smaller(e.build.add(begin, I64(pixels)), end)]
        source_pixels, target_pixels, residual_pixels = (
            e.build.add(given[name], e.build.mul(begin, I64(4))) for name in ("source_pixels", "target_pixels", "residual_pixels")
        )
        rows = [e.build.add(given["source"], e.entry(source_pixels, p)) for p in range(pixels)]
        bias = [e.load(given["bias"], start, kind) for start, kind in zip(starts, kinds, strict=True)]

        def entries(table: ir.Value) -> list[ir.Value]:
            return [e.build.add(e.entry(table, start // e.size), I64(start % e.size)) for start in starts]

        def residual() -> list[ir.Value]:
            columns = entries(given["residual_columns"])
            places = [e.build.add(given["residual"], e.entry(residual_pixels, p)) for p in range(pixels)]
            return [e.build.fadd(bias[v], e.load(places[p], columns[v], kinds[v])) for p, v in cells]

        sums = e.choose(e.build.icmp_unsigned("!=", given["residual"], I64(0)), residual, lambda: bias * pixels)
        # While it computes, it fetches a part of the next panel's weights. A lone pixel's are read as fast as they come, as it is.
        share = e.build.mul(e.build.urem(number, I64(row // e.size)), e.build.mul(given["count"], I64(LINE)))
        ahead = e.build.add(given["weights"], e.build.add(panel, share))
        spare = e.machine.registers - len(cells) - 1  # registers that sums and activation leave for weights
        with e.loop(given["count"], [given["offsets"], given["weights"], ahead, *sums]) as (now, following):
            table, weights, line, *sums = now
            following += [e.build.add(table, I64(4)), e.build.add(weights, I64(row)), e.build.add(line, I64(LINE))]
            offset, w = e.entry(table, 0), [e.load(weights, starts[v], kind) for v, kind in enumerate(kinds[:spare])]
            if pixels > 1:
                e.prefetch(line)
            for p, v in cells:
                if v == 0:
                    if spare < len(parts) and not mixed:  # where it is, `in_register` has the same effect
                        e.forget()  # else LLVM may load an activation before the one before is used: again one register too few
                    a = e.everywhere(e.load(rows[p], offset, F32), kinds[0])
                    a = e.in_register(a) if mixed else a
                if v == spare:  # one register too few: this vector stays in memory, and is loaded anew for each pixel
                    e.forget()
                    w = [*w[:spare], e.load(weights, starts[v], kinds[v])]
                following.append(e.multiply_add(e.low_lanes(a, kinds[v]), w[v], sums[p * len(parts) + v]))
        low, high = (e.everywhere(given[bound]) for bound in ("low", "high"))
        columns = entries(given["columns"])
        outs = [e.build.add(given["target"], e.entry(target_pixels, p)) for p in range(pixels)]
        for (p, v), total in zip(cells, following[3:], strict=True):
            e.store(e.between(e.low_lanes(low, kinds[v]), total, e.low_lanes(high, kinds[v])), outs[p], columns[v])


@tile("source source_row source_pixel weights bias target target_row target_pixel rows width low high")
def window(e: Emitter, given: Arguments, stride: int, pixels: int) -> None:
    """out[i, j] = bias + sum_{u, v} x[s i + u, s j + v] * w[u, v] for one vector of channels and rows of pixels.

    It is kept between low and high. The nine weights stay in registers, and an input is loaded once for all the pixels of the tile
    in whose windows it lies. The last pixels of a row are computed twice where they do not fill a tile.
    """
    w, low, high = e.vectors(given["weights"], 9), *(e.everywhere(given[bound]) for bound in ("low", "high"))
    last = e.build.sub(given["width"], I64(pixels))
    tiles = e.build.udiv(e.build.add(given["width"], I64(pixels - 1)), I64(pixels))
    with e.loop(given["rows"], [given["source"], given["target"]]) as ((source_row, target_row), below):
        with e.loop(tiles, [I64(0)]) as ((column,), following):
            following.append(e.smaller(e.build.add(column, I64(pixels)), last))
            begin = e.build.add(source_row, e.build.mul(column, e.build.mul(given["source_pixel"], I64(stride))))
            sums = [e.load(given["bias"])] * pixels
            for u in range(3):
                x = begin
                for place in range((pixels - 1) * stride + 3):
                    value = e.load(x)
                    x = e.step(x, given["source_pixel"])
                    for p in range(pixels):
                        v = place - p * stride
                        if 0 <= v < 3:
                            sums[p] = e.multiply_add(value, w[3 * u + v], sums[p])
                begin = e.step(begin, given["source_row"])
            out = e.build.add(target_row, e.build.mul(column, given["target_pixel"]))
            for total in sums:
                e.store(e.between(low, total, high), out)
                out = e.step(out, given["target_pixel"])
        below += [
            e.build.add(source_row, e.build.mul(given["source_row"], I64(stride))),
            e.build.add(target_row, given["target_row"]),
        ]


@tile("row0 row1 row2 pixel first last target target_pixel count")
def maximum(e: Emitter, given: Arguments) -> None:
    """out[j] = max_{u, v} x[u, i + 2j + v - 1] on one vector of channels, for `count` pixels j of a row, side by side.

    row0, row1, row2: the rows x[0], x[1], x[2], of pixels of the given size, pixel i at `first` and the last one at `last`. A pixel
    outside the image is replaced by its neighbour inside, which is in the window as well; the caller does so for rows. The last
    column of a window is the first of the next: the maximum of its three pixels is kept.
    """

    def column(x: ir.Value) -> ir.Value:
        above, middle, below = (e.load(given[f"row{u}"], x) for u in range(3))
        return e.larger(e.larger(above, middle), below)

    before, *_ = e.neighbours(given["first"], given["pixel"], given["last"])
    with e.loop(given["count"], [given["first"], given["target"], column(before)]) as ((x, target, left), following):
        *_, behind = e.neighbours(x, given["pixel"], given["last"])
        right = column(behind)
        e.store(e.larger(e.larger(left, column(x)), right), target)
        following += [e.step(e.step(x, given["pixel"]), given["pixel"]), e.build.add(target, given["target_pixel"]), right]


@tile("source source_row source_pixel rows width share target")
def average(e: Emitter, given: Arguments) -> None:
    """out = share * sum_{i, j} x[i, j] for one vector of channels."""
    with e.loop(given["rows"], [given["source"], e.zero]) as ((row, total), below):
        with e.loop(given["width"], [row, total]) as ((pixel, partial), following):
            following += [e.build.add(pixel, given["source_pixel"]), e.build.fadd(partial, e.load(pixel))]
        below += [e.build.add(row, given["source_row"]), following[1]]
    e.store(e.build.fmul(below[1], e.everywhere(given["share"])), given["target"])


@tile("count target")
def peak(e: Emitter, given: Arguments) -> None:
    """`count` rounds of independent multiply-adds and nothing else: the most that the processor can do."""
    a, *sums = e.vectors(given["target"], 1 + PEAK_SUMS)
    with e.loop(given["count"], sums) as (sums, following):
        following += [e.multiply_add(total, a, a) for total in sums]
    for total in following:
        a = e.build.fadd(a, total)
    e.store(a, given["target"])
