"""The tables in which the papers compare networks by speed, measured on one thread of this processor: for `bench.py`."""

from functools import partial
from typing import Any

import numpy as np

from . import cli, engine, tables
from .backends.cost import add_up, count
from .experiments import GUIDELINES, SIDE, TABLE8, cost, draw
from .init import initialise
from .stopwatch import in_turn


def guideline(name: str, rounds: int, form: str) -> list[dict[str, Any]]:
    """One of the four experiments of V2's section 2, printed, and its rows."""
    experiment = GUIDELINES[name]
    stacks = experiment.stacks()
    runs = []
    for net in (net for row in stacks for net in row):
        images = np.random.default_rng(0).standard_normal(net.shape, dtype=np.float32)
        runs.append(partial(engine.compile(net, draw(net), images.shape, 1), images))  # type: ignore[arg-type]
    times = in_turn(runs, rounds).reshape(rounds, len(stacks), 3)
    table = []
    for scale in range(3):
        for i, line in enumerate(experiment.lines):
            low, median, high = np.percentile(1 / times[:, i, scale], (25, 50, 75))
            access, macs = cost(stacks[i][scale])
            table.append(
                {"scale": f"x{1 << scale}", "row": line.name, "channels": line.channels[scale], "height": stacks[i][scale].height,
                 "memory_access": access, "macs": macs, "images_per_s": median, "quartiles": [low, high],
                 "gpu": line.gpu[scale], "cpu": line.cpu[scale]}
            )  # fmt: skip
    headings = ("", name, "channels", "map", "M values", "MFLOPs", "images/s", "half of the turns", "paper: GPU", "CPU")
    cells = [
        (row["scale"], row["row"], row["channels"], f"{row['height']} x {SIDE}",
         f"{row['memory_access'] / 1e6:.2f}", f"{row['macs'] / 1e6:.1f}", f"{row['images_per_s']:.1f}",
         "{:.1f} to {:.1f}".format(*row["quartiles"]), row["gpu"], row["cpu"])
        for row in table
    ]  # fmt: skip
    print(tables.render(headings, cells, form, left=2))
    if form == "text":
        print(f"\n{experiment.verdict(name, times)}")
    return table


def table8(rounds: int, form: str) -> list[dict[str, Any]]:
    """V2's table 8 with the speed of this processor, printed, and its rows."""
    runs = []
    for peer in TABLE8:
        images = np.random.default_rng(0).standard_normal((1, peer.size, peer.size, 3), dtype=np.float32)
        runs.append(partial(engine.compile(peer.net, initialise(peer.net), images.shape, 1), images))
    times = in_turn(runs, rounds)
    table = []
    for peer, turns in zip(TABLE8, times.T, strict=True):
        low, median, high = np.percentile(1 / turns, (25, 50, 75))
        totals = add_up(count(peer.net, peer.size))
        table.append(
            {"level": peer.level, "network": cli.options_of(peer.net), "size": peer.size, "macs": totals.macs,
             "params": totals.params, "images_per_s": median, "quartiles": [low, high], "error": peer.error, "gpu": peer.gpu,
             "arm": peer.arm}
        )  # fmt: skip
    headings = ("level", "network", "MMACs", "parameters", "images/s", "half of the turns", "paper: error", "GPU", "ARM")
    cells = [
        (f"{row['level']}M", f"{row['network']} --size {row['size']}", f"{row['macs'] / 1e6:.1f}", row["params"],
         f"{row['images_per_s']:.1f}", "{:.1f} to {:.1f}".format(*row["quartiles"]), f"{row['error']}%", row["gpu"], row["arm"])
        for row in table
    ]  # fmt: skip
    print(tables.render(headings, cells, form, left=2))
    return table
