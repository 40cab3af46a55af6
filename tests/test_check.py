"""What ptxas says of a kernel, and what the check makes of it. Needs the extra cuda, and ptxas on the path."""

import importlib.util
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import SIMULATED

if SIMULATED or shutil.which("ptxas") is None or importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("ptxas or numba-cuda is missing, or NUMBA_ENABLE_CUDASIM=1 is set", allow_module_level=True)

from cuda.bindings.driver import CUresult
from cuda.core._utils.cuda_utils import CUDAError
from numba import cuda, float32
from numba.cuda.cudadrv.driver import CudaAPIError
from numba.cuda.cudadrv.error import CudaDriverError

from pyshuffle.cuda import check, launch, relu
from pyshuffle.cuda.launch import Kernel
from pyshuffle.engine import cuda as engine
from pyshuffle.errors import DeviceError, PyShuffleError
from pyshuffle.init import initialise
from pyshuffle.nets import ARCHS
from pyshuffle.sgd_cuda import Trainer

ASSEMBLER = shutil.which("ptxas")


def scatter(x, y, size):
    local = cuda.local.array(64, float32)
    for i in range(64):
        local[i * size % 64] = x[i]
    y[0] = local[size]


def needs_of(function, target=(9, 0)):
    return check.needs(ASSEMBLER, check.ptx(Kernel(function, "FFi", 256), target), target)


@pytest.mark.parametrize("target", check.TARGETS, ids=str)
def test_shared_memory_and_registers_are_found(target):
    def reverse(x, y, size):
        shared = cuda.shared.array(256, float32)
        t = cuda.threadIdx.x
        shared[t] = x[t]
        cuda.syncthreads()
        y[t] = shared[255 - t]

    found = needs_of(reverse, target)
    assert found.shared == 1024
    assert found.registers > 0
    assert not found.too_much(256, target)


def test_an_array_that_is_not_in_registers_is_too_much():
    found = needs_of(scatter)
    assert found.local >= 256
    assert found.too_much(32, (9, 0))


def test_the_table_and_its_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(check, "all_kernels", lambda: [relu._forward])
    assert check.main([]) == 0
    assert re.search(r"relu\._forward +256 +0 +0( +\d+){4}( +100%){4}", capsys.readouterr().out)
    monkeypatch.setattr(check, "all_kernels", lambda: [Kernel(scatter, "FFi", 256)])
    assert check.main([]) == 1
    assert "TOO MUCH" in capsys.readouterr().out
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    assert check.main([]) == 0
    assert "ptxas is not on the path" in capsys.readouterr().out


def test_no_kernel_is_left_out():
    """As many as the decorators in the sources make; conv makes three of one, and depthwise two."""
    sources = [path.read_text() for path in Path(check.__file__).parent.glob("*.py")]
    made = sum(len(re.findall(r'^@kernel\("', source, re.MULTILINE)) for source in sources)
    assert len(check.all_kernels()) == made + 5
    assert len({kernel.name for kernel in check.all_kernels()}) == made + 5


@pytest.mark.parametrize(
    ("needs", "threads", "too_much"),
    [
        (check.Needs(255, 49152, 0), 256, False),
        (check.Needs(255, 0, 0), 257, True),
        (check.Needs(8, 49153, 0), 32, True),
        (check.Needs(8, 0, 4), 32, True),
        (check.Needs(8, 0, 0), 1025, True),
    ],
)
def test_what_a_block_may_have(needs, threads, too_much):
    assert needs.too_much(threads, (9, 0)) == too_much


