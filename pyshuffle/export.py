"""A network for other runtimes: `python -m pyshuffle.export model.onnx`. Needs the extra `onnx`."""

import sys
from pathlib import Path

from . import cli, image, nets, weights
from .classify import add_weights_option, checkpoint_of
from .errors import PyShuffleError


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m pyshuffle.export", description="Write a checkpoint as an ONNX model.")
    parser.add_argument("file", type=Path, metavar="FILE.onnx", help="where to write it")
    add_weights_option(parser)
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: as the checkpoint was trained)")
    args = parser.parse_args(argv)
    if args.file.suffix != ".onnx":
        raise PyShuffleError(f"{args.file}: the name of an ONNX model ends with .onnx")
    try:
        from .backends import onnx
    except ModuleNotFoundError as error:
        raise PyShuffleError(f"the ONNX format needs the extra onnx ({error}): pip install 'pyshuffle[onnx]'") from None
    checkpoint = checkpoint_of(args)
    preprocess = checkpoint.preprocess or image.TORCHVISION
    size = preprocess.crop if args.size is None else args.size
    nets.check_size(size)
    model = onnx.model(checkpoint.net, checkpoint.params, (size, size), checkpoint.labels or ())
    weights.write_atomically(args.file, lambda file: file.write(model.SerializeToString()))
    print(f"{args.file}: image (N, 3, {size}, {size}), RGB prepared by {preprocess} -> logits (N, {checkpoint.net.classes})")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
