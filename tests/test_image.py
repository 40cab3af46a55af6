"""From a file to the network's input: every pixel mode, the numbers by hand, and every file that cannot be used."""

import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyshuffle import image
from pyshuffle.errors import ImageError
from pyshuffle.image import AUTHORS, TORCHVISION, Preprocess

PHOTOS = Path(__file__).parent / "photos"
SMALL = replace(TORCHVISION, resize=32, crop=32)
GREY = np.add.outer(np.arange(12), 12 * np.arange(20)).astype(np.uint8)  # (12, 20): two gradients, values 0..239


def file_of(picture: Image.Image, kind: str = "PNG", **settings) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    file.seek(0)
    return file


def pixels(file: io.BytesIO) -> np.ndarray:
    decoded = image.decode(file)
    assert decoded.mode == "RGB"
    return np.asarray(decoded)


# Pixel modes: the same gradient, however it is stored.


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        pytest.param(Image.fromarray(GREY), "PNG", id="L"),
        pytest.param(Image.fromarray(GREY).convert("RGB"), "PNG", id="RGB"),
        pytest.param(Image.fromarray(GREY).convert("P"), "PNG", id="P"),
        pytest.param(Image.fromarray(GREY), "GIF", id="P, GIF"),
        pytest.param(Image.fromarray(GREY).convert("LA"), "PNG", id="LA"),
        pytest.param(Image.fromarray(GREY).convert("RGBA"), "PNG", id="RGBA"),
        pytest.param(Image.fromarray(GREY).convert("RGB").convert("CMYK"), "TIFF", id="CMYK"),
        pytest.param(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", id="I;16"),
        pytest.param(Image.fromarray(GREY.astype(">u2") * np.array(257, ">u2")), "TIFF", id="I;16B"),
        pytest.param(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF", id="I"),
        pytest.param(Image.fromarray(GREY.astype(np.float32)), "TIFF", id="F, 0..255"),
        pytest.param(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF", id="F, 0..1"),
    ],
)
def test_every_mode_holds_the_same_gradient(picture, kind):
    np.testing.assert_array_equal(pixels(file_of(picture, kind)), np.stack([GREY] * 3, axis=-1))


def test_black_and_white_is_0_and_255():
    bits = GREY % 2 == 1
    np.testing.assert_array_equal(pixels(file_of(Image.fromarray(bits)))[..., 0], 255 * bits)


def test_jpeg_in_greyscale_and_cmyk():
    for mode in ("L", "CMYK"):
        decoded = pixels(file_of(Image.fromarray(GREY).convert("RGB").convert(mode), "JPEG", quality=100))
        assert np.abs(decoded.astype(int) - GREY[..., None]).max() <= 3


def test_16_bits_are_scaled_and_not_clipped():
    wide = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    decoded = pixels(file_of(Image.fromarray(wide)))[..., 0]
    np.testing.assert_array_equal(decoded, np.rint(wide / 257))


@pytest.mark.parametrize(
    "values", [np.full((9, 9), 70000, np.int32), np.full((9, 9), -1, np.int32), np.full((9, 9), np.nan, np.float32)]
)
def test_grey_values_of_unknown_range_are_refused(values):
    with pytest.raises(ImageError, match="grey values from"):
        image.decode(file_of(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_shows_white(mode):
    picture = Image.fromarray(np.zeros((9, 9), np.uint8)).convert(mode)
    picture.putalpha(Image.fromarray(np.tile(np.uint8([0, 0, 0, 51, 51, 51, 255, 255, 255]), (9, 1))))
    np.testing.assert_array_equal(np.asarray(image.to_rgb(picture))[4, ::3], [[255] * 3, [204] * 3, [0] * 3])


def test_a_transparent_palette_entry_shows_white():
    picture = Image.fromarray(np.tile(np.uint8([0, 0, 0, 0, 1, 1, 1, 1]), (9, 1)))
    picture.putpalette([200, 0, 0, 0, 0, 200])
    for kind in ("PNG", "GIF"):
        decoded = pixels(file_of(picture, kind, transparency=0))
        np.testing.assert_array_equal(decoded[0, [0, -1]], [[255, 255, 255], [0, 0, 200]])


def test_a_transparent_colour_shows_white():
    decoded = pixels(file_of(Image.fromarray(GREY).convert("RGB"), transparency=(5, 5, 5)))
    np.testing.assert_array_equal(decoded[..., 0], np.where(GREY == 5, 255, GREY))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several_is_used(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    decoded = pixels(file_of(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(decoded.astype(int) - [255, 0, 0]).max() <= 2


# Orientation: what EXIF says about a file whose pixels are stored turned.

TURNED = {  # orientation: the stored pixels of an upright picture
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.T,
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].T,
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_is_applied(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](GREY)))
    np.testing.assert_array_equal(pixels(file_of(stored, kind, exif=exif))[..., 0], GREY)


# Numbers by hand.


def test_torchvision_values():
    x = image.prepare(Image.new("RGB", (40, 32), (10, 20, 30)), SMALL)
    assert x.shape == (1, 32, 32, 3)
    assert x.dtype == np.float32
    expected = [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(x, np.broadcast_to(expected, x.shape), rtol=1e-6)


def test_authors_values():
    x = image.prepare(Image.new("RGB", (300, 300), (10, 20, 30)), AUTHORS)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.broadcast_to(np.float32([30, 20, 10]), (1, 224, 224, 3)))


@pytest.mark.parametrize(("width", "left"), [(33, 0), (34, 1), (35, 2), (37, 2), (39, 4)])
def test_the_crop_is_central_and_rounds_half_to_even(width, left):
    columns = np.repeat(np.arange(width, dtype=np.uint8)[None], 32, axis=0)
    for picture, axis in ((columns, 1), (columns.T, 0)):
        cropped = np.asarray(image.crop(Image.fromarray(picture).convert("RGB"), SMALL))
        np.testing.assert_array_equal(cropped.take(0, axis)[0, 0], left)
        assert cropped.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("size", "resized", "by_authors"),
    [
        ((451, 300), (384, 256), (385, 256)),
        ((300, 451), (256, 384), (256, 385)),
        ((600, 400), (384, 256), (384, 256)),
        ((8, 8), (256, 256), (256, 256)),
    ],
)
def test_the_long_side_is_rounded_down_by_torchvision_and_to_the_nearest_by_the_authors(size, resized, by_authors):
    picture = Image.new("RGB", size)
    assert image.resize(picture, TORCHVISION).size == resized
    assert image.resize(picture, AUTHORS).size == by_authors


def test_torchvision_averages_over_all_columns_and_the_authors_over_two():
    """Four columns become one, beside an edge. A triangle over eight reaches two white columns: (3/8 + 1/8) / 4 of white."""
    edge = Image.fromarray(np.tile(np.repeat(np.uint8([0, 255]), 64), (128, 1))).convert("RGB")
    antialiased, sampled = (np.asarray(image.resize(edge, replace(SMALL, antialias=flag)))[16, :, 0] for flag in (True, False))
    np.testing.assert_array_equal(antialiased, [0] * 15 + [32, 223] + [255] * 15)
    np.testing.assert_array_equal(sampled, [0] * 16 + [255] * 16)
    stripes = Image.fromarray(np.tile(np.uint8([0, 40, 140, 0]), (128, 32))).convert("RGB")
    assert (np.asarray(image.resize(stripes, replace(SMALL, antialias=False))) == 90).all()


def test_an_image_can_be_reduced_to_the_detail_of_those_a_network_was_trained_on():
    """First to a short side of 8 pixels, then to 32; an image that has no more than 8 is left as it is."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    sharp, coarse = replace(SMALL, resize=32), replace(SMALL, resize=32, detail=8)
    reduced = Image.fromarray(noise).resize((12, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image.resize(Image.fromarray(noise), coarse), image.resize(reduced, sharp))
    np.testing.assert_array_equal(image.resize(reduced, coarse), image.resize(reduced, sharp))


def test_load_is_decode_and_prepare():
    x = image.load(PHOTOS / "chelsea.png")
    assert x.shape == (1, 224, 224, 3)
    np.testing.assert_array_equal(x, image.prepare(image.decode(str(PHOTOS / "chelsea.png"))))
    assert not np.array_equal(x, image.load(PHOTOS / "coffee.png"))


def test_a_stack_of_images_is_normalised_as_each():
    stack = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    for preprocess in (TORCHVISION, AUTHORS):
        np.testing.assert_array_equal(image.normalise(stack, preprocess)[1], image.normalise(stack[1], preprocess))


@pytest.mark.parametrize(
    "settings", [{"crop": 257}, {"crop": 0}, {"std": (0.2, 0.0, 0.2)}, {"std": (0.2, float("nan"), 0.2)}, {"mean": (0.5,)}]
)
def test_settings_that_fit_no_image(settings):
    with pytest.raises(ImageError, match=r"crop=|mean="):
        Preprocess(**settings)


# What cannot be used: one line that names the file and the rule.


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels and ends where they should begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\1\0IDAT"


def truncated(kind: str) -> bytes:
    whole = file_of(Image.open(PHOTOS / "chelsea.png").resize((64, 64)), kind).getvalue()
    return whole[: len(whole) // 2]


BAD = {
    "empty": (b"", "an empty file"),
    "text": (b"class,label\n0,cat\n", "no image of a kind that is read: BMP, GIF, JPEG"),
    "truncated.jpg": (truncated("JPEG"), "cannot be decoded: .*[Tt]runcated"),
    "truncated.png": (truncated("PNG"), "cannot be decoded"),
    "truncated.gif": (truncated("GIF"), "cannot be decoded"),
    "truncated.webp": (truncated("WEBP"), "that is read|cannot be decoded"),
    "header.png": (png_header(64, 64), "cannot be decoded"),
    "bomb.png": (png_header(20_000, 20_000), "more than 410,000,000 bytes of memory"),
    "half a bomb.png": (png_header(10_000, 10_000), "more than 410,000,000 bytes of memory"),
    "1 wide.png": (file_of(Image.new("RGB", (1, 20))).getvalue(), "1 x 20 pixels: at least 8"),
    "1 high.png": (file_of(Image.new("RGB", (20, 1))).getvalue(), "20 x 1 pixels: at least 8"),
    "7 wide.png": (file_of(Image.new("RGB", (7, 7))).getvalue(), "7 x 7 pixels: at least 8"),
    "long.png": (file_of(Image.new("RGB", (401, 8))).getvalue(), "401 x 8 pixels: one side is more than 50 times"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(name, tmp_path):
    content, rule = BAD[name]
    (tmp_path / name).write_bytes(content)
    before = list(warnings.filters)
    with pytest.raises(ImageError, match=rule) as raised:
        image.load(tmp_path / name, SMALL)
    assert str(raised.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(raised.value)
    assert warnings.filters == before


def test_bombs_are_refused_whatever_the_filters_of_the_caller_say():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="more than"):
            image.decode(io.BytesIO(png_header(10_000, 10_000)))


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: No such file"):
        image.decode(tmp_path / "none.png")
    with pytest.raises(ImageError, match=f"{tmp_path}: Is a directory"):
        image.decode(tmp_path)
    with pytest.raises(ImageError, match="null byte"):
        image.decode("a\0b")


@pytest.mark.parametrize(("error", "said"), [(IndexError(), "IndexError"), (ValueError("one\n two"), "one two")])
def test_whatever_a_decoder_raises_is_one_line(monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=f"cannot be decoded: {said}$"):
        image.decode(PHOTOS / "chelsea.png")


def test_out_of_memory_is_an_image_error(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(ImageError, match=r"chelsea\.png: does not fit into memory"):
        image.decode(PHOTOS / "chelsea.png")


def test_the_smallest_and_the_longest_that_are_used():
    for size in ((8, 8), (400, 8), (8, 400)):
        assert image.load(file_of(Image.new("RGB", size)), SMALL).shape == (1, 32, 32, 3)


class Pipe(io.BytesIO):
    """A stream that can only be read on, as standard input."""

    name = "<stdin>"

    def seekable(self) -> bool:
        return False

    def seek(self, *_) -> int:
        raise io.UnsupportedOperation("seek")


def test_a_stream_without_seek():
    np.testing.assert_array_equal(pixels(Pipe(file_of(Image.fromarray(GREY)).getvalue()))[..., 0], GREY)
    with pytest.raises(ImageError, match=r"^<stdin>: an empty file"):
        image.decode(Pipe())
    with pytest.raises(ImageError, match=r"^the image: an empty file"):
        image.decode(io.BytesIO())


def test_a_file_is_read_from_its_start():
    file = file_of(Image.fromarray(GREY))
    file.seek(0, io.SEEK_END)
    np.testing.assert_array_equal(pixels(file)[..., 0], GREY)
