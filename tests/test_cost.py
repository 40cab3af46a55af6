"""What the networks cost: every figure of the papers and of the published models, and single layers by hand."""

import math

import numpy as np
import pytest
from conftest import draw, draw_params
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pyshuffle.backends.cost import FLOAT, Cost, Row, Shape, count, parameter_shapes
from pyshuffle.backends.ops import Ops
from pyshuffle.backends.reference import Reference
from pyshuffle.backends.tape import Tape
from pyshuffle.nets import MobileNetV1, MobileNetV2, Net, ShuffleNetV1, ShuffleNetV2


def params_of(net: Net) -> int:
    return sum(row.params for row in count(net))


def mmacs_of(net: Net, with_linear: bool = True) -> float:
    """Millions of multiply-adds at 224x224."""
    return sum(row.macs for row in count(net) if with_linear or row.op != "linear") / 1e6


# The tables ---------------------------------------------------------------------------------------------------------------------

V1_AT_1X = [  # groups, parameters, MMACs with and without the linear layer, table 1 of the paper
    (1, 1_531_936, "143.08", "142.50", 143),
    (2, 1_733_848, "140.84", "140.04", 140),
    (3, 1_865_728, "137.46", "136.50", 137),
    (4, 1_968_344, "134.34", "133.25", 133),
    (8, 2_434_768, "138.37", "136.83", 137),
]


@pytest.mark.parametrize(("groups", "params", "mmacs", "without_linear", "table1"), V1_AT_1X)
def test_v1_at_1x(groups, params, mmacs, without_linear, table1):
    net = ShuffleNetV1(groups=groups)
    assert params_of(net) == params
    assert f"{mmacs_of(net):.2f}" == mmacs
    assert f"{mmacs_of(net, with_linear=False):.2f}" == without_linear
    assert (
        round(mmacs_of(net, with_linear=False)) == table1 == net.published.mmacs
    )  # the paper's column leaves the linear layer out
    assert not net.published.with_linear
    assert not net.published.rounded_up


V1_OF_AUTHORS = [  # groups, width, parameters, MMACs
    (3, 0.5, 717_324, "37.59"),
    (3, 1.0, 1_864_728, "137.46"),
    (3, 1.5, 3_441_168, "292.44"),
    (3, 2.0, 5_449_776, "524.05"),
    (8, 0.5, 1_010_448, "40.47"),
    (8, 1.0, 2_433_768, "138.37"),
    (8, 1.5, 4_268_952, "290.19"),
    (8, 2.0, 6_521_232, "521.94"),
]


@pytest.mark.parametrize(("groups", "width", "params", "mmacs"), V1_OF_AUTHORS)
def test_the_authors_v1(groups, width, params, mmacs):
    """Their linear layer has no bias: with one there are 1000 parameters more, and not a multiply-add."""
    net = ShuffleNetV1(width, groups, bias=False)
    assert params_of(net) == params
    assert params_of(ShuffleNetV1(width, groups)) == params + 1000
    assert f"{mmacs_of(net):.2f}" == f"{mmacs_of(ShuffleNetV1(width, groups)):.2f}" == mmacs


@pytest.mark.parametrize(("width", "paper"), [(1.5, 292), (2.0, 524)])
def test_wider_v1_in_the_paper_counts_the_linear_layer(width, paper):
    net = ShuffleNetV1(width, groups=3)
    assert round(mmacs_of(net)) == paper == net.published.mmacs
    assert net.published.with_linear


NARROW_V1 = [  # groups, width, parameters
    (1, 0.25, 209_746),
    (1, 0.5, 534_484),
    (1, 0.75, 975_214),
    (3, 0.25, 305_902),
    (3, 0.5, 718_324),
    (3, 0.75, 1_238_266),
]


@pytest.mark.parametrize(("groups", "width", "params"), NARROW_V1)
def test_v1_by_plain_scaling(groups, width, params):
    assert params_of(ShuffleNetV1(width, groups)) == params


V2 = [  # width, torchvision's parameters and MMACs, the authors', the paper's MMACs
    (0.5, 1_366_792, "40.48", 1_365_792, "40.48", 41),
    (1.0, 2_278_604, "144.91", 2_278_760, "145.81", 146),
    (1.5, 3_503_624, "295.76", 3_506_720, "298.97", 299),
    (2.0, 7_393_996, "583.25", 7_402_600, "590.78", 591),
]


@pytest.mark.parametrize(("width", "params", "mmacs", "authors_params", "authors_mmacs", "paper"), V2)
def test_v2(width, params, mmacs, authors_params, authors_mmacs, paper):
    torchvision, authors = ShuffleNetV2(width, wiring="torchvision"), ShuffleNetV2(width, wiring="paper")
    assert params_of(torchvision) == params
    assert f"{mmacs_of(torchvision):.2f}" == mmacs
    assert params_of(authors) == authors_params
    assert f"{mmacs_of(authors):.2f}" == authors_mmacs
    assert math.ceil(mmacs_of(authors)) == paper == authors.published.mmacs  # the paper rounds up: 40.48 is printed as 41
    assert authors.published.with_linear
    assert authors.published.rounded_up


