"""Train a network on a folder of class folders: `python -m pyshuffle.train DIR --arch v2 --width 0.5 --size 64 --out run/`.

The recipe is that of the authors' code: SGD with momentum 0.9, a learning rate of 0.5 for each 1024 images of a batch that falls
linearly to 0, weight decay 4e-5, label smoothing 0.1, mild random crops and mirroring. Two things are not: the rate rises
first, for an epoch (for a tenth of a run of fewer than ten), and colours are left as they are.

Random crops show objects larger than a whole image of the same size does. A network names whole images better that are a little
larger than those it was trained on (Touvron et al. 2019, arXiv 1906.06423): `--test-size`.
"""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from . import cli, device, nets, plots
from .data import ImageFolder
from .errors import DeviceError, TrainingError
from .labels import read_labels
from .progress import say
from .run_files import LOG, STATE, WEIGHTS
from .settings import OPTIONS, Settings
from .training import Run


def parse(argv: list[str] | None) -> argparse.Namespace:
    unset = argparse.SUPPRESS  # what was not given must be told from what was: a resumed run has its own
    parser = cli.Parser(prog="python -m pyshuffle.train", description="Train a network on a folder of class folders.")
    parser.add_argument("data", nargs="?", default=unset, metavar="DIR", help="holds a folder of images for each class")
    cli.add_net_options(parser, without=("classes",))
    for name, default in OPTIONS.items():
        same = " or, where that is 0, as --size" if name == "test_size" else ""
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=unset, help=f"(default: {default}{same})")
    parser.add_argument("--labels", type=Path, help="a file of readable class names, one a line, in the order of the folders")
    parser.add_argument(
        "--start-from",
        type=Path,
        metavar="FILE",
        help="weights to start from (default: random ones); with another number of classes, all but the classifier",
    )
    parser.add_argument("--out", type=Path, help="where the run is kept (default: run)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run kept there")
    parser.add_argument("--save-every", type=float, default=120, metavar="SECONDS", help="between two states (default: 120)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves after every epoch (extra: plot)")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> Run:
    """The run that the command line asks for, new or resumed. Raises TrainingError, DataError, ArchError, ImageError, DeviceError."""
    of_this_call = ("labels", "start_from", "out", "resume", "save_every", "plot")
    given = {name: value for name, value in vars(args).items() if name not in of_this_call}
    if args.plot:
        plots.sheet(args.plot)  # it can be drawn, or nothing is begun
    device.require(given.get("device", OPTIONS["device"]))
    if args.resume:
        if args.labels or args.start_from or args.out:
            raise TrainingError("--resume goes on with a run as it is: without --labels, --start-from and --out")
        return Run.resume(args.resume, given, args.save_every, args.plot)
    if "data" not in given:
        raise TrainingError("a folder of class folders is needed: python -m pyshuffle.train DIR")
    out = args.out or Path("run")
    check_free(out)
    run = Run(out, settings_of(args, {name: given[name] for name in OPTIONS if name in given}), args.save_every, args.plot)
    if args.start_from:
        run.start_from(args.start_from)
    out.mkdir(parents=True, exist_ok=True)
    return run


def check_free(out: Path) -> None:
    """Raises TrainingError where a run cannot be kept there, or one is already."""
    if out.is_file():
        raise TrainingError(f"{out} is a file: --out takes a folder")
    for name in (STATE, WEIGHTS, LOG):
        if (out / name).exists():
            raise TrainingError(f"{out} holds a run already ({name}): go on with --resume {out}, or choose another --out")


def settings_of(args: argparse.Namespace, options: dict[str, Any]) -> Settings:
    """Those of a new run: what the command line says, what the folder holds, and defaults. Raises TrainingError,
    DataError, ArchError or ImageError."""
    folder = ImageFolder.scan(Path(args.data))
    labels = read_labels(args.labels, len(folder.classes)) if args.labels else folder.classes
    net = nets.describe(cli.net_from_options(args, classes=len(folder.classes)))
    side = folder.typical_side()
    detail = side if side < max(options.get(name, OPTIONS[name]) for name in ("size", "test_size")) else 0
    return Settings(net=net, data=args.data, images=folder.fingerprint(), labels=labels, detail=detail, **options)


def main(argv: list[str] | None = None) -> int:
    run = prepare(parse(argv))
    usual = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        run.stopping = True  # finish the step, then save
        signal.signal(signal.SIGINT, usual)  # whoever asks twice does not want to wait

    signal.signal(signal.SIGINT, stop)
    try:
        fewer = f"; batches of {run.batch}, not {run.settings.batch}: there are no more" if run.batch < run.settings.batch else ""
        say(f"{len(run.train)} images to train on, {len(run.held_out)} held out, {len(run.train.classes)} classes{fewer}")
        run.run()
    except DeviceError as error:
        if not run.progress.step:  # nothing is lost, and other settings may be needed
            raise
        raise DeviceError(f"{error}; go on with --resume {run.out}") from error
    finally:
        signal.signal(signal.SIGINT, usual)
    if run.stopping:
        print(f"stopped after step {run.progress.step}; go on with --resume {run.out}", flush=True)
        return cli.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
