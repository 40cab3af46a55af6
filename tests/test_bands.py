"""Steps that are computed together in bands of rows: the same bits as one after the other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from test_engine import UNBUILT, assert_near, compiled, draw_images, params_of, plan_of, reference
from test_meetings import logits_in_turn

from pyshuffle.backends.numba import Numba
from pyshuffle.engine import bands
from pyshuffle.engine.machine import machine
from pyshuffle.engine.plan import Plan
from pyshuffle.engine.program import encode
from pyshuffle.engine.steps import DENSE, STEM
from pyshuffle.nets import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2
from pyshuffle.types import Array

SIZES = [  # height, width
    (MobileNetV1(0.25, classes=10), 64, 64),
    (MobileNetV2(0.4, classes=10), 97, 80),
    (MobileNetV2(0.4, classes=10), 150, 33),
    (ShuffleNetV1(0.5, groups=8, classes=10), 128, 96),
    (ShuffleNetV2(0.5, classes=10), 131, 75),
]
PAIRED = {"a_map_with_itself", "batchnorm_after_relu", "shuffles_on_shuffles"}  # of UNBUILT


@pytest.fixture(params=[1, 5000, 20000])
def narrow(request, monkeypatch):
    """Every map is large, and a band has two rows, a few, or many."""
    monkeypatch.setattr(bands, "LARGE", 0)
    monkeypatch.setattr(bands, "NEARBY", request.param)


def pairs(plan: Plan) -> list[str]:
    """The names of the convolutions that are computed together with the step behind them."""
    return [step.name for step in plan.steps if step.band and step.kind == DENSE]


def one_by_one(net: Callable, x: Array) -> Array:
    """The logits where no map is large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bands, "LARGE", math.inf)
        model = compiled(net, *x.shape[1:3])
        assert not pairs(model.plan)
        return model(x)


@pytest.mark.parametrize(("net", "height", "width"), SIZES, ids=str)
def test_pairs_give_the_same_bits(narrow, net, height, width):
    x = draw_images(3, height, width)
    expected = one_by_one(net, x)
    for threads in (1, 2, 3):
        model = compiled(net, height, width, threads)
        assert pairs(model.plan)
        for _ in range(2):
            np.testing.assert_array_equal(model(x), expected)


@pytest.mark.parametrize(("net", "height", "width"), SIZES, ids=str)
def test_threads_at_pairs_need_nothing_of_each_other_between_meetings(narrow, net, height, width):
    x = draw_images(1, height, width)[0]
    expected = one_by_one(net, x[None])[0]
    program = encode(plan_of(net, height, width, 3))
    for rng in (None, np.random.default_rng(0)):
        np.testing.assert_array_equal(logits_in_turn(program, 3, x, rng), expected)


def test_pairs_are_found_in_any_function_over_operations(narrow):
    found = {net.__name__ for net in UNBUILT if pairs(plan_of(net, 37, 50))}
    assert found == PAIRED


@pytest.mark.parametrize("net", [net for net in UNBUILT if net.__name__ in PAIRED], ids=lambda net: net.__name__)
def test_any_function_over_operations_is_computed_in_bands(narrow, net):
    for height, width in ((32, 32), (37, 50)):
        x = draw_images(2, height, width)
        for threads in (1, 2):
            assert_near(compiled(net, height, width, threads)(x), reference(net, x))


def test_maps_of_a_megabyte_are_large():
    """MobileNet's at 224 pixels. ShuffleNet's are smaller, but for the first, which is the stem's."""
    found = pairs(plan_of(MobileNetV2(), 224, 224))
    assert found == ["features.0.0", *(f"features.{unit}.conv.0.0" for unit in (2, 3, 4))]
    assert not pairs(plan_of(ShuffleNetV2(), 224, 224))


def test_a_map_that_is_read_twice_is_no_pairs(narrow):
    def net(ops, x):
        x = ops.conv(x, "conv", 8)
        y = ops.relu(ops.depthwise(x, "dw"))
        return ops.linear(ops.mean(ops.concat(x, y)), "fc", 5)

    x = draw_images(1, 40, 40)
    model = compiled(net, 40, 40)
    assert not pairs(model.plan)
    assert_near(model(x), net(Numba(params_of(net)), x))


def test_a_convolution_that_adds_a_shortcut_is_no_pairs(narrow):
    """Rows of the shortcut that other threads have would be needed as well."""

    def net(ops, x):
        x = ops.conv(x, "conv", 16, stride=2)
        x = ops.relu(ops.add(x, ops.conv(x, "next", 16)))
        return ops.linear(ops.mean(ops.depthwise(x, "dw", stride=2)), "fc", 5)

    x = draw_images(1, 42, 42)
    for threads in (1, 2):
        model = compiled(net, 42, 42, threads)
        assert not pairs(model.plan)
        assert_near(model(x), reference(net, x))


def test_steps_are_said_to_be_computed_together():
    lines = [line for line in str(plan_of(MobileNetV2(), 224, 224)).splitlines() if "bands of" in line]
    assert ["features.2.conv.0.0" in line for line in lines].count(True) == 1
    assert ["with the next in bands of" in line for line in lines] == [True] * 4
    image, conv, *others = str(plan_of(ShuffleNetV2(), 224, 224)).splitlines()[1:]
    assert image.endswith("0.000  with the next two in bands of 14 rows")
    assert "112 x 112 x 24" in conv
    assert not any("bands of" in line for line in others)


def test_a_row_of_a_stem_holds_a_tile():
    """Else a tile would reach beyond its band."""

    def net(ops, x):
        return ops.linear(ops.mean(ops.maxpool(ops.relu(ops.conv(x, "conv", 4, kernel=3, stride=2)))), "fc", 5)

    tall = max(machine().heights.values())
    assert [plan_of(net, 40, width).steps[0].kind == STEM for width in (2 * tall, 2 * tall - 2)] == [True, False]
