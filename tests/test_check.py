"""What ptxas says of a kernel, and what the check makes of it. Needs the extra cuda, and ptxas on the path."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import SIMULATED
from numba import cuda, float32

from pyshuffle.cuda import check, relu
from pyshuffle.cuda.launch import Kernel
from pyshuffle.errors import PyShuffleError

pytest.importorskip("numba_cuda")
ASSEMBLER = shutil.which("ptxas")
if SIMULATED or ASSEMBLER is None:
    pytest.skip("ptxas is not on the path, or NUMBA_ENABLE_CUDASIM=1 is set", allow_module_level=True)


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
    assert not found.too_much(256)


def test_an_array_that_is_not_in_registers_is_too_much():
    found = needs_of(scatter)
    assert found.local >= 256
    assert found.too_much(32)


def test_the_table_and_its_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(check, "all_kernels", lambda: [relu._forward])
    assert check.main([]) == 0
    assert re.search(r"relu\._forward +256 +0 +0( +\d+){4}", capsys.readouterr().out)
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
    assert needs.too_much(threads) == too_much


def test_a_kernel_that_does_not_compile_is_named():
    def broken(x, y, size):
        y[0] = x.nothing

    with pytest.raises(PyShuffleError, match=r"test_check.broken does not compile for \(9, 0\)"):
        needs_of(broken)


def test_what_the_assembler_refuses_is_told():
    with pytest.raises(PyShuffleError, match="ptxas fails"):
        check.needs(ASSEMBLER, "nonsense", (9, 0))
