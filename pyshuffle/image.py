"""From an image file to the network's input: decode, resize, crop, normalise.

Whatever is in a file of KINDS becomes 8-bit RGB: the first frame of an animation, turned as its EXIF data say, transparency on white,
greyscale of more than 8 bits scaled and not clipped. Colour profiles are ignored, as by all the published preprocessing.

Files are not trusted: bounds.py works out what one may take before it is decoded.
"""

import io
import math
import os
import re
import struct
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from . import bounds
from .errors import ImageError
from .types import Array

Source = str | os.PathLike[str] | BinaryIO

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}  # of the images in a folder
JPEG = b"\xff\xd8\xff"  # begins such a file
KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # by content. Pillow reads others, EPS by running a program
TURNS: dict[object, Image.Transpose] = {  # EXIF's orientation: how to undo it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MIN_SIDE = 8  # pixels: less shows nothing that could be named
MAX_RESIZE = 1024  # pixels: an image as long as MAX_ASPECT allows then takes half of bounds.MEMORY
MAX_ASPECT = 50  # long side : short side; the resized image grows with it


@dataclass(frozen=True)
class Preprocess:
    """How a network was shown its images. Raises ImageError for settings that fit no image.

    resize: short side in pixels before the crop; crop: side of the centre square. A pixel's value v in 0..255 becomes
    (scale v - mean) / std, mean and std in the order of the network's channels: blue, green, red with `bgr`.
    antialias: resize by Pillow's bilinear filter and round the long side down, as torchvision does; if not, interpolate
    between four pixels however much the image shrinks and round to the nearest, as OpenCV does in the authors' code.
    detail: where it is not 0, larger images are first reduced to this short side in pixels. A network that was trained on small
    images, enlarged, has seen no sharp ones, and takes the sharpness of a photograph for something else.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    bgr: bool = False
    antialias: bool = True
    detail: int = 0

    def __post_init__(self) -> None:
        if any(
            type(side) is not int or not low <= side <= MAX_RESIZE
            for side, low in ((self.resize, 1), (self.crop, 1), (self.detail, 0))
        ):
            raise ImageError(f"resize={self.resize}, crop={self.crop} and detail={self.detail} are not sides up to {MAX_RESIZE}")
        if self.crop > self.resize:
            raise ImageError(f"crop={self.crop} is not between 1 and resize={self.resize}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ImageError(f"mean={self.mean} and std={self.std} are not three numbers each, std above 0")
        if not all(map(math.isfinite, (*self.mean, *self.std, self.scale))):
            raise ImageError(f"mean={self.mean}, std={self.std} and scale={self.scale} are not finite")


TORCHVISION = Preprocess()
AUTHORS = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0, bgr=True, antialias=False)
PRESETS = {"torchvision": TORCHVISION, "authors": AUTHORS}


def files_in(folder: Path) -> list[Path]:
    """The images in a folder, by name, without hidden files."""
    found = (path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(found, key=lambda path: path.name)  # paths themselves are sorted otherwise on some systems


def load(source: Source, preprocess: Preprocess = TORCHVISION) -> Array:
    """A path or a binary file -> (1, crop, crop, 3) float32. Raises ImageError."""
    return prepare(decode(source), preprocess)


def decode(source: Source) -> Image.Image:
    """A path or a binary file, read from its start -> an RGB image. Raises ImageError: one line, the file and what is wrong."""
    try:
        with _opened(source) as file:
            return to_rgb(_read(file))
    except Exception as error:  # there is no end to what a decoder may raise over a damaged file
        raise ImageError(f"{_name(source)}: {_reason(error)}") from error


def prepare(picture: Image.Image, preprocess: Preprocess = TORCHVISION) -> Array:
    """An RGB image -> (1, crop, crop, 3) float32."""
    return normalise(np.asarray(crop(picture, preprocess)), preprocess)[None]


def crop(picture: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The centre square of the resized image; where the margins cannot be equal, they are as torchvision's."""
    picture, side = resize(picture, preprocess), preprocess.crop
    left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
    return picture.crop((left, top, left + side, top + side))


def resize(picture: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The image with its short side `preprocess.resize` pixels long."""
    if 0 < preprocess.detail < min(picture.size):
        picture = resize(picture, replace(preprocess, resize=preprocess.detail, crop=1, detail=0))
    width, height = (
        int(preprocess.resize * side / min(picture.size) + (0 if preprocess.antialias else 0.5)) for side in picture.size
    )
    if preprocess.antialias:
        return picture.resize((width, height), Image.Resampling.BILINEAR)
    to_source = (picture.width / width, 0, 0, 0, picture.height / height, 0)
    return picture.transform((width, height), Image.Transform.AFFINE, to_source, Image.Resampling.BILINEAR)


def normalise(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> Array:
    """RGB values 0..255 (..., 3) -> float32 (..., 3) as the network was trained on them."""
    channels = pixels[..., ::-1] if preprocess.bgr else pixels
    scaled = np.arange(256, dtype=np.float32)[:, None] * np.float32(preprocess.scale)  # every value that there is
    table = (scaled - np.asarray(preprocess.mean, np.float32)) / np.asarray(preprocess.std, np.float32)
    normal = np.empty(channels.shape, np.float32)
    for c in range(3):
        normal[..., c] = table[:, c].take(channels[..., c])
    return normal


def to_rgb(picture: Image.Image) -> Image.Image:
    """An image of any mode -> RGB. Raises ImageError for values of unknown range, ValueError for a mode Pillow cannot convert."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _to_8_bits(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Greyscale of integers 0..65535, or of floats 0..1 or 0..255 -> 0..255. Pillow's own conversion would clip."""
    values = np.array(picture, np.float32)
    with np.errstate(invalid="ignore"):  # a file may hold NaNs that signal
        low, high = values.min(), values.max()
    top = 65535 if picture.mode != "F" else 255 if high > 1 else 1
    if not (low >= 0 and high <= top):
        raise ImageError(f"grey values from {low:g} to {high:g}: 0 to {top} is what can be told black from white")
    values *= 255 / top
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


def _opened(source: Source) -> AbstractContextManager[BinaryIO]:
    return open(source, "rb") if isinstance(source, (str, os.PathLike)) else nullcontext(source)


def _name(source: Source) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else str(getattr(source, "name", "the image"))


def _read(file: BinaryIO) -> Image.Image:
    """An upright image of any mode, its pixels decoded."""
    if file.seekable():
        file.seek(0)  # as Pillow does
    content = file.read(bounds.MEMORY + 1)
    if not content:
        raise ImageError("an empty file")
    memory = len(content) + bounds.of_directory(content)
    if content.startswith(JPEG):  # where they are read at once
        memory += bounds.of_parts(content)
    bounds.check(memory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # what it can do without in a damaged file; sizes are checked here
        picture = Image.open(io.BytesIO(content), formats=KINDS)
        _check_size(*picture.size)
        bounds.check(memory + bounds.of_pixels(picture, content))
        picture.load()
        return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data say, which may stand behind the pixels, or in a text of numbers to the base 16."""
    text = picture.info.get("Raw profile type exif", "")
    exif = picture.info.get("exif") or bytes.fromhex("".join(text.split("\n")[3:]))
    bounds.check(bounds.of_directory(re.sub(rb"^(Exif\0\0)+", b"", exif)))
    turn = None
    with suppress(struct.error):  # of data that end too early
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    return picture if turn is None else picture.transpose(turn)


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{width} x {height} pixels: at least {MIN_SIDE} are needed each way")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def _reason(error: Exception) -> str:
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"no image of a kind that is read: {', '.join(KINDS)}"
    if isinstance(error, Image.DecompressionBombError):
        return bounds.TOO_LARGE
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}"
