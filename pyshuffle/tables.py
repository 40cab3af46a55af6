"""Tables for people and for programs: text with aligned columns, Markdown, or CSV."""

import argparse
import csv
import io
from collections.abc import Iterable, Sequence


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--markdown` and `--csv`; what is chosen becomes `args.form`."""
    forms = parser.add_mutually_exclusive_group()
    for form in ("markdown", "csv"):
        forms.add_argument(f"--{form}", dest="form", action="store_const", const=form, default="text", help=f"tables as {form}")


def render(headings: Sequence[str], rows: Iterable[Sequence[object]], form: str = "text", left: int = 1) -> str:
    """Every column as wide as its widest cell; the first `left` columns are aligned to the left, the others to the right."""
    cells = [[*map(str, row)] for row in (headings, *rows)]
    if form == "csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(cells)
        return stream.getvalue().rstrip("\n")
    if form == "markdown":
        cells.insert(1, ["---" if i < left else "---:" for i in range(len(headings))])
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    layout = "  ".join(f"{{:{'<' if i < left else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(layout.format(*row).rstrip() for row in cells)
