"""The page that traces a photograph through the network is the one that is kept, and its shapes are those of arrays."""

from pathlib import Path

import numpy as np

from pyshuffle import cli, image, trace
from pyshuffle.backends.reference import Reference
from pyshuffle.init import initialise
from pyshuffle.nets import ShuffleNetV2

ROOT = Path(__file__).parents[1]
PHOTO = "tests/photos/chelsea.png"


def test_the_page_is_up_to_date(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.run(trace.main, [PHOTO]) == 0
    assert capsys.readouterr().out == (ROOT / "pyshuffle" / "nets" / "trace.md").read_text()


def test_its_shapes_are_those_of_the_photograph_on_its_way(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.run(trace.main, [PHOTO, "--width", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"Made by `python -m pyshuffle.trace {PHOTO} --width 0.5`." in lines[2]
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    said = {name.split()[-1]: size for name, size, _ in rows}
    ran = {}

    class Watched(Reference):
        def run(self, op, inputs, names=(), **settings):
            y = super().run(op, inputs, names, **settings)
            if names:
                ran[names[0].removesuffix(".weight")] = " x ".join(map(str, y.shape[1:]))
            return y

    net = ShuffleNetV2(0.5)
    net(Watched(initialise(net)), image.load(PHOTO).astype(np.float32))
    assert {name: size for name, size in said.items() if name in ran} == {
        name: size for name, size in ran.items() if name in said
    }
    assert len(said.keys() & ran.keys()) > 30


def test_an_image_that_is_not_there(capsys):
    assert cli.run(trace.main, ["none.png"]) == 2
    assert "none.png" in capsys.readouterr().err
