"""The channel shuffle: what it is, what it is for, and what the two orders in use have in common and have not."""

import numpy as np
import pytest
from conftest import assert_close, draw, draw_params
from hypothesis import given
from hypothesis import strategies as st

from pyshuffle.backends.reference import Reference
from pyshuffle.backends.tape import Tape
from pyshuffle.nets import ShuffleNetV1, ShuffleNetV2
from pyshuffle.nets.shufflenet_v1 import widths_of
from pyshuffle.nets.shufflenet_v2 import REPEATS, STEM, WIDTHS
from pyshuffle.ops.shuffle import shuffle_reference
from pyshuffle.types import Array, Params

group_counts = st.integers(1, 12)


def shuffled(channels: Array, groups: int) -> Array:
    """The channels, as labels, in the order in which a shuffle leaves them."""
    return shuffle_reference(np.asarray(channels), groups)


# What it is ---------------------------------------------------------------------------------------------------------------------


def test_six_channels_in_two_groups():
    """Figure 1 of V1: reshape to (2, 3), transpose, flatten."""
    assert shuffled(np.arange(6), 2).tolist() == [0, 3, 1, 4, 2, 5]


@given(g=group_counts, n=group_counts)
def test_every_channel_lands_where_the_paper_says(backend, g, n):
    x = draw(2, 3, 1, g * n, dtype=backend.dtype)
    y = backend.kind.functions["shuffle"][0](x, groups=g)
    for a, b in np.ndindex(n, g):
        np.testing.assert_array_equal(y[..., a * g + b], x[..., b * n + a])


@given(g=group_counts, n=group_counts)
def test_shuffling_with_the_other_factor_undoes_it(backend, g, n):
    """shuffle(shuffle(x, g), C / g) == x to the bit, and the gradient of a shuffle is its inverse."""
    shuffle, backward = backend.kind.functions["shuffle"]
    x = draw(2, 3, 1, g * n, dtype=backend.dtype)
    np.testing.assert_array_equal(shuffle(shuffle(x, groups=g), groups=n), x)
    np.testing.assert_array_equal(backward(shuffle(x, groups=g), x, groups=g)[0], x)


# What it is for -----------------------------------------------------------------------------------------------------------------


def dependence(groups: int, channels: int, with_shuffle: bool) -> Array:
    """(output channel, input group): whether the one depends on the other through two grouped 1x1 convolutions."""

    def net(ops, x):
        x = ops.conv(x, "first", channels, groups=groups)
        x = ops.shuffle(x, groups) if with_shuffle else x
        return ops.conv(x, "second", channels, groups=groups)

    x = draw(1, 1, 1, channels)
    params, rows = draw_params(net, x.shape), []
    for one_channel in np.eye(channels):
        tape = Tape(Reference(params))
        _, (dx,) = tape.backward(net(tape, x), one_channel.reshape(x.shape), wrt=(x,))
        rows.append(np.abs(dx).reshape(groups, -1).max(axis=1) > 0)
    return np.array(rows)


@pytest.mark.parametrize(("groups", "channels"), [(2, 4), (2, 6), (3, 9), (3, 12), (4, 16), (4, 24), (8, 64)])
def test_with_a_shuffle_every_output_sees_every_group(groups, channels):
    """V1, figure 1 (c)."""
    assert dependence(groups, channels, with_shuffle=True).all()


