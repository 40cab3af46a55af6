"""Hostile files: whatever they hold, reading one gives an image or a model, or one line that says what is wrong with it.

`python tests/test_hostile.py --cases 20000` reads so many mutated images and as many checkpoints, and sums up each format in a line.
"""

import argparse
import builtins
import contextlib
import faulthandler
import functools
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mutate
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from pyshuffle import bounds, image, torchfile, weights
from pyshuffle.errors import ImageError, TrainingError, WeightsError
from pyshuffle.nets import describe

SMALL = replace(image.TORCHVISION, resize=32, crop=32)
TIMES, AS_TEXT, FLOOR = 25, 100, 4 << 20  # of the memory that a checkpoint may take: see `allowed`
SECONDS = 5  # a file may take
MEASURED = 5  # one checkpoint in so many has its memory measured, which takes several times as long as to read it
SPACE = 256 << 20  # bytes of addresses that the process has left where it reads checkpoints
MEGABYTES = 500  # a process that reads files may take
CANARY = Path(tempfile.gettempdir()) / f"canary-{os.getpid()}"


@dataclass
class Tally:
    """What came of the files of one format."""

    cases: int = 0
    answers: int = 0
    slowest: float = 0.0  # seconds of processor time
    memory: int = 0  # bytes that reading one took at most

    def add(self, answered: bool, seconds: float, memory: int = 0) -> None:
        self.cases += 1
        self.answers += answered
        self.slowest, self.memory = max(self.slowest, seconds), max(self.memory, memory)


def calls(protocol: int) -> list[bytes]:
    """Pieces of a pickle that make the canary, if they are obeyed."""
    path = str(CANARY)
    made = (
        (os.system, (f"mkdir {path}",)),
        (os.mkdir, (path,)),
        (builtins.eval, (f"__import__('os').mkdir({path!r})",)),
        (builtins.exec, (f"import os; os.mkdir({path!r})",)),
        (builtins.open, (path, "w")),
        (functools.partial(os.mkdir, path), ()),
        (functools.reduce, (os.makedirs, [path, 511])),
    )
    return [mutate.pickled(call, arguments, protocol) for call, arguments in made]


def allowed(size: int) -> int:
    """Bytes that a checkpoint of `size` bytes may take.

    The file, eight times as much where it unpacks to that, twice that where it becomes float32 from float16; a hundred bytes for each
    one of a pickle or a header; and the shapes of the networks.
    """
    return TIMES * size + AS_TEXT * min(size, torchfile.TEXT) + FLOOR


def read_image(content: bytes) -> bool:
    """Whether it is answered. Nothing but an ImageError of one line may come of it, nor a warning."""
    with warnings.catch_warnings(record=True) as escaped:
        warnings.simplefilter("always")
        try:
            pixels = image.load(io.BytesIO(content), SMALL)
            message = ""
        except ImageError as error:
            message = str(error)
    assert not escaped, escaped[0].message
    if message:
        check_message(message, "the image")
    else:
        assert pixels.shape == (1, 32, 32, 3)
        assert np.isfinite(pixels).all()
    return not message


def read_checkpoint(content: bytes, path: Path) -> bool:
    """Whether it is answered. Nothing but a WeightsError of one line may come of it, nor a warning, nor the canary."""
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as escaped:
        warnings.simplefilter("always")
        try:
            found = weights.load(path)
            message = ""
        except WeightsError as error:
            message = str(error)
    assert not escaped, escaped[0].message
    assert not CANARY.exists()
    if message:
        check_message(message, str(path))
    else:
        assert all(np.isfinite(array).all() for array in found.params.values())
    return not message


def check_message(message: str, name: str) -> None:
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert "emory" not in message or "limit against files" in message  # it is refused before memory runs out


