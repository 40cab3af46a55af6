"""`--device` and `pyshuffle.devices()`: what is said where a GPU cannot be used. The driver is played by an object."""

# ruff: noqa: N802 (the driver's own names)

import ctypes
import re
import sys

import pytest
from conftest import load_bench

import pyshuffle
from pyshuffle import classify, cli, device, streams, train
from pyshuffle.cuda import check
from pyshuffle.errors import DeviceError

BENCH = load_bench()

GPU = {"cuDriverGetVersion": 13010, "cuInit": 0, "cuDeviceGetCount": 1, "capability": (9, 0)}


class Driver:
    """Answers as the driver's library does."""

    def __init__(self, **facts):
        self.facts = GPU | facts

    def cuDriverGetVersion(self, version):
        version._obj.value = self.facts["cuDriverGetVersion"]
        return 0

    def cuInit(self, flags):
        return self.facts["cuInit"]

    def cuDeviceGetCount(self, count):
        count._obj.value = self.facts["cuDeviceGetCount"]
        return 0

    def cuDeviceGet(self, handle, number):
        handle._obj.value = number
        return 0

    def cuDeviceGetName(self, name, size, handle):
        name.value = b"NVIDIA H100"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, handle):
        value._obj.value = self.facts["capability"][(device.MAJOR, device.MINOR).index(attribute)]
        return 0


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: name)


def no_library():
    raise OSError("libcuda.so.1: cannot open shared object file")


NOT_INSTALLED = "numba-cuda is not there, whatever the driver says"
WRONG = {
    "no numba-cuda": (NOT_INSTALLED, r"numba-cuda is not installed: pip install 'pyshuffle\[cuda\]'"),
    "no driver": (None, "there is no NVIDIA driver: install NVIDIA's driver, 580 or later"),
    "too old a driver": ({"cuDriverGetVersion": 12040}, r"too old \(CUDA 12\.4, 13\.0 is needed\): install NVIDIA's driver, 580"),
    "no GPU": ({"cuInit": device.NO_DEVICE, "cuDeviceGetCount": 0}, "there is a driver, but no NVIDIA GPU"),
    "none that is let through": ({"cuDeviceGetCount": 0}, "there is a driver, but no NVIDIA GPU"),
    "a forked process": ({"cuInit": 3}, "forked from one that had used it: begin it anew"),
    "a broken driver": ({"cuInit": 999}, "fails with error 999: install NVIDIA's driver, 580 or later, and reboot"),
    "too old a GPU": ({"capability": (6, 1)}, "NVIDIA H100 has compute capability 6.1: a GPU with 7.5 or more is needed"),
}


COMMANDS = {
    "classify": (classify.main, ["nothing.png", "--device", "cuda"]),
    "train": (train.main, ["nothing", "--out", "run", "--device", "cuda"]),
    "bench": (BENCH.main, ["--device", "cuda"]),
    "check": (check.main, ["--run"]),
}


@pytest.mark.parametrize(("main", "arguments"), COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(("facts", "message"), WRONG.values(), ids=WRONG)
def test_what_is_missing_is_said_in_one_line_with_what_to_do(
    installed, monkeypatch, tmp_path, capsys, facts, message, main, arguments
):
    if facts == NOT_INSTALLED:
        monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(device, "load", (lambda: Driver(**facts)) if isinstance(facts, dict) else no_library)
    with pytest.raises(DeviceError, match=message):
        device.require("cuda")
    assert [found.name for found in pyshuffle.devices()] == ["cpu"]
    monkeypatch.chdir(tmp_path)
    assert cli.run(main, arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(f": error: device cuda: .*{message}", err)
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_gpu_is_listed(installed, monkeypatch):
    monkeypatch.setattr(device, "load", Driver)
    device.require("cuda")
    assert pyshuffle.devices()[1] == ("cuda", "NVIDIA H100")


def test_a_stream_for_each_thread_is_refused(installed, monkeypatch):
    monkeypatch.setattr(device, "load", Driver)
    monkeypatch.setenv(streams.PER_THREAD, "1")
    with pytest.raises(DeviceError, match=f"device cuda: {streams.PER_THREAD} gives each thread .*: unset it"):
        device.require("cuda")
    assert [found.name for found in pyshuffle.devices()] == ["cpu"]


def test_a_device_that_there_is_not():
    with pytest.raises(DeviceError, match="there is no device 'tpu': choose one of cpu, cuda"):
        device.require("tpu")


def test_the_drivers_library_is_looked_for_where_the_system_has_it(monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    for platform in ("linux", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        device.load()
    assert asked == ["libcuda.so.1", "nvcuda.dll"]