@pytest.mark.parametrize(("groups", "channels"), [(2, 6), (3, 12), (4, 16)])
def test_without_a_shuffle_every_output_sees_its_own_group_alone(groups, channels):
    """V1, figure 1 (a)."""
    own_group = np.repeat(np.eye(groups, dtype=bool), channels // groups, axis=0)
    np.testing.assert_array_equal(dependence(groups, channels, with_shuffle=False), own_group)


# The two orders of V1: reshape to (g, n), or to (n, g) --------------------------------------------------------------------------


def arrivals(groups: int, n: int, order: str) -> Array:
    """Which channel the shuffle of a V1 unit brings to each position."""
    return shuffled(np.arange(groups * n), groups if order == "paper" else n)


def connections(groups: int, n: int, order: str) -> Array:
    """(from group, to group): how many channels it carries over."""
    counts = np.zeros((groups, groups), int)
    np.add.at(counts, (arrivals(groups, n, order) // n, np.arange(groups * n) // n), 1)
    return counts


@given(g=group_counts, n=st.integers(1, 40))
def test_the_orders_of_v1_connect_groups_alike_if_and_only_if(g, n):
    """... n mod g is 0, 1 or g - 1: always up to g = 3, and at g = 8 where it is 0. One counts what the other does transposed."""
    paper, authors = connections(g, n, "paper"), connections(g, n, "authors")
    np.testing.assert_array_equal(authors, paper.T)
    assert (paper == authors).all() == (n % g in (0, 1 % g, g - 1))


def test_the_orders_of_v1_differ_for_the_authors_models_with_8_groups():
    """At 0.5x, 1.0x and 1.5x, stage 2 at least: 6, 12 and 18 channels a group. At 2.0x, and with 3 groups, nowhere."""
    differ = {
        (groups, width)
        for groups in (3, 8)
        for width in (0.5, 1.0, 1.5, 2.0)
        for out in widths_of(groups, width)[1:]
        if (connections(groups, out // 4 // groups, "paper") != connections(groups, out // 4 // groups, "authors")).any()
    }
    assert differ == {(8, 0.5), (8, 1.0), (8, 1.5)}


def v1_in_the_authors_order(params: Params, net: ShuffleNetV1) -> Params:
    """Parameters with which the authors' order computes what the paper's computes with `params`.

    From each group to each, both orders carry equally many channels: let the i-th of the one do the work of the i-th of the other.
    """
    params = dict(params)
    for name in [name.removesuffix("0.weight") for name in params if name.endswith("branch2.0.weight")]:
        n = params[f"{name}3.weight"].shape[-1] // net.groups
        pairs = []
        for order in ("authors", "paper"):
            source = arrivals(net.groups, n, order)
            place = np.lexsort((source // n, np.arange(len(source)) // n))  # positions, by the group to and the group from
            pairs.append((source[place], place))
        (source, place), (paper_source, paper_place) = pairs
        before, after = paper_source[np.argsort(source)], paper_place[np.argsort(place)]
        reorder_outputs(params, [f"{name}0.", f"{name}1."], before)
        reorder_outputs(params, [f"{name}3.", f"{name}4."], after)
        weight = params[f"{name}5.weight"].copy()  # (1, 1, n, O): the rows of each group of outputs are another group's inputs
        for inputs, w in zip(after.reshape(net.groups, n) % n, np.split(weight, net.groups, axis=-1), strict=True):
            w[:] = w[:, :, inputs]
        params[f"{name}5.weight"] = weight
    return params


def reorder_outputs(params: Params, layers: list[str], order: Array) -> None:
    """Every array of the layers ends in an axis of output channels: channel k becomes what channel order[k] was."""
    for name in params:
        if name.startswith(tuple(layers)):
            params[name] = params[name][..., order]


def test_with_3_groups_weights_can_be_permuted_from_one_order_of_v1_to_the_other():
    paper, authors = (ShuffleNetV1(0.25, groups=3, classes=5, order=order) for order in ("paper", "authors"))
    x = draw(2, 65, 65, 3)
    params = draw_params(paper, x.shape)
    expected = paper(Reference(params), x)
    assert_close(authors(Reference(v1_in_the_authors_order(params, paper)), x), expected, 1e-12)
    assert np.abs(authors(Reference(params), x) - expected).max() > 0.01 * np.abs(expected).max()  # unpermuted, it is another net


# The two orders of V2: halves and a shuffle at the end, or even and odd at the start -----------------------------------------------


def v2_positions(channels: int) -> Array:
    """Which position of the paper's order, after a unit's shuffle, holds what the authors' order has at each position.

    A channel that passes moves from k to 2 k in the one, from 2 k to k in the other. So every chain o, 2 o, 4 o, ... of positions,
    o odd, is reversed, and position 0 stays.
    """
    positions = np.zeros(channels, int)
    for odd in range(1, channels, 2):
        chain = [odd << j for j in range(channels.bit_length()) if odd << j < channels]
        positions[chain] = chain[::-1]
    return positions


def v2_in_the_authors_order(params: Params, net: ShuffleNetV2) -> Params:
    """Parameters with which the authors' order computes what the paper's computes with `params`, for branches of equal width."""
    params, held = dict(params), np.arange(STEM)  # which channel of the paper's order each of the input's is
    for stage, (channels, repeats) in enumerate(zip(WIDTHS[net.width], REPEATS, strict=False), start=2):
        half, positions = channels // 2, v2_positions(channels)
        passed, made = positions[:half] // 2, positions[half:] // 2  # before the shuffle: left k was at 2 k, right k at 2 k + 1
        for unit in (f"stage{stage}.{i}." for i in range(repeats)):
            if unit.endswith(".0."):
                reorder_outputs(params, [f"{unit}branch1.0.", f"{unit}branch1.1."], held)
                reorder_inputs(params, f"{unit}branch1.2", held)
                reorder_outputs(params, [f"{unit}branch1.2.", f"{unit}branch1.3."], passed)
            reorder_inputs(params, f"{unit}branch2.0", held if unit.endswith(".0.") else positions[1::2] - half)
            reorder_outputs(params, [f"{unit}branch2.5.", f"{unit}branch2.6."], made)
        held = positions
    reorder_inputs(params, "conv5.0", held)
    return params


def reorder_inputs(params: Params, layer: str, order: Array) -> None:
    params[f"{layer}.weight"] = params[f"{layer}.weight"][:, :, order]


def test_with_equal_branches_the_orders_of_v2_are_one_graph():
    paper, authors = (ShuffleNetV2(0.25, classes=5, wiring="torchvision", order=order) for order in ("paper", "authors"))
    x = draw(2, 65, 65, 3)
    params = draw_params(paper, x.shape)
    expected = paper(Reference(params), x)
    assert_close(authors(Reference(v2_in_the_authors_order(params, paper)), x), expected, 1e-12)
    assert np.abs(authors(Reference(params), x) - expected).max() > 0.01 * np.abs(expected).max()  # unpermuted, it is another net


def test_with_unequal_branches_they_are_not():
    """Stage 2 at 1.0x, 24 + 92 channels: in the paper's order all 24 of branch 1 pass the next unit, in the authors' 12 do."""
    from_branch1 = np.arange(116) < 24
    passing_in_paper, _ = np.split(shuffled(from_branch1, 2), 2)  # the unit ends with a shuffle; the next passes its first half
    passing_in_authors, _ = np.split(shuffled(from_branch1, 58), 2)  # the next unit begins with a sort into even and odd
    assert passing_in_paper.sum() == 24
    assert passing_in_authors.sum() == 12
