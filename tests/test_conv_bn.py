"""Convolution, batch normalisation and ReLU as one operation, against one after the other by the reference in float64."""

import numba
import numpy as np
import pytest
from conftest import assert_close

from pyshuffle import Numba, Reference
from pyshuffle.errors import ShapeError
from pyshuffle.ops import add, batchnorm, conv, depthwise, pool, reading, shuffle
from pyshuffle.ops.moments import merged
from pyshuffle.ops.panels import LANES
from pyshuffle.ops.reading import Normalised

CONV, DEPTHWISE = "conv", "depthwise"
CASES = {  # operation, x (N, H, W, C), w, settings
    "1x1": (CONV, (3, 7, 6, 24), (1, 1, 24, 40), {"stride": 1, "groups": 1}),
    "1x1 of many vectors": (CONV, (2, 9, 9, 20), (1, 1, 20, 150), {"stride": 1, "groups": 1}),
    "1x1 of a vector too many": (CONV, (2, 5, 4, 69), (1, 1, 69, 133), {"stride": 1, "groups": 1}),
    "1x1, stride 2": (CONV, (1, 5, 4, 20), (1, 1, 20, 24), {"stride": 2, "groups": 1}),
    "3x3, grouped, one image": (CONV, (1, 5, 4, 12), (3, 3, 6, 24), {"stride": 1, "groups": 2}),
    "1x1 of few channels": (CONV, (2, 5, 4, 5), (1, 1, 5, 3), {"stride": 1, "groups": 1}),
    "grouped": (CONV, (2, 6, 5, 36), (1, 1, 12, 60), {"stride": 1, "groups": 3}),
    "groups less than a vector": (CONV, (2, 6, 5, 24), (1, 1, 3, 48), {"stride": 1, "groups": 8}),
    "groups of few channels": (CONV, (2, 6, 5, 4), (1, 1, 2, 6), {"stride": 1, "groups": 2}),
    "3x3": (CONV, (2, 9, 8, 3), (3, 3, 3, 24), {"stride": 2, "groups": 1}),
    "depthwise": (DEPTHWISE, (3, 8, 9, 24), (3, 3, 24), {"stride": 1}),
    "depthwise of a vector too many": (DEPTHWISE, (1, 3, 3, 69), (3, 3, 69), {"stride": 1}),
    "depthwise, stride 2": (DEPTHWISE, (3, 8, 9, 40), (3, 3, 40), {"stride": 2}),
    "depthwise of few channels": (DEPTHWISE, (2, 7, 5, 3), (3, 3, 3), {"stride": 2}),
}
TOLERANCE = 1e-5
every_case = pytest.mark.parametrize(("op", "shape", "filters", "settings"), CASES.values(), ids=CASES)


