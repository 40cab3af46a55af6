"""What the GPU's kernels are tested with must see what is wrong: the simulator, and the report of `check --run`.

Faults are planted: in kernels made for it, and in those that are shipped, where each barrier is left out and each result written
beside its place.
"""

import ast
import inspect
import math
import textwrap

import numpy as np
import pytest
from conftest import SIMULATED

if not SIMULATED:
    pytest.skip("NUMBA_ENABLE_CUDASIM=1 is not set", allow_module_level=True)

import simulator
from numba import cuda, float32
from numba.cuda.simulator.kernel import FakeCUDAKernel
from simulator import Small

from pyshuffle import cli
from pyshuffle.backends.cuda import Cuda
from pyshuffle.cuda import batchnorm, check, launch, report

# The simulator --------------------------------------------------------------------------------------------------------------------


def simulate(function, size=4, threads=4):
    x, y = launch.upload(np.arange(size, dtype=np.float32)), launch.Tensor((size,))
    launch.Kernel(function, "FF", threads)(1, x, y)
    return launch.download(y)


def test_what_is_right_passes():
    def reverse(x, y):
        shared = cuda.shared.array(4, float32)
        t = cuda.threadIdx.x
        shared[t] = x[t]
        cuda.syncthreads()
        y[t] = shared[3 - t]

    np.testing.assert_array_equal(simulate(reverse), [3, 2, 1, 0])


def test_a_missing_barrier_is_seen():
    def reverse(x, y):
        shared = cuda.shared.array(4, float32)
        t = cuda.threadIdx.x
        shared[t] = x[t]
        y[t] = shared[3 - t]

    with pytest.raises(RuntimeError, match="race"):
        simulate(reverse)


def test_a_barrier_that_not_all_reach_is_seen():
    def some(x, y):
        if cuda.threadIdx.x < 2:
            cuda.syncthreads()

    with pytest.raises(RuntimeError, match="2 of 4 threads wait at a barrier"):
        simulate(some)


