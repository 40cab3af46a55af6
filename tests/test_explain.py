"""Class activation maps: they add up to the logits, and the one of a cat lies on the cat. The picture of the shuffle."""

import numpy as np
import pytest
from conftest import assert_close, draw_params
from golden.make_logits import images
from PIL import Image
from test_classify import CATS, CHELSEA

from pyshuffle import classify, cli, explain, image, visualise
from pyshuffle.backends.reference import Reference
from pyshuffle.nets import MobileNetV2, ShuffleNetV1, ShuffleNetV2

NETS = [ShuffleNetV1(0.25, classes=5), ShuffleNetV2(0.5, classes=5), MobileNetV2(0.15, classes=5)]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_the_maps_add_up_to_the_logits(net):
    x = images(97, batch=1)
    params = draw_params(net, x.shape)
    maps, logits = explain.activation_maps(net, params, x), net(Reference(params), x)[0]
    assert maps.shape == (4, 4, 5)
    bias = next((value for name, value in params.items() if value.shape == (5,)), 0)
    assert_close(maps.mean(axis=(0, 1)) + bias, logits, 1e-12)


def test_heat_is_what_a_place_adds_beyond_all_classes():
    maps = np.zeros((2, 3, 4))
    maps[0, 1, 2], maps[1, 2, 2] = 2, 1
    expected = [[0, 1, 0], [0, 0, 0.5]]
    np.testing.assert_allclose(explain.heat(maps, 2), expected)
    np.testing.assert_allclose(explain.heat(maps + np.arange(6).reshape(2, 3, 1), 2), expected)
    assert (explain.heat(maps, 0) == 0).all()


def test_the_heat_of_a_cat_lies_on_the_cat():
    """The photograph in each quarter of a grey picture: of the cats' maps most lies in that quarter, where chance has a fourth."""
    checkpoint = classify.shipped()
    cats = [index for index, label in enumerate(checkpoint.labels) if label in CATS]
    assert len(cats) == 3
    shares = []
    for left, top in ((0, 0), (300, 0), (0, 300), (300, 300)):
        picture = Image.new("RGB", (600, 600), (124, 116, 104))
        picture.paste(image.decode(CHELSEA).crop((75, 0, 375, 300)), (left, top))
        maps = explain.activation_maps(checkpoint.net, checkpoint.params, image.prepare(picture, checkpoint.preprocess))
        heats = [explain.enlarged(explain.heat(maps, cat), 600) for cat in cats]
        shares.append([heat[top : top + 300, left : left + 300].sum() / heat.sum() for heat in heats])
    assert np.min(shares) > 0.25, shares
    assert np.mean(shares) > 0.5, shares


def test_the_heat_of_the_cat_as_it_is_lies_in_its_box():
    """The whole photograph, of which the cat fills all but the right-hand edge."""
    checkpoint = classify.shipped()
    maps = explain.activation_maps(checkpoint.net, checkpoint.params, image.load(CHELSEA, checkpoint.preprocess))
    for cat in (index for index, label in enumerate(checkpoint.labels) if label in CATS):
        heat = explain.enlarged(explain.heat(maps, cat), 300)
        assert heat[:, :280].sum() / heat.sum() > 0.8


# The commands -------------------------------------------------------------------------------------------------------------------


def test_explain_draws_the_photograph_and_its_three_likeliest_classes(tmp_path, capsys):
    out = tmp_path / "cat.png"
    assert cli.run(classify.main, [CHELSEA, "--explain", str(out)]) == 0
    with_it = capsys.readouterr().out
    assert cli.run(classify.main, [CHELSEA]) == 0
    assert capsys.readouterr().out == with_it
    with Image.open(out) as sheet:
        side = (sheet.width - 3 * explain.MARGIN) // 4
        assert sheet.height == side + 2 * explain.FONT
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    photo = pixels[:side, :side]
    for number in (1, 2, 3):
        left = number * (side + explain.MARGIN)
        panel, caption = pixels[:side, left : left + side], pixels[side:, left : left + side]
        assert (panel != photo).any()
        assert abs(np.corrcoef(panel.ravel(), photo.ravel())[0, 1]) > 0.3  # the photograph shows through
        assert caption.min() < 100  # black on white


def test_a_picture_is_as_large_as_an_image_may_be():
    preprocess = image.Preprocess(resize=600, crop=300)
    sheet = explain.draw(image.decode(CHELSEA), preprocess, np.zeros((3, 3, 2)), [(0, "cat")])
    assert sheet.size == (2 * 300 + explain.MARGIN, 300 + 2 * explain.FONT)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([CHELSEA, CHELSEA, "--explain", "out.png"], "--explain draws one image"),
        (["-", "--explain", "out.png"], "--explain draws one image"),
        ([CHELSEA, "--explain", "out.nothing"], "out.nothing: the name of a picture ends with"),
        ([CHELSEA, "--explain", "none/out.png"], "cannot write none/out.png"),
    ],
)
def test_what_explain_cannot_do(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(classify.main, arguments) == 2
    out, error = capsys.readouterr()
    assert says in error
    assert out == ""
    assert not list(tmp_path.iterdir())


# The shuffle --------------------------------------------------------------------------------------------------------------------


def test_patterns_are_those_of_the_operations():
    np.testing.assert_array_equal(visualise.grouped(6, 2), np.kron(np.eye(2), np.ones((3, 3))))
    np.testing.assert_array_equal(visualise.moved(6, 2).argmax(axis=0), [0, 3, 1, 4, 2, 5])


def colours(picture: Image.Image, row: int, groups: int, each: int) -> list[tuple[int, ...]]:
    """Of the channels in a row of a pattern."""
    top = visualise.BOX + visualise.GAP + row * visualise.DROP + 3
    lefts = [visualise.MARGIN + c * (visualise.BOX + visualise.GAP) + c // each * visualise.GAP + 3 for c in range(groups * each)]
    return [picture.getpixel((left, top)) for left in lefts]


def test_colours_show_which_groups_a_channel_depends_on():
    groups, each, channels = 3, 4, 12
    convolution, shuffle = ("grouped 1x1", visualise.grouped(channels, groups)), ("shuffle", visualise.moved(channels, groups))
    apart = visualise.pattern("", [convolution, convolution], groups, each)
    first = colours(apart, 0, groups, each)
    assert len(set(first)) == groups
    assert colours(apart, 2, groups, each) == first
    together = visualise.pattern("", [convolution, shuffle, convolution], groups, each)
    assert colours(together, 0, groups, each) == first
    assert colours(together, 2, groups, each) == [first[c] for c in visualise.moved(channels, groups).argmax(axis=0)]
    assert len(set(colours(together, 3, groups, each))) == 1  # of all groups


def test_the_command_draws_and_prints_the_order(tmp_path, capsys):
    out = tmp_path / "shuffle.png"
    assert cli.run(visualise.main, ["--shuffle", "2", "3", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 3 1 4 2 5"
    with Image.open(out) as picture:
        assert picture.size == visualise.diagram(2, 3).size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shuffle", "0", "3", "out.png"], "0 groups of 3 channels: at least 1 of each"),
        (["--shuffle", "8", "9", "out.png"], "at most 64 channels"),
        (["--shuffle", "2", "3", "out"], "out: the name of a picture ends with .png"),
    ],
)
def test_what_cannot_be_drawn(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(visualise.main, arguments) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
