"""Training: the losses of a PyTorch run, what can be learnt, and what a run survives."""

import csv
import errno
import math
import os
import signal

import numpy as np
import pytest
from golden import make_losses
from PIL import Image

from pyshuffle import cli, progress, run_files, sgd, train, training, weights
from pyshuffle.data import ORDER
from pyshuffle.errors import TrainingError, WeightsError
from pyshuffle.image import Preprocess
from pyshuffle.init import initialise
from pyshuffle.nets import ShuffleNetV2
from pyshuffle.settings import Settings

SMALL = ("--arch", "v2", "--width", "0.33", "--size", "32", "--batch", "8", "--hold-out", "0.2")


@pytest.fixture
def images(tmp_path):
    """Three classes of ten images each, every class with a colour of its own under noise."""
    rng = np.random.default_rng(0)
    for k, name in enumerate("abc"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 128, (36, 32, 3), np.uint8)
            pixels[..., k] += 100
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def run(*arguments) -> int:
    """The exit code of the command line."""
    try:
        return cli.run(train.main, [str(argument) for argument in arguments])
    except SystemExit as stop:  # an option that there is not
        return stop.code


def arrays(path) -> dict:
    with np.load(path) as file:
        return dict(file)


def assert_same_weights(a, b) -> None:
    """To the bit, velocities included."""
    first, second = (run_files.read_state(folder / "state.npz")[2] for folder in (a, b))
    assert first.keys() == second.keys()
    for kind, arrays in first.items():
        assert arrays.keys() == second[kind].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, second[kind][name], err_msg=name)


def assert_same_run(a, b) -> None:
    """To the bit, what is published included."""
    assert_same_weights(a, b)
    first, second = (weights.load(folder / "weights.npz").params for folder in (a, b))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_the_first_losses_are_those_of_a_pytorch_run():
    trainer = sgd.Trainer(make_losses.NET, make_losses.start(), make_losses.DECAY, make_losses.SMOOTHING)
    golden = np.load(make_losses.LOSSES)["losses"]
    losses = [trainer.step(*batch, rate)[0] for batch, rate in zip(make_losses.batches(), make_losses.RATES, strict=True)]
    np.testing.assert_allclose(losses, golden, rtol=1e-3)


@pytest.mark.compiled
def test_64_images_are_memorised():
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((64, 32, 32, 3)).astype(np.float32), np.arange(64) % 4
    net = ShuffleNetV2(0.33, classes=4)
    trainer = sgd.Trainer(net, initialise(net), smoothing=0.0)
    for epoch in range(60):
        for batch in np.split(rng.permutation(64), 2):
            trainer.step(images[batch], labels[batch], rate=0.05 * (1 - epoch / 60))
    assert trainer.measure([(images, labels)])[1] == 1.0


