"""Files to read, and what a hostile hand makes of them: any bytes changed, and parts changed where a checksum would give that away.

Everything is drawn from a generator, so that a case can be made again from its number.
"""

import contextlib
import functools
import io
import itertools
import json
import pickle
import pickletools
import runpy
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

HERE = Path(__file__).parent
MAKE = runpy.run_path(str(HERE / "data" / "make_checkpoints.py"))
IMAGES = ("png", "jpeg", "gif", "bmp", "tiff", "webp")
CHECKPOINTS = ("npz", "safetensors", "zip", "stream")
EDGES = (0, 1, 2, 255, 256, 32767, 65535, 60_000, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)


# What is well-formed


@functools.cache
def images(kind: str) -> tuple[bytes, ...]:
    """The two photographs, small, in every way in which files of that kind differ."""
    photos = [Image.open(HERE / "photos" / f"{name}.png").convert("RGB") for name in ("chelsea", "coffee")]
    small, tiny = photos[0].resize((48, 32)), photos[1].resize((24, 16))
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = tiny.convert("RGBA")
    transparent.putalpha(tiny.convert("L"))
    wide = Image.fromarray(np.asarray(tiny.convert("L")).astype(np.uint16) * 257)
    several = {"save_all": True, "append_images": [tiny, tiny]}
    made: dict[str, list[tuple[Image.Image, dict]]] = {
        "png": [(small, {"exif": turned}), (tiny.convert("P"), {"transparency": 3}), (transparent, {}), (wide, {}), (tiny, several)],
        "jpeg": [(small, {"exif": turned}), (small, {"progressive": True}), (tiny.convert("CMYK"), {}), (tiny.convert("L"), {})],
        "gif": [(small, {}), (tiny, several), (tiny.convert("P"), {"transparency": 3})],
        "bmp": [(small, {}), (tiny.convert("P"), {}), (transparent, {}), (tiny.convert("1"), {})],
        "tiff": [
            *((small, {"compression": f"tiff_{name}", "exif": turned}) for name in ("lzw", "adobe_deflate")),
            (tiny, {"compression": "jpeg"}), (tiny, {"compression": "packbits"}), (transparent, {}), (wide, {}),
            (tiny.convert("1"), {"compression": "group4"}), (Image.fromarray(np.asarray(wide, np.float32) / 65535), {}),
            (tiny, several),
        ],
        "webp": [(small, {}), (transparent, {"lossless": True}), (tiny, several), (small, {"exif": turned})],
    }  # fmt: skip
    return tuple(written(picture, kind, settings) for picture, settings in made[kind])


def largest(kind: str, memory: int) -> bytes:
    """An image that takes nearly all of the memory, in the costliest way in which such a file can hold one."""
    turned = Image.Exif()
    turned[0x0112] = 6
    mode, pixel, settings = {
        "jpeg": ("RGB", 8, {}),
        "gif": ("P", 17, {"transparency": 3}),
        "bmp": ("RGB", 20, {}),
        "tiff": ("F", 17, {"compression": "tiff_adobe_deflate"}),
        "png": ("LA", 17, {}),
        "webp": ("RGBA", 17, {"lossless": True}),
    }[kind]
    side = int((0.99 * memory / pixel) ** 0.5)
    return written(Image.new(mode, (side, side)), kind, settings if kind in ("gif", "bmp") else {**settings, "exif": turned})


def written(picture: Image.Image, kind: str, settings: dict) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


@functools.cache
def checkpoints(kind: str) -> tuple[bytes, ...]:
    """A whole network, and before it a file of a few arrays: no network, but read in no time."""
    net, few = MAKE["entries"](MAKE["V2"], "f2"), MAKE["zoo"]()
    if kind == "npz":
        return tuple(npz(arrays) for arrays in (few, net))
    if kind == "safetensors":
        return tuple(safetensors(arrays) for arrays in (few, net))
    names = {"zip": ("zoo_zip", "v2_torchvision_zip"), "stream": ("zoo_stream", "v1_authors_stream")}[kind]
    return tuple((HERE / "data" / f"{name}.pth").read_bytes() for name in names)


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def safetensors(arrays: dict[str, np.ndarray], **changes: dict) -> bytes:
    """With changes of what the header says of arrays, by their names."""
    codes = {"<f8": "F64", "<f4": "F32", "<f2": "F16", "<i8": "I64"}
    header, body = {}, b""
    for name, array in arrays.items():
        place = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": codes[array.dtype.str], "shape": array.shape, "data_offsets": place}
        body += array.tobytes()
    for name, change in changes.items():
        header[name] = header.get(name, {}) | change
    return with_header(json.dumps(header).encode(), body)


