"""What bench.py measures and how training went, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import PyShuffleError
from .weights import write_atomically

Rows = Sequence[dict[str, Any]]


def sheet(path: Path) -> Any:
    """What to draw on. Raises PyShuffleError without matplotlib, and for a file that it could not write."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise PyShuffleError("--plot needs matplotlib: pip install 'pyshuffle[plot]'") from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise PyShuffleError(f"--plot {path}: its name must end in one of {', '.join(sorted(kinds))}")
    if not path.absolute().parent.is_dir():
        raise PyShuffleError(f"--plot {path}: there is no such folder")
    return figure


def save(figure: Any, path: Path) -> None:
    """Write the picture, whole or not at all. Raises WeightsError."""
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix.removeprefix(".")))


def draw(results: dict[str, Any], figure: Any) -> None:
    """The picture of the one measurement that is among the results."""
    axes = figure.subplots()
    if "table8" in results:
        speeds(axes, results["table8"], "o-")
    elif "sweep" in results:
        speeds(axes, results["sweep"], "o")
    elif "guideline" in results:
        guideline(axes, results["guideline"])
    else:
        steps(axes, results["profile"])
    axes.legend()


def speeds(axes: Any, rows: Rows, style: str) -> None:
    """Against multiply-adds, a colour for each family of networks (V2, figure 1)."""
    families = list(dict.fromkeys(row["network"].split()[1] for row in rows))
    for number, family in enumerate(families):
        points = [(row["macs"] / 1e6, row["images_per_s"], row["network"]) for row in rows if row["network"].split()[1] == family]
        macs, values, labels = zip(*sorted(points), strict=True)
        axes.plot(macs, values, style, color=f"C{number}", label=family)
        for label, *place in zip(labels, macs, values, strict=True):
            axes.annotate(" ".join(label.split()[2:]).replace("--", ""), place, fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="million multiply-adds", ylabel="images/s")


def guideline(axes: Any, rows: Rows) -> None:
    """Bars for this computer and the paper's two, each relative to its fastest at that scale."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    for number, (column, label) in enumerate((("images_per_s", "here"), ("gpu", "paper, GPU"), ("cpu", "paper, CPU"))):
        fastest = [max(row[column] for row in rows if row["scale"] == given["scale"]) for given in rows]
        places = [i // len(names) * (len(names) + 1) + i % len(names) + 0.25 * number for i in range(len(rows))]
        axes.bar(places, [row[column] / most for row, most in zip(rows, fastest, strict=True)], width=0.25, label=label)
    axes.set_xticks(places, [f"{row['row']} {row['scale']}" for row in rows], rotation=45, ha="right", fontsize=7)
    axes.set(ylabel="speed, relative to the fastest at each scale")


def steps(axes: Any, rows: Rows) -> None:
    """The time of each, a colour for each kind."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    colours = [f"C{kinds.index(row['kind'])}" for row in rows]
    axes.barh([row["name"] for row in rows], [row["seconds"] * 1e6 for row in rows], color=colours)
    for number, kind in enumerate(kinds):
        axes.barh([rows[0]["name"]], [0], color=f"C{number}", label=kind)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set(xlabel="microseconds, one thread")


def curves(rows: Rows, figure: Any) -> None:
    """Loss and accuracy after each epoch, of the images trained on and of those held out."""
    epochs = [row["epoch"] for row in rows]
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[what] for row in rows], ".-", label="in training")
        axes.plot(epochs, [row[f"held_out_{what}"] for row in rows], ".-", label="held out")
        axes.set(xlabel="epoch", ylabel=what)
        axes.legend()
