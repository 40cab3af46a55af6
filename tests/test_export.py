"""The network as an ONNX graph: what ONNX's checker and ONNX Runtime say of it."""

import json

import numpy as np
import pytest
from conftest import draw_params

from pyshuffle import cli, weights
from pyshuffle.backends.reference import Reference
from pyshuffle.errors import WeightsError
from pyshuffle.image import Preprocess
from pyshuffle.nets import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2
from pyshuffle.weights import Checkpoint

NETS = [
    ShuffleNetV1(1.0, groups=3, classes=10),
    ShuffleNetV1(0.5, groups=8, classes=10, bias=False),
    ShuffleNetV2(0.5, classes=10),
    ShuffleNetV2(1.0, classes=10, wiring="torchvision"),
    ShuffleNetV2(0.5, classes=10, order="authors", extra_depthwise=True),
    MobileNetV1(0.25, classes=10),
    MobileNetV2(0.4, classes=10),
]


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (65, 33)], ids=str)
def test_onnxruntime_gives_the_reference_logits(net, size):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from pyshuffle.backends import onnx

    params = draw_params(net, (1, 64, 64, 3), np.float32)
    images = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    session = onnxruntime.InferenceSession(onnx.model(net, params, size).SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": images.transpose(0, 3, 1, 2)})[0]
    expected = net(Reference({name: array.astype(np.float64) for name, array in params.items()}), images.astype(np.float64))
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_parameters_of_another_network():
    pytest.importorskip("onnx")
    from pyshuffle.backends import onnx

    params = draw_params(NETS[2], (1, 64, 64, 3), np.float32)
    with pytest.raises(WeightsError, match="the network needs"):
        onnx.model(NETS[3], params)


@pytest.fixture
def file(tmp_path):
    """A checkpoint on disk."""
    net = ShuffleNetV2(0.5, classes=2)
    preprocess = Preprocess(resize=40, crop=32)
    weights.save(tmp_path / "tiny.npz", Checkpoint(net, draw_params(net, (1, 32, 32, 3), np.float32), ("cat", "dog"), preprocess))
    return tmp_path / "tiny.npz"


def test_the_command_writes_a_model_with_its_labels(file, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    from pyshuffle import export

    out = tmp_path / "model.onnx"
    assert cli.run(export.main, [str(out), "--weights", str(file)]) == 0
    assert "image (N, 3, 32, 32)" in capsys.readouterr().out
    model = onnx.load(out)
    assert [json.loads(entry.value) for entry in model.metadata_props if entry.key == "labels"] == [["cat", "dog"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.pb"], "ends with .onnx"),
        (["model.onnx", "--weights", "none.npz"], "no such file"),
        (["model.onnx", "--size", "8"], "size=8 is too small"),
    ],
)
def test_bad_arguments(arguments, says, capsys, tmp_path, monkeypatch):
    if "--size" in arguments:
        pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    from pyshuffle import export

    if says == "no such file":
        pytest.importorskip("onnx")
    assert cli.run(export.main, arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert says in error[0]
    assert not list(tmp_path.iterdir())