def run(kind: str, cases: range) -> Tally:
    """Read the mutated files of a format, whose numbers are `cases`."""
    tally = Tally()
    if kind in mutate.IMAGES:
        for case in cases:
            content = mutate.hostile_image(generator(kind, case), kind)
            with told(kind, case):
                tally.add(*timed(lambda content=content: read_image(content)))
        return tally
    with tempfile.TemporaryDirectory() as folder:
        path, pieces = Path(folder) / "file", calls(2) + calls(3)
        for content in mutate.checkpoints(kind):
            read_checkpoint(content, path)  # the networks' shapes are worked out once
        for case in cases:
            content, taken = mutate.hostile_checkpoint(generator(kind, case), kind, pieces), 0
            with told(kind, case):
                if case % MEASURED == 0:
                    taken = memory_of(lambda content=content: read_checkpoint(content, path))
                    assert taken <= allowed(len(content)), f"{taken} bytes for a file of {len(content)}"
                tally.add(*timed(lambda content=content: read_checkpoint(content, path)), taken)
    return tally


@contextlib.contextmanager
def told(kind: str, case: int) -> Iterator[None]:
    """Whatever fails says which file did it."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{kind}, case {case}: {type(error).__name__}: {error}") from error


def generator(kind: str, case: int) -> np.random.Generator:
    return np.random.default_rng([case, *kind.encode()])


def memory_of(read: Callable[[], object]) -> int:
    """Bytes that it allocates at most."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def timed(read: Callable[[], bool]) -> tuple[bool, float]:
    began = time.process_time()
    return read(), time.process_time() - began


@pytest.mark.parametrize("kind", mutate.IMAGES)
def test_images(kind):
    tally = run(kind, range(300))
    assert 0 < tally.answers < tally.cases


@pytest.mark.parametrize("kind", mutate.CHECKPOINTS)
def test_checkpoints(kind):
    tally = run(kind, range(100))
    assert tally.answers < tally.cases


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_calls_are_run_by_whoever_obeys_them(protocol):
    for piece in calls(protocol):
        (made,) = pickle.loads(bytes([0x80, protocol]) + piece + b".")
        if isinstance(made, io.IOBase):
            made.close()
        assert CANARY.exists(), piece
        CANARY.unlink() if CANARY.is_file() else CANARY.rmdir()


# Images, one case for each rule