class Layer:
    """Random arrays for one case, and what is to be computed of them."""

    def __init__(self, op, shape, filters, settings, relu=True, training=True, seed=0):
        self.op, self.settings, self.relu, self.training = op, settings, relu, training
        self.random = np.random.default_rng(seed)
        self.x, self.w = self.normal(shape), self.normal(filters)
        channels = filters[-1]
        self.gamma, self.beta = self.normal((channels,)), self.normal((channels,))
        self.used = None if training else (self.normal((channels,)), self.random.uniform(0.5, 2, channels).astype(np.float32))

    def normal(self, shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def fused(self, x, dz=None):
        forward, backward = Numba.functions[f"{self.op}_bn"]
        parameters, settings = (self.w, self.gamma, self.beta), {**self.settings, "used": self.used, "relu": self.relu}
        z = forward(x, *parameters, **settings)
        return z if dz is None else (z, *backward(dz, x, *parameters, z=z, **settings))

    def expected(self, x, dz):
        """The same by the reference."""
        x, w, gamma, beta, dz = (a.astype(np.float64) for a in (np.asarray(x), self.w, self.gamma, self.beta, dz))
        forward, backward = Reference.functions[self.op]
        y = forward(x, w, **self.settings)
        settings = {"training": self.training, "relu": self.relu}
        statistics = batchnorm.statistics_reference(y) if self.used is None else [a.astype(np.float64) for a in self.used]
        z = batchnorm.forward_reference(y, gamma, beta, *statistics, **settings)
        dy, dgamma, dbeta = batchnorm.backward_reference(dz, y, gamma, beta, *statistics, **settings)
        return (z, *backward(dy, x, w, **self.settings), dgamma, dbeta)


def check(layer, x):
    dz = layer.normal(layer.fused(x).shape)
    z, *gradients = layer.fused(x, dz)
    assert_close((np.asarray(z), *gradients), layer.expected(x, dz), TOLERANCE)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@every_case
def test_it_is_one_operation_after_the_other(op, shape, filters, settings, relu, training):
    layer = Layer(op, shape, filters, settings, relu, training)
    check(layer, layer.x)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@every_case
def test_it_reads_what_a_layer_before_left_to_be_computed(op, shape, filters, settings, relu):
    layer, channels = Layer(op, shape, filters, settings), shape[-1]
    mean, var = layer.normal((channels,)), layer.random.uniform(0.5, 2, channels).astype(np.float32)
    check(layer, Normalised(layer.x, mean, var, layer.normal((channels,)), layer.normal((channels,)), relu))


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] == CONV])
def test_a_gradient_that_has_come_before_is_added(case):
    op, shape, filters, settings = CASES[case]
    layer = Layer(op, (3, 9, 11, shape[-1]), filters, settings)
    z = layer.fused(layer.x)
    dz, before = layer.normal(z.shape), layer.normal(layer.x.shape)
    arguments = (dz, layer.x, layer.w, layer.gamma, layer.beta)
    backward, settings = Numba.functions["conv_bn"][1], {"z": z, "used": None, "relu": True, **settings}
    alone, *rest = backward(*arguments, **settings)
    dx, *others = backward(*arguments, before=before, **settings)
    assert_close(dx, alone + before, 1e-6)
    for gradient, other in zip(rest, others, strict=True):
        np.testing.assert_array_equal(gradient, other)
    nothing, *others = backward(*arguments, before=before, need_dx=False, **settings)
    assert nothing is None
    np.testing.assert_array_equal(others[0], rest[0])


@every_case
def test_it_reads_half_of_a_map_where_it_lies(op, shape, filters, settings):
    layer = Layer(op, shape, filters, settings)
    whole = layer.normal((*shape[:-1], 2 * shape[-1]))
    for half in shuffle.split(whole):
        assert reading.source(half).x.base is whole
        check(layer, half)


@every_case
def test_what_is_not_a_number_stays_so(op, shape, filters, settings):
    """In the channel that it is in, or in all; a ReLU does not hide it."""
    layer = Layer(op, shape, filters, settings)
    layer.x[0, 0, 0, 0] = np.nan
    z = np.asarray(layer.fused(layer.x))
    assert np.isnan(z[..., 0]).all()


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="there is one thread")
@every_case
def test_it_does_not_depend_on_the_number_of_threads(op, shape, filters, settings):
    """To the bit, and on maps large enough to be shared out."""
    layer = Layer(op, (5, 33, 30, shape[-1]), filters, settings)
    dz, most, results = layer.normal(layer.fused(layer.x).shape), numba.get_num_threads(), []
    for threads in (1, 2):
        numba.set_num_threads(threads)
        z, *gradients = layer.fused(layer.x, dz)
        results.append((np.asarray(z), *gradients))
        numba.set_num_threads(most)
    for alone, shared in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, shared)


@every_case
def test_a_gradient_of_another_shape_or_dtype_is_refused(op, shape, filters, settings):
    layer = Layer(op, shape, filters, settings)
    dz = layer.normal(layer.fused(layer.x).shape)
    with pytest.raises(ShapeError, match="dy has shape"):
        layer.fused(layer.x, dz[..., :-1])
    with pytest.raises(ShapeError, match="float64"):
        layer.fused(layer.x, dz.astype(np.float64))
    layer.gamma = layer.gamma.astype(np.float64)
    with pytest.raises(ShapeError, match="float64"):
        layer.fused(layer.x)


