"""The channel shuffle as a picture: `python -m pyshuffle.visualise --shuffle 3 4 shuffle.png`

Two grouped 1x1 convolutions, without and with a shuffle between them (V1, figure 1). Nothing is drawn from memory: the operations run
on one-hot channels, and a line joins what they join. A channel's colour is the mean of the colours of the groups it depends on.
"""

import colorsys
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import cli, weights
from .errors import PyShuffleError, ShapeError
from .ops import conv
from .ops.shuffle import shuffle_reference
from .types import Array

BOX, GAP, DROP, MARGIN = 26, 6, 70, 150  # pixels: of a channel, between two, between two rows, at the left for names
MOST = 64  # channels that can be told apart


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m pyshuffle.visualise", description="Draw what the channel shuffle does.")
    parser.add_argument("--shuffle", nargs=2, type=int, required=True, metavar=("G", "N"), help="groups, and channels of each")
    parser.add_argument("file", type=Path, metavar="OUT.png", help="where to draw it")
    args = parser.parse_args(argv)
    groups, each = args.shuffle
    if min(groups, each) < 1 or groups * each > MOST:
        raise ShapeError(f"{groups} groups of {each} channels: at least 1 of each can be drawn, and at most {MOST} channels")
    save(args.file, diagram(groups, each))
    print(f"{groups} groups of {each} channels; after the shuffle channel a {groups} + b is what was channel b {each} + a:")
    print(*shuffle_reference(np.arange(groups * each), groups))
    return 0


def save(file: Path, picture: Image.Image) -> None:
    """Whole or not at all, in the format that the name says. Raises PyShuffleError for a name that says none."""
    kind = Image.registered_extensions().get(file.suffix.lower())
    if kind not in Image.SAVE:
        raise PyShuffleError(f"{file}: the name of a picture ends with .png, or with that of another format which Pillow writes")
    weights.write_atomically(file, lambda stream: picture.save(stream, kind))


def grouped(channels: int, groups: int) -> Array:
    """Which outputs (columns) of a grouped 1x1 convolution depend on which inputs (rows)."""
    one_hot = np.eye(channels)[:, None, None]
    return conv.forward_reference(one_hot, np.ones((1, 1, channels // groups, channels)), groups=groups)[:, 0, 0]


def moved(channels: int, groups: int) -> Array:
    """The same for a shuffle."""
    return shuffle_reference(np.eye(channels), groups)


def diagram(groups: int, each: int) -> Image.Image:
    """Both connection patterns, one under the other."""
    channels = groups * each
    convolution, shuffle = ("grouped 1x1", grouped(channels, groups)), ("shuffle", moved(channels, groups))
    parts = [pattern("without shuffle", [convolution, convolution], groups, each)]
    parts.append(pattern("with shuffle", [convolution, shuffle, convolution], groups, each))
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    sheet.paste(parts[0], (0, 0))
    sheet.paste(parts[1], (0, parts[0].height))
    return sheet


def pattern(title: str, layers: list[tuple[str, Array]], groups: int, each: int) -> Image.Image:
    """Rows of channels, numbered as they are before the first layer or where a shuffle took them from, and the lines between."""
    channels, font = groups * each, ImageFont.load_default(12)
    colours = np.array([colorsys.hsv_to_rgb(g / groups, 0.55, 0.95) for g in range(groups)]) * 255
    size = (MARGIN + channels * (BOX + GAP) + GAP * groups, BOX * 2 + len(layers) * DROP + 3 * GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP), title, "black", font)
    reach, numbers = np.eye(channels), np.arange(channels)

    def left(c: int) -> int:
        return MARGIN + c * (BOX + GAP) + c // each * GAP

    for row in range(len(layers) + 1):
        top = BOX + GAP + row * DROP
        if row:
            name, joins = layers[row - 1]
            reach = np.minimum(reach @ joins, 1)
            numbers = numbers[joins.argmax(axis=0)] if name == "shuffle" else np.arange(channels)
            pen.text((GAP, top - DROP // 2), name, "black", font)
            for a, b in np.argwhere(joins):
                line = (left(a) + BOX // 2, top - DROP + BOX, left(b) + BOX // 2, top)
                pen.line(line, "black" if name == "shuffle" else (190, 190, 190))
        for c in range(channels):
            sources = np.unique(np.flatnonzero(reach[:, c]) // each)
            fill = tuple(colours[sources].mean(axis=0).astype(int).tolist())
            pen.rectangle((left(c), top, left(c) + BOX, top + BOX), fill, "black")
            pen.text((left(c) + BOX // 2, top + BOX // 2), str(numbers[c]), "black", font, anchor="mm")
    return sheet


if __name__ == "__main__":
    sys.exit(cli.run(main))
