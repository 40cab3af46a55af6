"""Where in a photograph a network sees a class: class activation maps, exact because a mean is all that lies before the classifier.
    logit[k] = sum_c w[c, k] 1/(H W) sum_{i, j} f[i, j, c] + b[k] = 1/(H W) sum_{i, j} M[i, j, k] + b[k]
    M[i, j, k] = sum_c f[i, j, c] w[c, k]
f (H, W, C) is the last map of the network and w (C, classes) its classifier, so M says what each place adds to each logit. What a
place adds to all classes alike changes no probability: the heat of a class is what it adds beyond the mean of all of them, where that
is positive.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .backends.reference import Reference
from .image import MAX_RESIZE, Preprocess, crop
from .nets import Net
from .types import Array, Params

SIDE = 320  # pixels of a panel, at least, if the image may be as large
MARGIN, FONT = 8, 16
COLD, HOT = np.array([40, 60, 160]), np.array([255, 80, 0])  # RGB
COVER = 0.65  # of the photograph by the hottest place


class Watched(Reference):
    """The reference, which keeps what the mean and the classifier read."""

    last: Array
    weight: Array

    def mean(self, x: Array) -> Array:
        self.last = x
        return super().mean(x)

    def linear(self, x: Array, name: str, out: int, bias: bool = True) -> Array:
        self.weight = self.param(f"{name}.weight")
        return super().linear(x, name, out, bias)


def activation_maps(net: Net, params: Params, x: Array) -> Array:
    """x (1, H, W, 3) -> M (h, w, classes) of the last map."""
    ops = Watched(params)
    net(ops, x)
    return ops.last[0] @ ops.weight


def heat(maps: Array, index: int) -> Array:
    """M (h, w, classes) -> (h, w) for one class, from 0 to 1."""
    beyond = np.maximum(maps[..., index] - maps.mean(axis=-1), 0)
    return beyond / max(beyond.max(), np.finfo(beyond.dtype).tiny)


def enlarged(heat: Array, side: int) -> Array:
    """(h, w) -> (side, side), smoothly."""
    small = Image.fromarray(heat.astype(np.float32))
    return np.clip(np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)


def draw(picture: Image.Image, preprocess: Preprocess, maps: Array, guesses: Sequence[tuple[int, str]]) -> Image.Image:
    """What the network saw of a photograph; then once for each guess, a class and a caption, with the heat of the class over it."""
    scale = min(-(-SIDE // preprocess.crop), MAX_RESIZE // preprocess.resize)
    seen = crop(picture, replace(preprocess, resize=scale * preprocess.resize, crop=scale * preprocess.crop, detail=0))
    font = ImageFont.load_default(FONT)
    side = seen.width
    sheet = Image.new("RGB", ((side + MARGIN) * (1 + len(guesses)) - MARGIN, side + 2 * FONT), "white")
    sheet.paste(seen, (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, (index, caption) in enumerate(guesses, start=1):
        left = number * (side + MARGIN)
        warmth = enlarged(heat(maps, index), side)[..., None]
        mixed = (1 - COVER * warmth) * np.asarray(seen) + COVER * warmth * (COLD + (HOT - COLD) * warmth)
        sheet.paste(Image.fromarray(mixed.astype(np.uint8)), (left, 0))
        while pen.textlength(caption, font) > side:
            caption = caption[:-2] + "…" if len(caption) > 2 else ""
        pen.text((left, side + FONT // 3), caption, "black", font)
    return sheet