def test_the_gradient_of_a_maximum_over_one_pixel_that_is_a_part_of_another():
    """NumPy calls one pixel contiguous, whatever it is cut from."""
    wide = np.arange(80, dtype=np.float32).reshape(1, 1, 1, 80).copy()  # an array of its own, not a view of a flat one
    x = np.random.default_rng(0).standard_normal((1, 2, 2, 40)).astype(np.float32)
    for half in (wide[..., :40], wide[..., 40:]):
        np.testing.assert_array_equal(pool.max_backward(half, x)[0], pool.max_backward_reference(half, x)[0])


@pytest.mark.parametrize("channels", [5, 40])
def test_the_gradient_by_beta_is_summed_even_if_nothing_is_a_number(channels):
    x, ones = np.full((1, 2, 2, channels), np.nan, np.float32), np.ones(channels, np.float32)
    dx, _, dbeta = batchnorm.backward(np.ones_like(x), x, ones, ones, ones, ones, training=True)
    assert np.isnan(dx).all()
    np.testing.assert_array_equal(dbeta, 4 * ones)


def test_what_is_to_be_computed_passes_for_an_array():
    x = np.array([[[[-1.0, 2.0]]]], np.float32)
    ones = np.ones(2, np.float32)
    z = Normalised(x, 0 * ones, ones, ones, 0 * ones, relu=True)
    assert (z.shape, z.ndim, z.size, z.dtype, len(z)) == (x.shape, 4, 2, np.float32, 1)
    np.testing.assert_allclose(np.asarray(z, np.float64), np.maximum(x, 0), rtol=1e-5)


@pytest.mark.parametrize(("a", "b", "groups"), [(24, 24, 2), (24, 92, 2), (5, 4, 3), (3, 3, 2), (20, 40, 1), (20, 40, 5)])
def test_concatenation_and_shuffle_in_one_pass(a, b, groups):
    """Of an array and of one that is still to be computed."""
    layer = Layer(CONV, (2, 5, 6, a), (1, 1, a, b), {"stride": 1, "groups": 1})
    left, right = layer.x, layer.fused(layer.x)
    y = shuffle.concat_shuffle(left, right, groups)
    expected = shuffle.shuffle_reference(np.concatenate((left, np.asarray(right)), axis=-1), groups)
    np.testing.assert_array_equal(y, expected)
    dy = layer.normal(y.shape)
    back = np.concatenate(shuffle.concat_shuffle_backward(dy, left, right, groups), axis=-1)
    np.testing.assert_array_equal(shuffle.shuffle_reference(back, groups), dy)


@pytest.mark.parametrize("channels", [3, 24, 92])
def test_a_sum_and_its_relu_in_one_pass(channels):
    """Of an array and of one that is still to be computed; what is not a number is not hidden."""
    layer = Layer(CONV, (2, 7, 6, channels), (1, 1, channels, channels), {"stride": 1, "groups": 1})
    left, right = layer.x, layer.fused(layer.x)
    total = left + np.asarray(right)
    np.testing.assert_array_equal(add.forward(left, right), total)
    np.testing.assert_array_equal(add.relu_forward(right, left), np.maximum(total, 0))
    dy = layer.normal(total.shape)
    for back in add.relu_backward(dy, left, right, add.relu_forward(left, right)):
        np.testing.assert_array_equal(back, dy * (total > 0))
    left[0, 0, 0, 0] = np.nan
    assert np.isnan(add.relu_forward(left, right)[0, 0, 0, 0])


# Sums that are taken on the way back ---------------------------------------------------------------------------------------------


def normalised(shape, seed=0, relu=True):
    """What a layer of such a shape leaves to be computed, as a convolution makes it: narrow ones lie in rows of a vector."""
    layer = Layer(CONV, (*shape[:3], 4), (1, 1, 4, shape[3]), {"stride": 1, "groups": 1}, relu, seed=seed)
    return layer.fused(layer.x)