def test_two_threads_that_write_one_value_are_seen():
    def collide(x, y):
        y[cuda.threadIdx.x // 2] = x[cuda.threadIdx.x]

    with pytest.raises(RuntimeError, match="race"):
        simulate(collide)


@pytest.mark.parametrize("shift", [-1, 1])
def test_what_lies_outside_of_an_array_is_seen(shift):
    def read(x, y):
        y[cuda.threadIdx.x] = x[cuda.threadIdx.x + shift]

    def write(x, y):
        y[cuda.threadIdx.x + shift] = x[cuda.threadIdx.x]

    for function in (read, write):
        with pytest.raises(IndexError, match="is outside of an array"):
            simulate(function)


@pytest.mark.parametrize("index", [-1, 4])
def test_what_lies_outside_of_a_threads_own_array_is_seen(index):
    def read(x, y):
        own = cuda.local.array(4, float32)
        for i in range(4):
            own[i] = x[i]
        y[cuda.threadIdx.x] = own[index]

    def write(x, y):
        own = cuda.local.array(4, float32)
        own[index] = x[0]

    for function in (read, write):
        with pytest.raises(IndexError, match=f"index {index} is outside of a local array"):
            simulate(function)


def test_what_a_thread_keeps_in_another_type_is_seen():
    def square(x, y):
        own = cuda.local.array(1, float32)
        own[0] = math.sqrt(x[cuda.threadIdx.x])

    with pytest.raises(TypeError, match="a local array of float32 is given values of another type"):
        simulate(square)


@pytest.mark.parametrize(("index", "where"), [(-1, "before"), (4, "behind")])
def test_what_is_written_beside_an_array_is_seen_without_looking_at_indices(monkeypatch, index, where):
    """As hardware has it: an index is a distance, and what is read there is NaN."""

    class Address:
        def __init__(self, array):
            self.bytes = array.base

        def __getitem__(self, index):
            return self.bytes.view(np.float32)[simulator.BAND // 4 + index]

        def __setitem__(self, index, value):
            self.bytes.view(np.float32)[simulator.BAND // 4 + index] = value

    def read(x, y):
        y[cuda.threadIdx.x] = x[index]

    def write(x, y):
        if cuda.threadIdx.x == 0:
            y[index] = 1

    monkeypatch.setattr(simulator, "watch", Address)
    assert np.isnan(simulate(read)).all()
    with pytest.raises(IndexError, match=f"a launch has written {where} an array of 4 values"):
        simulate(write)


def test_what_is_never_written_is_seen():
    def some(x, y):
        if cuda.threadIdx.x < 3:
            y[cuda.threadIdx.x] = 1

    np.testing.assert_array_equal(simulate(some), [1, 1, 1, np.nan])


# The kernels that are shipped -----------------------------------------------------------------------------------------------------

MAP = (2, 5, 6, 18)  # no tile, block or part divides it, and a product takes two tiles of its depth
KERNELS = {kernel.name: kernel for kernel in check.all_kernels() if kernel is not launch._linger}  # which only passes time


def barriers(function):
    """Where a kernel, with what it calls, waits: file and line."""
    lines, first = inspect.getsourcelines(function)
    found = [(function.__code__.co_filename, first + n) for n, line in enumerate(lines) if "cuda.syncthreads()" in line]
    called = (function.__globals__.get(name) for name in function.__code__.co_names)
    return found + [place for one in called if isinstance(one, FakeCUDAKernel) for place in barriers(one.fn)]


BARRIERS = [(name, place) for name, kernel in KERNELS.items() for place in barriers(kernel.function)]


@pytest.fixture(scope="module")
def users():
    """The names of the report's cases that launch a kernel, by its name. None of them is wrong."""
    found, usual = {name: [] for name in KERNELS}, launch.Kernel.__call__
    for case in report.operations(MAP):
        with pytest.MonkeyPatch.context() as patched:

            def call(kernel, *arguments, name=case.name):
                found[kernel.name].append(name)
                usual(kernel, *arguments)

            patched.setattr(launch.Kernel, "__call__", call)
            assert report.distance(case) <= case.allowed, case.name
    return found


def test_the_report_launches_every_kernel(users):
    assert all(users.values()), users


def test_the_device_is_busy_until_a_call_is_launched(monkeypatch):
    told, usual = [], launch.Kernel.__call__

    def call(kernel, *arguments):
        told.append(kernel.name)
        usual(kernel, *arguments)

    class Event(launch.cuda.event):
        def record(self, *arguments):
            told.append("event")
            super().record(*arguments)

    monkeypatch.setattr(launch.Kernel, "__call__", call)
    monkeypatch.setattr(launch.cuda, "event", Event)
    x = launch.upload(np.ones(3, np.float32))
    times = launch.milliseconds(lambda: launch.zeros_like(x), 2)
    assert len(times) == 2
    assert told == ["launch._zero", "launch._zero", *(2 * ["launch._linger", "event", "launch._zero", "event"])]


def run(name):
    """The report's case of this name."""
    report.distance(next(case for case in report.operations(MAP) if case.name == name))


@pytest.mark.parametrize(("name", "place"), BARRIERS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(BARRIERS)])
def test_no_barrier_can_be_left_out(users, name, place, monkeypatch):
    monkeypatch.setattr(simulator.GPU, "left_out", place)
    with pytest.raises(RuntimeError, match="race"):
        run(users[name][0])


def test_all_barriers_are_found():
    """Two for each product, of which there are four; one for each filter and sum over pixels; three in the loss."""
    assert len(BARRIERS) == 16


def results(function):
    """A kernel's source, and where it writes to what it is given."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    given = {argument.arg for argument in definition.args.args}
    return definition, [
        node for node in ast.walk(definition)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and node.value.id in given
        and not isinstance(node.slice, ast.Tuple)  # shared memory has several axes
    ]  # fmt: skip


def beside(function, number, by):
    """The kernel, writing its result of this number so far from its place."""
    definition, places = results(function)
    places[number].slice = ast.BinOp(places[number].slice, ast.Add(), ast.Constant(by))
    definition.decorator_list = []
    free = inspect.getclosurevars(function).nonlocals
    tree = ast.parse(f"def make({', '.join(free)}):\n    pass\n    return {definition.name}")
    tree.body[0].body[0] = definition
    made = {}
    exec(compile(ast.fix_missing_locations(tree), function.__code__.co_filename, "exec"), function.__globals__, made)
    return made["make"](**free)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if results(kernel.function)[1]])
def test_no_result_can_be_written_beside_its_place(users, name, by, monkeypatch):
    kernel = KERNELS[name]
    for number in range(len(results(kernel.function)[1])):
        monkeypatch.setattr(kernel, "compiled", cuda.jit(kernel.signature)(beside(kernel.function, number, by)))
        with pytest.raises((IndexError, RuntimeError), match=r"is outside of an array|race"):
            run(users[name][0])


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", [name for name, kernel in KERNELS.items() if not results(kernel.function)[1]])
def test_no_sum_can_be_written_beside_its_place(users, name, by, monkeypatch):
    """The results of those that leave writing to what they call."""
    store = batchnorm.store_sums.fn
    assert len(results(store)[1]) == 1
    monkeypatch.setattr(batchnorm, "store_sums", cuda.jit(device=True)(beside(store, 0, by)))
    with pytest.raises((IndexError, RuntimeError), match=r"is outside of an array|race"):
        run(users[name][0])


# The report -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The report of small maps and a small network."""
    monkeypatch.setattr(report, "ROUNDS", 1)
    monkeypatch.setattr(report, "MAP", (1, 2, 3, 6))
    monkeypatch.setattr(report, "NETWORKS", [(Small(), 1, 32, True)])


def test_the_report_compares_and_times_everything(small, capsys):
    assert cli.run(check.main, ["--run"]) == 0
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("numba's simulator, numba-cuda ")
    assert head.split() == "away from the reference ms".split()
    assert len(lines) == 2 * 16 + 7 + 5
    assert not any("WRONG" in line for line in lines)
    assert sum(len(line.split()[-1].partition(".")[2]) == 4 for line in lines) == len(lines) - 3  # those of a step have one time


def wrong_lines(capsys):
    return [line.rpartition("  ")[0].split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.endswith("WRONG")]


def test_the_report_names_an_operation_that_is_wrong(small, monkeypatch, capsys):
    monkeypatch.setattr(report, "NETWORKS", [])
    monkeypatch.setitem(Cuda.functions, "relu", (Cuda.functions["relu"][0], lambda dy, x, limit=math.inf: (dy,)))
    assert check.main(["--run"]) == 1
    assert wrong_lines(capsys) == ["relu that ends at 0.5, backward", "relu, backward"]


def test_the_report_looks_at_what_steps_move(small, monkeypatch, capsys):
    """The losses of two steps show little of it."""
    usual = report.DeviceTrainer.state

    def state(trainer):
        found = usual(trainer)
        found["params"]["fc.weight"] += 1e-3
        found["velocity"]["conv.weight"] *= 1.001
        return found

    monkeypatch.setattr(report, "operations", lambda x: [])
    monkeypatch.setattr(report.DeviceTrainer, "state", state)
    monkeypatch.setattr(Cuda, "follow", staticmethod(lambda *_: None))
    assert check.main(["--run"]) == 1
    assert wrong_lines(capsys) == [
        f"small 1.0, 1 x 32 x 32: {what} after them" for what in ("parameters", "statistics", "velocities")
    ]
