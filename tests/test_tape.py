"""Gradients by replaying a record: fan-out, every unit of both networks, running statistics, and the checker that judges them all."""

from functools import partial

import numpy as np
import pytest
from conftest import assert_close, draw, draw_params

from pyshuffle import Reference
from pyshuffle.backends.arrays import BN_MOMENTUM
from pyshuffle.backends.tape import Tape
from pyshuffle.errors import ShapeError
from pyshuffle.gradcheck import check_network, gradcheck
from pyshuffle.nets import ShuffleNetV1, ShuffleNetV2
from pyshuffle.ops.shuffle import shuffle_reference

# The checker: it must see what is wrong -----------------------------------------------------------------------------------------

SQUARES = (lambda x: x**2, lambda dy, x: (2 * x * dy,))  # forward and backward


def test_a_right_gradient_passes():
    assert gradcheck(*SQUARES, [draw(3, 4)]) <= 1e-8


@pytest.mark.parametrize(
    "wrong",
    [
        lambda dy, x: (2 * x * dy * (1 + 1e-5),),
        lambda dy, x: (2 * x * dy[::-1],),
        lambda dy, x: (2 * x * dy.mean(),),
        lambda dy, x: (np.where(x == x.max(), 0, 2 * x * dy),),
        lambda dy, x: (-2 * x * dy,),
        lambda dy, x: (0 * x,),
        lambda dy, x: (np.where(x == x.max(), np.nan, 2 * x * dy),),
    ],
    ids=["scaled", "reversed", "averaged", "one missing", "negative", "nothing", "one NaN"],
)
def test_a_wrong_gradient_does_not(wrong):
    error = gradcheck(SQUARES[0], wrong, [draw(3, 4)], coordinates=40)
    assert not error <= 1e-6


def test_a_shuffle_that_moves_channels_the_wrong_way_is_seen():
    """With a constant cotangent it would pass: the sum of all channels is the same in any order."""
    x = draw(2, 6)
    forward = partial(shuffle_reference, groups=2)
    assert gradcheck(forward, lambda dy, x: (shuffle_reference(dy, 3),), [x]) <= 1e-8
    assert gradcheck(forward, lambda dy, x: (shuffle_reference(dy, 2),), [x]) > 0.1


def test_where_all_is_zero_nothing_is_checked():
    assert np.isnan(gradcheck(lambda x: 0 * x, lambda dy, x: (0 * dy,), [draw(3, 4)]))


def test_of_several_outputs_and_arrays_every_pair_is_checked():
    def forward(a, b):
        return a * b, a + 3 * b

    def backward(dproduct, dsum, a, b):
        return dproduct * b + dsum, dproduct * a + 3 * dsum

    def forgetful(dproduct, dsum, a, b):
        return dproduct * b + dsum, dproduct * a

    arrays = [draw(3, 2, seed=1), draw(3, 2, seed=2)]
    assert gradcheck(forward, backward, arrays) <= 1e-8
    assert gradcheck(forward, forgetful, arrays) > 0.1


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(ShapeError, match="arrays are float64, float32: gradients are measured in float64"):
        gradcheck(np.add, lambda dy, a, b: (dy, dy), [draw(2, 3), draw(2, 3, dtype=np.float32)])
    with pytest.raises(ShapeError, match=r"gradients have shapes \[\(2, 1\)\], arrays \[\(2, 3\)\]"):
        gradcheck(np.negative, lambda dy, x: (-dy[:, :1],), [draw(2, 3)])


# Fan-out: an array that several operations read receives the sum of what they send back ---------------------------------------------


def added_to_itself(ops, x):
    return ops.add(x, x)


def joined_with_itself(ops, x):
    return ops.concat(x, ops.relu(x))


def split_and_both_used(ops, x):
    left, right = ops.split(x)
    return ops.add(left, ops.add(right, left))


def split_and_one_used(ops, x):
    left, _ = ops.split(x)
    return ops.relu(left)


def one_layer_twice(ops, x):
    return ops.conv(ops.relu(ops.conv(x, "shared", 4)), "shared", 4)


def a_residual_in_a_residual(ops, x):
    y = ops.add(x, ops.conv(x, "inner", 4))
    return ops.add(ops.relu(y), ops.add(y, ops.depthwise(y, "outer")))


