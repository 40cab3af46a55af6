"""The kernels on ARM: their tests on an emulated Cortex-A76, and its logits beside those of this processor.

    python tests/arm.py DIR [--quick] [-- PYTEST ARGUMENTS]        (as root, on x86-64 Linux with apt-get)

It installs QEMU and debootstrap where they are missing, makes a Debian for arm64 with NumPy, Numba and Pillow in DIR, or goes on with
what is there, copies the project into it, and exits with 1 if a test fails or a number differs, with 77 if this machine cannot do it.
All that is mounted is so for the emulated processes alone, and is gone with them, however they end.

What QEMU shows is that the code is right, not how fast it is; and its threads see each other's writes in the order in which an x86
makes them, which an ARM need not do. With `--quick` a few tests and one network are run. Never run there are:

- what no kernel computes: counting, files, images, command lines, packaging. It is the same Python everywhere. Nor the assembly of
  the tiles: tests/test_tiles.py reads NEON's on any processor.
- the reference, which is NumPy's: the kernels are compared with it.
- tests that start other processes: an x86's Linux runs no program of ARM unless QEMU is called by name. Nor those that fork.
- tests of memory, which would be the emulator's; and what takes long: ten thousand calls, and training but for its first losses.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from golden.make_logits import images, parameters

ROOT = Path(__file__).parents[1]
COPIED = ("pyshuffle", "tests", "weights", "bench.py", "pyproject.toml")
PHOTOS = ("tests/photos/chelsea.png", "tests/photos/coffee.png")
TOLERANCE = 1e-5
PATIENCE = 900  # seconds for a step of building, which may wait for a network that does not answer

RELEASE, PYTHON = "bookworm", "3.11"
QEMU = Path("/usr/bin/qemu-aarch64-static")
NEEDED = {  # and the packages that have it
    QEMU: "qemu-user-static",
    Path("/usr/sbin/debootstrap"): "debootstrap",
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"): "debian-archive-keyring",
}
WHEELS = ("numpy", "numba", "pillow", "pytest", "hypothesis", "setuptools")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
PROCESSOR = "cortex-a76"
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "PYTHONPATH": "/opt/pyshuffle:/opt/pyshuffle/tests:/opt/wheels",
    "PYTHONDONTWRITEBYTECODE": "1",
    "QEMU_CPU": PROCESSOR,
    "NUMBA_CPU_NAME": PROCESSOR,  # QEMU shows the processor that it runs on
    "NUMBA_NUM_THREADS": "2",
    "NUMBA_CACHE_DIR": "/var/cache/numba",
}
# Mounts in a namespace of their own: they end with its last process.
INSIDE = """
mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" &&
exec unshare --root "$0" --wd /opt/pyshuffle qemu-aarch64-static /usr/bin/python3 "$@"
"""

TESTS = (
    "test_nets.py",
    "test_engine.py",
    "test_conv_bn.py",
    "test_ops.py",
    "test_bands.py",
    "test_tape.py",
    "test_meetings.py",
    "test_shuffle.py",
    "test_diagonalwise.py",
    "test_train.py::test_the_first_losses_are_those_of_a_pytorch_run",
    "test_weights.py::test_the_authors_networks_answer_as_in_the_authors_code",
    "test_explain.py::test_the_maps_add_up_to_the_logits",
    "test_experiments.py::test_the_engine_runs_what_the_reference_does",
    "test_classify.py::test_the_weights_that_come_with_the_package_know_the_photographs",
)
LEFT_OUT = """
    reference-float references_gradient networks_gradients units_gradients every_network_runs
    processes_of_a_pool closed_at_the_end forked_child program_ends ctrl_c
    ten_thousand leave_memory
