"""A network layer by layer, beside what its paper says of it: `python -m pyshuffle.audit --arch v1 --groups 3`"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import cli, nets
from .backends.cost import Row, count

SIZE, CLASSES = 224, 1000  # of the published figures
HEADINGS = ("layer", "operation", "output", "parameters", "multiply-adds", "bytes read", "written", "field")


class Totals(NamedTuple):
    """The sums over all rows."""

    params: int
    macs: int
    macs_without_linear: int
    read: int  # bytes
    written: int  # bytes


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    nets.check_size(args.size)
    net = cli.net_from_options(args)
    rows = count(net, args.size)
    totals = add_up(rows)
    if args.json:
        answer: dict[str, Any] = {"net": nets.describe(net), "size": args.size, "rows": [entry(row) for row in rows]}
        print(json.dumps(answer | {"totals": totals._asdict(), "published": net.published._asdict()}, indent=1))
    else:
        print(f"{net}, {args.size} x {args.size} pixels", table(rows), summary(totals), sep="\n\n")
        print(verdict(net, args.size, totals), *net.published.notes, sep="\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    about = "Count a network layer by layer, beside what its paper says of it."
    parser = cli.Parser(prog="python -m pyshuffle.audit", description=about)
    cli.add_net_options(parser)
    parser.add_argument("--size", type=int, default=SIZE, help="of the image, in pixels (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    return parser.parse_args(argv)


def add_up(rows: Sequence[Row]) -> Totals:
    params, macs, read, written = (sum(getattr(row, column) for row in rows) for column in ("params", "macs", "read", "written"))
    return Totals(params, macs, macs - sum(row.macs for row in rows if row.op == "linear"), read, written)


def entry(row: Row) -> dict[str, Any]:
    """A row as JSON has it: the output's shape without the batch, and its receptive field in pixels."""
    return row._asdict() | {"output": row.output.shape[1:], "field": row.output.field}


def table(rows: Sequence[Row]) -> str:
    """All rows, every column as wide as its widest cell."""
    cells = [HEADINGS, *map(cells_of, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    layout = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(layout.format(*row) for row in cells)


def cells_of(row: Row) -> tuple[str, ...]:
    numbers = (row.params, row.macs, row.read, row.written, row.output.field)
    return row.name, row.op, "x".join(map(str, row.output.shape[1:])), *(f"{number:,}" for number in numbers)


def summary(totals: Totals) -> str:
    macs, without_linear, read, written = (number / 1e6 for number in totals[1:])
    return (
        f"parameters     {totals.params:,}\n"
        f"multiply-adds  {macs:.2f} million, {without_linear:.2f} million without the linear layer\n"
        f"bytes          {read:.2f} million read, {written:.2f} million written: float32, one operation after another"
    )


def verdict(net: nets.Net, size: int, totals: Totals) -> str:
    """What the paper says, whether it counts the linear layer, and whether what is counted here rounds to it."""
    figure, source, with_linear, *_ = net.published
    if figure is None:
        return f"published      no figure for this network ({source})\n"
    if (size, net.classes) != (SIZE, CLASSES):
        return f"published      a figure for {SIZE} x {SIZE} pixels and {CLASSES} classes only ({source})\n"
    counted = (totals.macs if with_linear else totals.macs_without_linear) / 1e6
    which = "with" if with_linear else "without"
    up = net.published.rounded_up
    agrees = figure == (math.ceil(counted) if up else math.floor(counted + 0.5))
    rule = f"{'agrees' if agrees else 'does not agree'} when rounded{' up' if up else ''}"
    return f"published      {figure} million {which} the linear layer ({source}): {counted:.2f} {rule}\n"


if __name__ == "__main__":
    sys.exit(cli.run(main))
