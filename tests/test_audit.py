"""The audit: figures of the papers, the table, and what it says of both."""

import csv
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pyshuffle import audit, cli, figures, nets
from pyshuffle.backends.cost import add_up, count, parameter_shapes
from pyshuffle.errors import ArchError
from pyshuffle.nets import ShuffleNetV1, ShuffleNetV2, mobilenet, shufflenet_v1, shufflenet_v2


def output(capsys, *arguments: str) -> str:
    assert audit.main(list(arguments)) == 0
    return capsys.readouterr().out


# Every figure -------------------------------------------------------------------------------------------------------------------


def test_every_printed_figure_is_what_is_counted(capsys):
    _, *lines = output(capsys).split("\n\n")[0].splitlines()
    said = [line.split()[0] for line in lines]
    assert len(said) > 100
    assert set(said) == {"equal", "misprint"}
    assert said.count("misprint") == sum(figure.misprint for figure in figures.figures())


def test_a_figure_is_compared_in_the_form_in_which_it_is_printed():
    net = ShuffleNetV2(2.0)
    for quantity, printed, rounded_up, here in (
        ("parameters", "7402600", False, "7402600"),
        ("parameters", "6.7M", False, "7.4M"),
        ("mmacs", "590.78", False, "590.78"),
        ("mmacs", "590", False, "591"),
        ("mmacs", "0.1", True, "590.8"),
        ("channels", "", False, "24 244 488 976 2048"),
    ):
        assert figures.counted(figures.Figure(net, quantity, printed, "", rounded_up)) == here


def changed(value: Any) -> Iterator[Any]:
    """The value with each of its numbers larger, one at a time, by what all groups divide."""
    if isinstance(value, dict):
        yield from ({**value, key: new} for key, old in value.items() for new in changed(old))
    elif isinstance(value, tuple):
        yield from ((*value[:i], new, *value[i + 1 :]) for i, old in enumerate(value) for new in changed(old))
    elif isinstance(value, int):
        yield value + 192 if value > 5 else value + 1 if value > 2 else 3 - value


CHANNELS = [
    (shufflenet_v1, "STAGE2"), (shufflenet_v1, "STEM"), (shufflenet_v1, "STEM_OF_AUTHORS"), (shufflenet_v1, "REPEATS"),
    (shufflenet_v2, "STEM"), (shufflenet_v2, "WIDTHS"), (shufflenet_v2, "REPEATS"),
    (mobilenet, "V1_STEM"), (mobilenet, "V1_UNITS"), (mobilenet, "V2_STEM"), (mobilenet, "V2_LAST"), (mobilenet, "V2_UNITS"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), CHANNELS, ids=lambda value: getattr(value, "__name__", value))
def test_no_channel_count_can_change_unseen(module, name, monkeypatch, capsys):
    """Nor the number of units, their strides or expansions."""
    concerned = [f for f in figures.figures() if type(f.net).__module__ == module.__name__ and not f.misprint]
    for value in changed(getattr(module, name)):
        monkeypatch.setattr(module, name, value)
        parameter_shapes.cache_clear()
        assert any(figures.counted(figure) != figure.printed for figure in concerned), f"{name} = {value}"
    assert audit.main([]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out
    monkeypatch.undo()
    parameter_shapes.cache_clear()


def test_the_networks_of_the_figures_are_named_by_options():
    """The same that the command line takes."""
    parser = cli.Parser()
    cli.add_net_options(parser)
    for figure in figures.figures():
        assert cli.net_from_options(parser.parse_args(cli.options_of(figure.net).split())) == figure.net
    assert (
        cli.options_of(ShuffleNetV2(extra_depthwise=True, shuffle=False))
        == "--arch v2 --width 1.0 --extra-depthwise --no-shuffle"
    )


def test_the_misprints_are_listed(capsys):
    said = output(capsys)
    for note in (*ShuffleNetV1().published.notes, *ShuffleNetV2(2.0).published.notes, *nets.MobileNetV1().published.notes):
        assert note in said


# Units --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["resnet", "resnext", "shufflenet"])
def test_a_unit_costs_what_the_paper_says(unit, capsys):
    said = output(capsys, "--unit", unit, "--channels", "24", "--bottleneck", "12", "--map", "7", "--groups", "4")
    macs = {
        "resnet": 49 * (2 * 24 * 12 + 9 * 144),
        "resnext": 49 * (2 * 24 * 12 + 9 * 36),
        "shufflenet": 49 * (2 * 24 * 3 + 9 * 12),
    }
    for name, cost in macs.items():
        assert f"{name} " in said
        assert f"= {cost:>12,}, counted {cost:>12,}: equal" in said
    table = said.split("\n\n")[0].splitlines()
    assert sum(int(line.split()[-4].replace(",", "")) for line in table[1:]) == macs[unit]


def test_a_unit_that_cannot_be(capsys):
    assert cli.run(audit.main, ["--unit", "resnet", "--channels", "25"]) == 2
    assert "channels=25, bottleneck=60, map=28" in capsys.readouterr().err


# One network --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "params", "macs", "without_linear"),
    [(ShuffleNetV1(groups=3), 1_865_728, 137.46, 136.50), (ShuffleNetV2(1.0, wiring="torchvision"), 2_278_604, 144.91, 143.88)],
)
def test_totals_are_the_published_ones(net, params, macs, without_linear):
    totals = add_up(count(net))
    assert totals.params == params
    assert totals.macs / 1e6 == pytest.approx(macs, abs=0.005)
    assert totals.macs_without_linear / 1e6 == pytest.approx(without_linear, abs=0.01)