@pytest.mark.parametrize(
    ("needs", "threads", "blocks"),  # at 7.5, 8.0, 9.0, 10.0, as NVIDIA's cuda_occupancy.h computes them
    [
        ((96, 4224), 64, [10, 10, 10, 10]),
        ((228, 4224), 64, [4, 4, 4, 4]),
        ((56, 17280), 128, [3, 9, 9, 9]),
        ((32, 4096), 256, [4, 8, 8, 8]),
        ((255, 49152), 256, [1, 1, 1, 1]),
        ((16, 0), 1024, [1, 2, 2, 2]),
        ((8, 0), 32, [16, 32, 32, 32]),
        ((72, 0), 250, [3, 3, 3, 3]),
        ((33, 9216), 256, [4, 6, 6, 6]),
        ((255, 0), 257, [0, 0, 0, 0]),
        ((16, 4900), 32, [12, 27, 32, 32]),
        ((96, 0), 32, [16, 20, 20, 20]),
    ],
)
def test_how_many_blocks_have_room(needs, threads, blocks):
    warps = -(-threads // 32)
    found = [check.Needs(*needs, 0).occupancy(threads, target) * limits.warps / warps for target, limits in check.TARGETS.items()]
    assert found == blocks


NETS = [net for kind in ARCHS.values() for net in kind.variants() if getattr(net, "bias", True)]


def test_every_launch_of_every_network_fits_and_leaves_room_for_others(grids):
    """Inference on 1 and on 64 images, and a step of training: a block's needs are the same for every shape, so that each kernel
    that is launched for any is looked at once."""
    for net in NETS:
        model = engine.compile(net, initialise(net), (224, 224, 3))
        for images in (1, 64):
            model.program(images).run()
    for kind in ARCHS.values():
        trainer = Trainer(kind(), initialise(kind()))
        trainer.step(np.empty((2, 64, 64, 3), np.float32), np.zeros(2, np.int64), 0.1)
    launched = {kernel.name: kernel for kernel, _, _ in grids}
    assert len(grids) > 1000
    for kernel in launched.values():
        for target in check.TARGETS:
            found = check.needs(ASSEMBLER, check.ptx(kernel, target), target)
            assert found.local == 0, (kernel.name, target)
            assert found.occupancy(kernel.threads, target) >= check.LEAST, (kernel.name, target)


@pytest.mark.parametrize("name", ["OUT_OF_MEMORY", "ILLEGAL_ADDRESS"])
def test_failures_of_the_real_driver_are_told_apart(monkeypatch, name):
    """Of the classes that are raised the simulator has none."""
    code = getattr(CUresult, f"CUDA_ERROR_{name}")

    def fail(*_):
        raise CudaAPIError(code, f"Call to cuMemAlloc results in {code.name}")

    monkeypatch.setattr(launch.cuda, "device_array", fail)
    message = "its memory is full" if name == "OUT_OF_MEMORY" else "ILLEGAL_ADDRESS"
    monkeypatch.setattr(launch, "POOL", defaultdict(list, {(1, np.dtype(np.float32)): ["free"]}))
    with pytest.raises(DeviceError, match=message):
        launch.take(98765, np.dtype(np.float32))
    assert bool(launch.POOL) == (name != "OUT_OF_MEMORY")
    with pytest.raises(DeviceError, match=message), launch.driver():
        raise CUDAError(f"{code.name}: as launches say it")


def test_a_forked_process_is_told_of_in_one_line():
    with pytest.raises(DeviceError, match="device cuda: the driver fails: CUDA initialized before forking"), launch.driver():
        raise CudaDriverError("CUDA initialized before forking")


def test_a_gpu_that_the_compiler_does_not_know(monkeypatch):
    def jit(_):
        raise ValueError("no such architecture: compute_130a")

    monkeypatch.setattr(launch.cuda, "jit", jit)
    with pytest.raises(DeviceError, match=r"test_check.scatter cannot be compiled \(no such architecture"):
        _ = Kernel(scatter, "FFi", 256).compiled


def test_a_kernel_that_does_not_compile_is_named():
    def broken(x, y, size):
        y[0] = x.nothing

    with pytest.raises(PyShuffleError, match=r"test_check.broken does not compile for \(9, 0\)"):
        needs_of(broken)


def test_what_the_assembler_refuses_is_told():
    with pytest.raises(PyShuffleError, match="ptxas fails"):
        check.needs(ASSEMBLER, "nonsense", (9, 0))