@pytest.mark.parametrize(("width", "params"), [(0.25, 603_688), (0.33, 647_272)])
def test_v2_in_widths_of_others(width, params):
    assert params_of(ShuffleNetV2(width, wiring="torchvision")) == params


MOBILENETS = [  # parameters, MMACs
    (MobileNetV1(0.25), 470_072, "41.03"),
    (MobileNetV1(0.5), 1_331_592, "149.50"),
    (MobileNetV1(0.75), 2_585_560, "325.40"),
    (MobileNetV1(1.0), 4_231_976, "568.74"),
    (MobileNetV2(1.0), 3_504_872, "300.77"),
    (MobileNetV2(1.4), 6_108_776, "582.20"),
]


@pytest.mark.parametrize(("net", "params", "mmacs"), MOBILENETS, ids=str)
def test_the_mobilenets(net, params, mmacs):
    assert params_of(net) == params
    assert f"{mmacs_of(net):.2f}" == mmacs


def test_the_order_of_channels_costs_nothing():
    for kind in (ShuffleNetV1, ShuffleNetV2):
        paper, authors = kind(order="paper"), kind(order="authors")
        assert params_of(paper) == params_of(authors)
        assert mmacs_of(paper) == mmacs_of(authors)
        assert parameter_shapes(paper) == parameter_shapes(authors)


def test_the_shuffle_costs_nothing_that_the_papers_count():
    for kind in (ShuffleNetV1, ShuffleNetV2):
        with_it, without = kind(), kind(shuffle=False)
        assert params_of(with_it) == params_of(without)
        assert mmacs_of(with_it) == mmacs_of(without)
        assert "shuffle" in {row.op for row in count(with_it)}
        assert "shuffle" not in {row.op for row in count(without)}


# Single layers by hand ----------------------------------------------------------------------------------------------------------


def one(op: str, *args, x: tuple[int, ...] = (2, 7, 5, 6), **settings) -> Row:
    """The row of one operation on a map of 2 images, 7x5 pixels, 6 channels, that sees 3 pixels in steps of 2."""
    cost = Cost()
    getattr(cost, op)(Shape(x, field=3, jump=2), *args, **settings)
    (row,) = cost.rows
    return row


def test_a_grouped_strided_convolution():
    row = one("conv", "name", 12, kernel=3, stride=2, groups=3)
    assert row.name == "name"
    assert row.output == Shape((2, 4, 3, 12), field=3 + 2 * 2, jump=4)
    assert row.params == 3 * 3 * 2 * 12
    assert row.macs == (2 * 4 * 3 * 12) * (3 * 3 * 2)
    assert row.read == FLOAT * (2 * 7 * 5 * 6 + 3 * 3 * 2 * 12)
    assert row.written == FLOAT * 2 * 4 * 3 * 12