def test_a_report(capsys):
    text = output(capsys, "--arch", "v1", "--groups", "3", "--layers")
    head, table, sums, *_ = text.split("\n\n")
    assert head == "ShuffleNetV1(width=1.0, groups=3, classes=1000, order='paper', bias=True, shuffle=True), 224 x 224 pixels"
    headings, first, *_ = lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert headings.split("  ")[0] == "layer"
    # 112 x 112 x 24 values by 27 products each; what is read, the image and the weights, and what is written
    assert first.split() == [
        "conv1.0",
        "conv",
        "112x112x24",
        "648",
        "8,128,512",
        f"{224 * 224 * 3 + 648 + 112 * 112 * 24:,}",
        f"{8_128_512 / (224 * 224 * 3 + 648 + 112 * 112 * 24):.2f}",
        "3",
    ]
    assert lines[-1].split() == ["fc", "linear", "1000", "961,000", "960,000", f"{960 + 961_000 + 1000:,}", "1.00", "719"]
    assert "parameters     1,865,728\n" in sums
    assert "137.46 million, 136.50 million without the linear layer" in sums
    assert "Stage repeats are often printed as" in text


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [
        (("--arch", "v1", "--groups", "3"), "137 million without the linear layer (V1, table 1): 136.50 agrees when rounded"),
        (("--arch", "v1", "--groups", "1"), "143 million without the linear layer (V1, table 1): 142.50 agrees when rounded"),
        (("--arch", "v1", "--width", "2"), "524 million with the linear layer (V1 paper): 524.05 agrees when rounded"),
        (("--arch", "v1", "--width", "0.5"), "no figure for this network (V1 paper)"),
        (("--width", "1.0"), "146 million with the linear layer (V2 paper): 145.81 agrees when rounded up"),
        (("--width", "0.5"), "41 million with the linear layer (V2 paper): 40.48 agrees when rounded up"),
        (
            ("--width", "1.0", "--wiring", "torchvision"),
            "146 million with the linear layer (V2 paper): 144.91 does not agree when rounded up",
        ),
        (("--size", "160"), "a figure for 224 x 224 pixels and 1000 classes only (V2 paper)"),
        (("--classes", "10"), "a figure for 224 x 224 pixels and 1000 classes only (V2 paper)"),
    ],
)
def test_what_the_paper_says(capsys, arguments, verdict):
    assert f"\npublished      {verdict}\n" in output(capsys, *arguments)


def test_json(capsys):
    answer = json.loads(output(capsys, "--width", "0.5", "--size", "64", "--json"))
    assert set(answer) == {"net", "size", "rows", "totals", "published"}
    assert answer["net"] == {"arch": "v2", "width": 0.5, "classes": 1000, "wiring": "paper", "order": "paper"} | {
        "extra_depthwise": False,
        "bias": False,
        "shuffle": True,
    }
    assert answer["size"] == 64
    assert answer["rows"][0] == {
        **{"name": "conv1.0", "op": "conv", "output": [32, 32, 24], "params": 648, "macs": 32 * 32 * 24 * 27},
        **{"read": 4 * (64 * 64 * 3 + 648), "written": 4 * 32 * 32 * 24, "field": 3},
    }
    for column in ("params", "macs", "read", "written"):
        assert answer["totals"][column] == sum(row[column] for row in answer["rows"])
    assert answer["totals"]["params"] == 1_365_792
    assert answer["published"]["mmacs"] == 41


def test_without_layers_there_are_only_sums(capsys):
    assert "conv1.0" not in output(capsys, "--arch", "v2")


def test_other_forms_of_the_table(capsys):
    text, by_csv, markdown = (output(capsys, "--layers", *form) for form in ((), ("--csv",), ("--markdown",)))
    table = [line.split() for line in text.split("\n\n")[1].splitlines()]
    comma = [[cell for cell in row if cell] for row in csv.reader(by_csv.splitlines())]
    assert [[cell.replace(",", "") for cell in row] for row in table[1:]] == comma[1:]
    first, rule, *rows = markdown.splitlines()
    assert first == "| layer | operation | output | parameters | multiply-adds | memory access | intensity | field |"
    assert set(rule) <= set("| -:")
    assert [[cell for cell in line.strip("|").replace(" ", "").split("|") if cell] for line in rows] == comma[1:]


def test_the_smallest_image(capsys):
    assert "1x1x1024" in output(capsys, "--size", "32", "--layers")
    with pytest.raises(ArchError, match="size=31 is too small: 32 to"):
        audit.main(["--size", "31"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--arch", "v3"),
        ("--width", "0.7"),
        ("--arch", "v1", "--groups", "5"),
        ("--size", "-224"),
        ("--size", "0"),
        ("--size", "9" * 200),
        ("--arch", "mobilenet_v2", "--width", "1e300"),
        ("--classes", "9" * 200),
        ("--channels", "12"),
        ("--unit", "resnet", "--json"),
        ("--unit", "resnet", "--width", "1.0"),
        ("--unit", "resnet", "--channels", "3" + "0" * 400),
        ("--json", "--markdown"),
    ],
)
def test_errors_are_one_line(capsys, arguments):
    assert cli.run(audit.main, list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_options_that_are_not_numbers():
    with pytest.raises(SystemExit, match="2"):
        audit.main(["--size", "big"])
