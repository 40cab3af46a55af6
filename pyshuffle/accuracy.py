"""How much a checkpoint knows: `python -m pyshuffle.accuracy DIR [--weights FILE]`

Images of a folder of class folders are prepared and named as `classify` does it, and what it says is compared with the folders they
lie in. By default only those are looked at which `train` sets aside: the last twentieth of each class.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from . import classify, cli, data, device, image, weights
from .errors import DataError

BATCH = 50  # images at once
AMONG = 5  # guesses of which one may be right


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device.require(args.device)
    checkpoint = weights.load(args.weights) if args.weights else classify.shipped()
    folder = data.ImageFolder.scan(args.folder)
    if len(folder.classes) != checkpoint.net.classes:
        raise DataError(f"{args.folder}: {len(folder.classes)} class folders, and the network knows {checkpoint.net.classes}")
    if not 0 < args.part <= 1:
        raise DataError(f"part={args.part} is not in (0, 1]")
    if args.part < 1:
        _, folder = folder.hold_out(args.part)
    preprocess = image.PRESETS.get(args.preprocess) or checkpoint.preprocess or image.TORCHVISION
    size = preprocess.crop
    model = device.compiler(args.device).compile(checkpoint.net, checkpoint.params, (BATCH, size, size, 3))
    first = among = seen = 0
    for images, labels in data.measuring_batches(folder, preprocess, BATCH):
        guesses = np.argsort(-model(images), axis=1, kind="stable")[:, :AMONG] if len(labels) else np.zeros((0, AMONG))
        first += int((guesses[:, 0] == labels).sum())
        among += int((guesses == labels[:, None]).any(axis=1).sum())
        seen += len(labels)
    if not seen:
        raise DataError(f"{args.folder}: none of the images can be decoded")
    print(f"{first / seen:.1%} named rightly, {among / seen:.1%} among {AMONG} guesses, of {seen:,} images of {args.folder}")
    if seen < len(folder):
        print(f"{len(folder) - seen} could not be decoded")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m pyshuffle.accuracy", description="Compare what a network says with what is so.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds a folder of images for each class, in their order")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint (default: the one that comes with pyshuffle)")
    parser.add_argument(
        "--part", type=float, default=0.05, help="the last images of each class, as a part of all (default: %(default)s)"
    )
    parser.add_argument("--preprocess", choices=image.PRESETS, help="how to prepare images (default: as the checkpoint says)")
    device.add_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