def test_only_weights_of_more_than_one_axis_decay():
    net = ShuffleNetV2(0.33, classes=2, bias=True)
    moved = {}
    for decay in (0.0, 0.1):
        trainer = sgd.Trainer(net, initialise(net), decay)
        trainer.step(np.ones((2, 32, 32, 3), np.float32), np.array([0, 1]), rate=0.1)
        moved[decay] = trainer.params
    start = initialise(net)
    for name, value in start.items():
        expected = moved[0.0][name] - (0.1 * 0.1 * value if value.ndim > 1 else 0)
        np.testing.assert_allclose(moved[0.1][name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_learning_rate_rises_over_an_epoch_and_falls_to_nothing():
    rates = [sgd.learning_rate(step, 100, 5, 0.2) for step in range(100)]
    np.testing.assert_allclose(rates[:6], [0.04, 0.08, 0.12, 0.16, 0.2, 0.2])
    np.testing.assert_allclose(np.diff(rates[5:]), -0.2 / 95)
    assert rates[-1] == pytest.approx(0.2 / 95)
    assert max(sgd.learning_rate(step, 20, 20, 0.2) for step in range(20)) == pytest.approx(0.2)


def test_a_run_leaves_curves_and_weights_that_classify_can_use(images, tmp_path, capsys):
    out, labels = tmp_path / "run", tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue\n")
    assert run(images, *SMALL, "--epochs", 6, "--rate", 2, "--labels", labels, "--out", out) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("24 images to train on, 6 held out, 3 classes\n")
    assert "epoch 6/6  loss " in printed
    assert b"\r" not in (out / "log.csv").read_bytes()
    with (out / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == list("123456")
    assert tuple(rows[0]) == progress.COLUMNS
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) < 2 * math.log(3)  # of an image, not of all that were seen
    assert all(float(row["images_per_second"]) * float(row["seconds"]) == pytest.approx(24) for row in rows)
    checkpoint = weights.load(out / "weights.npz")
    assert checkpoint.labels == ("red", "green", "blue")
    assert checkpoint.net == ShuffleNetV2(0.33, classes=3)
    assert checkpoint.preprocess == Preprocess(resize=32, crop=32)


def test_weights_trained_on_enlarged_images_say_so(images, tmp_path):
    assert run(images, *SMALL, "--size", 64, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert weights.load(tmp_path / "run" / "weights.npz").preprocess == Preprocess(resize=64, crop=64, detail=32)


def test_a_network_may_be_shown_larger_images_than_it_is_trained_on(images, tmp_path):
    for size, name in ((0, "same"), (64, "larger")):
        assert run(images, *SMALL, "--epochs", 2, "--test-size", size, "--out", tmp_path / name) == 0
    assert_same_run(tmp_path / "same", tmp_path / "larger")  # training is what it was
    measured = [[row[5] for row in curves(tmp_path / name)[1:]] for name in ("same", "larger")]
    assert all(same != larger for same, larger in zip(*measured, strict=True))
    assert weights.load(tmp_path / "larger" / "weights.npz").preprocess == Preprocess(resize=64, crop=64, detail=32)


def test_an_interrupted_run_saves_and_says_how_to_go_on(images, tmp_path, capsys, monkeypatch):
    arguments = (images, *SMALL, "--epochs", 3)
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    report = training.Run.report

    def interrupt(self, epoch):
        report(self, epoch)
        if self.progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "report", interrupt)
        assert run(*arguments, "--out", tmp_path / "stopped") == 130
    assert f"stopped after step 4; go on with --resume {tmp_path / 'stopped'}" in capsys.readouterr().out
    assert run("--resume", tmp_path / "stopped") == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def weights_before_and_after(images, tmp_path, place) -> tuple[dict, dict]:
    """Those of a run, and of one that begins with them, at a rate of 0, once the images of class c lie in another place."""
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "first") == 0
    (images / "c").rename(place)
    start = ("--start-from", tmp_path / "first" / "weights.npz")
    assert run(images, *SMALL, "--epochs", 1, "--rate", 0, *start, "--out", tmp_path / "second") == 0
    first, second = (weights.load(tmp_path / name / "weights.npz").params for name in ("first", "second"))
    return first, second


def test_a_run_can_start_from_weights(images, tmp_path, capsys):
    first, second = weights_before_and_after(images, tmp_path, images / "c")
    assert all((first[name] == second[name]).all() for name in first if "running" not in name)
    assert "knows" not in capsys.readouterr().out
    start = ("--start-from", tmp_path / "first" / "weights.npz")
    assert run(images, *SMALL, "--width", 0.5, *start, "--out", tmp_path / "third") == 2
    error = capsys.readouterr().err
    has, needs = (f"--arch v2 --width {width} --classes 3" for width in (0.33, 0.5))
    assert f"weights.npz is of the network {has}, and the run is one of {needs}\n" in error


def test_a_run_can_start_from_weights_of_another_number_of_classes(images, tmp_path, capsys):
    """All but the classifier is taken over."""
    first, second = weights_before_and_after(images, tmp_path, tmp_path / "c")
    assert "weights.npz knows 3 classes and the run 2: anew begins fc.weight\n" in capsys.readouterr().out
    assert [name for name in first if first[name].shape != second[name].shape] == ["fc.weight"]
    assert all((first[name] == second[name]).all() for name in first if "running" not in name and name != "fc.weight")


def test_a_classifier_of_classes_of_other_names_is_kept_and_told(images, tmp_path, capsys):
    first, second = weights_before_and_after(images, tmp_path, images / "d")
    assert "weights.npz knows as many classes by other names: its classifier is kept\n" in capsys.readouterr().out
    np.testing.assert_array_equal(first["fc.weight"], second["fc.weight"])


def test_a_batch_larger_than_the_set_is_told(images, tmp_path, capsys):
    assert run(images, *SMALL, "--epochs", 1, "--batch", 64, "--out", tmp_path / "run") == 0
    assert "24 images to train on, 6 held out, 3 classes; batches of 24, not 64: there are no more\n" in capsys.readouterr().out


def curves(out):
    """The columns of the log that hold no time."""
    assert b"\r" not in (out / "log.csv").read_bytes()
    with (out / "log.csv").open(newline="") as file:
        return [row[:-2] for row in csv.reader(file)]


def test_the_least_area_of_crops_matters(images, tmp_path):
    for least in (0.5, 0.1):
        assert run(images, *SMALL, "--epochs", 1, "--min-area", least, "--out", tmp_path / f"{least}") == 0
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "usual") == 0
    assert curves(tmp_path / "usual") == curves(tmp_path / "0.5") != curves(tmp_path / "0.1")


