"""A photograph's way through ShuffleNet V2, shape by shape, as a page: `python -m pyshuffle.trace PHOTO > pyshuffle/nets/trace.md`"""

import re
import sys
from collections.abc import Iterator
from typing import Any

from . import cli, image, tables
from .backends.cost import Cost, Shape, add_up
from .nets import ShuffleNetV2

HEADINGS = ("operation", "output", "what becomes of it")


class Sections(Cost):
    """What is counted, in the parts of the page: title -> rows."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, list[tuple[str, str, str]]] = {"Stem": []}

    def begin(self, title: str) -> None:
        self.parts[title] = []

    def record(self, op: str, y: Shape, inputs: tuple[Shape, ...], name: str = "", *rest: Any, **more: Any) -> Shape:
        super().record(op, y, inputs, name, *rest, **more)
        if name.startswith("conv5.0"):
            self.begin("Head")
        kernel = self.shapes[f"{name}.weight"][0] if op == "conv" else 3
        self.parts[next(reversed(self.parts))].append((f"{op} {name}".strip(), shape(y), self.said(op, y, inputs, kernel)))
        return y

    def said(self, op: str, y: Shape, inputs: tuple[Shape, ...], kernel: int) -> str:
        """In words."""
        x, channels = inputs[0], inputs[0].shape[-1]
        stride = f", stride {y.jump // x.jump}" if y.jump > x.jump else ""
        size = f"{kernel} x {kernel}"
        half = channels // 2
        return {
            "conv": f"{size}, {channels} to {y.shape[-1]} channels{stride}",
            "depthwise": f"{size}, each channel alone{stride}",
            "batchnorm": f"each of {channels} channels by its own mean and variance",
            "relu": "negative values become 0",
            "maxpool": f"the largest of {size}{stride}",
            "split": f"0 to {half - 1} pass untouched, {half} to {channels - 1} go on",
            "concat": f"{' + '.join(str(part.shape[-1]) for part in inputs)} channels side by side",
            "shuffle": f"channel {half} b + a becomes 2 a + b",
            "mean": f"of all {' x '.join(map(str, x.shape[1:3]))} pixels; its receptive field is {y.field} x {y.field} pixels",
            "linear": f"{channels} features to {y.shape[-1]} classes",
        }[op]


class Traced(ShuffleNetV2):
    """The network, which tells where a unit begins."""

    def unit_stride1(self, ops: Any, x: Any, name: str, channels: int) -> Any:
        ops.begin(f"{titled(name)}: figure 3 (c)")
        return super().unit_stride1(ops, x, name, channels)

    def unit_stride2(self, ops: Any, x: Any, name: str, channels: int, out: int) -> Any:
        ops.begin(f"{titled(name)}: figure 3 (d), both branches read its input")
        return super().unit_stride2(ops, x, name, channels, out)


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(prog="python -m pyshuffle.trace", description="Trace a photograph through ShuffleNet V2, shape by shape.")
    parser.add_argument("photo", metavar="PHOTO", help="an image")
    parser.add_argument("--width", type=float, default=1.0, help="of the network (default: %(default)s)")
    args = parser.parse_args(argv)
    print(*page(args.photo, Traced(args.width)), sep="\n")
    return 0


def page(photo: str, net: Traced) -> Iterator[str]:
    """Its lines, in Markdown."""
    picture, preprocess = image.decode(photo), image.TORCHVISION
    resized, cropped = image.resize(picture, preprocess), image.crop(picture, preprocess)
    pixels = image.prepare(picture, preprocess)
    ops = Sections()
    net(ops, Shape(pixels.shape))
    command = f"python -m pyshuffle.trace {photo}{f' --width {net.width}' if net != Traced() else ''}"
    yield f"# A photograph through ShuffleNet V2 {net.width}\n"
    yield f"Made by `{command}`. Shapes are (height, width, channels); table 5 of the paper has the stages.\n"
    yield "## Photograph\n"
    preparation = (
        ("decode", (picture.height, picture.width, 3), "RGB, 0 to 255"),
        ("resize", (resized.height, resized.width, 3), f"the short side has {preprocess.resize} pixels"),
        ("crop", (cropped.height, cropped.width, 3), "the centre"),
        ("normalise", pixels.shape[1:], "by the mean and deviation of each colour; float32"),
    )
    yield tables.render(
        HEADINGS, [(name, " x ".join(map(str, size)), what) for name, size, what in preparation], "markdown", left=3
    )
    before = None
    for title, rows in ops.parts.items():
        alike = [(re.sub(r"\.\d+\.", ".", name, count=1), *rest) for name, *rest in rows]
        if alike == before:
            yield f"\n{title.partition(':')[0]}: as the unit before."
        else:
            yield f"\n## {title}\n\n{tables.render(HEADINGS, rows, 'markdown', left=3)}"
        before = alike
    params, macs, *_ = add_up(ops.rows)
    yield f"\n{macs / 1e6:.2f} million multiply-adds, {params:,} parameters. A softmax turns the logits into probabilities."


def titled(name: str) -> str:
    stage, unit = name.removeprefix("stage").split(".")
    return f"Stage {stage}, unit {unit}"


def shape(y: Shape) -> str:
    return " x ".join(map(str, y.shape[1:]))


if __name__ == "__main__":
    sys.exit(cli.run(main))
