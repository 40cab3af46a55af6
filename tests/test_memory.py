"""Memory that is given back and kept."""

import os
import platform
import subprocess
import sys

import pytest

from pyshuffle import memory

SCRIPT = """
import resource
import numpy as np
from pyshuffle import sgd
from pyshuffle.init import initialise
from pyshuffle.nets import ShuffleNetV2
net = ShuffleNetV2(0.33, classes=2)
sgd.Trainer(net, initialise(net))
pages = []
for _ in range(3):
    np.ones(12 << 20, np.float32)
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(pages[2] - pages[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_process_that_trains_finds_the_memory_of_an_array_again():
    small = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}  # of pages of one size
    pages = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, check=True, env=small).stdout
    assert int(pages) < 100, "pages that 48 MB took from the system, a second time"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the system does not say")
def test_the_most_memory_that_a_process_has_held():
    script = "import numpy as np; from pyshuffle import memory; np.ones(25 << 20, np.float32); print(memory.peak())"
    most = int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert 100 << 20 < most < 300 << 20  # although they are free again, in bytes


def test_of_some_processes_it_cannot_be_known():
    assert memory.peak("none") == 0