""".split()
ALL = dict.fromkeys(TESTS, f"not ({' or '.join(LEFT_OUT)})")  # with what pytest chooses from each
QUICK = {
    "test_ops.py::test_every_gradient_is_the_references": "numba-float32 and (conv or depthwise or linear)",
    "test_engine.py::test_logits_are_the_same_bits_for_any_threads_and_any_batch": "ShuffleNetV2",
}


class UnavailableError(Exception):
    """This machine cannot emulate ARM, or not now."""


def build(folder: Path) -> Path:
    """The root of an arm64 system, made unless it is there: unpacked, not installed, so that nothing has to be emulated."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UnavailableError(f"{sys.platform} on {platform.machine()}: ARM is emulated on Linux on x86_64 only")
    if os.geteuid() != 0:
        raise UnavailableError("only root may make and enter another system")
    root, new = folder / "root", folder / "unfinished"
    if root.exists():
        return root
    missing = [package for file, package in NEEDED.items() if not file.exists()]
    if missing:
        done("apt-get", "update")
        done("apt-get", "install", "--yes", "--no-install-recommends", *missing)
    shutil.rmtree(new, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    done("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", "--include=python3", RELEASE, str(new))
    for package in sorted((new / "var/cache/apt/archives").glob("*.deb")):
        unpack = 'dpkg-deb --fsys-tarfile "$0" | tar -x --keep-directory-symlink -C "$1"'
        done("bash", "-o", "pipefail", "-c", unpack, str(package), str(new))
    wheels = [f"--platform={name}" for name in PLATFORMS]
    wheels += [f"--python-version={PYTHON}", "--implementation=cp", "--only-binary=:all:", "--target", str(new / "opt/wheels")]
    done(sys.executable, "-m", "pip", "install", *wheels, *WHEELS)
    if (new / "proc").is_symlink():  # in a container
        (new / "proc").unlink()
    (new / "proc").mkdir(exist_ok=True)
    (new / "opt/pyshuffle").mkdir()
    shutil.copy(QEMU, new / "usr/bin")
    return new.rename(root)


def done(*command: str) -> None:
    """Run something that the emulation needs."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{' '.join(command[:4])} ... has not ended in {PATIENCE} s") from error
    if process.returncode:
        lines = (process.stdout + process.stderr).strip().splitlines() or ["nothing said"]
        raise UnavailableError(f"{' '.join(command[:4])} ... ended with {process.returncode}: {lines[-1]}")


def emulated(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in the other system, which does not outlive this process."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", INSIDE, str(root)]
    return subprocess.run(
        [*command, *arguments], env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )


def enter(root: Path) -> None:
    """Once, to see whether it can be done."""
    process = emulated(root, "-c", "import numba, PIL, pytest, platform; print(platform.machine())")
    if process.stdout != "aarch64\n":
        lines = (process.stdout + process.stderr).strip().splitlines() or [f"code {process.returncode}"]
        raise UnavailableError(f"what is in {root} cannot be entered: {lines[-1]}")


def copy(root: Path) -> None:
    """The project, as it is now."""
    target = root / "opt/pyshuffle"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, target)


def run_tests(root: Path, arguments: Sequence[str]) -> tuple[bool, Counter[str]]:
    """By one process of pytest -> whether all passed, and its counts."""
    process = emulated(root, "-m", "pytest", "-o", "addopts=-q", "-p", "no:cacheprovider", "--tb=short", *arguments)
    last = (process.stdout.strip().splitlines() or ["nothing said"])[-1]
    if process.returncode:
        print(process.stdout, process.stderr, f"pytest ended with {process.returncode}", sep="\n")
    print(f"{arguments[0]}: {last}", flush=True)
    counted = re.findall(r"(\d+) ([a-z]+)", last.rpartition(" in ")[0])
    return process.returncode == 0, Counter({what: int(number) for number, what in counted})


def logits(quick: bool) -> dict[str, np.ndarray]:
    """Of some networks, by the engine and by the kernels, for parameters and images that are the same everywhere."""
    from pyshuffle import MobileNetV1, MobileNetV2, Numba, ShuffleNetV1, ShuffleNetV2, engine
    from pyshuffle.backends.cost import parameter_shapes

    nets = {ShuffleNetV2(0.5): 64}
    if not quick:
        nets |= {ShuffleNetV2(1.0, wiring="torchvision"): 224, ShuffleNetV2(2.0, classes=10): 97}
        nets |= {ShuffleNetV1(groups=3): 224, ShuffleNetV1(0.5, groups=8, classes=10): 97}
        nets |= {MobileNetV1(0.5): 97, MobileNetV2(1.0): 97}
    found = {}
    for net, size in nets.items():
        params = {name: value.astype(np.float32) for name, value in parameters(parameter_shapes(net)).items()}
        x = images(size).astype(np.float32)
        found[f"{net} by the engine"] = engine.compile(net, params, x.shape)(x)
        found[f"{net} by the kernels"] = net(Numba(params), x)
    return found


def compare_logits(root: Path, quick: bool) -> float:
    """The largest difference, as a share of the largest logit of its network; NaN if any is."""
    answer(emulated(root, "-c", f"import arm, numpy; numpy.savez('/tmp/logits.npz', **arm.logits({quick}))"))
    with np.load(root / "tmp/logits.npz") as file:
        there = dict(file)
    off = {name: np.abs(there[name] - here).max() / np.abs(here).max() for name, here in logits(quick).items()}
    for name, share in off.items():
        print(f"{name}: off by {share:.1e} of the largest", flush=True)
    return float(np.max(list(off.values())))


def compare_photographs(root: Path) -> tuple[bool, list[str]]:
    """Whether the guesses are the same ones, and the first of each."""
    command = ("-m", "pyshuffle.classify", "--json", "--top", "5", *PHOTOS)
    here = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    (labels, shares), (expected, expected_shares) = (guesses(answer(process)) for process in (emulated(root, *command), here))
    return labels == expected and np.abs(shares - expected_shares).max() <= TOLERANCE, labels[::5]


def guesses(found: str) -> tuple[list[str], np.ndarray]:
    tops = [guess for photo in json.loads(found) for guess in photo["top"]]
    return [guess["label"] for guess in tops], np.array([guess["probability"] for guess in tops])


def answer(process: subprocess.CompletedProcess) -> str:
    """What it printed; ends the program if it failed."""
    if process.returncode:
        print(process.stdout, process.stderr, sep="\n")
        sys.exit(1)
    return process.stdout


def main() -> int:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s [-h] [--quick] DIR [-- PYTEST ARGUMENTS]", allow_abbrev=False
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the emulated system is, or is to be")
    parser.add_argument("--quick", action="store_true", help="a few tests and one network")
    parser.epilog = "Arguments for pytest are instead of the tests that are run otherwise."
    args, passed_on = parser.parse_args(words[:end]), words[end + 1 :]
    try:
        root = build(args.folder.absolute())
        enter(root)
    except (UnavailableError, OSError) as reason:
        print(f"ARM cannot be emulated here: {reason}")
        return 77
    copy(root)

    chosen = [[f"tests/{name}", "-k", expression] for name, expression in (QUICK if args.quick else ALL).items()]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        compared = pool.submit(compare_logits, root, args.quick), pool.submit(compare_photographs, root)
        results = list(pool.map(partial(run_tests, root), [passed_on] if passed_on else chosen))
        off, (same, photographs) = (future.result() for future in compared)
    finally:
        pool.shutdown(cancel_futures=True)
    counts = sum((counts for _, counts in results), Counter[str]())
    print(
        f"on an emulated {PROCESSOR}: {', '.join(f'{number} {what}' for what, number in counts.items())}, "
        f"logits off by {off:.1e} of the largest, the photographs are {' and '.join(photographs)}"
        + ("" if same else ", and not so here")
    )
    return 0 if all(passed for passed, _ in results) and same and off <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