@pytest.mark.parametrize("last", [3, 9], ids=["of an epoch", "of the run"])
def test_stopping_after_a_last_step_loses_no_line_of_the_curves(last, images, tmp_path, monkeypatch):
    arguments = (images, *SMALL, "--epochs", 3)
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "report", lambda self, _: setattr(self, "stopping", self.progress.step == last))
        assert run(*arguments, "--out", tmp_path / "stopped") == 130
    assert run("--resume", tmp_path / "stopped") == 0
    assert curves(tmp_path / "stopped") == curves(tmp_path / "whole")
    assert len(curves(tmp_path / "whole")) == 4


def test_a_resumed_run_keeps_its_settings(images, tmp_path, capsys):
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert run("--resume", tmp_path / "run", "--batch", 4) == 2
    assert "is a run with batch=8: it cannot be resumed with batch=4" in capsys.readouterr().err
    assert run("--resume", tmp_path / "run", "--test-size", 64) == 2
    assert "is a run with test_size=0: it cannot be resumed with test_size=64" in capsys.readouterr().err
    assert run("--resume", tmp_path / "run", "--width", 0.5) == 2
    assert "width=0.33: it cannot be resumed with width=0.5" in capsys.readouterr().err
    assert run("--resume", tmp_path / "run", "--groups", 3) == 2
    assert "is a run of v2, which has no setting 'groups'" in capsys.readouterr().err
    assert run(images, "--resume", tmp_path / "run", "--batch", 8) == 0
    assert run("--resume", tmp_path / "run", "--labels", "names.txt") == 2
    assert "without --labels, --start-from and --out" in capsys.readouterr().err
    (images / "a" / "0.png").rename(images / "a" / "zero.png")
    assert run("--resume", tmp_path / "run") == 2
    assert f"the images in {images} are not those that the run" in capsys.readouterr().err


def test_a_run_is_not_overwritten(images, tmp_path, capsys):
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 0
    before = (tmp_path / "run" / "state.npz").read_bytes()
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run" / "state.npz").read_bytes() == before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(images, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(images, *SMALL, "--epochs", 50, "--rate", 1e30, "--save-every", 0, "--out", out) == 2
    error = capsys.readouterr().err
    assert "not finite after step" in error or "the loss is nan" in error
    assert f"the last good state is {out / 'state.npz'}" in error
    assert error.count("\n") == 1
    params = run_files.read_state(out / "state.npz")[2]["params"]
    assert all(np.isfinite(array).all() for array in params.values())


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_state(images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert run(images, *SMALL, "--epochs", 1, "--out", out) == 0
    before = arrays(out / "state.npz")

    def half_written(file, **_):
        file.write(b"half a state")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_files.np, "savez", half_written)
    assert run("--resume", out) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    after = arrays(out / "state.npz")
    assert all((after[name] == before[name]).all() for name in before)
    assert sorted(path.name for path in out.iterdir()) == ["log.csv", "state.npz", "weights.npz"]