def back_through(op, z, dy, w):
    """The gradient with respect to z of an operation that reads it."""
    other = normalised(z.shape, seed=1)
    match op:
        case "conv":
            return conv.backpropagated(reading.source(dy), z, w[None, None, 9:])[0]
        case "depthwise" | "depthwise, stride 2":
            stride = 1 + op.endswith("2")
            return depthwise.backpropagated(reading.source(dy[:, ::stride, ::stride].copy()), z, w[:9].reshape(3, 3, -1), stride)[
                0
            ]
        case "shuffle":
            return shuffle.shuffle_backward(dy, z, 3)[0]
        case "concat, the left" | "concat, the right":
            right = op.endswith("right")
            both = (other, z) if right else (z, other)
            return shuffle.concat_shuffle_backward(np.concatenate((dy, 2 * dy), axis=3), *both, 2)[right]
        case "add":
            return add.relu_backward(dy, other, z, add.relu_forward(other, z))[1]
        case "maximum":
            return pool.max_backward(dy[:, ::2, ::2].copy(), z)[0]


OPS = ["conv", "depthwise", "depthwise, stride 2", "shuffle", "concat, the left", "concat, the right", "add", "maximum"]


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("channels", [24, 69, 102])
@pytest.mark.parametrize("op", OPS)
def test_who_computes_a_gradient_leaves_its_sums(op, channels, relu):
    """They are those that would be taken of it alone: of a copy, which nobody has taken any of."""
    z, random = normalised((5, 9, 11, channels), relu=relu), np.random.default_rng(2)
    dy, w = (random.standard_normal(shape).astype(np.float32) for shape in (z.shape, (9 + channels, channels)))
    dz = back_through(op, z, dy, w)
    assert z.gradient_and_sums is not None, "no sums were left"
    left, anew = batchnorm.gradient(dz, z, training=True), batchnorm.gradient(dz.copy(), z, training=True)
    assert_close(left[1:], anew[1:], 1e-5)
    assert_close(reading.computed(left[0]), reading.computed(anew[0]), 1e-5)


@pytest.mark.parametrize("op", ["conv", "depthwise", "shuffle", "add", "maximum"])
def test_each_part_of_a_map_has_sums_of_its_own(op):
    """Threads add to those of the parts that they compute, and to no others: in any order they are the same."""
    z, ones = normalised((16, 17, 18, 24)), np.ones((16, 17, 18, 24), np.float32)
    back_through(op, z, ones, np.ones((33, 24), np.float32))
    assert z.gradient_and_sums is not None
    assert len(z.gradient_and_sums[1]) > 1
    assert (z.gradient_and_sums[1] != 0).any(axis=(1, 2)).all()


@pytest.mark.parametrize("first", [0, 1])
def test_a_gradient_of_few_channels_may_be_any_part_of_a_vector(first):
    z, wide = normalised((2, 6, 5, 3)), np.random.default_rng(0).standard_normal((2, 6, 5, LANES)).astype(np.float32)
    dz = wide[..., first : first + 3]
    got, expected = (batchnorm.gradient(d, z, training=True) for d in (dz, dz.copy()))
    assert_close(got[1:], expected[1:], 1e-6)


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("op", OPS)
def test_few_channels_have_the_gradients_of_many(op, channels):
    """Few are computed a vector wide, and what fills it is not seen."""
    channels *= 3 if op == "shuffle" else 1
    z, random = normalised((5, 9, 11, channels)), np.random.default_rng(2)
    dy, w = (random.standard_normal(shape).astype(np.float32) for shape in (z.shape, (9 + channels, channels)))
    plain = Normalised(z.x.copy(), z.mean, z.var, z.gamma, z.source.constants[2], relu=True)
    for a, b in zip(*(batchnorm.gradient(back_through(op, x, dy, w), x, training=True)[1:] for x in (z, plain)), strict=True):
        assert_close(a, b, 1e-5)


def test_the_sums_of_another_gradient_are_not_taken_for_its_own():
    """What is added to a gradient, or stands in its place, has sums of its own."""
    z = normalised((5, 9, 11, 42))
    dz = back_through("shuffle", z, np.ones(z.shape, np.float32), None)
    assert z.gradient_and_sums is not None
    assert z.gradient_and_sums[0] is dz
    _, _, dbeta = batchnorm.gradient(3 * dz, z, training=True)
    assert_close(dbeta, 3 * batchnorm.gradient(dz, z, training=True)[2], 1e-6)


