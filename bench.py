"""How fast the networks are here: `python bench.py --arch v2 --width 1.0`.

Times on a shared machine drift: read the ratios. `--against` runs other runtimes on the same network, parameters and images, each in
a process of its own on the same cores, in turn with pyshuffle, after comparing their logits with its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyshuffle import cli, device, engine, nets, peers, plots, studies, tables
from pyshuffle.backends.cost import add_up, count
from pyshuffle.engine.model import default_threads
from pyshuffle.engine.profile import Row, peak, profile
from pyshuffle.errors import PyShuffleError, ShapeError
from pyshuffle.experiments import GUIDELINES
from pyshuffle.init import initialise
from pyshuffle.peers import Job, Peer
from pyshuffle.stopwatch import TURN, seconds
from pyshuffle.weights import write_atomically

PHOTO = Path(__file__).parent / "tests" / "photos" / "coffee.png"
TOLERANCE = 1e-4  # of the largest logit, between runtimes


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    nets.check_size(args.size)
    device.require(args.device)
    if args.device != "cpu" and (args.sweep or args.guideline or args.table8 or args.profile or args.plot):
        raise PyShuffleError("--sweep, --guideline, --table8, --profile and --plot are for --device cpu")
    if args.train and args.profile:
        raise PyShuffleError("--train goes without --profile and --plot")
    if sum(map(bool, (args.train, args.sweep, args.guideline, args.table8))) > 1:
        raise PyShuffleError("--train, --sweep, --guideline and --table8 go one at a time")
    if (args.sweep or args.guideline or args.table8) and (args.against or args.profile):
        raise PyShuffleError("--sweep, --guideline and --table8 go without --against and --profile")
    if args.form != "text" and not (args.guideline or args.table8):
        raise PyShuffleError(f"--{args.form} is for --guideline and --table8")
    if min(args.batch, args.rounds) < 1:
        raise ShapeError(f"batch={args.batch}, rounds={args.rounds}: both must be at least 1")
    if args.json and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise PyShuffleError(f"--json {args.json}: {'is a folder' if args.json.is_dir() else 'there is no such folder'}")
    figure = plots.sheet(args.plot) if args.plot else None
    results: dict[str, Any]
    settings = {"size": args.size, "batch": args.batch, "threads": args.threads}
    if args.guideline:
        results = {"threads": 1, "guideline": studies.guideline(args.guideline, args.rounds, args.form)}
    elif args.table8:
        results = {"threads": 1, "table8": studies.table8(args.rounds, args.form)}
    elif args.sweep:
        results = settings | {"sweep": sweep(args)}
    else:
        net = cli.net_from_options(args)
        results = settings | nets.describe(net) | one(net, args)
    if figure:
        plots.draw(results, figure)
        plots.save(figure, args.plot)
    if args.json:
        write_atomically(args.json, lambda file: file.write(json.dumps(results, indent=1).encode()))
    return 0


def one(net: nets.Net, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network."""
    totals = add_up(count(net, args.size))
    for name in args.against:
        peers.require(name, args.train, args.device)
    print(net)
    print(f"{totals.macs / 1e6:.2f} million multiply-adds, {totals.params:,} parameters")
    on_cpu = args.device == "cpu"
    job = job_of(net, args)
    results = (timed if on_cpu else timed_on_device)(job, args)
    where = f"{args.threads} thread{'s' * (args.threads > 1)}" if on_cpu else args.device
    print(
        f"{'training, ' * args.train}batch {args.batch}, {args.size} x {args.size}, {where}: "
        f"median {results['median_ms']:.2f} ms, 90th percentile {results['p90_ms']:.2f} ms, {results['images_per_s']:.1f} images/s"
    )
    if on_cpu:
        print(
            f"{results['gflops']:.1f} GFLOP/s, {results['of_peak']:.0%} of the {results['peak_gflops']:.0f} that {args.cores} "
            f"core{'s' * (args.cores > 1)} can do at best"
        )
    else:
        print(
            f"{results['gflops']:.1f} GFLOP/s; between the device's own events {results['device_ms']:.3f} ms, {results['launches']} "
            f"launches"
        )
    if args.against:
        results["against"] = [compared(name, job, args.rounds) for name in args.against]
    if args.profile:
        table = profile(engine.compile(net, job.params, job.images.shape, 1).plan, job.images[0])
        print(*profiled(table), sep="\n")
        results["profile"] = [row._asdict() for row in table]
    if args.startup:
        results |= startup(net, args)
    return results


