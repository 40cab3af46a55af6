"""What is in a photograph: `python -m pyshuffle.classify PHOTO...`

Exit code 0: every image is answered; 1: some are, and each other one is explained on stderr; 2: none is.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TextIO, TypedDict

import numpy as np

from . import cli, device, image, weights
from .errors import ImageError, WeightsError
from .labels import read_labels
from .types import Array
from .weights import Checkpoint

DEFAULT = "shufflenet_v2_x1_0_tiny_imagenet.npz"
PACKAGE = resources.files(__package__)  # not always a folder: it may be part of an archive
SOURCE_TREE = Path(__file__).parents[1]
EXPLAINED = 3  # classes that --explain draws
BAR = 20  # characters for a probability of 1
EIGHTHS = " ▏▎▍▌▋▊▉█"


class Guess(TypedDict):
    """One line of an answer."""

    index: int
    label: str
    probability: float


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device.require(args.device)
    checkpoint = checkpoint_of(args)
    labels = labels_of(checkpoint, args.labels)
    preprocess = preprocess_of(args, checkpoint)
    compiled = functools.cache(lambda: predictor(checkpoint, preprocess.crop, args.device))  # when the first image has been read
    answers, failed = [], False
    files = files_of(args.images)
    if args.explain and (len(files) > 1 or files == ["-"]):
        raise ImageError("--explain draws one image, from a file")
    for file in files:
        try:
            pixels = load(file, preprocess)
        except ImageError as error:
            cli.complain(error)
            failed = True
            continue
        top = best(compiled()(pixels), labels, args.top)
        if args.explain:
            explain(checkpoint, file, pixels, preprocess, top, args.explain)
        answers.append({"file": file, "top": top})
        if not args.json:
            print(file, *(line(guess, sys.stdout) for guess in top), sep="\n")
    if args.json:
        print(json.dumps(answers, indent=1))
    return 0 if not failed else 1 if answers else cli.FAILED


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m pyshuffle.classify", description="Name what is in photographs.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image, a folder of images, or - for standard input")
    add_weights_option(parser)
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line (default: the checkpoint's)")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="how many guesses (default: %(default)s)")
    parser.add_argument("--explain", type=Path, metavar="OUT.png", help="draw where in the image the likeliest classes are seen")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    add_preprocess_option(parser)
    device.add_option(parser)
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint (default: the one that comes with pyshuffle)")


def checkpoint_of(args: argparse.Namespace) -> Checkpoint:
    """What that option names. Raises WeightsError."""
    return weights.load(args.weights) if args.weights else shipped()


def add_preprocess_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preprocess", choices=image.PRESETS, help="how to prepare images (default: as the checkpoint says)")


def preprocess_of(args: argparse.Namespace, checkpoint: Checkpoint) -> image.Preprocess:
    """What that option names, or what the checkpoint says."""
    return image.PRESETS.get(args.preprocess) or checkpoint.preprocess or image.TORCHVISION


def shipped() -> Checkpoint:
    """The checkpoint that comes with the package: installed inside of it, in a source tree beside it. Raises WeightsError."""
    for folder in (PACKAGE / "pretrained", SOURCE_TREE / "weights"):
        if (folder / DEFAULT).is_file():
            with resources.as_file(folder / DEFAULT) as file:
                return weights.load(file)
    raise WeightsError(f"{DEFAULT} did not come with this installation: name a checkpoint with --weights FILE")


def labels_of(checkpoint: Checkpoint, file: Path | None) -> Sequence[str]:
    """A name for each class: from the file, or the checkpoint, or its number. Raises DataError."""
    classes = checkpoint.net.classes
    if file:
        return read_labels(file, classes)
    return checkpoint.labels or [f"class {i}" for i in range(classes)]


def files_of(arguments: Iterable[str]) -> list[str]:
    """The arguments with every folder replaced by the images in it, by name; one without images stays, for `load` to explain."""
    files: list[str] = []
    for argument in arguments:
        inside = image.files_in(Path(argument)) if os.path.isdir(argument) else []
        files += [str(path) for path in inside] or [argument]
    return files


def load(file: str, preprocess: image.Preprocess) -> Array:
    """One of `files_of` -> (1, crop, crop, 3) float32. Raises ImageError."""
    if os.path.isdir(file):
        raise ImageError(f"{file}: a folder without images ({', '.join(sorted(image.SUFFIXES))})")
    if file != "-":
        return image.load(file, preprocess)
    if sys.stdin is None:
        raise ImageError("standard input is closed")
    return image.load(sys.stdin.buffer, preprocess)


def predictor(checkpoint: Checkpoint, size: int, name: str = "cpu") -> Callable[[Array], Array]:
    """The checkpoint compiled for images of that size and the device of that name.

    (1, size, size, 3) float32 -> probabilities (classes,). What it returns raises WeightsError where the network answers with no
    number.
    """
    from .ops.softmax import softmax  # here, so that a wrong argument is not answered half a second later

    model = device.compiler(name).compile(checkpoint.net, checkpoint.params, (1, size, size, 3))

    return lambda pixels: softmax(sound(model(pixels)))[0]


def sound(logits: Array) -> Array:
    """The same. Raises WeightsError for what is no answer."""
    if not np.isfinite(logits).all():
        raise WeightsError("the network's answer is not finite: the weights are damaged")
    return logits


def best(probabilities: Array, labels: Sequence[str], top: int) -> list[Guess]:
    """The likeliest `top` classes, or all if there are fewer."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [Guess(index=int(i), label=labels[i], probability=round(float(probabilities[i]), 6)) for i in order]


def explain(
    checkpoint: Checkpoint, file: str, pixels: Array, preprocess: image.Preprocess, top: Sequence[Guess], out: Path
) -> None:
    """Draw the image, and the class activation maps of the likeliest classes over it. Raises PyShuffleError."""
    from .explain import activation_maps, draw
    from .visualise import save

    maps = activation_maps(checkpoint.net, checkpoint.params, pixels)
    captions = [(guess["index"], f"{guess['probability']:.1%} {guess['label']}") for guess in top[:EXPLAINED]]
    save(out, draw(image.decode(file), preprocess, maps, captions))


def line(guess: Guess, stream: TextIO) -> str:
    return f" {guess['probability']:6.1%}  {bar(guess['probability'], stream.encoding):{BAR}} {guess['label']}"


def bar(probability: float, encoding: str | None) -> str:
    """A bar in steps of an eighth of a character, or of '#' where the encoding has no blocks."""
    whole, eighths = divmod(round(probability * BAR * 8), 8)
    blocks = (EIGHTHS[8] * whole + EIGHTHS[eighths]).rstrip()
    try:
        blocks.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(probability * BAR)
    return blocks


if __name__ == "__main__":
    sys.exit(cli.run(main))
