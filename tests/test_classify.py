"""The command line that names what is in photographs, and what all command lines share: exit codes and one-line errors."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_params
from PIL import Image

from pyshuffle import classify, cli, image, weights
from pyshuffle.backends.reference import Reference
from pyshuffle.errors import DataError, ImageError, WeightsError
from pyshuffle.image import AUTHORS, TORCHVISION, Preprocess
from pyshuffle.labels import read_labels
from pyshuffle.nets import ShuffleNetV2
from pyshuffle.ops.softmax import softmax
from pyshuffle.weights import Checkpoint

ROOT = Path(classify.__file__).parents[1]
AUDIT = [sys.executable, "-m", "pyshuffle.audit"]
PHOTOS = Path(__file__).parent / "photos"
CHELSEA, COFFEE = str(PHOTOS / "chelsea.png"), str(PHOTOS / "coffee.png")
NAMES = ("tabby cat", "coffee mug", "épagneul", "犬")
SMALL = Preprocess(resize=40, crop=32)


def checkpoint(labels: tuple[str, ...] | None = NAMES, preprocess: Preprocess | None = SMALL) -> Checkpoint:
    """A network of four classes that has learnt nothing, and still answers each image in its own way."""
    net = ShuffleNetV2(0.25, classes=4, wiring="torchvision")
    return Checkpoint(net, draw_params(net, (1, 32, 32, 3), np.float32), labels, preprocess)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """The checkpoint on disk."""
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    weights.save(path, checkpoint())
    return str(path)


@pytest.fixture
def run(file, capsys) -> Callable[..., tuple[int, str, list[str]]]:
    """Run the command line -> (exit code, stdout, lines of stderr)."""

    def run(*arguments: str) -> tuple[int, str, list[str]]:
        code = cli.run(classify.main, ["--weights", file, *arguments])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


def by_network(picture: str) -> np.ndarray:
    """The probabilities by the NumPy reference, in float64."""
    net, params = checkpoint().net, checkpoint().params
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    return softmax(net(Reference(wide), image.load(picture, SMALL).astype(np.float64)))[0]


def by_pixels(pixels: np.ndarray) -> np.ndarray:
    """Some probabilities that depend on the image, in no time."""
    four = np.exp(pixels.mean(axis=(0, 1))[[3, 9, 20, 30], 0])
    return four / four.sum()


@pytest.fixture
def quick(monkeypatch) -> None:
    """Where any answer will do, the network need not run."""
    monkeypatch.setattr(classify, "predictor", lambda *_: by_pixels)


# Answers.


def test_the_network_answers(run):
    code, out, err = run(CHELSEA, COFFEE, "--json", "--top", "3")
    assert (code, err) == (0, [])
    answers = json.loads(out)
    assert [answer["file"] for answer in answers] == [CHELSEA, COFFEE]
    for answer in answers:
        expected = by_network(answer["file"])
        order = np.argsort(-expected)[:3]
        assert [guess["index"] for guess in answer["top"]] == order.tolist()
        assert [guess["label"] for guess in answer["top"]] == [NAMES[i] for i in order]
        np.testing.assert_allclose([guess["probability"] for guess in answer["top"]], expected[order], atol=1e-5)
        assert [set(guess) for guess in answer["top"]] == [{"index", "label", "probability"}] * 3


def test_an_answer_in_words(run, quick):
    code, out, err = run(CHELSEA)
    assert (code, err) == (0, [])
    expected = by_pixels(image.load(CHELSEA, SMALL))
    best, *lines = out.splitlines()
    assert best == CHELSEA
    assert len(lines) == 4  # there are no five classes
    for line, i in zip(lines, np.argsort(-expected), strict=True):
        assert line.endswith(f" {NAMES[i]}")
        assert abs(float(line[:7].rstrip("%")) - 100 * expected[i]) < 0.1
        assert line[6] == "%"


def test_top_1(run, quick):
    assert len(run(CHELSEA, "--top", "1")[1].splitlines()) == 2


@pytest.mark.parametrize("top", ["0", "-1", "1.5", "many", ""])
def test_top_below_1(run, top, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(CHELSEA, f"--top={top}")
    assert f"{top!r} is not a whole number from 1 on" in capsys.readouterr().err


def test_bars():
    assert classify.bar(0.621, "utf-8") == "█" * 12 + "▍"
    assert classify.bar(1.0, "utf-8") == "█" * 20
    assert classify.bar(0.0, "utf-8") == classify.bar(0.0, "ascii") == ""
    assert classify.bar(0.995, "utf-8") == "█" * 19 + "▉"
    assert classify.bar(0.999, "utf-8") == "█" * 20
    assert classify.bar(0.621, "latin-1") == classify.bar(0.621, None) == "#" * 12
    utf8 = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert (
        classify.line({"index": 0, "label": "tabby cat", "probability": 0.621}, utf8) == "  62.1%  ████████████▍        tabby cat"
    )


# Good and bad images together.


def test_the_good_images_are_answered(run, quick, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    bad = [str(tmp_path / "bad.jpg"), str(tmp_path / "none.png")]
    code, out, err = run(bad[0], CHELSEA, bad[1])
    assert code == 1
    assert out.startswith(CHELSEA)
    assert len(err) == 2
    assert f"error: {bad[0]}: an empty file" in err[0]
    assert f"error: {bad[1]}: No such file" in err[1]
    code, out, err = run(*bad, COFFEE, "--json")
    assert (code, len(err)) == (1, 2)
    assert [answer["file"] for answer in json.loads(out)] == [COFFEE]


def test_no_good_image(run, tmp_path):
    code, out, err = run(str(tmp_path / "none.png"))
    assert (code, out, len(err)) == (2, "", 1)
    code, out, err = run(str(tmp_path / "none.png"), str(tmp_path), "--json")
    assert (code, json.loads(out), len(err)) == (2, [], 2)


def test_a_folder(run, quick, tmp_path, monkeypatch):
    for name in ("b.png", "a.JPG", "d.gif", "c.png", ".hidden.png", "sub/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    code, out, err = run(str(tmp_path), "--json")
    assert (code, err) == (0, [])
    assert [answer["file"] for answer in json.loads(out)] == [
        str(tmp_path / name) for name in ("a.JPG", "b.png", "c.png", "d.gif")
    ]
    monkeypatch.chdir(tmp_path)
    assert run("")[0] == 2  # no name of a folder, although Path takes it for one of this folder


def test_a_folder_without_images(run, quick, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    code, out, err = run(str(tmp_path))
    assert (code, out) == (2, "")
    assert f"{tmp_path}: a folder without images" in err[0]
    assert run(str(tmp_path), CHELSEA)[0] == 1


def test_standard_input(run, quick, monkeypatch):
    def feed(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    feed(Path(CHELSEA).read_bytes())
    code, out, _ = run("-", "--json")
    answer = json.loads(out)[0]
    assert (code, answer["file"]) == (0, "-")
    assert answer["top"] == json.loads(run(CHELSEA, "--json")[1])[0]["top"]
    feed(b"")
    code, out, err = run("-")
    assert (code, out, len(err)) == (2, "", 1)


# Weights, labels and preprocessing: what is wrong with them is said before any image is opened.


def test_bad_weights_come_before_bad_images(run, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK")
    for name in ("none.npz", "bad.npz"):
        code, out, err = run("none.png", "--weights", str(tmp_path / name))
        assert (code, out, len(err)) == (2, "", 1)
        assert name in err[0]


def test_weights_that_answer_with_no_number():
    broken = checkpoint()
    broken.params["fc.weight"][0, 0] = np.nan
    with pytest.raises(WeightsError, match="not finite"):
        classify.predictor(broken, SMALL.crop)(image.load(CHELSEA, SMALL))


def test_the_weights_that_come_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(classify, "SOURCE_TREE", tmp_path)
    monkeypatch.setattr(classify, "PACKAGE", tmp_path / "pyshuffle")
    with pytest.raises(WeightsError, match=f"{classify.DEFAULT} did not come"):
        classify.shipped()
    for folder in (tmp_path / "weights", tmp_path / "pyshuffle" / "pretrained"):  # where both are, the installed one
        folder.mkdir(parents=True)
        labels = tuple(f"{folder.name} {i}" for i in range(4))
        weights.save(folder / classify.DEFAULT, checkpoint(labels))
        assert classify.shipped().labels == labels


def test_labels_from_a_file(run, quick, tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffone\r\n two \r\nthree\r\nvier\r\n\r\n".encode())
    assert read_labels(tmp_path / "labels.txt", 4) == ("one", "two", "three", "vier")
    _, out, _ = run(CHELSEA, "--labels", str(tmp_path / "labels.txt"))
    assert sorted(line.split()[-1] for line in out.splitlines()[1:]) == ["one", "three", "two", "vier"]


def test_labels_that_do_not_fit(run, tmp_path):
    (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
    code, out, err = run("none.png", "--labels", str(tmp_path / "labels.txt"))
    assert (code, out, len(err)) == (2, "", 1)
    assert "labels.txt: 3 labels for 4 classes" in err[0]
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"labels\.txt: not text in UTF-8"):
        read_labels(tmp_path / "labels.txt", 4)
    with pytest.raises(DataError, match=r"none\.txt: No such file"):
        read_labels(tmp_path / "none.txt", 4)


def test_labels_where_there_are_none(tmp_path, capsys, quick):
    weights.save(tmp_path / "bare.npz", checkpoint(labels=None, preprocess=None))
    assert classify.main([CHELSEA, "--weights", str(tmp_path / "bare.npz"), "--json"]) == 0
    top = json.loads(capsys.readouterr().out)[0]["top"]
    assert [guess["label"] for guess in top] == [f"class {guess['index']}" for guess in top]
    np.testing.assert_allclose(top[0]["probability"], by_pixels(image.load(CHELSEA, TORCHVISION)).max(), atol=1e-5)


def test_preprocess_can_be_overridden(run, quick, monkeypatch):
    used = []
    load = image.load
    monkeypatch.setattr(image, "load", lambda source, preprocess: used.append(preprocess) or load(source, SMALL))
    for arguments in ((), ("--preprocess", "authors"), ("--preprocess", "torchvision")):
        assert run(CHELSEA, *arguments)[0] == 0
    assert used == [SMALL, AUTHORS, TORCHVISION]
    with pytest.raises(SystemExit, match="2"):
        run(CHELSEA, "--preprocess", "mine")


# The program itself.


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=os.environ | environment, cwd=ROOT, timeout=120)


@pytest.mark.compiled
def test_the_program_on_a_terminal_without_unicode(file):
    done = python("-m", "pyshuffle.classify", CHELSEA, "--weights", file, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "#" in text
    assert "\\u72ac" in text


def test_help_does_not_wait_for_numba():
    assert python("-c", "import sys, pyshuffle.classify, pyshuffle.audit; sys.exit('numba' in sys.modules)").returncode == 0


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ImageError("a.png: line one\nline two"), 2, "a.png: line one line two"),
        (OSError(28, "No space left on device", "log.csv"), 2, "No space left on device: log.csv"),
        (PermissionError(13, "Permission denied", "out.npz"), 2, "Permission denied: out.npz"),
        (MemoryError(), 2, "not enough memory"),
        (KeyboardInterrupt(), 130, None),
        (BrokenPipeError(), 141, None),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error, code, line, capsys, monkeypatch):
    def main(argv: list[str] | None) -> int:
        print("so far")
        raise error

    monkeypatch.setattr(sys, "argv", ["/usr/lib/pyshuffle/classify.py"])
    assert cli.run(main, []) == code
    assert capsys.readouterr() == ("so far\n", f"classify: error: {line}\n" if line else "")


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda argv: 1 // 0, [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["more than a buffer holds", "less"])
def test_a_full_disk(arguments):
    with open("/dev/full", "wb") as full:
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        done = subprocess.run([*AUDIT, *arguments], stdout=full, stderr=subprocess.PIPE, env=buffered, cwd=ROOT)
    where = "on standard output, or in the folder of compiled kernels, NUMBA_CACHE_DIR"
    assert (done.returncode, done.stderr.decode()) == (2, f"audit: error: No space left on device: {where}\n")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes a stream")
@pytest.mark.parametrize("name", [b"missing", b"\xff"], ids=["ASCII", "what no terminal shows"])
def test_a_closed_stream_is_not_the_other_one(name):
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "pyshuffle.classify", name]
    done = subprocess.run(shell, stdout=subprocess.PIPE, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_reader_that_has_read_enough():
    with subprocess.Popen(AUDIT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


CATS = {"tabby, tabby cat", "Persian cat", "Egyptian cat"}


def test_the_weights_that_come_with_the_package_know_the_photographs(capsys):
    """A cat and an espresso at the first guess, the tabby by the second."""
    assert classify.main([CHELSEA, COFFEE, "--json"]) == 0
    cat, coffee = ([guess["label"] for guess in answer["top"]] for answer in json.loads(capsys.readouterr().out))
    assert cat[0] in CATS
    assert "tabby, tabby cat" in cat[:2]
    assert coffee[0] == "espresso"