FAN_OUTS = [
    added_to_itself,
    joined_with_itself,
    split_and_both_used,
    split_and_one_used,
    one_layer_twice,
    a_residual_in_a_residual,
]


@pytest.mark.parametrize("net", FAN_OUTS)
def test_gradients_sum_where_an_array_fans_out(net):
    x = draw(2, 3, 3, 4)
    assert check_network(net, draw_params(net, x.shape), x) <= 1e-6


def test_the_gradient_of_x_plus_x_is_two(backend):
    tape, x = Tape(backend.kind({})), draw(1, 2, 2, 3, dtype=backend.dtype)
    dy = draw(1, 2, 2, 3, dtype=backend.dtype, seed=1)
    _, (dx,) = tape.backward(tape.add(x, x), dy, wrt=(x,))
    np.testing.assert_array_equal(dx, 2 * dy)


def test_a_gradient_can_be_asked_for_by_what_an_operation_made(backend):
    tape, x = Tape(backend.kind({})), draw(1, 2, 2, 3, dtype=backend.dtype)
    hidden = tape.relu(x)
    y = tape.add(hidden, hidden)
    _, (dhidden,) = tape.backward(y, np.ones_like(y), wrt=(hidden,))
    np.testing.assert_array_equal(dhidden, 2 * np.ones_like(hidden))


def test_a_gradient_by_what_is_split_is_an_array(backend):
    """Where a split sends back its two halves, they are joined for whoever asks."""
    tape, x = Tape(backend.kind({})), draw(1, 2, 3, 8, dtype=backend.dtype)
    left, right = tape.split(x)
    dy = draw(1, 2, 3, 8, dtype=backend.dtype, seed=1)
    _, (dx,) = tape.backward(tape.concat_shuffle(right, left, 2), dy, wrt=(x,))
    assert type(dx) is np.ndarray
    right, left = np.split(shuffle_reference(dy, 4), 2, axis=3)
    np.testing.assert_array_equal(dx, np.concatenate((left, right), axis=3))


HALVED = {
    "maxpool": lambda ops, x: ops.maxpool(x),
    "conv_bn": lambda ops, x: ops.conv_bn(x, "conv", "bn", 6),
    "depthwise_bn": lambda ops, x: ops.depthwise_bn(x, "conv", "bn"),
    "mean": lambda ops, x: ops.mean(x),
    "linear": lambda ops, x: ops.linear(ops.mean(x), "fc", 6),
    "split": lambda ops, x: ops.split(x)[0],
    "concat": lambda ops, x: ops.concat(x, x),
    "add_relu": lambda ops, x: ops.add_relu(x, x),
    "itself and another": lambda ops, x: ops.concat(x, ops.relu(x)),
}


def turned(operation, ops, x):
    """What an operation makes, its halves in each other's place."""
    left, right = ops.split(operation(ops, x))
    return ops.concat(right, left)


@pytest.mark.parametrize("operation", HALVED.values(), ids=HALVED)
def test_any_operation_takes_the_two_halves_of_its_gradient(backend, operation):
    net, shape = partial(turned, operation), (2, 6, 5, 8)
    results = []
    for kind, dtype in ((backend.kind, backend.dtype), (Reference, np.float64)):
        x = draw(*shape, dtype=dtype)
        tape = Tape(kind(draw_params(net, shape, dtype), training=True))
        y = net(tape, x)
        gradients, (dx,) = tape.backward(y, draw(*y.shape, dtype=dtype, seed=1), wrt=(x,))
        results.append((dx, *(gradients[name] for name in sorted(gradients))))
    assert_close(*results, 1e-4)


# The record ---------------------------------------------------------------------------------------------------------------------


def stem(ops, x):
    return ops.mean(ops.maxpool(ops.conv_bn(x, "conv", "bn", 4, kernel=3, stride=2)))


