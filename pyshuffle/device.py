"""What there is to compute on: `pyshuffle.devices()`, and what `--device` stands for.

The driver is asked directly, so that it can be said what is missing even where nothing that needs it is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import sys
from typing import Any, NamedTuple

from . import streams
from .errors import DeviceError

NAMES = ("cpu", "cuda")
NEEDED = 13000  # the version of CUDA that the extra's libraries are of, as drivers number them: thousands and tens
DRIVER = 580  # the first one for it
OLDEST = (7, 5)  # compute capability
INSTALL = f"install NVIDIA's driver, {DRIVER} or later"
NOT_INITIALISED, NO_DEVICE = 3, 100  # CUDA_ERROR_...
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_...


class Device(NamedTuple):
    """Something to compute on."""

    name: str  # as --device takes it
    model: str


def devices() -> list[Device]:
    """What can be used here: the processor, and the first GPU if nothing is missing."""
    found = [Device("cpu", f"{os.cpu_count()} cores")]
    try:
        require("cuda")
        return [*found, Device("cuda", gpu())]
    except DeviceError:
        return found


def require(name: str) -> None:
    """Raises DeviceError, naming what is missing and what to install."""
    if name not in NAMES:
        raise DeviceError(f"there is no device {name!r}: choose one of {', '.join(NAMES)}")
    if name == "cuda":
        require_compiler()
        streams.require_one()
        gpu()


def require_compiler() -> None:
    """Raises DeviceError where kernels for GPUs cannot be compiled."""
    if importlib.util.find_spec("numba_cuda") is None:
        raise DeviceError("device cuda: numba-cuda is not installed: pip install 'pyshuffle[cuda]'")


def gpu() -> str:
    """The model of the first GPU. Raises DeviceError where it, or a driver for it, is missing or too old."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return "numba's simulator"
    try:
        driver = load()
    except OSError:
        raise DeviceError(f"device cuda: there is no NVIDIA driver: {INSTALL}") from None
    version, count, major, minor = (ctypes.c_int() for _ in range(4))
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < NEEDED:
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise DeviceError(f"device cuda: the NVIDIA driver is too old (CUDA {has}, {NEEDED // 1000}.0 is needed): {INSTALL}")
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if failed == NOT_INITIALISED:
        raise DeviceError("device cuda: this process was forked from one that had used it: begin it anew (by spawn)")
    if failed not in (0, NO_DEVICE):
        raise DeviceError(f"device cuda: the NVIDIA driver fails with error {failed}: {INSTALL}, and reboot")
    if not count.value:
        raise DeviceError(
            "device cuda: there is a driver, but no NVIDIA GPU that this process may use: install or pass one through"
        )
    model, device = ctypes.create_string_buffer(100), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(model, len(model), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    if (major.value, minor.value) < OLDEST:
        has, needed = f"{major.value}.{minor.value}", ".".join(map(str, OLDEST))
        raise DeviceError(
            f"device cuda: {model.value.decode()} has compute capability {has}: a GPU with {needed} or more is needed"
        )
    return model.value.decode()


def load() -> Any:
    """The driver's library. Raises OSError where there is none."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def compiler(name: str) -> Any:
    """The module whose `compile` makes a network a model. Raises DeviceError."""
    require(name)
    if name == "cpu":
        from . import engine as cpu

        return cpu
    from .engine import cuda

    return cuda


def trainer(name: str) -> Any:
    """The class that trains a network. Raises DeviceError."""
    require(name)
    if name == "cpu":
        from .sgd import Trainer as Cpu

        return Cpu
    from .sgd_cuda import Trainer

    return Trainer


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=NAMES, default="cpu", help="where to compute (default: %(default)s)")
