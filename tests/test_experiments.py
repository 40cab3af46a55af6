"""The experiments of the papers: what they cost, what the formulas say of it, and the sentence that a guideline ends with."""

import math

import numpy as np
import pytest
from conftest import assert_close
from hypothesis import given
from hypothesis import strategies as st

from pyshuffle import engine
from pyshuffle.backends.cost import FLOAT, Cost, Shape
from pyshuffle.backends.reference import Reference
from pyshuffle.experiments import GUIDELINES, SIDE, TABLE8, cost, draw


def memory_access(h: int, w: int, c1: int, c2: int, groups: int = 1) -> int:
    """Values that a 1x1 convolution reads and writes, by the formula of V2, section 2."""
    return h * w * (c1 + c2) + c1 * c2 // groups


@pytest.mark.parametrize("name", GUIDELINES)
def test_rows_of_a_table_have_the_same_flops(name):
    """To 1%, with the paper's channels, and maps that are a few rows higher where these give fewer."""
    macs = np.array([[cost(net)[1] for net in nets] for nets in GUIDELINES[name].stacks()])
    assert np.abs(macs / macs[0] - 1).max() < 0.01
    assert all(net.height == SIDE for net in GUIDELINES[name].stacks()[0])
    for line, nets in zip(GUIDELINES[name].lines, GUIDELINES[name].stacks(), strict=True):
        assert tuple(net.channels for net in nets) == line.channels
        assert all(abs(net.height - SIDE) <= 3 for net in nets)


def test_a_row_is_the_block_that_it_is_named_for():
    """Its convolutions, sums and ReLUs; in G3 as many fragments, in parallel or in series, in G4 a bottleneck with what is named."""
    for line in (*GUIDELINES["G3"].lines, *GUIDELINES["G4"].lines):
        ops, fragments = Cost(), int(line.name[0]) if line.name[0].isdigit() else 0
        line.block(ops, Shape((1, 8, 8, 64)), "block", 64)
        found = tuple(sum(row.op == op for row in ops.rows) for op in ("conv", "add", "relu"))
        sums = fragments - 1 if "parallel" in line.name else int("shortcut" in line.name)
        assert found == (fragments or 3, sums, 3 * ("ReLU" in line.name)), line.name
        assert [row.output.shape[3] for row in ops.rows if row.op == "conv"] == ([64] * fragments or [16, 16, 64])
    fastest = [guideline.lines[guideline.fastest].name for guideline in GUIDELINES.values()]
    assert fastest == ["1:1", "1 group", "1 fragment", "neither"]


@given(h=st.integers(1, 30), w=st.integers(1, 30), c1=st.integers(1, 50), c2=st.integers(1, 50), g=st.integers(1, 4))
def test_memory_access_is_what_the_audit_counts(h, w, c1, c2, g):
    ops = Cost()
    ops.conv(Shape((1, h, w, g * c1)), "name", g * c2, groups=g)
    (row,) = ops.rows
    assert memory_access(h, w, g * c1, g * c2, g) == (row.read + row.written) // FLOAT
    product = h * w * g * c1 * c2  # B: the multiply-adds
    assert row.macs == product
    assert memory_access(h, w, g * c1, g * c2, g) == pytest.approx(h * w * g * c1 + product / c1 + product / (h * w))


@given(h=st.integers(1, 30), w=st.integers(1, 30), c1=st.integers(1, 50), c2=st.integers(1, 50))
def test_memory_access_has_a_least_value_where_both_widths_are_equal(h, w, c1, c2):
    """V2, section 2, G1."""
    for a, b in ((c1, c2), (c1, c1)):
        product = h * w * a * b
        least = 2 * math.sqrt(h * w * product) + product / (h * w)
        assert memory_access(h, w, a, b) >= least * (1 - 1e-12)
        if a == b:
            assert memory_access(h, w, a, b) == pytest.approx(least)


@pytest.mark.parametrize("name", ["G1", "G2", "G3"])
def test_the_formula_gives_the_tables_memory_access(name):
    """Of its convolutions; in G3 sums are read and written besides."""
    for line, (net, *_) in zip(GUIDELINES[name].lines, GUIDELINES[name].stacks(), strict=True):
        ops = Cost()
        net(ops, Shape(net.shape))
        total, groups = 0, int(line.name.split()[0]) if name == "G2" else 1
        for row in ops.rows[1:-1]:
            c2 = row.output.shape[3]
            if row.op == "conv":
                total += memory_access(net.height, SIDE, ops.shapes[f"{row.name}.weight"][2] * groups, c2, groups)
            else:
                total += 3 * net.height * SIDE * c2
        assert cost(net)[0] == total


@pytest.mark.parametrize(("name", "line"), [("G1", 3), ("G2", 3), ("G3", 4), ("G4", 0), ("G4", 1)])
def test_the_engine_runs_what_the_reference_does(name, line):
    """From 32 pixels up, on weights that leave values in a range that floats have."""
    net = GUIDELINES[name].lines[line].stack(0)
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    params = draw(net)
    expected = net(Reference({name: w.astype(np.float64) for name, w in params.items()}), x.astype(np.float64))
    assert 1e-6 < np.abs(expected).max() < 1e6
    assert_close(engine.compile(net, params, x.shape, 1)(x), expected, 1e-4)


def sentence(name: str, factors: list[list[float]], noise: float = 0.0) -> str:
    """What a guideline says of times that are these multiples of that of the row that ought to be the fastest."""
    turns = np.random.default_rng(0).uniform(1 - noise, 1 + noise, (40, len(factors), 3))
    return GUIDELINES[name].verdict(name, turns * np.array(factors))


def test_a_guideline_holds_where_each_other_row_is_slower():
    clear = [[1, 1, 1], [1.1, 1.2, 1.3], [2, 2, 2], [4, 3, 2.5]]
    said = "holds here at every scale: 1:12 runs at 0.25, 0.33, 0.40 of the speed of 1:1 (turns "
    assert said in sentence("G1", clear)
    clear[1][1] = 0.99
    assert "holds here only at x1, x4: " in sentence("G1", clear)
    assert "holds here at no scale: " in sentence("G1", [[1, 1, 1], [0.9, 0.9, 0.9], [2, 2, 2], [4, 3, 2]])
    assert "holds here at every scale: ReLU and shortcut runs at 0.50" in sentence(
        "G4", [[2, 2, 2], [1.5] * 3, [1.5] * 3, [1, 1, 1]]
    )


def test_a_difference_within_the_spread_is_none():
    barely = [[1, 1, 1], [1.01, 1.01, 1.01], [2, 2, 2], [3, 3, 3]]
    assert "at every scale" in sentence("G1", barely)
    assert "at no scale" in sentence("G1", barely, noise=0.2)


def test_table_8_is_at_four_levels():
    assert sorted({peer.level for peer in TABLE8}) == [40, 140, 300, 500]
    for family in {type(peer.net) for peer in TABLE8}:
        assert {peer.level for peer in TABLE8 if type(peer.net) is family} == {40, 140, 300, 500}
