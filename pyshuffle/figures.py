"""What is printed of the networks, in papers and of released models, and the same counted here.

MMACs are millions of multiply-adds of convolutions and of the linear layer for an image of 224 x 224 pixels and 1000 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from typing import NamedTuple

from .backends.cost import add_up, count, parameter_shapes
from .nets import ARCHS, MobileNetV1, MobileNetV2, Net, ShuffleNetV1, ShuffleNetV2

MILLION = 1_000_000
ELSEWHERE = (  # misprints that no count can show
    "V1 0.5x is printed with an error of 55.1 and 351 batches/s, the row of MobileNet V2 0.15 in V2's table 8: it is 43.2 and 347.",
    'V1\'s error is said to be "only 7.8%": it is 7.8 points lower than that of MobileNet at 40 MMACs.',
    "V2's table 2 has 180 channels in 8 groups, which do not divide: the authors confirmed 184.",
)


class Figure(NamedTuple):
    """A printed figure."""

    net: Net
    quantity: str  # one of COUNTS
    printed: str
    source: str
    rounded_up: bool = False  # rather than to the nearest
    misprint: bool = False


def figures() -> Iterator[Figure]:
    """Every one there is."""
    for groups, params, stages, middle, mmacs, without in (
        (1, "1531936", "144 288 576", "36 72 144", "143.08", "142.50"),
        (2, "1733848", "200 400 800", "50 100 200", "140.84", "140.04"),
        (3, "1865728", "240 480 960", "60 120 240", "137.46", "136.50"),
        (4, "1968344", "272 544 1088", "68 136 272", "134.34", "133.25"),
        (8, "2434768", "384 768 1536", "96 192 384", "138.37", "136.83"),
    ):
        v1 = ShuffleNetV1(groups=groups)
        yield from of(v1, "V1, table 1", channels=f"24 {stages}")
        yield from of(v1, "V1, section 3.3", bottleneck=middle)
        yield from of(v1, "with a bias", parameters=params, mmacs=mmacs, mmacs_without_linear=without)
    for groups, width, channels, params, mmacs in (
        (3, 0.5, "12 120 240 480", "717324", "37.59"),
        (3, 1.0, "24 240 480 960", "1864728", "137.46"),
        (3, 1.5, "24 360 720 1440", "3441168", "292.44"),
        (3, 2.0, "48 480 960 1920", "5449776", "524.05"),
        (8, 0.5, "16 192 384 768", "1010448", "40.47"),
        (8, 1.0, "24 384 768 1536", "2433768", "138.37"),
        (8, 1.5, "24 576 1152 2304", "4268952", "290.19"),
        (8, 2.0, "48 768 1536 3072", "6521232", "521.94"),
    ):
        v1 = ShuffleNetV1(width, groups, bias=False)
        yield from of(v1, "authors' models", channels=channels, parameters=params, mmacs=mmacs, entries="295")
    for groups, each in ((1, ("209746", "534484", "975214")), (3, ("305902", "718324", "1238266"))):
        for width, params in zip((0.25, 0.5, 0.75), each, strict=True):
            yield from of(ShuffleNetV1(width, groups), "plain scaling", parameters=params)
    for width, channels, params, mmacs, authors_params, authors_mmacs in (
        (0.5, "24 48 96 192 1024", "1366792", "40.48", "1365792", "40.48"),
        (1.0, "24 116 232 464 1024", "2278604", "144.91", "2278760", "145.81"),
        (1.5, "24 176 352 704 1024", "3503624", "295.76", "3506720", "298.97"),
        (2.0, "24 244 488 976 2048", "7393996", "583.25", "7402600", "590.78"),
    ):
        both = {"channels": channels}
        torchvision = ShuffleNetV2(width, wiring="torchvision")
        yield from of(torchvision, "torchvision", **both, parameters=params, mmacs=mmacs, entries="338")
        yield from of(
            ShuffleNetV2(width), "authors' models", **both, parameters=authors_params, mmacs=authors_mmacs, entries="337"
        )
    for width, channels, params in ((0.25, "24 24 48 96 512", "603688"), (0.33, "24 32 64 128 512", "647272")):
        yield from of(ShuffleNetV2(width, wiring="torchvision"), "in use elsewhere", channels=channels, parameters=params)
    for net in (net for kind in ARCHS.values() for net in kind.variants()):
        says = net.published
        if says.mmacs is not None and not getattr(net, "bias", False) and getattr(net, "wiring", "paper") == "paper":
            quantity = "mmacs" if says.with_linear else "mmacs_without_linear"
            yield Figure(net, quantity, str(says.mmacs), says.source, says.rounded_up)
    for width, params, mmacs in (
        (0.25, "470072", "41.03"), (0.5, "1331592", "149.50"), (0.75, "2585560", "325.40"), (1.0, "4231976", "568.74")
    ):  # fmt: skip
        yield from of(MobileNetV1(width), "MobileNet V1", parameters=params, mmacs=mmacs)
    yield from of(MobileNetV1(), "MobileNet V1", share_of_first_conv="1.91%")
    for width, params, mmacs in ((1.0, "3504872", "300.77"), (1.4, "6108776", "582.2")):
        yield from of(MobileNetV2(width), "torchvision", parameters=params, mmacs=mmacs)
    for net, quantity, printed in (
        (ShuffleNetV1(), "units", "4 4 8"),
        (ShuffleNetV2(2.0), "parameters", "6.7M"),
        (MobileNetV1(), "share_of_first_conv", "1.19%"),
    ):
        yield Figure(net, quantity, printed, "copied tables", misprint=True)
    yield from of(ShuffleNetV1(), "V1, table 1", units="4 8 4")
    yield from of(ShuffleNetV2(2.0), "V2, table 5", units="4 8 4", parameters="7.4M")


def of(net: Net, source: str, **printed: str) -> Iterator[Figure]:
    """The figures of one network in one source."""
    for quantity, figure in printed.items():
        yield Figure(net, quantity, figure, source)


def counted(figure: Figure) -> str:
    """The same figure as it is counted here, in the form in which it is printed."""
    value = COUNTS[figure.quantity](figure.net)
    if isinstance(value, str):
        return value
    exact, unit = Decimal(value), figure.printed[-1] if figure.printed[-1] in "M%" else ""
    if figure.quantity.startswith("mmacs") or unit == "M":
        exact /= MILLION
    rounding = ROUND_CEILING if figure.rounded_up else ROUND_HALF_UP
    return f"{exact.quantize(Decimal(figure.printed.removesuffix(unit)), rounding)}{unit}"  # to as many digits


def channels_of(net: Net) -> str:
    """Those of the stem, of every stage and, where there is one, of the last convolution: what comes before each begins."""
    rows = count(net)
    parts = [f"stage{stage}." for stage in (2, 3, 4)] + (["conv5."] if net.arch == "v2" else [])
    begins = [next(i for i, row in enumerate(rows) if row.name.startswith(part)) for part in parts]
    begins.append(next(i for i, row in enumerate(rows) if row.op == "mean"))
    return " ".join(str(rows[begin - 1].output.shape[-1]) for begin in begins)


def units_of(net: Net) -> str:
    """Of every stage."""
    names = {row.name.rpartition(".branch")[0] for row in count(net)}
    return " ".join(str(sum(name.startswith(f"stage{stage}.") for name in names)) for stage in (2, 3, 4))


def bottleneck_of(net: Net) -> str:
    """The channels of the depthwise convolutions, once each."""
    return " ".join(dict.fromkeys(str(row.output.shape[-1]) for row in count(net) if row.op == "depthwise"))


def entries_of(net: Net) -> int:
    """Of a checkpoint: the parameters, and a counter for every batch normalisation."""
    names = parameter_shapes(net)
    return len(names) + sum(name.endswith("running_mean") for name in names)


COUNTS: dict[str, Callable[[Net], int | float | str]] = {
    "parameters": lambda net: add_up(count(net)).params,
    "mmacs": lambda net: add_up(count(net)).macs,
    "mmacs_without_linear": lambda net: add_up(count(net)).macs_without_linear,
    "channels": channels_of,
    "units": units_of,
    "bottleneck": bottleneck_of,
    "entries": entries_of,
    "share_of_first_conv": lambda net: 100 * count(net)[0].macs / add_up(count(net)).macs,
}


def misprints() -> list[str]:
    """In words: those of the networks, and those that no count can show."""
    notes = [f"{net.arch}: {note}" for kind in ARCHS.values() for net in kind.variants() for note in net.published.notes]
    return [*dict.fromkeys(notes), *ELSEWHERE]