@pytest.mark.parametrize(
    ("width", "first", "channels"), [(10, 0, 5), (10, 5, 5), (40, 3, 5), (40, 0, 5), (48, 0, 24), (48, 24, 24)]
)
def test_a_batch_normalisation_of_a_part_of_a_map_reads_it_where_it_lies(width, first, channels):
    random = np.random.default_rng(0)
    wide, dy = (random.standard_normal((2, 5, 7, c)).astype(np.float32) for c in (width, channels))
    x, ones = wide[..., first : first + channels], np.ones(channels, np.float32)
    arguments = ones, 0 * ones, *batchnorm.statistics(x)
    got, expected = (batchnorm.backward(dy, part, *arguments, training=True, relu=True) for part in (x, x.copy()))
    assert_close(got, expected, 1e-6)


@pytest.mark.parametrize("channels", [6, 24, 114])
def test_two_halves_of_a_gradient_pass_for_the_whole(channels):
    """A split sends back what nobody has joined yet."""
    random, maps = np.random.default_rng(0), [normalised((2, 5, 7, channels // 2), seed) for seed in (0, 1)]
    x, left, right = (random.standard_normal((2, 5, 7, c)).astype(np.float32) for c in (channels, channels // 2, channels // 2))
    (dx,) = shuffle.split_backward(left, right, x)
    whole = np.concatenate((left, right), axis=3)
    assert (dx.shape, dx.ndim, dx.size, dx.dtype, len(dx)) == (x.shape, 4, x.size, np.float32, 2)
    np.testing.assert_array_equal(np.asarray(dx), whole)
    for groups in (1, 2, 3):
        given, expected = (shuffle.concat_shuffle_backward(d, *maps, groups) for d in (dx, whole))
        for a, b in zip(given, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_image_has_no_gradient():
    none = np.zeros((0, 4, 4, 24), np.float32)
    gradients = (
        *shuffle.shuffle_backward(none, none, 2),
        *shuffle.concat_backward(np.zeros((0, 4, 4, 48), np.float32), none, none),
        *add.relu_backward(none, none, none, none),
    )
    assert {gradient.shape for gradient in gradients} == {none.shape}


def test_an_array_may_be_a_view_of_a_number():
    x = np.full((), 2, np.float32).reshape(1, 1, 1, 1)
    assert conv.forward(x, np.full((1, 1, 1, 1), 3, np.float32)) == 6


def test_moments_do_not_cancel():
    """A spread of 1 around 10,000, in parts of unequal length whose means are far apart."""
    x = np.random.default_rng(0).standard_normal((1000, 20)).astype(np.float32) + np.float32(10000)
    x[500:] -= 300
    mean, var = batchnorm.statistics(x)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=0), rtol=1e-6)
    moments = np.zeros((2, 3, 1))
    moments[:, 0, 0] = 7, 9  # three times 7 and once 9
    mean, var = merged(moments, np.array([3, 1]))
    assert (mean[0], var[0]) == (7.5, 0.75)


@pytest.mark.parametrize("channels", [3, 40])
def test_what_is_read_as_it_is_keeps_the_sign_of_zero(channels):
    x = np.array([0.0, -0.0, np.inf, -np.inf, 1.0], np.float32).repeat(channels).reshape(1, 1, 5, channels)
    y = reading.computed(reading.source(x))
    np.testing.assert_array_equal(y.view(np.uint32), x.reshape(y.shape).view(np.uint32))


@pytest.mark.parametrize("channels", [3, LANES, LANES + 1, 69])
@pytest.mark.parametrize("kind", ["plain", "normalised", "gradient"])
def test_rows_that_are_read_are_written_and_nothing_beside_them(kind, channels):
    """Neither rows nor channels; a vector that goes beyond the last channel would be seen."""
    x, z = Layer(CONV, (1, 7, 1, channels), (1,), {}).x, normalised((1, 7, 1, channels))
    source = {"plain": reading.source(x), "normalised": z.source, "gradient": batchnorm.gradient(x, z, training=True)[0]}[kind]
    for first, behind in ((0, 0), (3, 2)):
        goal = np.full((9, first + source.channels + behind), 7, np.float32)
        expected = goal.copy()
        expected[1:5, first : first + source.channels] = reading.computed(source)[2:6]
        reading.read(source, 2, goal[1:5], first)
        np.testing.assert_array_equal(goal, expected)
