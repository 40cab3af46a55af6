"""Whole networks: against torch's logits, on every interpretation, at any size, with gradients that measurement confirms."""

import argparse
import json

import numpy as np
import pytest
from conftest import assert_close, draw, draw_params
from golden.make_logits import LOGITS, NETS, SIZES, images, parameters

from pyshuffle import cli, nets
from pyshuffle.backends.cost import parameter_shapes
from pyshuffle.backends.numba import Numba
from pyshuffle.backends.reference import Reference
from pyshuffle.backends.tape import Tape
from pyshuffle.errors import ArchError, PyShuffleError, WeightsError
from pyshuffle.gradcheck import check_network
from pyshuffle.init import initialise
from pyshuffle.nets import MobileNetV1, MobileNetV2, Net, ShuffleNetV1, ShuffleNetV2

# The answers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [pytest.param(size, marks=[pytest.mark.compiled] if size > 100 else []) for size in SIZES])
@pytest.mark.parametrize("name", NETS)
def test_logits_are_those_of_torch(backend, name, size):
    """Golden values, with statistics that are not trivial; golden/make_logits.py says how they were made."""
    params = {key: value.astype(backend.dtype) for key, value in parameters(parameter_shapes(NETS[name])).items()}
    logits = NETS[name](backend.kind(params), images(size).astype(backend.dtype))
    assert_close(logits, np.load(LOGITS)[f"{name}_{size}"], 1e-5)


SMALL = {
    "v1": ShuffleNetV1(0.25, groups=3, classes=5),
    "v1, 8 groups, authors' order": ShuffleNetV1(0.5, groups=8, classes=5, order="authors", bias=False),
    "v2": ShuffleNetV2(0.25, classes=5, wiring="torchvision"),
    "v2, as the authors have it": ShuffleNetV2(0.33, classes=5, order="authors"),
    "v2, for detection": ShuffleNetV2(0.25, classes=5, wiring="torchvision", extra_depthwise=True),
    "mobilenet v1": MobileNetV1(0.25, classes=5),
    "mobilenet v2": MobileNetV2(0.15, classes=5),
}
every_small_net = pytest.mark.parametrize("net", SMALL.values(), ids=SMALL)


@pytest.mark.compiled
@every_small_net
@pytest.mark.parametrize("training", [False, True])
def test_the_kernels_answer_as_the_reference(net, training):
    """Logits, gradients and what has become of the parameters (in training the running statistics move), to 1e-4 of the largest.

    The largest of all gradients: by the bias of a batch normalisation that only a convolution and another normalisation follow, the
    true gradient is 0, and what there is of it is rounding. Gradients in the median of five draws: where a ReLU's input is 0 but for
    rounding, it may open in one of the two and not in the other, and then they do differ.
    """
    errors = []
    for seed in range(5):
        x, dy = images(65, 2, seed).astype(np.float32), draw(2, 5, dtype=np.float32)
        answers = []
        for kind, dtype in ((Numba, np.float32), (Reference, np.float64)):
            params = {name: value.astype(dtype) for name, value in draw_params(net, x.shape, np.float32).items()}
            tape, x, dy = Tape(kind(params, training)), x.astype(dtype), dy.astype(dtype)
            logits = net(tape, x)
            by_name, (dx,) = tape.backward(logits, dy, wrt=(x,))
            gradients = np.concatenate([by_name[name].ravel() for name in sorted(by_name)])
            answers.append((dx, gradients, logits, tuple(params.values())))
        (_, _, *of_numba), (_, _, *of_reference) = answers
        for ours, theirs in zip(of_numba, of_reference, strict=True):
            assert_close(ours, theirs, 1e-4)
        errors.append([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(*(answer[:2] for answer in answers), strict=True)])
    assert (np.median(errors, axis=0) <= 1e-4).all(), errors


@pytest.mark.parametrize("name", ["v1", "v2", "mobilenet v2"])
def test_a_whole_networks_gradients_are_the_measured_ones(name):
    """In training, by the input and all parameters at once, and by the input and some parameters alone."""
    x = draw(3, 33, 33, 3)
    assert check_network(SMALL[name], draw_params(SMALL[name], x.shape), x) <= 1e-6


