"""The inner loops of the engine, written in the machine's own vectors: the one file in which a reader meets the processor.

A vector register holds `lanes` floats (16 with AVX-512, 8 with AVX2, 4 with SSE or NEON), and one instruction, the fused
multiply-add a * b + c, works on all lanes at once. A core starts two of them per cycle at best, each takes about four cycles, and
loading an operand costs as much as multiplying it. So a fast loop keeps a rectangle of results, a *tile*, in registers: at least
eight independent sums, and several products for every value loaded. Channels lie in the lanes (activations are channels last):

                     vectors of output channels
                  w[k, 0:16]  w[k, 16:32]  ...          for every k: load one row of weights, then for every pixel
    pixel 0  a_0     sum          sum                   load one activation into all lanes (a broadcast), and
    pixel 1  a_1     sum          sum                   multiply-add it to the pixel's row of sums
    ...

A tile may be as large as there are registers: the sums, one row of weights and one activation. One register too many, and the
compiler spills sums to the stack in the innermost loop; tests/test_tiles.py reads the assembly and fails if it does.

A loop written in Python cannot say "keep these in registers", so the tiles are emitted as LLVM instructions, by the functions below:
`dense` for every convolution that mixes channels and for the linear layer, `window` for depthwise 3x3 and average pooling, `slope`
for the gradient of a depthwise filter, `maximum` for max-pooling, `average` for the mean of a map. LLVM translates them for whatever
processor it finds; `Machine` says how many lanes and registers that one has. All addresses, strides and offsets are in bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from .emitter import F32, I64, VOID, Emitter
from .machine import LINE, Machine

FAR = 8192  # bytes from weights that are used once to those that are fetched meanwhile: memory is that far away
PEAK_SUMS = 12  # independent sums that keep any processor busy, and that fit into its registers


DENSE = (
    "first last source source_pixels offsets count weights bias target target_pixels columns "
    "residual residual_pixels residual_columns low high"
).split()


def dense(function: ir.Function, machine: Machine, vectors: int, pixels: int) -> None:
    """out[m, n] = bias[n] + residual[m, n] + sum_k a[m, k] * w[k, n], from low to high, for some pixels m of a panel of channels n.

    a[m, k] lies at source + source_pixels[m] + offsets[k]. The table of offsets makes this one tile serve every layer: a 1x1
    convolution lists the channels it reads, wherever split, concat and shuffle left them; a grouped one those of its group; a 3x3 one
    its 9 C taps. Where the pixels do not fill the last tile, it is moved back and computes some of them, or of those before the
    first, a second time: `last` is at least a tile's. A residual at address 0 is none.
    """
    e = Emitter(function, machine.lanes)
    given = dict(zip(DENSE, function.args, strict=True))
    tile = [(p, v) for p in range(pixels) for v in range(vectors)]
    panel = e.build.mul(given["count"], I64(vectors * e.size))
    tiles = e.build.udiv(e.build.add(e.build.sub(given["last"], given["first"]), I64(pixels - 1)), I64(pixels))
    end = e.build.sub(given["last"], I64(pixels))
    with e.loop(tiles, [I64(0), e.smaller(given["first"], end)]) as ((number, begin), further):
        further += [e.build.add(number, I64(1)), e.smaller(e.build.add(begin, I64(pixels)), end)]
        source_pixels, target_pixels, residual_pixels = (
            e.build.add(given[name], e.build.mul(begin, I64(4))) for name in ("source_pixels", "target_pixels", "residual_pixels")
        )
        rows = [e.build.add(given["source"], e.entry(source_pixels, p)) for p in range(pixels)]
        bias = e.vectors(given["bias"], vectors)

        def residual() -> list[ir.Value]:
            columns = [e.entry(given["residual_columns"], v) for v in range(vectors)]
            places = [e.build.add(given["residual"], e.entry(residual_pixels, p)) for p in range(pixels)]
            return [e.build.fadd(bias[v], e.load(e.build.add(places[p], columns[v]), e.vector)) for p, v in tile]

        sums = e.choose(e.build.icmp_unsigned("!=", given["residual"], I64(0)), residual, lambda: bias * pixels)
        # While it computes, it fetches weights that come next: a part of the next panel, or those a little further on.
        part = e.build.mul(e.build.urem(number, I64(vectors)), e.build.mul(given["count"], I64(LINE)))
        ahead = e.build.add(given["weights"], e.build.add(panel, part) if pixels > 1 else I64(FAR))
        spare = machine.registers - len(tile) - 1  # registers that sums and activation leave for weights
        with e.loop(given["count"], [given["offsets"], given["weights"], ahead, *sums]) as (now, following):
            table, weights, line, *sums = now
            following += [e.build.add(table, I64(4)), e.build.add(weights, I64(vectors * e.size))]
            following.append(e.build.add(line, I64(LINE if pixels > 1 else vectors * e.size)))
            offset, w = e.entry(table, 0), e.vectors(weights, min(vectors, spare))
            for part in range(0, LINE if pixels > 1 else vectors * e.size, LINE):
                e.prefetch(e.build.add(line, I64(part)))
            for p, v in tile:
                if v == 0:
                    a = e.everywhere(e.load(e.build.add(rows[p], offset), F32))
                if v == spare:  # one register too few: this vector stays in memory, and is loaded anew for each pixel
                    e.forget()
                    w = [*w[:spare], e.load(weights, e.vector, v * e.size)]
                following.append(e.multiply_add(a, w[v], sums[p * vectors + v]))
        low, high = (e.everywhere(given[bound]) for bound in ("low", "high"))
        columns = [e.entry(given["columns"], v) for v in range(vectors)]
        outs = [e.build.add(given["target"], e.entry(target_pixels, p)) for p in range(pixels)]
        for (p, v), total in zip(tile, following[3:], strict=True):
            e.store(e.between(low, total, high), e.build.add(outs[p], columns[v]))
    e.build.ret_void()


WINDOW = "source source_row source_pixel weights bias target target_row target_pixel rows width low high".split()


def window(function: ir.Function, machine: Machine, stride: int, pixels: int) -> None:
    """out[i, j] = bias + sum_{u, v} x[s i + u, s j + v] * w[u, v], from low to high, for one vector of channels and rows of pixels.

    The nine weights stay in registers, and an input is loaded once for all the pixels of the tile in whose windows it lies. The last
    pixels of a row are computed twice where they do not fill a tile.
    """
    e = Emitter(function, machine.lanes)
    given = dict(zip(WINDOW, function.args, strict=True))
    w, low, high = e.vectors(given["weights"], 9), *(e.everywhere(given[bound]) for bound in ("low", "high"))
    last = e.build.sub(given["width"], I64(pixels))
    tiles = e.build.udiv(e.build.add(given["width"], I64(pixels - 1)), I64(pixels))
    with e.loop(given["rows"], [given["source"], given["target"]]) as ((source_row, target_row), below):
        with e.loop(tiles, [I64(0)]) as ((column,), following):
            following.append(e.smaller(e.build.add(column, I64(pixels)), last))
            begin = e.build.add(source_row, e.build.mul(column, e.build.mul(given["source_pixel"], I64(stride))))
            sums = [e.load(given["bias"], e.vector)] * pixels
            for u in range(3):
                x = begin
                for place in range((pixels - 1) * stride + 3):
                    value = e.load(x, e.vector)
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
    e.build.ret_void()


SLOPE = "source source_row source_pixel gradient gradient_row gradient_pixel rows width target".split()


def slope(function: ir.Function, machine: Machine, stride: int) -> None:
    """dw[u, v] += sum_{i, j} x[s i + u, s j + v] * dy[i, j] for one vector of channels: the gradient of `window` by its weights."""
    e = Emitter(function, machine.lanes)
    given = dict(zip(SLOPE, function.args, strict=True))
    sums = e.vectors(given["target"], 9)
    with e.loop(given["rows"], [given["source"], given["gradient"], *sums]) as ((source, gradient, *sums), below):
        with e.loop(given["width"], [source, gradient, *sums]) as ((begin, out, *sums), following):
            following += [e.build.add(begin, e.build.mul(given["source_pixel"], I64(stride)))]
            following += [e.build.add(out, given["gradient_pixel"])]
            d = e.load(out, e.vector)
            for u in range(3):
                x = begin
                for v in range(3):
                    following.append(e.multiply_add(e.load(x, e.vector), d, sums[3 * u + v]))
                    x = e.build.add(x, given["source_pixel"])
                begin = e.build.add(begin, given["source_row"])
        below += [
            e.build.add(source, e.build.mul(given["source_row"], I64(stride))),
            e.build.add(gradient, given["gradient_row"]),
        ]
        below += following[2:]
    for place, total in enumerate(below[2:]):
        e.store(total, e.build.add(given["target"], I64(place * e.size)))
    e.build.ret_void()


MAXIMUM = "row0 row1 row2 pixel last target target_pixel count".split()


def maximum(function: ir.Function, machine: Machine) -> None:
    """out[j] = max_{u, v} x[u, 2j + v - 1] on one vector of channels, for a row of `count` pixels j.

    row0, row1, row2: the rows x[0], x[1], x[2], of pixels of the given size up to `last`. A pixel outside the image is replaced by
    its neighbour inside, which is in the window as well; the caller does so for rows.
    """
    e = Emitter(function, machine.lanes)
    given = dict(zip(MAXIMUM, function.args, strict=True))
    with e.loop(given["count"], [I64(0), given["target"]]) as ((column, target), following):
        inside = e.build.icmp_unsigned("<", column, given["last"])
        before = e.build.select(e.build.icmp_unsigned("!=", column, I64(0)), e.build.sub(column, given["pixel"]), column)
        behind = e.build.select(inside, e.build.add(column, given["pixel"]), column)
        pixels = [e.load(e.build.add(given[f"row{u}"], x), e.vector) for u in range(3) for x in (before, column, behind)]
        largest = pixels[0]
        for pixel in pixels[1:]:
            largest = e.larger(largest, pixel)
        e.store(largest, target)
        following += [e.step(e.step(column, given["pixel"]), given["pixel"]), e.build.add(target, given["target_pixel"])]
    e.build.ret_void()


AVERAGE = "source source_row source_pixel rows width share target".split()


def average(function: ir.Function, machine: Machine) -> None:
    """out = share * sum_{i, j} x[i, j] for one vector of channels."""
    e = Emitter(function, machine.lanes)
    given = dict(zip(AVERAGE, function.args, strict=True))
    with e.loop(given["rows"], [given["source"], ir.Constant(e.vector, [0.0] * e.lanes)]) as ((row, total), below):
        with e.loop(given["width"], [row, total]) as ((pixel, partial), following):
            following += [e.build.add(pixel, given["source_pixel"]), e.build.fadd(partial, e.load(pixel, e.vector))]
        below += [e.build.add(row, given["source_row"]), following[1]]
    e.store(e.build.fmul(below[1], e.everywhere(given["share"])), given["target"])
    e.build.ret_void()


PEAK = "count target".split()


def peak(function: ir.Function, machine: Machine) -> None:
    """`count` rounds of independent multiply-adds and nothing else: the most that the processor can do."""
    e = Emitter(function, machine.lanes)
    given = dict(zip(PEAK, function.args, strict=True))
    a, *sums = e.vectors(given["target"], 1 + PEAK_SUMS)
    with e.loop(given["count"], sums) as (sums, following):
        following += [e.multiply_add(total, a, a) for total in sums]
    for total in following:
        a = e.build.fadd(a, total)
    e.store(a, given["target"])
    e.build.ret_void()


def emit(module: ir.Module, kind: Callable[..., None], machine: Machine, **shape: int) -> ir.Function:
    """The tile of that kind and shape as a function of the module. It is not inlined: a tile wants all registers for itself."""
    name = "_".join((kind.__name__, *map(str, shape.values())))
    function = module.globals.get(name)
    if function is None:
        arguments = {dense: DENSE, window: WINDOW, slope: SLOPE, maximum: MAXIMUM, average: AVERAGE, peak: PEAK}[kind]
        kinds = [F32 if argument in ("low", "high", "share") else I64 for argument in arguments]
        function = ir.Function(module, ir.FunctionType(VOID, kinds), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        kind(function, machine, **shape)
    return function
