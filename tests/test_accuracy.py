"""`python -m pyshuffle.accuracy`: what it counts is what `classify` answers."""

import json

import numpy as np
import pytest
from conftest import draw_params
from PIL import Image

from pyshuffle import accuracy, classify, cli, weights
from pyshuffle.image import Preprocess
from pyshuffle.nets import ShuffleNetV2

NET = ShuffleNetV2(0.33, classes=7)
EACH, LAST = 10, 3


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of images, and weights that answer at random."""
    rng = np.random.default_rng(0)
    for label in range(NET.classes):
        (tmp_path / "images" / f"{label}").mkdir(parents=True)
        for i in range(EACH):
            picture = rng.integers(0, 256, (3, 3, 3), np.uint8).repeat(16, 0).repeat(12, 1)
            Image.fromarray(picture).save(tmp_path / "images" / f"{label}" / f"{i}.png")
    params = draw_params(NET, (1, 32, 32, 3), np.float32)
    weights.save(tmp_path / "weights.npz", weights.Checkpoint(NET, params, None, Preprocess(resize=32, crop=32)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(files: list[str], options: list[str], capsys) -> list[list[str]]:
    """What `classify` says of each."""
    assert cli.run(classify.main, [*files, "--weights", "weights.npz", "--json", *options]) == 0
    return [[guess["label"] for guess in answer["top"]] for answer in json.loads(capsys.readouterr().out)]


OPTIONS = [  # and which images of each class are looked at
    (["--part", "0.3"], range(EACH - LAST, EACH)),
    (["--part", "1"], range(EACH)),
    (["--part", "1", "--preprocess", "torchvision"], range(EACH)),
]


@pytest.mark.parametrize(("options", "looked_at"), OPTIONS, ids=str)
def test_it_counts_what_classify_answers(options, looked_at, place, capsys):
    files = [f"images/{label}/{i}.png" for label in range(NET.classes) for i in looked_at]
    answers = named(files, options[2:], capsys)
    right = [f"class {file.split('/')[1]}" for file in files]
    first = sum(label == guesses[0] for label, guesses in zip(right, answers, strict=True))
    among = sum(label in guesses for label, guesses in zip(right, answers, strict=True))
    assert 0 < first < among < len(files)
    assert cli.run(accuracy.main, ["images", "--weights", "weights.npz", *options]) == 0
    said = f"top-1 {first / len(files):.1%}, top-5 {among / len(files):.1%} of {len(files)} images of images\n"
    assert capsys.readouterr().out == said


def test_unless_told_it_looks_at_the_last_twentieth_of_each_class(place, capsys):
    """Which is one of ten; and where a class has a single image, that."""
    for _ in range(2):
        assert cli.run(accuracy.main, ["images", "--weights", "weights.npz"]) == 0
        assert "of 7 images of images" in capsys.readouterr().out
        for file in (place / "images").glob("*/[0-8].png"):
            file.unlink()


def test_an_answer_that_is_none_is_told(place, capsys):
    checkpoint = weights.load("weights.npz")
    checkpoint.params["fc.weight"][:] = 3e38
    weights.save("weights.npz", checkpoint)
    assert cli.run(accuracy.main, ["images", "--weights", "weights.npz"]) == 2
    assert "the network's answer is not finite: the weights are damaged" in capsys.readouterr().err


def test_damaged_images_are_counted_apart(place, capsys):
    (place / "images" / "2" / "9.png").write_bytes(b"no image")
    assert cli.run(accuracy.main, ["images", "--weights", "weights.npz", "--part", "0.3"]) == 0
    out, err = capsys.readouterr()
    assert "of 20 images of images\n1 could not be decoded\n" in out
    assert "skipped images/2/9.png" in err
    for file in (place / "images").glob("*/*.png"):
        file.write_bytes(b"no image")
    assert cli.run(accuracy.main, ["images", "--weights", "weights.npz"]) == 2
    assert "images: none of the images can be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["images"], "images: 7 class folders, and the network knows 200"),
        (["images", "--weights", "weights.npz", "--part", "0"], "part=0.0 is not in (0, 1]"),
        (["images", "--weights", "weights.npz", "--part", "nan"], "part=nan is not in (0, 1]"),
        (["images", "--weights", "nothing.npz"], "nothing.npz"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, place, capsys):
    assert cli.run(accuracy.main, arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