def reach(net: Net, units: int) -> np.ndarray:
    """Which channels of a stage, after that many units (3, channels), depend on each third or half of the channels before them."""
    channels = 36
    parts = getattr(net, "groups", 2)

    def run(ops, x):
        for i in range(units):
            x = net.unit_stride1(ops, x, f"stage2.{i}", channels)
        return x

    x = draw(1, 4, 4, channels)
    params, y = draw_params(run, x.shape), []
    for part in range(-1, parts):
        moved = x.copy()
        moved[..., part * channels // parts : (part + 1) * channels // parts] += 0.1 * (part >= 0)
        y.append(run(Reference(params), moved))
    return np.stack([(changed != y[0]).any(axis=(0, 1, 2)) for changed in y[1:]])


@pytest.mark.parametrize("order", ["paper", "authors"])
def test_without_the_shuffle_groups_of_v1_never_meet(order):
    """With it, every channel depends on every group after a single unit."""
    assert reach(ShuffleNetV1(groups=3, order=order), 1).all()
    apart = reach(ShuffleNetV1(groups=3, order=order, shuffle=False), 1)
    np.testing.assert_array_equal(apart, np.kron(np.eye(3, dtype=bool), np.ones((1, 12), bool)))


@pytest.mark.parametrize("order", ["paper", "authors"])
def test_without_the_shuffle_half_of_v2_passes_untouched(order):
    """With it, most channels depend on both halves after four units; a few have been passed on by each of them."""
    assert reach(ShuffleNetV2(order=order), 4).mean() > 0.9
    apart = reach(ShuffleNetV2(order=order, shuffle=False), 4)
    np.testing.assert_array_equal(apart, np.kron(np.eye(2, dtype=bool), np.ones((1, 18), bool)))


# The inputs ---------------------------------------------------------------------------------------------------------------------


def one_of_each() -> list[Net]:
    """Every width with every number of groups, and every width with every wiring."""
    v1 = [ShuffleNetV1(net.width, net.groups, 3) for net in ShuffleNetV1.variants() if net.bias]
    v2 = [
        ShuffleNetV2(net.width, classes=3, wiring=net.wiring)
        for net in ShuffleNetV2.variants()
        if net.bias == (net.wiring == "torchvision") and not net.extra_depthwise
    ]
    return [*v1, *v2, *(MobileNetV1(width, 3) for width in (0.25, 1.0)), *(MobileNetV2(width, 3) for width in (0.15, 1.4))]


@pytest.mark.parametrize("net", one_of_each(), ids=str)
def test_every_network_runs_from_32_pixels_up(net):
    params = initialise(net)
    for height, width in ((32, 32), (33, 45)):
        logits = net(Reference(params), np.ones((2, height, width, 3), np.float32))
        assert logits.shape == (2, 3)
        assert np.isfinite(logits).all()


def test_logits_of_an_image_do_not_depend_on_the_batch_in_inference(backend):
    net, x = SMALL["v2"], images(40, batch=3).astype(backend.dtype)
    params = draw_params(net, x.shape, backend.dtype)
    together = net(backend.kind(params), x)
    alone = np.concatenate([net(backend.kind(params), image[None]) for image in x])
    assert_close(together, alone, backend.tolerance)


def test_inference_leaves_the_parameters_alone(backend):
    net, x = SMALL["v1"], images(33).astype(backend.dtype)
    params, untouched = (draw_params(net, x.shape, backend.dtype) for _ in range(2))
    net(backend.kind(params), x)
    for name, value in untouched.items():
        np.testing.assert_array_equal(params[name], value)


def test_a_missing_parameter_is_named(backend):
    net, x = SMALL["v2"], images(32).astype(backend.dtype)
    params = draw_params(net, x.shape, backend.dtype)
    del params["stage3.1.branch2.4.running_var"]
    with pytest.raises(WeightsError, match=r"needs a parameter 'stage3\.1\.branch2\.4\.running_var' and the weights have none"):
        net(backend.kind(params), x)


# The names ----------------------------------------------------------------------------------------------------------------------

BAD_NETS = [  # what is asked for, what the message names, and the valid values it lists
    ({"arch": "v3"}, "no network 'v3'", "v1, v2, mobilenet_v1, mobilenet_v2"),
    ({"arch": "mobilenet_v1", "width": 0.01}, "mobilenet_v1 has no width 0.01", "0.03125 to 100.0 is needed"),
    ({"arch": "mobilenet_v2", "width": float("nan")}, "mobilenet_v2 has no width nan", "0.03125 to 100.0 is needed"),
    ({"arch": "v1", "wiring": "paper"}, "v1 has no setting 'wiring'", "width, groups, classes, order, bias, shuffle"),
    ({"arch": "v2", "groups": 3}, "v2 has no setting 'groups'", "width, classes, wiring, order, extra_depthwise, bias, shuffle"),
    ({"arch": "v1", "groups": 5}, "v1 has no groups=5", "1, 2, 3, 4, 8"),
    ({"arch": "v1", "width": 0.25, "groups": 8}, "v1 has no width 0.25 with groups=8", "0.5, 1.0, 1.5, 2.0"),
    ({"arch": "v1", "width": 0.5, "groups": 4}, "v1 has no width 0.5 with groups=4", "1.0, 2.0"),
    ({"arch": "v1", "width": 0.3, "groups": 1}, "v1 has no width 0.3 with groups=1", "0.25, 0.5, 0.75, 1.0, 1.5, 2.0"),
    ({"arch": "v1", "order": "torchvision"}, "v1 has no order 'torchvision'", "paper, authors"),
    ({"arch": "v2", "width": 0.75}, "v2 has no width 0.75", "0.25, 0.33, 0.5, 1.0, 1.5, 2.0"),
    ({"arch": "v2", "wiring": "authors"}, "v2 has no wiring 'authors'", "paper, torchvision"),
    ({"arch": "v2", "order": "random"}, "v2 has no order 'random'", "paper, authors"),
    ({"arch": "v2", "classes": 0}, "classes=0 is not", "in 1..1000000"),
    ({"arch": "v2", "width": 0.25, "wiring": "paper"}, "v2 0.25 has no channels for branch 2", "choose 'torchvision'"),
]


@pytest.mark.parametrize(("asked", "named", "valid"), BAD_NETS)
def test_there_is_no_such_network(asked, named, valid):
    with pytest.raises(ArchError) as raised:
        nets.build(**asked)
    assert named in str(raised.value)
    assert str(raised.value).endswith(valid)
    assert isinstance(raised.value, PyShuffleError)


@pytest.mark.parametrize("net", [*SMALL.values(), ShuffleNetV1(shuffle=False), ShuffleNetV2(shuffle=False)], ids=str)
def test_a_network_is_its_description(net):
    """Through JSON, as a checkpoint keeps it."""
    assert nets.build(**json.loads(json.dumps(nets.describe(net)))) == net


@pytest.mark.parametrize(
    ("options", "net"),
    [
        ([], ShuffleNetV2()),
        (["--arch", "v1", "--groups", "8", "--width", "0.5", "--no-bias"], ShuffleNetV1(0.5, groups=8, bias=False)),
        (
            ["--arch", "v2", "--wiring", "torchvision", "--extra-depthwise"],
            ShuffleNetV2(wiring="torchvision", extra_depthwise=True),
        ),
        (["--arch", "v1", "--no-shuffle"], ShuffleNetV1(shuffle=False)),
        (["--no-shuffle"], ShuffleNetV2(shuffle=False)),
        (["--arch", "mobilenet_v2", "--width", "1.4"], MobileNetV2(1.4)),
    ],
)
def test_a_network_from_the_command_line(options, net):
    parser = argparse.ArgumentParser()
    cli.add_net_options(parser)
    assert cli.net_from_options(parser.parse_args(options)) == net


def test_variants_differ_in_names_or_shapes_of_parameters():
    for kind in nets.ARCHS.values():
        tables = [tuple(parameter_shapes(net).items()) for net in kind.variants()]
        assert len(set(tables)) == len(tables)


def test_parameters_are_the_same_for_the_same_seed():
    net = SMALL["v1"]
    one, again, other = initialise(net, seed=1), initialise(net, seed=1), initialise(net, seed=2)
    assert {name: value.shape for name, value in one.items()} == dict(parameter_shapes(net))
    assert {value.dtype for value in one.values()} == {np.dtype(np.float32)}
    assert all((one[name] == again[name]).all() for name in one)
    assert (one["conv1.0.weight"] != other["conv1.0.weight"]).any()


def test_parameters_start_as_the_authors_draw_them():
    """First conv N(0, 0.01^2), others N(0, 1/f^2) with f inputs a group, linear N(0, 0.01^2) and no bias; BN's bias is 1e-4."""
    params = initialise(ShuffleNetV1(1.0, groups=3))
    assert params["conv1.0.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert params["stage4.1.branch2.0.weight"].std() == pytest.approx(1 / 320, rel=0.02)  # 960 / 3 inputs a group
    assert params["stage4.1.branch2.3.weight"].std() == pytest.approx(1, rel=0.05)  # depthwise: one input a group
    assert params["fc.weight"].std() == pytest.approx(0.01, rel=0.02)
    assert (initialise(MobileNetV2(0.15))["classifier.1.bias"] == 0).all()
    values = {"fc.bias": 0, "conv1.1.weight": 1, "conv1.1.bias": 1e-4, "conv1.1.running_mean": 0, "conv1.1.running_var": 1}
    for name, value in values.items():
        assert (params[name] == np.float32(value)).all()