def job_of(net: nets.Net, args: argparse.Namespace) -> Job:
    """What is timed: the network as it is before training, on random images."""
    images = np.random.default_rng(0).standard_normal((args.batch, args.size, args.size, 3), dtype=np.float32)
    return Job(net, initialise(net), images, args.threads, args.train, args.device)


def timed(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """The times of a network, in turn with the peak of the machine."""
    run = peers.pyshuffle(job)
    seconds(run)  # compiles, or loads what was compiled before
    calls = max(1, round(TURN / 3 / seconds(run)))
    times, peaks = [], []
    for _ in range(args.rounds):
        peaks.append(peak(args.cores))
        times += [seconds(run) for _ in range(calls)]
    speeds, most = speeds_of(job, times), float(np.median(peaks))
    return speeds | {"peak_gflops": most, "of_peak": speeds["gflops"] / most}


def timed_on_device(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """The times of a network, copies of images and logits included, and what the device's own events say: of inference without."""
    from pyshuffle.cuda.launch import Kernel, milliseconds

    if job.train:
        run = inner = peers.pyshuffle(job)
    else:
        model = device.compiler(job.device).compile(job.net, job.params, job.images.shape)
        run, inner = partial(model, job.images), model.program(args.batch).run
    run()  # compiles
    Kernel.launched = 0
    inner()
    launches, times = Kernel.launched, [seconds(run) for _ in range(args.rounds)]
    return speeds_of(job, times) | {"launches": launches, "device_ms": float(np.median(milliseconds(inner, args.rounds)))}


def speeds_of(job: Job, times: list[float]) -> dict[str, Any]:
    """Times of calls as speeds. The gradients by x and by w take about as many multiply-adds as the forward pass, each."""
    median, slow = np.percentile(times, (50, 90))
    macs = (3 if job.train else 1) * add_up(count(job.net, job.images.shape[1], len(job.images))).macs
    return {
        "median_ms": median * 1e3, "p90_ms": slow * 1e3, "images_per_s": len(job.images) / median,
        "gflops": 2 * macs / median / 1e9,
    }  # fmt: skip


def compared(name: str, job: Job, rounds: int) -> dict[str, Any]:
    """pyshuffle and a peer in turn. Raises PyShuffleError where it is not installed, fails, or answers otherwise."""
    with closing(Peer("pyshuffle", job)) as ours, closing(Peer(name, job)) as theirs:
        what = "losses" if job.train else "logits"
        away = float(np.abs(theirs.answer - ours.answer).max() / np.abs(ours.answer).max())
        if not away <= TOLERANCE:
            raise PyShuffleError(
                f"{name} gives other {what}: they differ by {away:.1e} of the largest, {TOLERANCE:.0e} is allowed"
            )
        calls = [max(1, round(TURN / min(side.time(3)))) for side in (ours, theirs)]
        turns = np.array(
            [[np.median(side.time(n)) for side, n in zip((ours, theirs), calls, strict=True)] for _ in range(rounds)]
        )
        own_memory, memory = ours.memory() / 1e6, theirs.memory() / 1e6
    low, ratio, high = np.percentile(turns[:, 1] / turns[:, 0], (25, 50, 75))
    own, other = np.median(turns, axis=0) * 1e3
    print(
        f"{name:12} {other:8.2f} ms against {own:8.2f} ms: {ratio:.2f} times as long (half of {len(turns)} turns within {low:.2f} to "
        f"{high:.2f}), {what} within {away:.0e}" + f"; the process held {memory:.0f} MB against {own_memory:.0f}" * (memory > 0)
    )
    return {
        "peer": name, "ms": other, "pyshuffle_ms": own, "ratio": ratio, "quartiles": [low, high], "away": away,
        "mb": memory, "pyshuffle_mb": own_memory,
    }  # fmt: skip


def profiled(table: list[Row]) -> Iterator[str]:
    """By layer, then by kind of step."""
    total = sum(row.seconds for row in table)
    yield f"\n{'layer':<24} {'kind':<14} {'output':>9} {'MMACs':>8} {'us':>8} {'share':>6} {'GFLOP/s':>8}"
    for row in table:
        height, width = row.size
        yield (
            f"{row.name:<24} {row.kind:<14} {f'{height} x {width}':>9} {row.macs / 1e6:8.2f} {row.seconds * 1e6:8.1f} "
            f"{row.seconds / total:6.1%} {2e-9 * row.macs / row.seconds if row.seconds else 0:8.1f}"
        )
    yield ""
    for kind in dict.fromkeys(row.kind for row in table):
        took = sum(row.seconds for row in table if row.kind == kind)
        yield f"{kind:<39} {took * 1e6:27.1f} {took / total:6.1%}"
    yield f"{'one thread, step by step':<39} {total * 1e6:27.1f}"


def startup(net: nets.Net, args: argparse.Namespace) -> dict[str, Any]:
    """What the first calls cost: in new processes, without anything compiled and with."""
    script = (
        "import time, numpy as np; from pyshuffle import engine, nets; from pyshuffle.init import initialise; "
        f"net = nets.build(**{nets.describe(net)!r}); params = initialise(net); "
        f"x = np.zeros((1, {args.size}, {args.size}, 3), np.float32); began = time.perf_counter(); "
        f"engine.compile(net, params, x.shape, {args.threads})(x); print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as cache:
        cold, cached = (float(finished([sys.executable, "-c", script], cache)[0]) for _ in range(2))
    print(f"compiling it, first call included: {cold:.2f} s at first, {cached:.2f} s once it is cached")
    script = "import sys; from pyshuffle import classify, memory; classify.main([sys.argv[1]]); print(memory.peak())"
    with tempfile.TemporaryDirectory() as cache:
        (_, first), (output, second) = (finished([sys.executable, "-c", script, str(PHOTO)], cache) for _ in range(2))
    memory = int(output.split()[-1]) / 1e6
    held = f" and {memory:.0f} MB at its peak" * (memory > 0)
    print(f"classify, the whole process: {first:.2f} s at first, then {second:.2f} s{held}")
    return {
        "compile_s": cold, "compile_cached_s": cached, "classify_first_s": first, "classify_s": second, "classify_mb": memory
    }  # fmt: skip


def finished(command: list[str], cache: str) -> tuple[str, float]:
    """What a process printed, and the seconds it took. Raises PyShuffleError where it failed."""
    began = time.perf_counter()
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"NUMBA_CACHE_DIR": cache})
    if process.returncode:
        raise PyShuffleError(f"a process to measure how long it takes ended with exit code {process.returncode}")
    return process.stdout, time.perf_counter() - began


def sweep(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A table of every network."""
    print(f"{'network':<34} {'MMACs':>8} {'parameters':>11} {'ms':>8} {'images/s':>9} {'GFLOP/s':>8} {'of peak':>8}")
    table = []
    for label, net in every_net():
        totals = add_up(count(net, args.size))
        result = timed(job_of(net, args), args)
        print(
            f"{label:<34} {totals.macs / 1e6:8.1f} {totals.params:11,} {result['median_ms']:8.2f} {result['images_per_s']:9.1f} "
            f"{result['gflops']:8.1f} {result['of_peak']:8.0%}",
            flush=True,
        )
        table.append({"network": label, "macs": totals.macs, "params": totals.params} | result)
    return table


def every_net() -> Iterator[tuple[str, nets.Net]]:
    """Every architecture, width and group count, once each."""
    seen = set()
    for kind in nets.ARCHS.values():
        for net in kind.variants():
            settings = nets.describe(net)
            label = " ".join(f"{name} {settings[name]}" for name in ("arch", "groups", "width") if name in settings)
            if label not in seen:
                seen.add(label)
                yield label, net


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python bench.py", description="Time a network.")
    cli.add_net_options(parser)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default_threads(), help="(default: %(default)s)")
    device.add_option(parser)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side (default: %(default)s)")
    parser.add_argument(
        "--against",
        type=lambda text: text.split(","),
        default=[],
        metavar="PEERS",
        help="compare with some of onnxruntime,openvino,ncnn,torch; on cuda with torch",
    )
    parser.add_argument(
        "--train", action="store_true", help="a step of training (peers: torch,torch_channels_last,torch_compiled)"
    )
    parser.add_argument("--profile", action="store_true", help="time by layer and by kind of step")
    parser.add_argument("--no-startup", dest="startup", action="store_false", help="leave out what the first calls cost")
    parser.add_argument("--sweep", action="store_true", help="all networks instead of one")
    parser.add_argument("--guideline", choices=GUIDELINES, help="one of the four experiments of V2's section 2, on one thread")
    parser.add_argument("--table8", action="store_true", help="the networks of V2's table 8, on one thread")
    tables.add_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the sweep, the table, the guideline, or the profile")
    args = parser.parse_args(argv)
    args.cores = max(1, min(args.threads, cores))  # that threads can be at work on
    args.startup &= not args.train and args.device == "cpu"
    args.profile |= bool(args.plot) and not (args.sweep or args.guideline or args.table8)
    return args


if __name__ == "__main__":
    sys.exit(cli.run(main))
