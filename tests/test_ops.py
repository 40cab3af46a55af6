"""Every operation, one body over all interpretations: against its equation in plain loops, and its gradient against measurement."""

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from conftest import BACKENDS, SIMULATED, Backend, as_tuple, assert_close, draw
from hypothesis import given, settings
from hypothesis import strategies as st

from pyshuffle.engine.machine import machine
from pyshuffle.errors import ShapeError
from pyshuffle.gradcheck import gradcheck
from pyshuffle.ops import batchnorm, loss, panels, sgd

# The equations, as the files of ops/ print them, in plain loops ----------------------------------------------------------------


def conv(x, w, stride, groups):
    (N, H, W, C), (K, _, _, O) = x.shape, w.shape
    y, p = np.zeros((N, math.ceil(H / stride), math.ceil(W / stride), O)), K // 2
    for n, i, j, o in np.ndindex(y.shape):
        g = o // (O // groups)
        for u, v, c in np.ndindex(w.shape[:3]):
            h, l = stride * i + u - p, stride * j + v - p
            if 0 <= h < H and 0 <= l < W:
                y[n, i, j, o] += x[n, h, l, g * (C // groups) + c] * w[u, v, c, o]
    return y


def depthwise(x, w, stride):
    N, H, W, C = x.shape
    y = np.zeros((N, math.ceil(H / stride), math.ceil(W / stride), C))
    for n, i, j, c in np.ndindex(y.shape):
        for u, v in np.ndindex(3, 3):
            h, l = stride * i + u - 1, stride * j + v - 1
            if 0 <= h < H and 0 <= l < W:
                y[n, i, j, c] += x[n, h, l, c] * w[u, v, c]
    return y


def batch_norm(x, gamma, beta, training, relu):
    y = np.empty(x.shape)
    for c in range(x.shape[-1]):
        pixels = x[..., c].ravel().tolist()
        mean, var = running_statistics(c)
        if training:
            mean = sum(pixels) / len(pixels)
            var = sum((value - mean) ** 2 for value in pixels) / len(pixels)
        y[..., c] = gamma[c] * (x[..., c] - mean) / math.sqrt(var + 1e-5) + beta[c]
    return np.where(y > 0, y, 0.0) if relu else y


def pool(x, of):
    N, H, W, C = x.shape
    y = np.empty((N, math.ceil(H / 2), math.ceil(W / 2), C))
    for n, i, j, c in np.ndindex(y.shape):
        at = [(2 * i + u - 1, 2 * j + v - 1) for u, v in np.ndindex(3, 3)]
        y[n, i, j, c] = of([x[n, h, l, c] for h, l in at if 0 <= h < H and 0 <= l < W])
    return y


def shuffle(x, groups):
    y, n = np.empty(x.shape), x.shape[-1] // groups
    for a, b in np.ndindex(n, groups):
        y[..., a * groups + b] = x[..., b * n + a]
    return y


def mean(x):
    N, H, W, C = x.shape
    return np.array([[sum(x[n, h, l, c] for h, l in np.ndindex(H, W)) / (H * W) for c in range(C)] for n in range(N)])


def fully_connected(x, w, b=None):
    y = np.zeros((len(x), w.shape[1]))
    for n, o in np.ndindex(y.shape):
        y[n, o] = sum(x[n, i] * w[i, o] for i in range(len(w))) + (0 if b is None else b[o])
    return y


LIMIT = 1.0123  # of a ReLU: among the values that are drawn, and none of them

EQUATIONS = {
    "conv": conv,
    "depthwise": depthwise,
    "batchnorm": batch_norm,
    "relu": lambda x, limit: np.array([min(max(value, 0.0), limit) for value in x.ravel()]).reshape(x.shape),
    "maxpool": lambda x: pool(x, max),
    "avgpool": lambda x: pool(x, lambda window: sum(window) / 9),
    "split": lambda x: (x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]),
    "concat": lambda a, b: np.stack([*np.moveaxis(a, -1, 0), *np.moveaxis(b, -1, 0)], axis=-1),
    "shuffle": shuffle,
    "add": lambda a, b: np.array([p + q for p, q in zip(a.ravel(), b.ravel(), strict=True)]).reshape(a.shape),
    "mean": mean,
    "linear": fully_connected,
}


# What there is to run: random shapes for hypothesis, and one example of everything ----------------------------------------------


class Case(NamedTuple):
    """One call: the shapes of the arrays, and the settings."""

    op: str
    shapes: tuple[tuple[int, ...], ...]
    settings: dict[str, Any] = {}

    def arrays(self, dtype: type[np.floating]) -> list[np.ndarray]:
        return [draw(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(self.shapes)]

    def cotangents(self, backend: Backend) -> list[np.ndarray]:
        """Random gradients like the outputs."""
        outputs = as_tuple(bind(backend, self)[0](*self.arrays(backend.dtype)))
        return [draw(*y.shape, dtype=backend.dtype, seed=100 + i) for i, y in enumerate(outputs)]


def bind(backend: Backend, case: Case):
    """forward(*arrays) and backward(*dy, *arrays) of a case: the settings are in. Batch normalisation takes its statistics along."""
    forward, backward = backend.kind.functions[case.op]

    def settings_for(x):
        if case.op != "batchnorm":
            return case.settings
        moments = backend.kind.statistics(x) if case.settings["training"] else running_statistics(np.arange(x.shape[-1]))
        return case.settings | {name: m.astype(x.dtype) for name, m in zip(("mean", "var"), moments, strict=True)}

    def run_backward(*arrays):
        return backward(*arrays, **settings_for(arrays[-len(case.shapes)]))

    return (lambda *arrays: forward(*arrays, **settings_for(arrays[0]))), run_backward


def running_statistics(c):
    """A mean and a variance for channel c."""
    return 0.25 * c - 0.5, 0.5 + 0.25 * c


def normalisation(shape, training, relu=False):
    return Case("batchnorm", (shape, shape[-1:], shape[-1:]), {"training": training, "relu": relu})


def cases(largest):
    """A strategy for each operation: maps of up to `largest` pixels an axis and `largest` channels, a group or in all."""
    sizes, strides, some = st.integers(1, largest), st.sampled_from([1, 2]), st.integers(1, 3)
    maps = st.tuples(some, sizes, sizes, sizes)  # (N, H, W, C)

    @st.composite
    def conv(draw):
        (N, H, W, n), O, groups = draw(maps), draw(sizes), draw(some)
        K, stride = draw(st.sampled_from([1, 3])), draw(strides)
        return Case("conv", ((N, H, W, groups * n), (K, K, n, groups * O)), {"stride": stride, "groups": groups})

    @st.composite
    def linear(draw):
        N, I, O, bias = draw(st.tuples(some, sizes, sizes, st.booleans()))
        return Case("linear", ((N, I), (I, O), (O,)) if bias else ((N, I), (I, O)))

    return {
        "conv": conv(),
        "depthwise": st.builds(lambda x, stride: Case("depthwise", (x, (3, 3, x[3])), {"stride": stride}), maps, strides),
        # Three images or more: of one value, or two, all that training sends back cancels and no digit is left to compare.
        "batchnorm": st.builds(lambda x, *how: normalisation((x[0] + 2, *x[1:]), *how), maps, st.booleans(), st.booleans()),
        "relu": st.builds(lambda x, limit: Case("relu", (x,), {"limit": limit}), maps, st.sampled_from([math.inf, LIMIT])),
        "maxpool": st.builds(lambda x: Case("maxpool", (x,)), maps),
        "avgpool": st.builds(lambda x: Case("avgpool", (x,)), maps),
        "split": st.builds(lambda x: Case("split", ((*x[:3], 2 * x[3]),)), maps),
        "concat": st.builds(lambda x, more: Case("concat", (x, (*x[:3], more))), maps, sizes),
        "shuffle": st.builds(lambda x, g: Case("shuffle", ((*x[:3], g * x[3]),), {"groups": g}), maps, sizes),
        "add": st.builds(lambda x: Case("add", (x, x)), maps),
        "mean": st.builds(lambda x: Case("mean", (x,)), maps),
        "linear": linear(),
    }


CASES, WIDE = cases(6), cases(35)


def examples(x):
    """One call of everything, for a map of the shape x with 6 k channels."""
    C = x[-1]
    return {
        "conv 1x1": Case("conv", (x, (1, 1, C, 9)), {"stride": 1, "groups": 1}),
        "conv 3x3, stride 2": Case("conv", (x, (3, 3, C, 5)), {"stride": 2, "groups": 1}),
        "conv 1x1, grouped": Case("conv", (x, (1, 1, C // 3, 9)), {"stride": 1, "groups": 3}),
        "conv 3x3, grouped, stride 2": Case("conv", (x, (3, 3, C // 2, 4)), {"stride": 2, "groups": 2}),
        "depthwise": Case("depthwise", (x, (3, 3, C)), {"stride": 1}),
        "depthwise, stride 2": Case("depthwise", (x, (3, 3, C)), {"stride": 2}),
        "batchnorm in training": normalisation(x, True),
        "batchnorm in inference": normalisation(x, False),
        "batchnorm and relu": normalisation(x, True, relu=True),
        "relu": Case("relu", (x,), {"limit": math.inf}),
        "relu with a limit": Case("relu", (x,), {"limit": LIMIT}),
        "maxpool": Case("maxpool", (x,)),
        "avgpool": Case("avgpool", (x,)),
        "split": Case("split", (x,)),
        "concat": Case("concat", (x, (*x[:3], 3))),
        "shuffle": Case("shuffle", (x,), {"groups": 3}),
        "add": Case("add", (x, x)),
        "mean": Case("mean", (x,)),
        "linear": Case("linear", ((x[0], C), (C, 4))),
        "linear with bias": Case("linear", ((x[0], C), (C, 4), (4,))),
    }


EXAMPLES = examples((2, 5, 4, 6))
every_operation = pytest.mark.parametrize("op", CASES)
every_example = pytest.mark.parametrize("case", EXAMPLES.values(), ids=EXAMPLES)
ORACLE, NUMBA = BACKENDS["reference-float64"], BACKENDS["numba-float32"]


# The values ---------------------------------------------------------------------------------------------------------------------


@every_operation
@given(data=st.data())
def test_forward_is_the_equation(backend, op, data):
    case = data.draw(CASES[op])
    arrays = case.arrays(backend.dtype)
    expected = EQUATIONS[op](*(a.astype(np.float64) for a in arrays), **case.settings)
    assert_close(bind(backend, case)[0](*arrays), expected, backend.tolerance)


@every_operation
@settings(max_examples=15)
@given(data=st.data())
def test_the_references_gradient_is_the_measured_one(op, data):
    case = data.draw(CASES[op])
    forward, backward = bind(ORACLE, case)
    assert gradcheck(forward, backward, case.arrays(np.float64)) <= 1e-6


@every_operation
@given(data=st.data())
def test_every_gradient_is_the_references(backend, op, data):
    case = data.draw(CASES[op])
    arrays = [*case.cotangents(backend), *case.arrays(backend.dtype)]
    expected = bind(ORACLE, case)[1](*(a.astype(np.float64) for a in arrays))
    assert_close(tuple(bind(backend, case)[1](*arrays)), tuple(expected), backend.tolerance)


@every_operation
@given(data=st.data())
def test_the_kernels_answer_as_the_reference_on_wide_maps(op, data):
    """Wide enough for every way that a kernel has of walking through its channels."""
    check_kernels(data.draw(WIDE[op]))


@pytest.mark.parametrize("shape", [(1, 1, 5000, 3), (3, 40, 41, 2), (1, 2, 1, 40), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("out", [5, 21])
def test_a_convolution_of_a_map_of_any_shape(shape, size, stride, out):
    """Long ones and tiny ones: dw is summed in parts, and tiles and parts may be more than there are rows."""
    check_kernels(Case("conv", (shape, (size, size, shape[3], out)), {"stride": stride, "groups": 1}))


def check_kernels(case):
    """Forward and backward, against the reference in float64."""
    arrays, dy = case.arrays(np.float32), case.cotangents(NUMBA)
    exact, exact_dy = ([a.astype(np.float64) for a in given] for given in (arrays, dy))
    (forward, backward), (reference, reference_backward) = bind(NUMBA, case), bind(ORACLE, case)
    assert_close(forward(*arrays), reference(*exact), NUMBA.tolerance)
    assert_close(tuple(backward(*dy, *arrays)), tuple(reference_backward(*exact_dy, *exact)), NUMBA.tolerance)


# The arrays ---------------------------------------------------------------------------------------------------------------------


@every_example
def test_results_have_the_dtype_of_the_input(backend, case):
    forward, backward = bind(backend, case)
    arrays = case.arrays(backend.dtype)
    results = [*as_tuple(forward(*arrays)), *backward(*case.cotangents(backend), *arrays)]
    assert {a.dtype for a in results} == {np.dtype(backend.dtype)}


@every_example
def test_inputs_may_have_any_memory_layout_and_stay_as_they_were(backend, case):
    """A slice of channels or a transposed array gives what its contiguous copy gives."""
    forward, backward = bind(backend, case)
    arrays, dy = case.arrays(backend.dtype), case.cotangents(backend)
    expected = [*as_tuple(forward(*arrays)), *backward(*dy, *arrays)]
    for layout in (every_other_channel, transposed):
        views, dviews = [layout(a) for a in arrays], [layout(a) for a in dy]
        got = [*as_tuple(forward(*views)), *backward(*dviews, *views)]
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e, backend.tolerance)
        for view, a in zip([*views, *dviews], [*arrays, *dy], strict=True):
            np.testing.assert_array_equal(view, a)


def every_other_channel(a):
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def transposed(a):
    return np.asfortranarray(a)


@every_example
def test_kernels_refuse_float64(case):
    forward, backward = bind(NUMBA, case)
    with pytest.raises(ShapeError, match="float64: the kernels compute in float32"):
        forward(*case.arrays(np.float64))
    if case.op not in ("add", "mean"):  # these hand dy on without computing
        with pytest.raises(ShapeError, match="float64: the kernels compute in float32"):
            backward(*case.cotangents(ORACLE), *case.arrays(np.float64))


def test_the_linear_layer_refuses_a_float64_bias():
    x, w, b = EXAMPLES["linear with bias"].arrays(np.float32)
    with pytest.raises(ShapeError, match="float64: the kernels compute in float32"):
        NUMBA.kind.functions["linear"][0](x, w, b.astype(np.float64))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="there is one thread")
@pytest.mark.parametrize("name", EXAMPLES)
def test_results_do_not_depend_on_the_number_of_threads(name):
    """To the bit, and on maps large enough to be shared out."""
    case = examples((5, 33, 30, 24))[name]
    forward, backward = bind(NUMBA, case)
    arrays, dy = case.arrays(np.float32), case.cotangents(NUMBA)
    results, most = [], numba.get_num_threads()
    for threads in (1, 2):
        numba.set_num_threads(threads)
        results.append([*as_tuple(forward(*arrays)), *backward(*dy, *arrays)])
        numba.set_num_threads(most)
    for alone, shared in zip(*results, strict=True):
        np.testing.assert_array_equal(alone, shared)


x, training = (2, 5, 4, 6), {"training": False}
BAD_CALLS = [  # operation, shapes, settings, and what the message has to name
    ("conv", (x, (1, 1, 6, 9)), {"groups": 4}, "in_channels=6 or out_channels=9 is not divisible by groups=4"),
    ("conv", (x, (1, 1, 6, 9)), {"groups": 2}, "in_channels=6 or out_channels=9 is not divisible by groups=2"),
    ("conv", (x, (1, 1, 6, 9)), {"groups": 0}, "groups=0"),
    ("conv", (x, (1, 1, 6, 9)), {"groups": 3}, "with groups=3 and 6 input channels its third axis must be 2"),
    ("conv", (x, (1, 1, 5, 9)), {}, r"w has shape \(1, 1, 5, 9\): .* its third axis must be 6"),
    ("conv", (x, (2, 2, 6, 9)), {}, r"w has shape \(2, 2, 6, 9\): \(K, K, C/G, O\) with K = 1 or 3 is needed"),
    ("conv", (x, (1, 3, 6, 9)), {}, r"w has shape \(1, 3, 6, 9\)"),
    ("conv", (x, (6, 9)), {}, r"w has shape \(6, 9\)"),
    ("conv", (x, (1, 1, 6, 9)), {"stride": 3}, "stride=3 is not 1 or 2"),
    ("conv", ((5, 4, 6), (1, 1, 6, 9)), {}, r"x has shape \(5, 4, 6\): a feature map \(N, H, W, C\)"),
    ("conv", ((0, 5, 4, 6), (1, 1, 6, 9)), {}, "with no empty axis is needed"),
    ("depthwise", (x, (3, 3, 5)), {}, r"w has shape \(3, 3, 5\): a depthwise filter of 6 channels has \(3, 3, 6\)"),
    ("depthwise", (x, (3, 3, 6)), {"stride": 0}, "stride=0 is not 1 or 2"),
    ("depthwise", ((2, 0, 4, 6), (3, 3, 6)), {}, "with no empty axis is needed"),
    ("batchnorm", (x, (5,), (6,)), training, r"gamma has shape \(5,\): one value for each of the 6 channels"),
    ("batchnorm", (x, (6,), (1,)), training, r"beta has shape \(1,\): one value for each of the 6 channels"),
    ("maxpool", ((5, 4, 6),), {}, r"x has shape \(5, 4, 6\): a feature map"),
    ("avgpool", ((5, 4, 6),), {}, r"x has shape \(5, 4, 6\): a feature map"),
    ("mean", ((5, 6),), {}, r"x has shape \(5, 6\): a feature map"),
    ("split", ((2, 5, 4, 7),), {}, "channels=7 is not divisible by groups=2"),
    ("shuffle", (x,), {"groups": 4}, "channels=6 is not divisible by groups=4"),
    ("shuffle", (x,), {"groups": -1}, "groups=-1"),
    ("concat", (x, (2, 5, 3, 6)), {}, "differ before the channels: they cannot be concatenated"),
    ("add", (x, (1, 5, 4, 6)), {}, r"shapes \(2, 5, 4, 6\) and \(1, 5, 4, 6\) differ: they must be the same"),
    ("linear", ((2, 6), (5, 4)), {}, r"x \(2, 6\) and w \(5, 4\) do not fit: \(N, I\) and \(I, O\) are needed"),
    ("linear", ((2, 6), (6, 4), (3,)), {}, r"b has shape \(3,\): one value for each of the 4 outputs"),
]


@pytest.mark.parametrize(("op", "shapes", "options", "message"), BAD_CALLS)
def test_a_wrong_call_is_refused_by_value_and_rule(backend, op, shapes, options, message):
    forward, _ = bind(backend, Case(op, shapes, options))
    with pytest.raises(ShapeError, match=message):
        forward(*(np.zeros(shape, backend.dtype) for shape in shapes))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "split"])  # whose gradients are halves
def test_a_gradient_must_have_the_shape_of_the_output(backend, name):
    case = EXAMPLES[name]
    _, backward = bind(backend, case)
    (dy,) = case.cotangents(backend)
    with pytest.raises(ShapeError, match=r"dy has shape .*: the shape of y, .* is needed"):
        backward(dy[:1], *case.arrays(backend.dtype))


@pytest.mark.parametrize("groups", [-1, 0, 4, 7])
def test_groups_of_a_shuffle_going_back_must_divide_the_channels(backend, groups):
    x = np.zeros((1, 2, 2, 6), backend.dtype)
    with pytest.raises(ShapeError, match=f"channels=6 is not divisible by groups={groups}"):
        backend.kind.functions["shuffle"][1](x, x, groups)
    if "concat_shuffle" in backend.kind.functions:
        with pytest.raises(ShapeError, match=f"channels=6 is not divisible by groups={groups}"):
            backend.kind.functions["concat_shuffle"][1](x, x[..., :2], x[..., 2:], groups)


def test_the_gradients_of_a_split_must_be_its_halves(backend):
    _, backward = backend.kind.functions["split"]
    x, half = (np.zeros((1, 2, 2, channels), backend.dtype) for channels in (6, 2))
    with pytest.raises(ShapeError, match=r"dy has shape \(1, 2, 2, 4\)"):
        backward(half, half, x)


# What the equations promise beyond their values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_is_grouped_with_one_channel_a_group_is_dense_with_a_diagonal_filter(backend, stride):
    """Three ways to write one operation, forward and backward: w (3, 3, C), its (3, 3, 1, C), and a diagonal (3, 3, C, C)."""
    C = 6
    x, w = draw(2, 5, 4, C, dtype=backend.dtype), draw(3, 3, C, dtype=backend.dtype)
    dy = draw(2, math.ceil(5 / stride), math.ceil(4 / stride), C, dtype=backend.dtype)
    diagonal = w[..., None] * np.eye(C, dtype=backend.dtype)
    depthwise, depthwise_backward = backend.kind.functions["depthwise"]
    conv, conv_backward = backend.kind.functions["conv"]

    y = depthwise(x, w, stride)
    assert_close(conv(x, w[:, :, None], stride, groups=C), y, backend.tolerance)
    assert_close(conv(x, diagonal, stride), y, backend.tolerance)

    dx, dw = depthwise_backward(dy, x, w, stride)
    grouped_dx, grouped_dw = conv_backward(dy, x, w[:, :, None], stride, groups=C)
    dense_dx, dense_dw = conv_backward(dy, x, diagonal, stride)
    assert_close((grouped_dx, grouped_dw[:, :, 0]), (dx, dw), backend.tolerance)
    assert_close((dense_dx, dense_dw.diagonal(axis1=2, axis2=3)), (dx, dw), backend.tolerance)


def test_batch_statistics_survive_a_mean_far_from_zero():
    """Mean 1000, deviation 1: float32 sums of squares would leave no digit of the variance."""
    x = (1000 + np.random.default_rng(0).standard_normal((2, 40, 40, 5))).astype(np.float32)
    mean, var = batchnorm.statistics(x)
    exact_mean, exact_var = batchnorm.statistics_reference(x.astype(np.float64))
    assert_close(mean, exact_mean, 1e-7)
    assert_close(var, exact_var, 1e-6)


def test_training_normalises_whatever_comes_in(backend):
    """Whatever the scale and the mean of x, each channel leaves with mean 0 and deviation 1."""
    x = 50 + 3 * draw(4, 6, 5, 3, dtype=backend.dtype)
    forward, _ = bind(backend, normalisation(x.shape, True))
    y = forward(x, np.ones(3, backend.dtype), np.zeros(3, backend.dtype))
    assert np.abs(y.mean(axis=(0, 1, 2))).max() <= 1e-5
    assert np.abs(y.std(axis=(0, 1, 2)) - 1).max() <= 1e-5


def test_nothing_flows_back_through_a_relu_that_is_off(backend):
    """On, off, and exactly at 0, where the gradient is taken as 0."""
    forward, backward = backend.kind.functions["relu"]
    x, dy = np.array([[2, -3, 0]], backend.dtype), np.array([[5, 7, 11]], backend.dtype)
    np.testing.assert_array_equal(forward(x), [[2, 0, 0]])
    np.testing.assert_array_equal(backward(dy, x)[0], [[5, 0, 0]])


def test_a_relu_of_no_channels_is_empty(backend):
    forward, backward = backend.kind.functions["relu"]
    x = np.zeros((3, 0), backend.dtype)
    assert forward(x).shape == backward(x, x)[0].shape == (3, 0)


def test_the_gradient_of_a_sum_is_that_of_maps_of_one_shape(backend):
    _, backward = backend.kind.functions["add"]
    a = draw(2, 3, 3, 4, dtype=backend.dtype)
    with pytest.raises(ShapeError, match="differ: they must be the same"):
        backward(a, a, a[:1])


def test_of_equal_pixels_the_first_gets_the_maximums_gradient(backend):
    _, backward = backend.kind.functions["maxpool"]
    for value in (0, -np.inf):  # the border does not attain it, even where it is said to be -inf
        (dx,) = backward(np.ones((1, 2, 1, 1), backend.dtype), np.full((1, 3, 2, 1), value, backend.dtype))
        np.testing.assert_array_equal(dx[0, :, :, 0], [[1, 0], [1, 0], [0, 0]])  # windows over rows 0..1 and 1..2


@pytest.mark.parametrize("op", ["relu", "maxpool", "avgpool", "mean", "add"])
def test_nan_stays_nan(backend, op):
    """A broken run shows, and shows in the same places whatever it runs on."""
    x = draw(1, 5, 5, 2, dtype=backend.dtype)
    x[0, 1, 3, 0] = np.nan
    arrays = [x, x] if op == "add" else [x]
    y, expected = bind(backend, Case(op, ()))[0](*arrays), ORACLE.kind.functions[op][0](*arrays)
    assert np.isnan(y).any()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_ends_where_a_relu_is_off_whatever_it_is(backend, value):
    x = np.full((1, 2, 2, 3), -1, backend.dtype)
    dy, ones, zeros = np.full_like(x, value), np.ones(3, backend.dtype), np.zeros(3, backend.dtype)
    assert not backend.kind.functions["relu"][1](dy, x)[0].any()
    assert not any(d.any() for d in backend.kind.functions["batchnorm"][1](dy, x, ones, zeros, zeros, ones, relu=True))


def test_the_gradient_of_a_maximum_goes_to_its_nan(backend):
    x = draw(1, 5, 5, 2, dtype=backend.dtype)
    x[0, 1, 2, 0] = np.nan
    (dx,) = backend.kind.functions["maxpool"][1](np.ones((1, 3, 3, 2), backend.dtype), x)
    assert dx[0, 1, 2, 0] == 2  # of the windows over rows 0..1 and 1..3


# The loss -----------------------------------------------------------------------------------------------------------------------

LOSSES = {
    "reference": (loss.forward_reference, loss.backward_reference),
    "numba": (lambda *a: loss.run(*a)[0], lambda *a: loss.run(*a)[2]),
}
if SIMULATED:
    from simulator import LOSS

    LOSSES["cuda"] = LOSS
every_loss = pytest.mark.parametrize(("forward", "backward"), LOSSES.values(), ids=LOSSES)
smoothings = st.sampled_from([0.0, 0.1, 0.5])


@every_loss
@given(N=st.integers(1, 4), K=st.integers(1, 7), smoothing=smoothings, seed=st.integers(0, 99))
def test_the_loss_is_its_equation(forward, backward, N, K, smoothing, seed):
    z, labels = draw(N, K, dtype=np.float32, seed=seed), np.random.default_rng(seed).integers(K, size=N)
    p = [[math.exp(z[n, k]) / sum(math.exp(z[n, j]) for j in range(K)) for k in range(K)] for n in range(N)]
    q = [[(1 - smoothing) * (k == labels[n]) + smoothing / K for k in range(K)] for n in range(N)]
    expected = -sum(q[n][k] * math.log(p[n][k]) for n, k in np.ndindex(N, K)) / N
    assert abs(forward(z, labels, smoothing) - expected) <= 1e-6 * max(1, expected)
    assert np.abs(backward(z, labels, smoothing) - (np.array(p) - np.array(q)) / N).max() <= 1e-6


@given(N=st.integers(1, 4), K=st.integers(2, 7), smoothing=smoothings)
def test_the_losss_gradient_is_the_measured_one(N, K, smoothing):
    labels = np.arange(N) % K

    def forward(z):
        return loss.forward_reference(z, labels, smoothing)

    def backward(v, z):
        return (v * loss.backward_reference(z, labels, smoothing),)

    assert gradcheck(forward, backward, [draw(N, K)]) <= 1e-6


@every_loss
def test_the_loss_of_sure_answers_is_finite(forward, backward):
    """Logits of 1000 overflow no exponential: a right answer costs nothing, a wrong one its distance."""
    z, labels = np.array([[1000, 0], [1000, 0]], np.float32), np.array([0, 1])
    assert forward(z, labels) == 500
    np.testing.assert_array_equal(backward(z, labels), [[0, 0], [0.5, -0.5]])


@every_loss
@pytest.mark.parametrize(
    ("shape", "labels", "smoothing", "message"),
    [
        ((2, 3), [0], 0.0, r"logits \(2, 3\) and labels \(1,\) do not fit"),
        ((0, 3), [], 0.0, r"logits \(0, 3\) and labels \(0,\) do not fit"),
        ((6,), [0], 0.0, r"logits \(6,\) and labels \(1,\) do not fit"),
        ((2, 3), [0, 3], 0.0, r"labels run from 0 to 3: they must lie in 0\.\.2"),
        ((2, 3), [-1, 2], 0.0, r"labels run from -1 to 2"),
        ((2, 3), [0.7, 1.2], 0.0, "labels are float64: integers are needed"),
        ((2, 3), [0, 2], 1.0, r"smoothing=1.0 is not in \[0, 1\)"),
        ((2, 3), [0, 2], math.nan, r"smoothing=nan is not in \[0, 1\)"),
    ],
)
def test_a_wrong_loss_is_refused(forward, backward, shape, labels, smoothing, message):
    for function in (forward, backward):
        with pytest.raises(ShapeError, match=message):
            function(np.zeros(shape, np.float32), np.array(labels), smoothing)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 3, 5), (1, 1, 24, 58)])
@pytest.mark.parametrize("decay", [0, 0.25])
def test_a_step_down_the_gradient(shape, decay):
    """By the kernel as by the reference, and by that as the equations say; a second step has the velocity of the first."""
    rng = np.random.default_rng(0)
    w, *gradients = rng.standard_normal((3, *shape))
    moved, exact, v = (w.astype(np.float32), np.zeros(shape, np.float32)), (w.copy(), np.zeros(shape)), np.zeros(shape)
    for g in gradients:
        sgd.descend(*moved, g.astype(np.float32), 0.5, 0.75, decay)
        sgd.descend_reference(*exact, g, 0.5, 0.75, decay)
        v = 0.75 * v + (g + decay * w)
        w = w - 0.5 * v
        np.testing.assert_allclose(exact, (w, v), rtol=1e-12)
        np.testing.assert_allclose(moved, (w, v), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_moved_in_place():
    w, turned = np.ones((3, 2), np.float32), np.ones((2, 3), np.float32).T
    with pytest.raises(ShapeError, match="must be contiguous"):
        sgd.descend(turned, w, w, 0.1, 0.9, 0)
    with pytest.raises(ShapeError, match="must be the same"):
        sgd.descend(w, w, turned.T, 0.1, 0.9, 0)
    with pytest.raises(ShapeError, match="float64"):
        sgd.descend(w, w, w.astype(np.float64), 0.1, 0.9, 0)


def test_what_is_left_over_of_a_groups_outputs_may_be_half_a_vector():
    """Four more than a vector has are half of one where the machine has such tiles, else a second; each group ends with its own."""
    lanes = machine().lanes
    p = panels.panels((0,), 3, 40, lanes + 4)
    halves = 3 if machine().halved else 4
    assert p.table[:, 0].tolist() == [halves] * 3
    assert p.starts.tolist() == [group * (lanes + 4) + start for group in range(3) for start in (0, 12 if halves == 3 else 4)]
