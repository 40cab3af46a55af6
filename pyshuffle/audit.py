"""What is printed of the networks, beside what is counted: `python -m pyshuffle.audit`; one of them: `--arch v1 --groups 3 --layers`.

Exit code 0: all that is printed is what is counted, but for the listed misprints; 1: something is not.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from . import cli, nets, tables
from .backends.cost import FLOAT, Cost, Row, Shape, Totals, add_up, count
from .errors import ArchError, PyShuffleError
from .experiments import UNITS
from .figures import counted, figures, misprints

SIZE, CLASSES = 224, 1000  # of the published figures
UNIT = {
    "channels": (240, "of the unit"),
    "bottleneck": (60, "channels of the unit's 3x3"),
    "map": (28, "of the unit: side of its maps in pixels"),
}
MOST = 1_000_000  # of each of these
HEADINGS = ("layer", "operation", "output", "parameters", "multiply-adds", "memory access", "intensity", "field")


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    check_options(args)
    if args.unit:
        return unit(args)
    if not (args.layers or args.json or args.size is not None or cli.net_options(args)):
        return check_all(args.form)
    size = SIZE if args.size is None else args.size
    nets.check_size(size)
    net = cli.net_from_options(args)
    rows = count(net, size)
    totals = add_up(rows)
    if args.json:
        answer: dict[str, Any] = {"net": nets.describe(net), "size": size, "rows": [entry(row) for row in rows]}
        print(json.dumps(answer | {"totals": totals._asdict(), "published": net.published._asdict()}, indent=1))
    elif args.form != "text":
        print(layers(rows, args.form))
    else:
        print(f"{net}, {size} x {size} pixels\n", *([layers(rows), ""] if args.layers else []), summary(totals), "", sep="\n")
        print(verdict(net, size, totals), *net.published.notes, sep="\n")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    about = "Compare every published figure with what is counted, or, with options that name a network, count that one."
    parser = cli.Parser(prog="python -m pyshuffle.audit", description=about)
    cli.add_net_options(parser)
    parser.add_argument("--size", type=int, help=f"of the image, in pixels (default: {SIZE})")
    parser.add_argument("--layers", action="store_true", help="a row for every operation")
    parser.add_argument("--unit", choices=UNITS, help="the cost of a residual unit, as V1 compares them in section 3.2")
    for name, (default, what) in UNIT.items():
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help=f"{what} (default: {default})")
    tables.add_options(parser)
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    return parser.parse_args(argv)


def check_options(args: argparse.Namespace) -> None:
    """Raises PyShuffleError for options that would not be heeded."""
    of_unit = [name for name in UNIT if hasattr(args, name)]
    others = [name for name in cli.net_options(args) if name != "groups"]
    others += [name for name in ("size", "layers", "json") if getattr(args, name) not in (None, False)]
    if args.unit and others:
        raise PyShuffleError(f"--unit goes without --{others[0].replace('_', '-')}")
    if of_unit and not args.unit:
        raise PyShuffleError(f"--{of_unit[0]} goes with --unit only")
    if args.json and args.form != "text":
        raise PyShuffleError(f"--json goes without --{args.form}")


def check_all(form: str) -> int:
    """Every published figure and the same counted here."""
    rows, wrong = [], 0
    for figure in figures():
        here = counted(figure)
        right = (here == figure.printed) != figure.misprint
        wrong += not right
        says = "NOT EQUAL" if not right else "misprint" if figure.misprint else "equal"
        quantity = figure.quantity.replace("_", " ") + (", rounded up" if figure.rounded_up else "")
        rows.append((says, cli.options_of(figure.net), quantity, figure.printed, here, figure.source))
    print(tables.render(("", "network", "figure", "printed", "counted", "where"), rows, form, left=6))
    if form == "text":
        print("\nMisprints in widely copied tables:", *misprints(), sep="\n")
        print(f"\n{len(rows)} figures, {f'{wrong} of them NOT EQUAL' if wrong else 'equal on every line that is no misprint'}")
    return 1 if wrong else 0


def unit(args: argparse.Namespace) -> int:
    """A residual unit, by the paper's formula and counted."""
    c, m, side = (getattr(args, name, default) for name, (default, _) in UNIT.items())
    g = getattr(args, "groups", 3)
    if min(c, m, side, g) < 1 or max(c, m, side) > MOST or c % g or m % g:
        raise ArchError(
            f"channels={c}, bottleneck={m}, map={side}: 1 to {MOST} are needed, and channels that can be divided by groups={g}"
        )
    lines, wrong = [], 0
    for name, (formula, cost, main) in UNITS.items():
        ops, x = Cost(), Shape((1, side, side, c))
        ops.relu(ops.add(x, main(ops, x, c, m, g)))
        here, there = add_up(ops.rows).macs, cost(side * side, c, m, g)
        wrong += here != there
        lines.append(f"{name:<11} {formula:<23} = {there:>12,}, counted {here:>12,}: {'equal' if here == there else 'NOT EQUAL'}")
        if name == args.unit:
            print(layers(ops.rows, args.form))
    if args.form == "text":
        print("", *lines, sep="\n")
    return 1 if wrong else 0


def entry(row: Row) -> dict[str, Any]:
    """A row as JSON has it: the output's shape without the batch, and its receptive field in pixels."""
    return row._asdict() | {"output": row.output.shape[1:], "field": row.output.field}


def layers(rows: Sequence[Row], form: str = "text") -> str:
    """A line for every operation. Memory access is in values read and written, as V2 counts it; intensity, multiply-adds for each."""
    number = "{:,}" if form == "text" else "{}"
    cells = []
    for row in rows:
        access = (row.read + row.written) // FLOAT
        numbers = (number.format(value) for value in (row.params, row.macs, access))
        shape = "x".join(map(str, row.output.shape[1:]))
        cells.append((row.name, row.op, shape, *numbers, f"{row.macs / access:.2f}", row.output.field))
    return tables.render(HEADINGS, cells, form, left=2)


def summary(totals: Totals) -> str:
    macs, without_linear, read, written = (number / 1e6 for number in totals[1:])
    return (
        f"parameters     {totals.params:,}\n"
        f"multiply-adds  {macs:.2f} million, {without_linear:.2f} million without the linear layer\n"
        f"bytes          {read:.2f} million read, {written:.2f} million written: float32, one operation after another"
    )


def verdict(net: nets.Net, size: int, totals: Totals) -> str:
    """What the paper says, whether it counts the linear layer, and whether what is counted here rounds to it."""
    figure, source, with_linear, rounded_up, _ = net.published
    if figure is None:
        return f"published      no figure for this network ({source})\n"
    if (size, net.classes) != (SIZE, CLASSES):
        return f"published      a figure for {SIZE} x {SIZE} pixels and {CLASSES} classes only ({source})\n"
    which, macs = ("with", totals.macs) if with_linear else ("without", totals.macs_without_linear)
    agrees = figure == (math.ceil(macs / 1e6) if rounded_up else math.floor(macs / 1e6 + 0.5))
    rule = f"{'agrees' if agrees else 'does not agree'} when rounded{' up' if rounded_up else ''}"
    return f"published      {figure} million {which} the linear layer ({source}): {macs / 1e6:.2f} {rule}\n"


if __name__ == "__main__":
    sys.exit(cli.run(main))