def refused(content: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image.decode(io.BytesIO(content))


@pytest.mark.parametrize("kind", ["png", "gif", "tiff"])
def test_a_valid_bomb(kind):
    content = mutate.written(Image.new("1", (5000, 5000)), kind, {"compression": "group4"} if kind == "tiff" else {})
    assert len(content) < 100_000
    refused(content, "would take more than 410,000,000 bytes of memory")


def test_bombs_of_60000_pixels_each_way():
    small = {kind: mutate.written(Image.new("L", (64, 64)), kind, {}) for kind in ("png", "gif")}
    refused(
        small["png"][:16] + struct.pack(">II", 60_000, 60_000) + small["png"][24:], "cannot be|no image"
    )  # its checksum is wrong
    refused(
        mutate.with_checksums(small["png"][:16] + struct.pack(">II", 60_000, 60_000) + small["png"][24:]), "410,000,000 bytes"
    )
    refused(small["gif"][:6] + struct.pack("<HH", 60_000, 60_000) + small["gif"][10:], "410,000,000 bytes")
    refused(tiff([(256, 3, 1, 60_000), (257, 3, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]), "410,000,000 bytes")


@pytest.mark.parametrize("kind", ["gif", "tiff", "webp", "png"])
def test_of_many_frames_one_is_decoded(kind, monkeypatch):
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(100)]
    content = mutate.written(frames[0], kind, {"save_all": True, "append_images": frames[1:]})
    monkeypatch.setattr(bounds, "MEMORY", len(content) + bounds.PIXEL * 64 * 64 + 10_000)
    assert np.asarray(image.decode(io.BytesIO(content))).max() <= 2  # the first frame is black


def test_a_postscript_file_which_pillow_reads_by_running_ghostscript(monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", pytest.fail)
    refused(mutate.written(Image.new("RGB", (64, 64)), "eps", {}), "no image of a kind that is read")


def tiff(entries: list[tuple[int, int, int, int]], behind: bytes = b"") -> bytes:
    """A directory of (tag, type, count, value or place), and what follows it."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4) + behind


def test_a_tiff_file_whose_entries_lie_in_one_place():
    place = 14 + 12 * 2000
    refused(tiff([(1000 + i, 7, 500_000, place) for i in range(2000)], bytes(500_000)), "410,000,000 bytes of memory")


def test_a_tiff_file_of_as_many_strips_as_fit():
    refused(tiff([(256, 3, 1, 64), (257, 3, 1, 64), (273, 4, 1_500_000, 50)], bytes(6_000_000)), "410,000,000 bytes of memory")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_exif_data_whose_entries_lie_in_one_place(kind):
    exif = b"Exif\0\0" + tiff([(1000 + i, 4, 10_000, 14) for i in range(200)], bytes(40_000))
    refused(mutate.written(Image.new("RGB", (64, 64)), kind, {"exif": exif}), "410,000,000 bytes of memory")


@pytest.mark.parametrize("prefix", TiffImagePlugin.PREFIXES, ids=repr)
def test_every_beginning_of_a_directory_that_pillow_knows(prefix):
    """Read as Pillow reads it: as one of big numbers by the third byte alone."""
    order, big = "<" if prefix[:2] == b"II" else ">", prefix[2] == 43
    number = "Q" if big else "I"
    head = prefix + (struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8))
    entries = [struct.pack(f"{order}HH{number}{number}", 1000 + i, 4, 10_000, 16) for i in range(200)]
    exif = head + struct.pack(f"{order}{'Q' if big else 'H'}", 200) + b"".join(entries) + bytes(44_000)
    for again in (1, 2):  # Pillow takes off the words before it more than once
        content = mutate.written(Image.new("RGB", (64, 64)), "png", {"exif": again * b"Exif\0\0" + exif})
        refused(content, "410,000,000 bytes of memory")


def test_a_table_of_images_in_a_jpeg_file():
    """Of an MPF segment, which Pillow reads while it opens the file."""
    table = b"MPF\0" + tiff([(1000 + i, 4, 14_000, 14) for i in range(100)], bytes(57_000))
    content = mutate.written(Image.new("RGB", (64, 64)), "jpeg", {})
    segment = b"\xff\xe2" + struct.pack(">H", len(table) + 2) + table
    refused(content[:2] + segment + content[2:], "410,000,000 bytes of memory")


@pytest.mark.parametrize(
    "exif", [b"II*\0\x08\0\0\0", b"MM\0*\0\1\0\0", b"II*\0", b"II+\0\x08\0\0\0", b"II+\0\x08\0\0\0" + 8 * b"\xff"], ids=repr
)
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_exif_data_that_end_too_early_are_passed_over(kind, exif):
    content = mutate.written(Image.new("RGB", (64, 64)), kind, {"exif": b"Exif\0\0" + exif})
    assert image.decode(io.BytesIO(content)).size == (64, 64)


def test_exif_data_in_a_text_of_a_png_file():
    exif = tiff([(1000 + i, 4, 10_000, 14) for i in range(200)], bytes(40_000))
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}")
    refused(mutate.written(Image.new("RGB", (64, 64)), "png", {"pnginfo": text}), "410,000,000 bytes of memory")


def test_a_jpeg_file_of_many_scans():
    content = mutate.written(Image.new("RGB", (64, 64)), "jpeg", {"progressive": True})
    last = content[content.rindex(b"\xff\xda") : -2]
    refused(content[:-2] + 100 * last + content[-2:], "a JPEG file of 110 scans: no encoder makes more than 30")
    assert image.decode(io.BytesIO(content + 100 * last)).size == (64, 64)  # what is behind the image is not read


def test_a_jpeg_file_of_several_scans_takes_more_memory():
    once, several = (mutate.written(Image.new("RGB", (64, 64)), "jpeg", {"progressive": flag}) for flag in (False, True))
    assert [bounds.of_pixels(Image.open(io.BytesIO(content)), content) / 64**2 for content in (once, several)] == [8, 13]


PLAIN = Image.new("RGB", (64, 64))
LONG = tiff([(1000 + i, 4, (1 << 31) - 1, 200) for i in range(10)], bytes(60_000))  # longer than the file, as its entries say


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tiff", {"icc_profile": bytes(2_000_000)}),
        ("png", {"exif": b"Exif\0\0" + LONG}),
        ("jpeg", {"comment": 100 * b"\xff\xda\0\2"}),
    ],
    ids=["a large colour profile", "entries that are cut off", "scans in a comment"],
)
def test_what_takes_little_memory_is_read(kind, options):
    assert image.decode(io.BytesIO(mutate.written(PLAIN, kind, options))).size == (64, 64)


def test_a_stream_that_does_not_end(monkeypatch):
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            assert size >= 0
            return bytes(size)

    monkeypatch.setattr(bounds, "MEMORY", 1000)
    with pytest.raises(ImageError, match="bytes of memory"):
        image.decode(Endless())


def test_warnings_about_what_is_damaged_do_not_escape():
    exif = b"Exif\0\0" + tiff([(0x0112, 3, 1, 3), (0x010F, 2, 999, 1 << 20)])
    half = Image.new("RGB", (16, 16), "red")
    half.paste("blue", (0, 0, 16, 8))
    content = mutate.written(half, "png", {"exif": exif})
    with warnings.catch_warnings(record=True) as escaped:
        warnings.simplefilter("always")
        assert image.decode(io.BytesIO(content)).getpixel((0, 0)) == (255, 0, 0)  # turned upside down all the same
    assert not escaped


# Checkpoints, one case for each rule


def rejected(content: bytes, words: str, folder: Path) -> None:
    """In little memory."""
    path = folder / "file"
    path.write_bytes(content)

    def load():
        with pytest.raises(WeightsError, match=words):
            weights.load(path)

    load()  # what is worked out once is worked out here
    assert memory_of(load) <= allowed(len(content))


def torch_zip(body: bytes, method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    return zipped(
        {"net/data.pkl": b"\x80\x02" + body + b"."} | {f"net/data/{name}": data for name, data in members.items()}, method
    )


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def understated(content: bytes, size: int) -> bytes:
    """A zip file of one member, which says that it unpacks to so many bytes."""
    at = content.index(b"PK\1\2")
    return content[:22] + struct.pack("<I", size) + content[26 : at + 24] + struct.pack("<I", size) + content[at + 28 :]


def array(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


GIGABYTES = struct.pack("<Q", 1 << 33)
LISTED = b"](" + b"N" * 9 + b"eq\0"  # a list of nine, remembered
ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\7\0\0\0storagectorch\n%sStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
COLLIDING = b"".join(b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for k in range(5, 9))

PICKLES = {
    "an array of bytes of a length that is only said": (b"\x96" + GIGABYTES, "an instruction that no file of weights needs"),
    "an object of a class": (b"(ccollections\nOrderedDict\no", "an instruction that no file of weights needs"),
    "an extension of copyreg": (b"\x82\1", "an instruction that no file of weights needs"),
    "copyreg": (b"ccopyreg\n_reconstructor\n", "asks for copyreg._reconstructor"),
    "numpy": (b"cnumpy.core.multiarray\n_reconstruct\n", "asks for numpy.core.multiarray._reconstruct"),
    "an attribute of what is admitted": (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "asks for torch._utils"),
    "a call with many arguments": (LISTED + b"0" + ORDERED + b"h\0R", "a call without arguments, or with too many"),
    "a storage with many arguments": (LISTED + b"Q", "a storage without a kind and a key"),
    "numbers of one hash as keys": (b"}(" + COLLIDING + b"u", "a dict with a key that is a int or too large"),
    "the same, item by item": (b"}" + COLLIDING[:12] + b"Ns", "a dict with a key that is a int"),
    "the same, in a dict of pairs": (ORDERED + b"]" + COLLIDING[:12] + b"N\x86a\x85R", "a dict with a key that is a int"),
    "the same, in a dict made at once": (b"(" + COLLIDING + b"d", "a dict with a key that is a int or too large"),
    "a tensor of many dimensions": (
        REBUILD + b"(" + STORAGE % b"Float" + b"K\0](" + b"K\1" * 99 + b"eq\0h\0tR",
        "no view of a storage",
    ),
    "a tensor of a size of many digits": (
        REBUILD + b"(" + STORAGE % b"Float" + b"K\0\x8a\xfe" + b"\x7f" * 254 + b"\x85K\1\x85tR",
        "no view of a storage",
    ),
    "a storage of two kinds": (b"](" + STORAGE % b"Float" + STORAGE % b"Half" + b"e", "a storage '0' of two kinds"),
    "a pickle longer than any": (b"N0" * torchfile.TEXT, "a pickle of more than"),
    "lists in lists": (b"]" * 50_000 + b"a" * 49_999, "holds a list"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_with(name, tmp_path):
    body, words = PICKLES[name]
    rejected(torch_zip(body), words, tmp_path)


def test_what_is_made_of_a_list_uses_it_up():
    """Or a few bytes for each copy of a long list would fill the memory."""
    made = torchfile.Unpickler(io.BytesIO(b"\x80\x02](K\1K\2\x86eq\0" + 2 * (ORDERED + b"h\0\x85R") + b"\x86.")).load()
    assert made == [{1: 2}, {}]
    sizes = torchfile.Unpickler(io.BytesIO(b"\x80\x02](K\1eq\0ctorch\nSize\nh\0\x85Rh\0\x86.")).load()
    assert sizes[0] is sizes[1]


def test_a_pytorch_file_that_is_compressed(tmp_path):
    content = torch_zip(b"N" * 1_000_000 + b"0" * 999_999, zipfile.ZIP_DEFLATED)
    rejected(understated(content, 100), "compressed, or larger than the file", tmp_path)


def test_an_array_that_unpacks_to_more_than_the_directory_says(tmp_path):
    content = zipped({"a.npy": array("(4194304,)", bytes(1 << 24))}, zipfile.ZIP_DEFLATED)
    rejected(understated(content, 1000), "damaged", tmp_path)


def test_an_array_that_unpacks_to_far_more_than_the_file(tmp_path):
    rejected(zipped({"a.npy": bytes(1 << 24)}, zipfile.ZIP_DEFLATED), "unpack to more than 8 times its size", tmp_path)


def test_arrays_that_are_compressed_in_another_way(tmp_path):
    rejected(zipped({"a.npy": array("(2,)", bytes(8))}, zipfile.ZIP_LZMA), "compressed as NumPy never does", tmp_path)


@pytest.mark.parametrize("shape", ["(1000000000,)", "(4611686018427387904, 4)", "(-1, 0)", "(" * 3000])
def test_an_array_that_is_not_there(shape, tmp_path):
    rejected(zipped({"a.npy": array(shape)}), "damaged", tmp_path)


def test_the_warning_about_a_header_by_python_2_does_not_escape(tmp_path):
    with warnings.catch_warnings(record=True) as escaped:
        warnings.simplefilter("always")
        rejected(zipped({"a.npy": array("(2L,)", bytes(8))}), "does not fit", tmp_path)
    assert not escaped


def test_a_file_of_many_entries(tmp_path):
    rejected(zipped({f"{i}.npy": b"" for i in range(5000)}), "more than 4096 entries", tmp_path)
    rejected(mutate.safetensors({f"{i}": np.zeros(1, "f4") for i in range(5000)}), "more than 4096 entries", tmp_path)
    names = b"".join(b"X\4\0\0\0%04xK\0" % i for i in range(5000))
    rejected(torch_zip(b"}(" + names + b"u"), "more than 4096 entries", tmp_path)


HEADERS = {
    "a shape of many dimensions": (
        b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[' + b"9," * 100_000 + b"9]}}",
        "shape that no",
    ),
    "a shape that is no number": (b'{"a":{"dtype":"F32","data_offsets":[0,4],"shape":[NaN]}}', "shape that no array has"),
    "lists in lists": (b'{"a":' + b"[" * 200_000, "damaged"),
    "more than is read": (b'{"a":"' + b" " * torchfile.TEXT + b'"}', "a header of more than"),
    "an entry twice": (b'{"a":{},"a":{"dtype":"F32","data_offsets":[0,4],"shape":[1]}}', "does not fit"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_with(name, tmp_path):
    header, words = HEADERS[name]
    rejected(mutate.with_header(header, bytes(4)), words, tmp_path)


@pytest.mark.parametrize(
    "change", [{"resize": 10**9}, {"resize": 224.0}, {"detail": -1}, {"scale": float("nan")}, {"mean": (0, 0, float("inf"))}]
)
def test_a_checkpoint_cannot_ask_for_images_of_any_size(change, tmp_path):
    facts = {"net": describe(mutate.MAKE["V2"]), "labels": None, "preprocess": asdict(SMALL) | change}
    entries = mutate.MAKE["entries"](mutate.MAKE["V2"]) | {"pyshuffle": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    rejected(mutate.npz(entries), "are not", tmp_path)


def test_a_checkpoint_that_describes_itself_at_length(tmp_path):
    rejected(
        mutate.npz({"pyshuffle": np.full(torchfile.TEXT + 1, ord(" "), np.uint8)}), "describes itself in more than", tmp_path
    )


# What is trusted, and yet not obeyed


def test_a_state_of_objects_is_not_run(tmp_path):
    from pyshuffle.run_files import read_state  # here, as numba would count as memory that images take

    np.savez(tmp_path / "state.npz", meta=np.array([mutate.Call(os.mkdir, (str(CANARY),)), 0]))
    with pytest.raises(TrainingError, match="not a state that can be resumed"):
        read_state(tmp_path / "state.npz")
    assert not CANARY.exists()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="of images, and of checkpoints (default: %(default)s)")
    parser.add_argument("--kind", choices=mutate.IMAGES + mutate.CHECKPOINTS, help="only this format, in this process")
    parser.add_argument("--largest", type=Path, metavar="FILE", help="an image to read besides")
    args = parser.parse_args()
    if args.kind:
        return summary(args.kind, args.cases, args.largest)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kinds in (mutate.IMAGES, mutate.CHECKPOINTS):
            for kind in kinds:
                command = [sys.executable, __file__, "--kind", kind, "--cases", str(-(-args.cases // len(kinds)))]
                if kind in mutate.IMAGES:
                    largest = Path(folder) / "largest"
                    largest.write_bytes(mutate.largest(kind, bounds.MEMORY))
                    command += ["--largest", str(largest)]
                failed |= subprocess.run(command).returncode
    return failed


def summary(kind: str, cases: int, largest: Path | None) -> int:
    """Read the files of a format, in a process that is left only so much memory; 1 if one took too long, or too much."""
    faulthandler.enable()
    if kind in mutate.CHECKPOINTS:
        limit = SPACE + 1024 * status("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tally = run(kind, range(cases))
    memory = f"at most {tally.memory / 1e6:.1f} MB for a file"
    if largest:
        _, seconds = timed(lambda: bool(image.load(largest).size))
        memory = f"the largest image in {seconds:.2f} s"
    peak = status("VmHWM") / 1e3
    print(
        f"{kind:11} {tally.cases} cases: {tally.answers} answered, {tally.cases - tally.answers} refused, "
        f"slowest {tally.slowest:.2f} s, {memory}, process at most {peak:.0f} MB",
        flush=True,
    )
    return int(tally.slowest > SECONDS or peak > MEGABYTES)


def status(name: str) -> int:
    """Of this process, in kilobytes: Linux counts it."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)).split()[1])


if __name__ == "__main__":
    sys.exit(main())