def test_parameters_get_the_same_gradients_whether_or_not_the_image_does(backend):
    """Unasked, the gradient with respect to the image need not be computed; nothing else may change."""
    x, dy = draw(2, 9, 9, 3, dtype=backend.dtype), draw(2, 4, dtype=backend.dtype)
    params, by_name = draw_params(stem, x.shape, backend.dtype), []
    for wrt in ((), (x,)):
        tape = Tape(backend.kind(params))
        by_name.append(tape.backward(stem(tape, x), dy, wrt)[0])
    assert by_name[0].keys() == {"conv.weight", "bn.weight", "bn.bias"}
    for name in by_name[0]:
        np.testing.assert_array_equal(by_name[0][name], by_name[1][name])


def test_what_y_does_not_depend_on_gets_nothing(backend):
    tape = Tape(backend.kind({name: draw(1, 1, 3, 3, dtype=backend.dtype) for name in ("used.weight", "idle.weight")}))
    x, other = (draw(1, 2, 2, 3, dtype=backend.dtype, seed=seed) for seed in (1, 2))
    tape.conv(other, "idle", 3)
    y = tape.conv(x, "used", 3)
    by_name, (dx, dother) = tape.backward(y, np.ones_like(y), wrt=(x, other))
    assert by_name.keys() == {"used.weight"}
    assert np.abs(dx).max() > 0
    np.testing.assert_array_equal(dother, np.zeros_like(other))


def test_the_gradient_of_an_array_from_elsewhere_is_refused(backend):
    x = draw(1, 2, 2, 3, dtype=backend.dtype)
    tape = Tape(backend.kind({}))
    y = tape.relu(x)
    with pytest.raises(ShapeError, match="not made by what this tape has recorded"):
        tape.backward(y.copy(), y)


def test_the_gradient_of_an_array_that_was_not_read_is_refused(backend):
    """Not 0: a copy of an input is another array."""
    x, dy = draw(2, 9, 9, 3, dtype=backend.dtype), draw(2, 4, dtype=backend.dtype)
    tape = Tape(backend.kind(draw_params(stem, x.shape, backend.dtype)))
    y = stem(tape, x)
    with pytest.raises(ShapeError, match="an array in wrt was neither read nor made"):
        tape.backward(y, dy, wrt=(x[:],))
    assert tape.backward(y, dy, wrt=(x,))[1][0].any()


def test_the_record_is_used_up(backend):
    """A second replay has nothing to replay, and says so; a second run starts a new record."""
    x, dy = draw(2, 9, 9, 3, dtype=backend.dtype), draw(2, 4, dtype=backend.dtype)
    tape = Tape(backend.kind(draw_params(stem, x.shape, backend.dtype)))
    y = stem(tape, x)
    first, _ = tape.backward(y, dy)
    assert tape.records == []
    with pytest.raises(ShapeError, match="used up its record"):
        tape.backward(y, dy)
    again, _ = tape.backward(stem(tape, x), dy)
    for name in first:
        np.testing.assert_array_equal(again[name], first[name])


def test_nothing_handed_in_is_written_to(backend):
    """Sums are made where arrays fan out; none of them in place."""
    x, dy = draw(2, 3, 3, 4, dtype=backend.dtype), draw(2, 3, 3, 4, dtype=backend.dtype, seed=1)
    params = draw_params(a_residual_in_a_residual, x.shape, backend.dtype)
    before = [a.copy() for a in (x, dy, *params.values())]
    tape = Tape(backend.kind(params))
    tape.backward(a_residual_in_a_residual(tape, x), dy, wrt=(x,))
    for now, then in zip((x, dy, *params.values()), before, strict=True):
        np.testing.assert_array_equal(now, then)


# Training -----------------------------------------------------------------------------------------------------------------------


ENTRIES = ("weight", "bias", "running_mean", "running_var")


def normalise(ops, x):
    return ops.batchnorm(x, "bn")


def test_running_statistics_move_a_tenth_of_the_way(backend):
    """Towards the batch's mean and its unbiased variance: the sum of squares divided by P - 1, for P = N H W values a channel."""
    x = draw(2, 3, 5, 4, dtype=backend.dtype)
    params = draw_params(normalise, x.shape, backend.dtype)
    mean, var = params["bn.running_mean"].copy(), params["bn.running_var"].copy()
    normalise(backend.kind(params, training=True), x)
    pixels = x.reshape(30, 4).astype(np.float64)
    assert BN_MOMENTUM == 0.1
    assert_close(params["bn.running_mean"], 0.9 * mean + 0.1 * pixels.mean(axis=0), backend.tolerance)
    assert_close(params["bn.running_var"], 0.9 * var + 0.1 * pixels.var(axis=0, ddof=1), backend.tolerance)