def with_header(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def pickled(call: Callable, arguments: tuple, protocol: int) -> bytes:
    """What a pickle of that protocol has between its first and its last instruction if it makes a call."""
    return pickle.dumps([Call(call, arguments)], protocol)[2:-1]


class Call:
    """Pickled, it is a call."""

    def __init__(self, call: Callable, arguments: tuple) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple:
        return self.call


# What becomes of it


def anything(rng: Generator, content: bytes, other: bytes) -> bytes:
    """A few changes of bytes, wherever."""
    for _ in range(rng.integers(1, 5)):
        content = CHANGES[rng.integers(len(CHANGES))](rng, content, other)
    return content


def place_in(rng: Generator, content: bytes) -> int:
    """Headers are at the beginning, or at the end."""
    near = min(len(content), 200)
    return int((rng.integers(near + 1), len(content) - rng.integers(near + 1), rng.integers(len(content) + 1))[rng.integers(3)])


def flip(rng: Generator, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.integers(1, 8) if content else 0):
        changed[min(place_in(rng, content), len(content) - 1)] ^= 1 << rng.integers(8)
    return bytes(changed)


def overwrite(rng: Generator, content: bytes, _: bytes) -> bytes:
    place, length = place_in(rng, content), int(rng.integers(1, 40))
    new = (bytes(length), b"\xff" * length, rng.bytes(length))[rng.integers(3)]
    return content[:place] + new + content[place + length :]


def number(rng: Generator, content: bytes, _: bytes) -> bytes:
    """A field of 1 to 8 bytes: a length, a width, a place."""
    size, order = int(1 << rng.integers(4)), ("little", "big")[rng.integers(2)]
    place = place_in(rng, content)
    return content[:place] + (EDGES[rng.integers(len(EDGES))] % (1 << 8 * size)).to_bytes(size, order) + content[place + size :]


def cut(rng: Generator, content: bytes, _: bytes) -> bytes:
    return content[: place_in(rng, content)]


def blocks(rng: Generator, content: bytes, _: bytes) -> bytes:
    """Two parts in a row: one of them left out, doubled, or both swapped."""
    a, b, c = sorted(place_in(rng, content) for _ in range(3))
    head, first, second, tail = content[:a], content[a:b], content[b:c], content[c:]
    return head + (second, first + first + second, second + first)[rng.integers(3)] + tail


def splice(rng: Generator, content: bytes, other: bytes) -> bytes:
    place = place_in(rng, content)
    return content[:place] + other[min(place, len(other)) :]


def garbage(rng: Generator, content: bytes, _: bytes) -> bytes:
    return content[: rng.integers(1, 24)] + rng.bytes(rng.integers(1, 500))


CHANGES = (flip, flip, overwrite, number, number, number, cut, blocks, splice, garbage)


def hostile_image(rng: Generator, kind: str) -> bytes:
    content = pick(rng, images(kind))
    content = anything(rng, content, pick(rng, images(IMAGES[rng.integers(len(IMAGES))])))
    return with_checksums(content) if kind == "png" and rng.integers(4) else content


def with_checksums(content: bytes) -> bytes:
    """A PNG file whose chunks have the checksums of what is in them."""
    made, place = content[:8], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunk = content[place + 4 : place + 8 + length]
        made += content[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += length + 12
    return made


def pick(rng: Generator, files: tuple[bytes, ...]) -> bytes:
    return files[rng.integers(len(files))]


def hostile_checkpoint(rng: Generator, kind: str, calls: list[bytes]) -> bytes:
    """`calls` are pieces of a pickle that run something if they are obeyed."""
    files = checkpoints(kind)
    content = files[not rng.integers(10)]  # the whole network takes long
    if not rng.integers(10) and kind in ("safetensors", "stream"):
        return content[: len(content) // 2] + low_bits(rng, content[len(content) // 2 :])
    if not rng.integers(3):
        return anything(rng, content, checkpoints(CHECKPOINTS[rng.integers(len(CHECKPOINTS))])[0])
    if kind == "safetensors":
        return change_header(rng, content)
    if kind == "stream":
        parts, rest = pickles(content)
        return change_pickle(rng, parts, calls) + rest
    return change_members(rng, content, calls)


@functools.lru_cache(maxsize=16)
def pickles(content: bytes) -> tuple[list[bytes], bytes]:
    """The instructions of the pickles at the beginning of a file, and what comes behind them."""
    stream, places = io.BytesIO(content), [0]
    for _ in range(5 if content[2:4] == b"\x8a\x0a" else 1):
        places += [place for _, _, place in pickletools.genops(stream) if place] + [stream.tell()]
    return [content[a:b] for a, b in itertools.pairwise(places)], content[stream.tell() :]


def change_pickle(rng: Generator, parts: list[bytes], calls: list[bytes]) -> bytes:
    parts = list(parts)
    for _ in range(rng.integers(1, 6)):
        a, b = (int(rng.integers(len(parts))) for _ in range(2))
        parts[a : a + 1] = (
            [],
            [parts[a], parts[b]],
            [parts[b]],
            [overwrite(rng, parts[a], b"")],
            [number(rng, parts[a], b"")],
            [parts[a], calls[rng.integers(len(calls))]],
            [parts[a], bytes([rng.integers(256)]) * int(rng.integers(1, 3000))],
            [parts[a], bytes([rng.integers(256)]) + EDGES[rng.integers(len(EDGES))].to_bytes(8, "little")],
        )[rng.integers(8)]
    return b"".join(parts)


def change_members(rng: Generator, content: bytes, calls: list[bytes]) -> bytes:
    """Changes in the members of a zip file, whose checksums are then right."""
    members = members_of(content)[:]
    for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):
        i = int(rng.integers(len(members)))
        j = next((j for j, (name, _) in enumerate(members) if name.endswith("data.pkl")), i)
        i = (i, j)[rng.integers(2)]
        name, data = members[i]
        if name.endswith("data.pkl") and rng.integers(8):
            with contextlib.suppress(ValueError):  # it is no pickle any more
                data = change_pickle(rng, pickles(data)[0], calls)
        elif data[:6] == b"\x93NUMPY" and rng.integers(4):
            data = change_array(rng, data)
        else:
            data = (anything(rng, data, members[0][1]), low_bits(rng, data), bytes(1 << 20), data + data)[rng.integers(4)]
        members[i : i + 1] = ([(name, data)], [(name, data)], [(name, data)], [], [(name, data), (name + "x", data)])[
            rng.integers(5)
        ]
        if not members:
            break
    file, methods = io.BytesIO(), (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    with zipfile.ZipFile(file, "w", methods[rng.integers(len(methods))]) as archive:
        for name, data in dict(members).items():
            archive.writestr(name, data)
    made = file.getvalue()
    return number(rng, made, b"") if not rng.integers(6) else made


def low_bits(rng: Generator, data: bytes) -> bytes:
    """Numbers that are hardly others."""
    values = np.frombuffer(data, np.uint8).copy()
    values[::2] ^= rng.integers(2, size=len(values[::2]), dtype=np.uint8)
    return values.tobytes()


@functools.cache
def members_of(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def change_array(rng: Generator, data: bytes) -> bytes:
    """The header of an .npy file says something else."""
    length = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:length].decode("latin1")
    words = ("'<f4'", "'|O'", "'<f2'", "'>f8'", "'|V9999999'", "'<U99'", "[('a', '<f4')]", "'a4'", "()", "(3,)", f"({10**12},)")
    words += (
        f"({2**62}, 4)",
        "(-1,)",
        "(3L,)",
        "(True,)",
        "(1.5,)",
        "(" * 300,
        "True",
        "None",
        "{}",
        "__import__('os').getpid()",
    )
    old = pick_text(rng, tuple(header.replace(":", ",").split(", ")))
    coded = header.replace(old, words[rng.integers(len(words))], 1).encode("latin1")
    if not rng.integers(4):
        coded = anything(rng, coded, data)
    return data[:8] + struct.pack("<H", len(coded) % 65536) + coded + data[length:]


def pick_text(rng: Generator, texts: tuple[str, ...]) -> str:
    return texts[rng.integers(len(texts))]


def change_header(rng: Generator, content: bytes) -> bytes:
    """The header of a .safetensors file says something else."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.integers(1, 4)):
        names = list(header)
        entry = header[names[rng.integers(len(names))]]
        if not isinstance(entry, dict):
            continue
        field = ("dtype", "shape", "data_offsets")[rng.integers(3)]
        values = (
            *EDGES,
            -1,
            1.5,
            float("nan"),
            float("inf"),
            None,
            True,
            "",
            "F32",
            "x" * 999,
            [],
            {},
            10**400,
            nested(100),
            nested(900),
        )
        value = values[rng.integers(len(values))]
        if isinstance(entry.get(field), list) and rng.integers(3):
            entry[field] = [*entry[field], value] if rng.integers(2) else [value, *entry[field]][: len(entry[field])]
        elif rng.integers(6):
            entry[field] = value
        else:
            header["__metadata__"] = (value, {"pyshuffle": value}, {"pyshuffle": json.dumps({"net": value})})[rng.integers(3)]
    coded = json.dumps(header).encode()
    coded = (coded, coded, coded, b"[" * 100_000, b'{"a":' * 100_000, coded[:-1] + b"," + coded[1:])[rng.integers(6)]
    if not rng.integers(4):
        coded = anything(rng, coded, body)
    return with_header(coded, body)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value
