"""The audit: figures of the papers, the table, and what it says of both."""

import json

import pytest

from pyshuffle import audit, cli
from pyshuffle.backends.cost import count
from pyshuffle.errors import ArchError
from pyshuffle.nets import ShuffleNetV1, ShuffleNetV2


def output(capsys, *arguments: str) -> str:
    assert audit.main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("net", "params", "macs", "without_linear"),
    [(ShuffleNetV1(groups=3), 1_865_728, 137.46, 136.50), (ShuffleNetV2(1.0, wiring="torchvision"), 2_278_604, 144.91, 143.88)],
)
def test_totals_are_the_published_ones(net, params, macs, without_linear):
    totals = audit.add_up(count(net))
    assert totals.params == params
    assert totals.macs / 1e6 == pytest.approx(macs, abs=0.005)
    assert totals.macs_without_linear / 1e6 == pytest.approx(without_linear, abs=0.01)


def test_a_report(capsys):
    text = output(capsys, "--arch", "v1", "--groups", "3")
    head, table, sums, *_ = text.split("\n\n")
    assert head == "ShuffleNetV1(width=1.0, groups=3, classes=1000, order='paper', bias=True, shuffle=True), 224 x 224 pixels"
    headings, first, *_ = lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert headings.split("  ")[0] == "layer"
    # 112 x 112 x 24 values by 27 products each; 4 bytes a value of the image and of the weights
    assert first.split() == [
        "conv1.0",
        "conv",
        "112x112x24",
        "648",
        "8,128,512",
        f"{4 * (224 * 224 * 3 + 648):,}",
        "1,204,224",
        "3",
    ]
    assert lines[-1].split() == ["fc", "linear", "1000", "961,000", "960,000", f"{4 * (960 + 961_000):,}", "4,000", "719"]
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


def test_the_smallest_image(capsys):
    assert "1x1x1024" in output(capsys, "--size", "32")
    with pytest.raises(ArchError, match="size=31 is too small: at least 32"):
        audit.main(["--size", "31"])


@pytest.mark.parametrize(
    "arguments", [("--arch", "v3"), ("--width", "0.7"), ("--arch", "v1", "--groups", "5"), ("--size", "-224")]
)
def test_errors_are_one_line(capsys, arguments):
    assert cli.run(audit.main, list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_options_that_are_not_numbers():
    with pytest.raises(SystemExit, match="2"):
        audit.main(["--size", "big"])
