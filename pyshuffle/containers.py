"""The bytes of a checkpoint <-> its entries: .npz and .safetensors; PyTorch's two formats are read by torchfile.py.

Files are not trusted. To read one runs nothing that it says, and the memory it takes is in proportion to what is there, not to what
it says is there.
"""

from __future__ import annotations

import functools
import io
import json
import math
import warnings
import zipfile
from typing import Any, TypeAlias

import numpy as np
from numpy.lib import format as npy

from . import torchfile
from .errors import WeightsError

Entries: TypeAlias = dict[str, np.ndarray]  # of a file: published name -> array of the published shape

LIMIT = 1 << 29  # bytes of a file, and of what it unpacks to: nine times the largest network in float64
UNPACKED = 8  # times its size is what a file may unpack to: weights compress badly
METADATA = "pyshuffle"  # the entry of our own files that describes them
CODES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": torchfile.BFLOAT16, "I64": "i8"}  # of .safetensors


def parse(content: bytes) -> tuple[Entries, str | None]:
    """The entries of a file, and what ours say about themselves."""
    if content[8:9] == b"{":
        return _decode_safetensors(content)
    if content[:1] == b"\x80":
        return torchfile.read_stream(content), None
    if content[:2] != b"PK":
        raise WeightsError("is no checkpoint: .npz, .safetensors and PyTorch's .pth are read")
    if content.count(b"PK\1\2") > torchfile.MAX_ENTRIES:  # the mark of an entry of the directory
        raise WeightsError(f"has more than {torchfile.MAX_ENTRIES} entries")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(map(torchfile.is_pickle, archive.namelist())):
            return torchfile.read_zip(archive, len(content)), None
        return _decode_npz(archive, len(content))


def _decode_npz(archive: zipfile.ZipFile, size: int) -> tuple[Entries, str | None]:
    members = archive.infolist()
    if not {member.compress_type for member in members} <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise WeightsError("has entries that are compressed as NumPy never does")
    if sum(member.file_size for member in members) > min(LIMIT, UNPACKED * size):
        raise WeightsError(f"would unpack to more than {UNPACKED} times its size, or to more than {LIMIT} bytes")
    entries: Entries = {}
    for member in archive.namelist():
        name = member.removesuffix(".npy")
        entries[name] = _decode_npy(name, torchfile.read_member(archive, member))
    metadata = entries.pop(METADATA, None)
    return entries, None if metadata is None else metadata.tobytes().decode()


def _decode_npy(name: str, data: bytes) -> np.ndarray:
    """What numpy.load makes of it, which allocates whatever the header says."""
    width = 4 if data[6:7] == b"\2" else 2  # of the header's length, which follows 6 bytes of magic and 2 of the version
    begin = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    shape, by_column, dtype = _npy_header(data[:begin])
    if dtype.hasobject:
        raise WeightsError(f"{name} holds objects: refused, and nothing of them was run")
    return np.frombuffer(data, dtype, offset=begin).reshape(shape, order="F" if by_column else "C")


@functools.lru_cache(maxsize=256)  # many arrays of a network have one, and NumPy has Python's parser read it
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    stream = io.BytesIO(header)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was written by an old Python, or names a type in an old way
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        return read(stream)


def encode_npz(entries: Entries, metadata: str) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {METADATA: np.frombuffer(metadata.encode(), np.uint8), **entries}
    np.savez(stream, **arrays)
    return stream.getvalue()


def _decode_safetensors(content: bytes) -> tuple[Entries, str | None]:
    """The length of the header (8 bytes); the header (JSON): dtype, shape and place of each entry; the entries, side by side."""
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if length > torchfile.TEXT:
        raise WeightsError(f"has a header of more than {torchfile.TEXT} bytes")
    if start > len(content):
        raise WeightsError("is truncated: its header is not all there")
    header, rest = json.loads(content[8:start]), memoryview(content)[start:]
    if len(header) > torchfile.MAX_ENTRIES:
        raise WeightsError(f"has more than {torchfile.MAX_ENTRIES} entries")
    metadata = header.pop("__metadata__", {}).get(METADATA)
    entries, position = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in CODES:
            raise WeightsError(f"{name!r} has the dtype {entry['dtype']!r}, not one of {', '.join(CODES)}")
        kind, shape, (begin, end) = CODES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not torchfile.is_shape(shape):
            raise WeightsError(f"{name!r} has a shape that no array has")
        if begin != position or end - begin != math.prod(shape) * np.dtype(kind).itemsize or end > len(rest):
            raise WeightsError(f"{name!r} does not lie where its shape, its neighbours and the size of the file have it")
        entries[name] = torchfile.decode(rest[begin:end], kind).reshape(shape)
        position = end
    if position != len(rest):
        raise WeightsError(f"has {len(rest) - position} bytes that belong to no entry")
    return entries, metadata


def encode_safetensors(entries: Entries, metadata: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {METADATA: metadata}}
    codes = {kind: code for code, kind in CODES.items()}
    position = 0
    for name, array in entries.items():
        end = position + array.nbytes
        header[name] = {"dtype": codes[array.dtype.str[1:]], "shape": array.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in entries.values())))
