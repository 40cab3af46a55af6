"""Training by the GPU's kernels under the simulator: steps, whole runs, and what is left where the device is lost."""

import re

import numpy as np
import pytest
from conftest import SIMULATED, assert_close, draw_params, pictures
from PIL import Image

if not SIMULATED:
    pytest.skip("NUMBA_ENABLE_CUDASIM=1 is not set", allow_module_level=True)

import simulator
from simulator import failing

from pyshuffle import cli, run_files, sgd, train
from pyshuffle.cuda import launch
from pyshuffle.sgd_cuda import Trainer


@pytest.mark.parametrize("net", ["v1", "v2", "mobilenet v2"], indirect=True)
def test_three_steps_of_training_are_the_references(net):
    """Losses, and what the parameters have come to, running statistics included."""
    params, images, labels = draw_params(net, (1, 32, 32, 3)), pictures(8, 16, 16, 3), np.arange(8) % 5
    trainer = Trainer(net, {name: array.astype(np.float32) for name, array in params.items()})
    reference = sgd.ReferenceTrainer(net, params)
    for _ in range(3):
        value, right = trainer.step(images, labels, 0.005)
        expected, named = reference.step(images.astype(np.float64), labels, 0.005)
        assert abs(value - expected) <= 1e-5 * expected
        assert right == named
    for name, array in trainer.state()["params"].items():
        assert_close(array, params[name], 1e-5)


@pytest.mark.parametrize("net", ["v2"], indirect=True)
def test_train_on_the_device_saves_what_the_reference_would(net, tmp_path, monkeypatch):
    monkeypatch.setattr(sgd, "Trainer", sgd.ReferenceTrainer)  # of the processor: its own kernels are not to be compiled for this
    for n in range(6):
        folder = tmp_path / "images" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    options = "--width 0.125 --size 32 --epochs 1 --batch 4 --rate 0.2 --hold-out 0.1".split()
    for name in ("cpu", "cuda"):
        assert train.main([str(tmp_path / "images"), *options, "--device", name, "--out", str(tmp_path / name)]) == 0
    on_cpu, on_device = (dict(np.load(tmp_path / name / "state.npz")) for name in ("cpu", "cuda"))
    assert set(on_cpu) == set(on_device)
    assert any(name.startswith("velocity/") for name in on_device)
    for name in on_cpu.keys() - {"meta"}:
        np.testing.assert_allclose(on_device[name], on_cpu[name], rtol=0, atol=1e-4)


def test_a_step_of_training_takes_no_memory_that_the_ones_before_did_not(net, monkeypatch):
    """From the third on: the first has no velocities to keep."""
    trainer = Trainer(net, draw_params(net, (1, 32, 32, 3), np.float32))
    monkeypatch.setattr(launch.Kernel, "__call__", lambda *_: None)
    trainer.step(pictures(2, 32, 32, 3), np.array([0, 1]), 0.01)
    trainer.step(pictures(2, 32, 32, 3), np.array([0, 1]), 0.01)
    monkeypatch.setattr(launch.cuda, "device_array", None)
    trainer.step(pictures(2, 32, 32, 3), np.array([0, 1]), 0.01)


@pytest.mark.parametrize("net", ["v2"], indirect=True)
@pytest.mark.parametrize("lost", [1, 2], ids=["in the first step", "later"])
def test_a_device_that_is_lost_in_training_leaves_the_last_good_state(net, lost, tmp_path, monkeypatch, capsys):
    for n in range(4):
        folder = tmp_path / "images" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    steps, usual = [], Trainer.step

    def step(trainer, *batch):
        steps.append(batch)
        if len(steps) == lost:
            monkeypatch.setattr(simulator.kernel.FakeCUDAKernel, "__call__", failing(719, "CUDA_ERROR_LAUNCH_FAILED"))
        return usual(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", step)
    options = "--width 0.125 --size 32 --epochs 2 --batch 2 --hold-out 0 --save-every 0 --device cuda".split()
    assert cli.run(train.main, [str(tmp_path / "images"), *options, "--out", str(tmp_path / "run")]) == cli.FAILED
    err = capsys.readouterr().err
    advice = "; go on with --resume .*run" if lost > 1 else ""  # nothing is lost but a folder: other settings may be needed
    assert re.search(rf"error: device cuda: the driver fails: \[719\].*LAUNCH_FAILED{advice}\n$", err)
    assert err.count("\n") == 1
    _, progress, stores = run_files.read_state(tmp_path / "run" / run_files.STATE)
    assert progress.step == lost - 1
    assert all(np.isfinite(array).all() for arrays in stores.values() for array in arrays.values())
