"""How much a checkpoint knows: `python -m pyshuffle.accuracy DIR [--weights FILE]`

Images of a folder of class folders are prepared and named as `classify` does it, and what it says is compared with the folders they
lie in: the n-th folder, by name, is that of the n-th class. By default only those are looked at which `train` sets aside, the last
twentieth of each class.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from . import classify, cli, data, device, image
from .errors import DataError, ImageError
from .settings import OPTIONS

BATCH = 50  # images at once
AMONG = 5  # guesses of which one may be right


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device.require(args.device)
    checkpoint = classify.checkpoint_of(args)
    folder = data.ImageFolder.scan(args.folder)
    if len(folder.classes) != checkpoint.net.classes:
        raise DataError(f"{args.folder}: {len(folder.classes)} class folders, and the network knows {checkpoint.net.classes}")
    if not 0 < args.part <= 1:
        raise DataError(f"part={args.part} is not in (0, 1]")
    folder = folder.select(folder.last(args.part))
    preprocess = classify.preprocess_of(args, checkpoint)
    shape = (BATCH, preprocess.crop, preprocess.crop, 3)
    model = device.compiler(args.device).compile(checkpoint.net, checkpoint.params, shape)
    some, first, among, seen = min(AMONG, checkpoint.net.classes), 0, 0, 0
    for images, labels in data.measuring_batches(folder, preprocess, BATCH, decode):
        if not len(labels):
            continue  # all of them damaged
        guesses = np.argsort(-classify.sound(model(images)), axis=1, kind="stable")[:, :some]
        first += int((guesses[:, 0] == labels).sum())
        among += int((guesses == labels[:, None]).any(axis=1).sum())
        seen += len(labels)
    if not seen:
        raise DataError(f"{args.folder}: none of the images can be decoded")
    print(f"top-1 {first / seen:.1%}, top-{some} {among / seen:.1%} of {seen:,} images of {args.folder}")
    if seen < len(folder):
        print(f"{len(folder) - seen} could not be decoded")
    return 0


def decode(path: Path) -> Image.Image:
    """As `image.decode`, but that what cannot be decoded is named."""
    try:
        return image.decode(path)
    except ImageError as error:
        print(f"skipped {error}", file=sys.stderr, flush=True)
        raise


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m pyshuffle.accuracy", description="Compare what a network says with what is so.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds a folder of images for each class, in their order")
    classify.add_weights_option(parser)
    parser.add_argument(
        "--part",
        type=float,
        default=OPTIONS["hold_out"],
        help="of each class, its last images (default: %(default)s, what train holds out)",
    )
    classify.add_preprocess_option(parser)
    device.add_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
