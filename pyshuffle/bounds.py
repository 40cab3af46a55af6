"""How much memory an image file may take, worked out before it is decoded: a few bytes can ask for any amount."""

import re
import struct

import numpy as np
from PIL import Image

from .errors import ImageError

MEMORY = 410_000_000  # bytes that a file, and all that is made of it up to an RGB image, may take
PIXEL, JPEG_PIXEL = 17, 8  # bytes that a pixel takes at most meanwhile
COEFFICIENTS = 5  # and besides in a JPEG file of several scans, which is unpacked as a whole
MAX_SCANS = 30  # of a JPEG file, each a pass over the whole image; encoders make about 10
VALUE = 300  # bytes that a number in a TIFF directory takes as an object, with the strip that it may stand for
VALUE_SIZES = np.array([1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8])  # bytes in the file, by the type of an entry
DIRECTORIES = re.compile(rb"Exif\0\0|MPF\0")  # what is before them in a JPEG file
MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # in a JPEG file, but for those with nothing behind them
TOO_LARGE = f"would take more than {MEMORY:,} bytes of memory, the limit against files that unpack to fill it"


def check(needed: int) -> None:
    """Raises ImageError for more bytes than an image may take."""
    if needed > MEMORY:
        raise ImageError(TOO_LARGE)


def of_pixels(picture: Image.Image, content: bytes) -> int:
    """What decoding takes at most. Raises ImageError for a JPEG file that would take longer than any image is worth."""
    pixels = picture.width * picture.height
    if picture.format not in ("JPEG", "MPO"):  # the latter has further images behind the first one
        return PIXEL * pixels
    passes = scans(content)
    if passes > MAX_SCANS:
        raise ImageError(f"a JPEG file of {passes} scans: no encoder makes more than {MAX_SCANS}")
    return (JPEG_PIXEL + (COEFFICIENTS if passes > 1 else 0)) * pixels


def of_directory(content: bytes) -> int:
    """What the entries of the first directory take: of a TIFF file or of EXIF data, 0 if it is neither.

    Many of them can say that they lie in the same place, and each is read.
    """
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or content[2:4] not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return 0
    big = content[2:3] == b"+"  # as Pillow has it
    try:
        (place,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, place)
    except (struct.error, OverflowError):  # it ends before
        return 0
    number = f"{order}u{8 if big else 4}"
    entry = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", number), ("place", number)])
    begin = place + (8 if big else 2)
    entries = np.frombuffer(content, entry, min(count, (len(content) - begin) // entry.itemsize), begin)
    sizes = VALUE_SIZES[np.minimum(entries["type"], len(VALUE_SIZES) - 1)]
    counts = np.minimum(entries["count"], len(content) // sizes)
    return int((counts * np.where(sizes > 1, VALUE, 1)).sum())


def of_parts(content: bytes) -> int:
    """The same for what a JPEG file has such directories in."""
    return sum(of_directory(content[part.end() : part.end() + 65533]) for part in DIRECTORIES.finditer(content))


def scans(content: bytes) -> int:
    """Of a JPEG file, up to the end of its first image."""
    place = count = 0
    while (marker := MARKER.search(content, place)) and marker[1] != b"\xd9":
        count += marker[1] == b"\xda"
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return count
