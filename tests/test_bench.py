"""bench.py: what it prints and writes, on images so small that it takes no time. No time itself is asserted."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import load_bench
from PIL import Image

from pyshuffle import cli, experiments, peers, studies
from pyshuffle.backends.cost import count
from pyshuffle.engine import profile
from pyshuffle.errors import PyShuffleError
from pyshuffle.experiments import GUIDELINES
from pyshuffle.nets import MobileNetV2

QUICK = ["--size", "32", "--rounds", "1", "--no-startup", "--threads", "1"]


@pytest.fixture(scope="module")
def bench():
    module = load_bench()
    module.TURN = 1e-3
    return module


def test_it_prints_costs_and_times(bench, capsys):
    assert cli.run(bench.main, [*QUICK, "--arch", "v2", "--width", "0.5"]) == 0
    out = capsys.readouterr().out
    for part in ("million multiply-adds", "parameters", "median", "90th percentile", "images/s", "GFLOP/s", "at best"):
        assert part in out, part


def test_a_peer_that_does_not_run_on_the_device():
    job = peers.Job(None, {}, None, 1, device="cuda")
    with pytest.raises(PyShuffleError, match="there is no peer 'onnxruntime' on cuda: choose from torch,"):
        peers.Peer("onnxruntime", job)


def test_it_times_a_step_of_training(bench, capsys):
    assert cli.run(bench.main, [*QUICK, "--train", "--arch", "v2", "--width", "0.5", "--batch", "2"]) == 0
    assert "training, batch 2, 32 x 32, 1 thread: median" in capsys.readouterr().out


def test_the_peak_of_two_threads_is_measured_on_both_at_once(monkeypatch):
    """What both have done, from when the first began to when the last was done."""
    at_once, calls, times = threading.Barrier(2), [], iter([1.0, 2.0, 5.0, 6.0])

    def loop(rounds, _):
        calls.append(rounds)
        if len(calls) > 1:
            at_once.wait(timeout=10)

    monkeypatch.setattr(profile, "_peak", lambda: (4, 3, loop))
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    rounds = profile.LONGER * profile.ROUNDS
    assert profile.peak(2) == 2 * (2 * 4 * 3 * rounds) / (6.0 - 1.0) / 1e9
    assert calls == [1, rounds, rounds]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not say where threads run")
def test_threads_are_measured_on_a_processor_each(monkeypatch):
    """And the caller may run where it might before."""
    at_once, before, placed = threading.Barrier(2), os.sched_getaffinity(0), []

    def loop(rounds, _):
        if rounds == profile.LONGER * profile.ROUNDS:  # of the two
            at_once.wait(timeout=10)

    monkeypatch.setattr(profile, "_peak", lambda: (4, 3, loop))
    monkeypatch.setattr(profile, "processors", lambda: [5, 7])
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, where: placed.append((thread, where)))
    profile.peak(2)
    assert sorted(placed) == [(0, {5}), (0, {7})]
    profile.peak(1)
    assert len(placed) == 2
    assert os.sched_getaffinity(0) == before


def test_processors_are_of_different_cores_first(tmp_path, monkeypatch):
    for number, siblings in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(profile, "SYSTEM", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 8}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", None, raising=False)
    assert profile.processors() == [0, 2, 8, 1, 3]
    monkeypatch.delattr(os, "sched_setaffinity")
    assert profile.processors() == []


def test_the_profile_has_every_layer_and_adds_up(bench, tmp_path):
    file = tmp_path / "results.json"
    assert (
        cli.run(bench.main, [*QUICK, "--arch", "v1", "--groups", "3", "--width", "0.25", "--profile", "--json", str(file)]) == 0
    )
    results = json.loads(file.read_text())
    rows = results["profile"]
    assert {"stage2.0.branch2.0", "stage4.3.branch2.5", "fc"} <= {row["name"] for row in rows}
    assert {row["kind"] for row in rows} == {"stem", "convolution", "depthwise", "elementwise", "linear", "data movement"}
    assert results["arch"] == "v1"
    assert all(row["seconds"] >= 0 for row in rows)


def test_the_sweep_names_every_network_once(bench):
    labels = [label for label, _ in bench.every_net()]
    assert len(labels) == len(set(labels))
    assert {"arch v2 width 1.0", "arch v1 groups 8 width 1.0", "arch v1 groups 3 width 0.5"} <= set(labels)


@pytest.mark.parametrize("name", ["G1", "G4"])
def test_a_guideline_is_a_table_and_a_sentence(bench, name, capsys, tmp_path):
    file = tmp_path / "results.json"
    assert cli.run(bench.main, [*QUICK, "--guideline", name, "--json", str(file)]) == 0
    table, sentence = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert len(table.splitlines()) == 1 + 3 * len(GUIDELINES[name].lines)
    assert sentence.startswith(f"{name}, {GUIDELINES[name].says}, holds here ")
    rows = json.loads(file.read_text())["guideline"]
    for scale in range(3):
        for line, nets in zip(GUIDELINES[name].lines, GUIDELINES[name].stacks(), strict=True):
            (row,) = (row for row in rows if (row["row"], row["scale"]) == (line.name, f"x{1 << scale}"))
            assert (row["channels"], row["gpu"], row["cpu"]) == (line.channels[scale], line.gpu[scale], line.cpu[scale])
            assert (row["memory_access"], row["macs"]) == experiments.cost(nets[scale])
            assert row["height"] == nets[scale].height


def test_table_8_has_the_papers_columns(bench, capsys, tmp_path, monkeypatch):
    peers8 = [peer for peer in experiments.TABLE8 if peer.level == 40 or peer.net == MobileNetV2()]
    monkeypatch.setattr(studies, "TABLE8", peers8)
    file = tmp_path / "results.json"
    assert cli.run(bench.main, [*QUICK, "--table8", "--markdown", "--json", str(file)]) == 0
    assert capsys.readouterr().out.startswith("| level | network | MMACs |")
    results = json.loads(file.read_text())
    assert (results["threads"], "size" in results) == (1, False)
    rows = results["table8"]
    assert [(row["level"], row["error"], row["gpu"], row["arm"]) for row in rows] == [
        (peer.level, peer.error, peer.gpu, peer.arm) for peer in peers8
    ]
    assert all(row["images_per_s"] > 0 for row in rows)
    by_name = {row["network"]: row for row in rows}
    assert by_name["--arch mobilenet_v2 --width 1.0"]["params"] == 3_504_872
    assert by_name["--arch mobilenet_v2 --width 0.4"]["macs"] == sum(row.macs for row in count(MobileNetV2(0.4), 160))


def test_without_matplotlib_nothing_is_timed(bench, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.run(bench.main, [*QUICK, "--guideline", "G1", "--plot", "plot.png"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "--plot needs matplotlib: pip install 'pyshuffle[plot]'" in error


@pytest.mark.parametrize("what", [["--table8"], ["--guideline", "G3"], ["--profile"]], ids=str)
def test_a_plot_is_an_image(bench, what, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(studies, "TABLE8", experiments.TABLE8[:6])
    assert cli.run(bench.main, [*QUICK, *what, "--plot", str(tmp_path / "plot.png")]) == 0
    with Image.open(tmp_path / "plot.png") as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "batch=0"),
        (["--threads", "0"], "threads=0"),
        (["--size", "8"], "size=8 is too small"),
        (["--against", "nothing"], "there is no peer 'nothing'"),
        (["--train", "--against", "ncnn"], "there is no peer 'ncnn' that trains: choose from torch,"),
        (["--train", "--sweep"], "go one at a time"),
        (["--guideline", "G1", "--table8"], "go one at a time"),
        (["--json", "nowhere/results.json"], "--json nowhere/results.json: there is no such folder"),
        (["--train", "--profile"], "--train goes without --profile"),
        (["--sweep", "--against", "torch"], "go without --against and --profile"),
        (["--table8", "--profile"], "go without --against and --profile"),
        (["--json", "."], "--json .: is a folder"),
        (["--csv"], "--csv is for --guideline and --table8"),
        (["--train", "--threads", "1000000"], "threads=1000000"),
        (["--arch", "v3"], "there is no network 'v3'"),
    ],
)
def test_bad_arguments(bench, arguments, says, capsys):
    assert cli.run(bench.main, [*QUICK, "--width", "0.5", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert says in error[0]


def test_a_peer_that_is_not_installed_is_told_before_anything_is_timed(bench, monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    assert cli.run(bench.main, [*QUICK, "--against", "pyshuffle,openvino"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "openvino is not installed: pip install 'pyshuffle[peers]'" in error


@pytest.mark.parametrize(("threads", "cores"), [(1, "1 core"), (2, "2 cores"), (5, "2 cores")])
def test_more_threads_than_cores_have_the_cores_peak(bench, threads, cores, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(bench.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(bench, "peak", lambda count: asked.append(count) or 100.0 * count)
    assert cli.run(bench.main, [*QUICK, "--threads", str(threads)]) == 0
    assert asked == [min(threads, 2)]
    assert f"of the {100 * min(threads, 2)} that {cores} can do at best\n" in capsys.readouterr().out


@pytest.mark.compiled
def test_a_peer_imports_nothing_of_the_program_that_compares(tmp_path):
    """Neither its memory nor the number of threads that numba has at most would be the peer's."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; print(__name__)\n"
        "import numpy as np\n"
        "from pyshuffle import initialise, nets\n"
        "from pyshuffle.peers import Job, Peer\n"
        "if __name__ == '__main__':\n"
        "    net = nets.ShuffleNetV2(0.5, classes=10)\n"
        "    peer = Peer('pyshuffle', Job(net, initialise(net), np.zeros((1, 32, 32, 3), np.float32), threads=1))\n"
        "    print(peer.answer.shape, sys.modules['__main__'].__name__)\n"
        "    peer.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "__main__\n(1, 10) __main__\n"


def test_a_part_of_a_peer_that_is_not_installed(monkeypatch):
    peer = object.__new__(peers.Peer)
    peer.name = "openvino"
    peer.pipe = type("Pipe", (), {"recv": lambda self: ModuleNotFoundError("No module named 'openvino'")})()
    with pytest.raises(PyShuffleError, match=r"openvino is not installed .*pyshuffle\[peers\]"):
        peer._receive()