def test_weights_without_a_state_are_not_overwritten(images, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.npz").write_bytes(b"dear to somebody")
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 2
    assert "holds a run already (weights.npz)" in capsys.readouterr().err
    assert (tmp_path / "run" / "weights.npz").read_bytes() == b"dear to somebody"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a folder of class folders is needed"),
        (("nowhere",), "nowhere: no such folder"),
        (("{labels}",), "labels.txt: is a file, not a folder"),
        (("{images}", "--arch", "v9"), "there is no network 'v9': choose one of v1, v2"),
        (("{images}", "--width", "0.7"), "v2 has no width 0.7: choose one of 0.25, 0.33, 0.5, 1.0, 1.5, 2.0"),
        (("{images}", "--groups", "3"), "v2 has no setting 'groups'"),
        (("{images}", "--arch", "v1", "--groups", "8", "--width", "0.25"), "choose one of 0.5, 1.0, 1.5, 2.0"),
        (("{images}", "--size", "16"), "size=16 is less than 32"),
        (("{images}", "--test-size", "16"), "test_size=16 is neither 0 nor 32 or more"),
        (("{images}", "--test-size", "2000"), "resize=2000, crop=2000 and detail=32 are not sides up to 1024"),
        (("{images}", "--batch", "0"), "batch=0 is less than 1"),
        (
            ("{images}", "--hold-out", "0.99"),
            "class 'a': none of its images, 10 in all, is left to train on where 0.99 are held out",
        ),
        (("{images}", "--save-every", "nan"), "save_every=nan is not in [0, inf)"),
        (("{images}", "--classes", "3"), "unrecognized arguments: --classes 3"),
        (("{images}", "--batch", "many"), "argument --batch: invalid int value: 'many'"),
        (("{images}", "--rate", "nan"), "rate=nan is not in [0, inf)"),
        (("{images}", "--min-area", "0"), "min_area=0.0 is not in (0, 1]"),
        (("{images}", "--labels", "{labels}"), "labels.txt: 2 labels for 3 classes"),
        (("--resume", "nowhere"), "no such file, so there is no run to resume"),
        (("--resume", "{broken}"), "not a state that can be resumed"),
        (("--resume", "{labels}"), "labels.txt is a file: --resume takes the folder of a run"),
        (("{images}", "--out", "{labels}"), "labels.txt is a file: --out takes a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.npz").write_bytes(b"PK\3\4 and no more")
    places = {"images": images, "labels": tmp_path / "labels.txt", "broken": tmp_path / "broken"}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_settings_are_checked():
    with pytest.raises(TrainingError, match=r"hold_out=1.0 is not in \[0, 1\)"):
        Settings(net={}, data="", images="", labels=(), detail=0, hold_out=1.0)


def test_damaged_images_are_named_counted_and_left_out(images, tmp_path, capsys, monkeypatch):
    """One to train on, and one that is held out; a run that goes on leaves out the same."""
    (images / "a" / "0.png").write_bytes(b"no image")
    Image.new("L", (2, 2)).save(images / "b" / "9.png")
    assert run(images, *SMALL, "--epochs", 2, "--out", tmp_path / "run") == 0
    out, error = capsys.readouterr()
    assert sorted(error.splitlines()) == [
        f"skipped {images / 'a' / '0.png'}: no image of a kind that is read: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP",
        f"skipped {images / 'b' / '9.png'}: 2 x 2 pixels: at least 8 are needed each way",
    ]
    assert [line.endswith("2 images skipped") for line in out.splitlines() if "held-out loss" in line] == [True, True]
    monkeypatch.setattr(training.Run, "train_epoch", stopping_after(4, training.Run.train_epoch))
    assert run(images, *SMALL, "--epochs", 2, "--out", tmp_path / "stopped") == cli.INTERRUPTED
    monkeypatch.undo()
    assert run("--resume", tmp_path / "stopped") == 0
    assert_same_weights(tmp_path / "run", tmp_path / "stopped")


def stopping_after(steps, train_epoch):
    """As a run is asked to stop in the step of that number."""

    def stopped(self, epoch, start):
        step = self.trainer.step

        def counted(*arguments):
            self.stopping = self.progress.step + 1 == steps
            return step(*arguments)

        self.trainer.step = counted
        train_epoch(self, epoch, start)

    return stopped


def test_an_epoch_may_begin_with_damaged_images(images, tmp_path, monkeypatch):
    """Before there is a loss, there is none to tell."""
    order = np.random.default_rng((0, ORDER, 1)).permutation(24)  # of an epoch, with the default seed
    (images / "abc"[order[0] // 8] / f"{order[0] % 8}.png").write_bytes(b"no image")
    told = []
    monkeypatch.setattr(progress.Progress, "within_epoch", lambda self, *_: told.append(self.step) or "")
    monkeypatch.setattr(training, "INTERVAL", (0, 0))
    assert run(images, *SMALL, "--batch", 1, "--epochs", 1, "--out", tmp_path / "run") == 0
    assert told == list(range(2, 25))


def test_without_a_sound_image_to_train_on_nothing_is_published(images, tmp_path, capsys):
    for image in images.rglob("[0-7].png"):
        image.write_bytes(b"no image")
    assert run(images, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{images}: of the images to train on not one can be decoded")
    assert not (tmp_path / "run" / "weights.npz").exists()


def test_parameters_of_another_network_are_not_trained():
    with pytest.raises(WeightsError, match="has the shape"):
        sgd.Trainer(ShuffleNetV2(0.5, classes=3), initialise(ShuffleNetV2(0.5, classes=4)))


def test_a_held_out_batch_without_a_sound_image_is_passed_over(images, tmp_path):
    """Of six held out, five make a batch, and the last is damaged."""
    (images / "c" / "9.png").write_bytes(b"no image")
    assert run(images, *SMALL, "--batch", 5, "--epochs", 1, "--out", tmp_path / "run") == 0


def test_a_run_killed_while_it_closes_the_last_epoch_ends_with_the_same_bits(images, tmp_path, monkeypatch):
    assert run(images, *SMALL, "--epochs", 2, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(sgd.Trainer, "measure", lambda *_: 1 / 0)  # after the statistics are computed
        patch.setattr(training.Run, "close_epoch", only_last(training.Run.close_epoch))
        with pytest.raises(ZeroDivisionError):
            run(images, *SMALL, "--epochs", 2, "--out", tmp_path / "killed")
    assert run("--resume", tmp_path / "killed") == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def only_last(close_epoch):
    """The first epoch closes as if it had been measured."""

    def closed(self, epoch):
        if epoch == 2:
            close_epoch(self, epoch)
        else:
            self.progress.close_epoch(epoch, 0.0, (0.0, 0.0))

    return closed


def test_statistics_are_recomputed_as_the_mean_over_batches():
    rng = np.random.default_rng(0)
    net = ShuffleNetV2(0.33, classes=4)
    trainer = sgd.Trainer(net, initialise(net))
    batches = [(rng.standard_normal((4, 32, 32, 3)).astype(np.float32), np.arange(4)) for _ in range(3)]
    trainer.recompute(batches)
    each = []
    for batch in batches:
        alone = sgd.Trainer(net, initialise(net))
        alone.recompute([batch])
        each.append(alone.params)
    for name, value in trainer.params.items():
        np.testing.assert_allclose(value, np.mean([params[name] for params in each], axis=0), rtol=1e-4, atol=1e-6, err_msg=name)
    assert trainer.params["conv1.1.running_var"].std() > 0


def test_the_statistics_of_a_finished_run_are_those_of_its_weights(images, tmp_path, monkeypatch):
    recomputed = []
    monkeypatch.setattr(sgd.Trainer, "recompute", lambda trainer, batches: recomputed.append(len(list(batches))))
    assert run(images, *SMALL, "--epochs", 2, "--out", tmp_path / "run") == 0
    assert recomputed == [3]  # batches of 8 of the 24 images, after the last epoch


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_curves_can_be_drawn(images, tmp_path, name):
    pytest.importorskip("matplotlib")
    assert run(images, *SMALL, "--epochs", 2, "--out", tmp_path / "run", "--plot", tmp_path / name) == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_a_plot_that_cannot_be_drawn_begins_nothing(images, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run(images, *SMALL, "--out", tmp_path / "run", "--plot", tmp_path / "curves.txt") == 2
    assert "curves.txt: its name must end in one of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