def test_a_1x1_convolution_reads_and_writes_what_guideline_1_says():
    """V2, section 2: a memory access of h w (c1 + c2) + c1 c2 / g values for h w c1 c2 / g multiply-adds."""
    h, w, c1, c2, g = 7, 5, 6, 9, 3
    row = one("conv", "name", c2, groups=g, x=(1, h, w, c1))
    assert row.read + row.written == FLOAT * (h * w * (c1 + c2) + c1 * c2 // g)
    assert row.macs == h * w * c1 * c2 // g
    assert row.output == Shape((1, h, w, c2), field=3, jump=2)


def test_a_depthwise_convolution():
    row = one("depthwise", "name", stride=2)
    assert row.output == Shape((2, 4, 3, 6), field=7, jump=4)
    assert (row.params, row.macs) == (9 * 6, 2 * 4 * 3 * 6 * 9)
    assert (row.read, row.written) == (FLOAT * (2 * 7 * 5 * 6 + 9 * 6), FLOAT * 2 * 4 * 3 * 6)


def test_a_batch_normalisation_reads_four_vectors_and_trains_two():
    row = one("batchnorm", "name")
    assert (row.params, row.macs) == (2 * 6, 0)
    assert (row.read, row.written) == (FLOAT * (2 * 7 * 5 * 6 + 4 * 6), FLOAT * 2 * 7 * 5 * 6)


@pytest.mark.parametrize("op", ["maxpool", "avgpool"])
def test_a_pool(op):
    row = one(op)
    assert row.output == Shape((2, 4, 3, 6), field=7, jump=4)
    assert (row.params, row.macs) == (0, 0)


def test_the_mean_sees_the_whole_map():
    row = one("mean", x=(2, 7, 7, 6))
    assert row.output.shape == (2, 6)
    assert row.output.field == 3 + 6 * 2


@pytest.mark.parametrize(("bias", "params"), [(True, 6 * 10 + 10), (False, 6 * 10)])
def test_a_linear_layer(bias, params):
    row = one("linear", "name", 10, bias=bias, x=(2, 6))
    assert (row.output.shape, row.params, row.macs) == ((2, 10), params, 2 * 6 * 10)
    assert (row.read, row.written) == (FLOAT * (2 * 6 + params), FLOAT * 2 * 10)


def test_what_moves_channels_computes_nothing_but_moves_bytes():
    for row in (one("shuffle", 2), one("split"), one("relu")):
        assert (row.params, row.macs) == (0, 0)
        assert row.read == row.written == FLOAT * 2 * 7 * 5 * 6


def test_two_branches_meet():
    """A sum or a concat sees what either branch sees, and reads both."""
    wide, narrow = Shape((1, 4, 4, 6), field=7, jump=2), Shape((1, 4, 4, 6), field=3, jump=2)
    for a, b in ((wide, narrow), (narrow, wide)):
        cost = Cost()
        assert cost.add(a, b) == wide
        assert cost.concat(a, b) == Shape((1, 4, 4, 12), field=7, jump=2)
        assert [row.read for row in cost.rows] == [FLOAT * 2 * 4 * 4 * 6] * 2
        assert [row.written for row in cost.rows] == [FLOAT * 4 * 4 * 6, FLOAT * 4 * 4 * 12]


# Whole networks -----------------------------------------------------------------------------------------------------------------


def receptive_field(net: Net) -> int:
    """Pixels of the image, along an axis, that a value of the last map depends on."""
    return next(row.output.field for row in reversed(count(net)) if len(row.output.shape) == 4)


def test_the_receptive_field_counts_every_3x3():
    """Steps of 1 for the stem, 2 for the pool, then per stage: one 3x3 before its stride, the others after it."""
    assert receptive_field(ShuffleNetV2()) == 1 + 2 * (1 + 2 + (4 + 3 * 8) + (8 + 7 * 16) + (16 + 3 * 32))
    assert receptive_field(ShuffleNetV1()) == receptive_field(ShuffleNetV2())


def test_v2_for_detection_sees_more():
    """V2, section 4: each unit's extra depthwise 3x3 comes before its stride."""
    more = receptive_field(ShuffleNetV2(extra_depthwise=True)) - receptive_field(ShuffleNetV2())
    assert more == 2 * ((4 + 3 * 8) + (8 + 7 * 16) + (16 + 3 * 32))


nets = st.one_of(
    st.builds(
        ShuffleNetV1,
        width=st.sampled_from([0.25, 0.5]),
        groups=st.sampled_from([1, 3]),
        classes=st.integers(1, 9),
        order=st.sampled_from(["paper", "authors"]),
        bias=st.booleans(),
        shuffle=st.booleans(),
    ),
    st.builds(
        ShuffleNetV2,
        width=st.sampled_from([0.33, 0.5]),
        classes=st.integers(1, 9),
        wiring=st.sampled_from(["paper", "torchvision"]),
        order=st.sampled_from(["paper", "authors"]),
        extra_depthwise=st.booleans(),
        shuffle=st.booleans(),
    ),
    st.builds(MobileNetV1, width=st.sampled_from([0.1, 0.25]), classes=st.integers(1, 9)),
    st.builds(MobileNetV2, width=st.sampled_from([0.15, 0.4]), classes=st.integers(1, 9)),
)


class Plain(Tape):
    """Without fused operations: the audit counts them one by one."""

    conv_bn = Ops.conv_bn


@settings(max_examples=20, phases=[Phase.generate])  # a failure is not shrunk: that would run networks for minutes
@given(net=nets, height=st.integers(32, 70), width=st.integers(32, 70), batch=st.integers(1, 2))
def test_what_is_counted_is_what_runs(net, height, width, batch):
    """Row by row the operation, the shape of its output and its multiply-adds, for images of any size, odd ones too."""
    cost, x = Cost(), draw(batch, height, width, 3)
    net(cost, Shape(x.shape))
    tape = Plain(Reference(draw_params(net, x.shape)))
    logits = net(tape, x)

    assert logits.shape == (batch, net.classes)
    for row, ran in zip(cost.rows, tape.records, strict=True):
        y = ran.outputs[0] if ran.op != "split" else ran.inputs[0]  # whose row is that of both halves
        weights = [tape.param(name) for name in ran.names]
        macs = y.size * math.prod(weights[0].shape[:-1]) if row.op in ("conv", "depthwise", "linear") else 0
        assert (row.op, row.output.shape, row.macs) == (ran.op, y.shape, macs)
        assert row.params == sum(w.size for w in weights)
        assert [cost.shapes[name] for name in ran.names] == [w.shape for w in weights]


def test_twice_the_images_are_twice_the_multiply_adds_and_the_same_parameters():
    one_image, two = (count(ShuffleNetV2(), size=97, batch=batch) for batch in (1, 2))
    assert sum(row.macs for row in two) == 2 * sum(row.macs for row in one_image)
    assert [row.params for row in two] == [row.params for row in one_image]
    assert np.all([b.written == 2 * a.written for a, b in zip(one_image, two, strict=True)])
