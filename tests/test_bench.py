"""bench.py: what it prints and writes, on images so small that it takes no time. No time itself is asserted."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from pyshuffle import cli, peers
from pyshuffle.errors import PyShuffleError

FILE = Path(__file__).parents[1] / "bench.py"
QUICK = ["--size", "32", "--rounds", "1", "--no-startup", "--threads", "1"]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module
    spec.loader.exec_module(module)
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch", "0"], "batch=0"),
        (["--threads", "0"], "threads=0"),
        (["--size", "8"], "size=8 is too small"),
        (["--against", "nothing"], "there is no peer 'nothing'"),
        (["--train", "--against", "ncnn"], "there is no peer 'ncnn' that trains: choose from torch,"),
        (["--train", "--sweep"], "--train goes without --sweep"),
        (["--train", "--threads", "1000000"], "threads=1000000"),
        (["--arch", "v3"], "there is no network 'v3'"),
    ],
)
def test_bad_arguments(bench, arguments, says, capsys):
    assert cli.run(bench.main, [*QUICK, "--width", "0.5", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert says in error[0]


def test_a_peer_that_is_not_installed(monkeypatch):
    peer = object.__new__(peers.Peer)
    peer.name = "openvino"
    peer.pipe = type("Pipe", (), {"recv": lambda self: ModuleNotFoundError("No module named 'openvino'")})()
    with pytest.raises(PyShuffleError, match=r"openvino is not installed .*pyshuffle\[peers\]"):
        peer._receive()