def test_training_normalises_with_the_batch_and_inference_with_the_running_statistics(backend):
    x = draw(2, 3, 5, 4, dtype=backend.dtype)
    params = draw_params(normalise, x.shape, backend.dtype)
    gamma, beta, mean, var = (params[f"bn.{entry}"].copy() for entry in ENTRIES)
    inference = normalise(backend.kind(params), x)
    training = normalise(backend.kind(params, training=True), x)
    own_mean, own_var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    assert_close(inference, gamma * (x - mean) / np.sqrt(var + 1e-5) + beta, backend.tolerance)
    assert_close(training, gamma * (x - own_mean) / np.sqrt(own_var + 1e-5) + beta, backend.tolerance)


def test_one_value_a_channel_can_be_trained_on(backend):
    """Its variance is 0, and an unbiased one does not exist: the output is beta, and all stays finite."""
    x = draw(1, 1, 1, 4, dtype=backend.dtype)
    params = draw_params(normalise, x.shape, backend.dtype)
    np.testing.assert_array_equal(normalise(backend.kind(params, training=True), x).ravel(), params["bn.bias"])
    assert np.isfinite(params["bn.running_var"]).all()


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_statistics_of_the_wrong_shape_are_refused(backend, training):
    x = draw(2, 3, 5, 4, dtype=backend.dtype)
    for entry in ENTRIES:
        params = draw_params(normalise, x.shape, backend.dtype)
        params[f"bn.{entry}"] = np.ones(5, backend.dtype)
        with pytest.raises(ShapeError, match="one value for each of the 4 channels is needed"):
            normalise(backend.kind(params, training), x)


def test_the_checker_leaves_running_statistics_alone():
    x = draw(2, 3, 5, 4)
    params, untouched = (draw_params(normalise, x.shape) for _ in range(2))
    assert check_network(normalise, params, x) <= 1e-6
    for name in untouched:
        np.testing.assert_array_equal(params[name], untouched[name])


# The units of both networks, in training and in inference ---------------------------------------------------------------------------


def v1_unit(stride, first_groups=3, **settings):
    net = ShuffleNetV1(0.25, groups=3, **settings)
    if stride == 1:
        return lambda ops, x: net.unit_stride1(ops, x, "unit", 24)
    return lambda ops, x: net.unit_stride2(ops, x, "unit", 24, 60, first_groups)


def v2_unit(stride, **settings):
    net = ShuffleNetV2(0.33, **settings)
    if stride == 1:
        return lambda ops, x: net.unit_stride1(ops, x, "unit", 24)
    return lambda ops, x: net.unit_stride2(ops, x, "unit", 24, 32)


UNITS = {
    "V1, figure 2 (b)": v1_unit(1),
    "V1, figure 2 (b), authors' order": v1_unit(1, order="authors"),
    "V1, figure 2 (c)": v1_unit(2),
    "V1, figure 2 (c), authors' order": v1_unit(2, order="authors"),
    "V1, the first unit of stage 2": v1_unit(2, first_groups=1),
    "V2, figure 3 (c)": v2_unit(1),
    "V2, figure 3 (c), authors' order": v2_unit(1, order="authors"),
    "V2, figure 3 (d), paper's wiring": v2_unit(2, wiring="paper"),
    "V2, figure 3 (d), torchvision's wiring": v2_unit(2, wiring="torchvision"),
    "V2, figure 3 (d), paper's wiring, authors' order": v2_unit(2, wiring="paper", order="authors"),
    "V2, figure 3 (d), torchvision's wiring, authors' order": v2_unit(2, wiring="torchvision", order="authors"),
    "V2*, figure 3 (c)": v2_unit(1, extra_depthwise=True),
    "V2*, figure 3 (d)": v2_unit(2, extra_depthwise=True),
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_a_units_gradients_are_the_measured_ones(unit, training):
    """By its input and by each of its parameters alone."""
    x = draw(3, 5, 4, 24)
    params = draw_params(unit, x.shape)
    assert check_network(unit, params, x, training=training, sample=len(params)) <= 1e-6
