"""What the tests share: the interpretations they run over, a comparison that NaN cannot pass, and arrays and parameters to draw."""

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a thread that waits sleeps

import numba
import numpy as np
import pytest
from golden.make_logits import parameters
from hypothesis import HealthCheck, settings

from pyshuffle.backends.arrays import Arrays
from pyshuffle.backends.cost import Cost, Shape
from pyshuffle.backends.numba import Numba
from pyshuffle.backends.reference import Reference
from pyshuffle.nets import MobileNetV1, MobileNetV2, ShuffleNetV1, ShuffleNetV2, mobilenet, shufflenet_v1, shufflenet_v2
from pyshuffle.types import Array, Params

ROOT = Path(__file__).parents[1]
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"  # GPU kernels run, thread by thread, on Python's threads
INTERPRETED = bool(numba.config.DISABLE_JIT)  # kernels are Python
EXAMPLES = 5 if SIMULATED or INTERPRETED else 30
settings.register_profile(
    "the same on every run",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # which is a deadline, too: an emulated or a busy processor does not meet it
    database=None,
    max_examples=EXAMPLES,
)
settings.load_profile("the same on every run")


def load_bench() -> ModuleType:
    """bench.py as a module of its own: it is no part of the package."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if INTERPRETED and item.get_closest_marker("compiled"):
            item.add_marker(pytest.mark.skip(reason="needs compiled code, and NUMBA_DISABLE_JIT=1 is set"))


class Backend(NamedTuple):
    """An interpretation over arrays, in one precision."""

    kind: type[Arrays]
    dtype: type[np.floating]
    tolerance: float  # of an operation's result, relative to its largest value


BACKENDS = {
    "reference-float64": Backend(Reference, np.float64, 1e-12),
    "reference-float32": Backend(Reference, np.float32, 1e-5),
    "numba-float32": Backend(Numba, np.float32, 1e-5),
}
if SIMULATED:
    from simulator import Simulated

    BACKENDS["cuda-float32"] = Backend(Simulated, np.float32, 1e-5)
if INTERPRETED:
    import interpreter

    interpreter.begin()


@pytest.fixture(scope="session", params=BACKENDS.values(), ids=BACKENDS)
def backend(request) -> Backend:
    """Every interpretation in turn, in every precision that it has."""
    return request.param


NARROW = {
    "v1": lambda: ShuffleNetV1(0.125, groups=3, classes=5),
    "v1, authors' order": lambda: ShuffleNetV1(0.125, groups=2, classes=5, order="authors", bias=False),
    "v2": lambda: ShuffleNetV2(0.125, classes=5),
    "v2, torchvision's wiring": lambda: ShuffleNetV2(0.125, classes=5, wiring="torchvision"),
    "v2, authors' order": lambda: ShuffleNetV2(0.125, classes=5, order="authors", extra_depthwise=True),
    "mobilenet v1": lambda: MobileNetV1(0.25, classes=5),
    "mobilenet v2": lambda: MobileNetV2(0.25, classes=5),
}


@pytest.fixture(params=NARROW)
def net(request, monkeypatch):
    """Networks of few and narrow units: in all else they are the real ones."""
    monkeypatch.setattr(shufflenet_v1, "STAGE2", {2: 128, 3: 96})
    monkeypatch.setattr(shufflenet_v1, "STEM", {0.125: 6})
    monkeypatch.setattr(shufflenet_v1, "REPEATS", (2, 1, 1))
    monkeypatch.setattr(shufflenet_v2, "WIDTHS", {0.125: (20, 28, 36, 34)})
    monkeypatch.setattr(shufflenet_v2, "REPEATS", (2, 1, 1))
    monkeypatch.setattr(shufflenet_v2, "STEM", 6)
    monkeypatch.setattr(mobilenet, "V1_UNITS", ((16, 1), (32, 2)))
    monkeypatch.setattr(mobilenet, "V2_UNITS", ((1, 16, 1, 1), (2, 32, 2, 2)))
    monkeypatch.setattr(mobilenet, "V2_LAST", 16)
    return NARROW[request.param]()


class Distributions(NamedTuple):
    """What would be published."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> Distributions:
    """Both kinds, built from a copy of the tree by the hooks that pip and build call."""
    if importlib.util.find_spec("setuptools") is None or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("building needs setuptools 77 or later: pip install '.[test]'")
    tree = tmp_path_factory.mktemp("source")
    for part in ("pyshuffle", "tests", "weights", ".ci"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file() and file.name != ".git":
            shutil.copy(file, tree)
    for part in ("pyshuffle", "tests"):  # as in a tree that was used
        (tree / part / "__pycache__").mkdir()
        (tree / part / "__pycache__" / "old.pyc").write_bytes(b"")
    script = "from setuptools.build_meta import *; build_wheel('dist'); build_sdist('dist')"
    subprocess.run([sys.executable, "-c", script], cwd=tree, check=True, capture_output=True)
    return Distributions(*(next((tree / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz")))


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Arrays, or what stands for them, or tuples of such, of the same shapes, each off by no more than tolerance * its own largest
    expected value."""
    for given, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
        a = np.asarray(given)
        assert np.shape(a) == np.shape(e)
        error, largest = np.abs(a - e).max(), np.abs(e).max()
        assert error <= tolerance * largest, f"differs by {error:.3g} where the largest value is {largest:.3g}"


def as_tuple(y: Any) -> tuple:
    return y if isinstance(y, tuple) else (y,)


def draw(*shape: int, dtype: type[np.floating] = np.float64, seed: int = 0) -> Array:
    """Values in random order, half of them negative, all distinct and none near 0, where a ReLU or a maximum has its kink."""
    values = np.linspace(0.25, 2, int(np.prod(shape)))
    values[1::2] *= -1
    return np.random.default_rng([seed, *shape]).permutation(values).reshape(shape).astype(dtype)


def draw_params(net: Callable, shape: tuple[int, ...], dtype: type[np.floating] = np.float64, seed: int = 0) -> Params:
    """Parameters, with running statistics, for a function over operations that reads a map of the given shape."""
    cost = Cost()
    net(cost, Shape(shape))
    return {name: value.astype(dtype) for name, value in parameters(cost.shapes, seed).items()}


def pictures(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def grids(monkeypatch):
    """What would be launched, with nothing computed and no memory touched: kernels, blocks, and all numbers given along."""
    from pyshuffle import sgd_cuda
    from pyshuffle.cuda import launch, loss, pool
    from pyshuffle.engine import cuda

    found = []

    def record(kernel, blocks, *arguments):
        numbers = [n for a in arguments if isinstance(a, int | tuple) for n in (a if isinstance(a, tuple) else (a,))]
        found.append((kernel, blocks if isinstance(blocks, tuple) else (blocks,), numbers))

    def upload(array, dtype=np.float32):
        return launch.Tensor(array.shape, dtype)

    monkeypatch.setattr(launch, "SIMULATED", True)
    monkeypatch.setattr(launch, "take", lambda size, dtype: np.empty(size, dtype))
    monkeypatch.setattr(launch.Kernel, "__call__", record)
    for module in (cuda, loss, launch, pool):
        monkeypatch.setattr(module, "upload", upload)
    monkeypatch.setattr(sgd_cuda, "on_device", lambda params: {name: upload(array) for name, array in params.items()})
    monkeypatch.setattr(sgd_cuda.Trainer, "given", staticmethod(upload))
    monkeypatch.setattr(loss, "download", lambda tensor: tensor.values)
    monkeypatch.setattr(launch, "POOL", defaultdict(list))
    launch.table.cache_clear()
    pool.ninths.cache_clear()
    yield found
    launch.table.cache_clear()  # nobody else is to be given this memory
    pool.ninths.cache_clear()
    gc.collect()
