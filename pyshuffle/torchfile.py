"""Read the files that `torch.save` writes, without torch and without running anything that a file says.

Both containers hold a pickle, and storages: flat arrays of numbers. A tensor is a view of one: offset, size and stride.

    zip       <name>/data.pkl, and <name>/data/<key> for every storage, uncompressed; perhaps <name>/byteorder
    stream    five pickles (magic number, protocol, system, object, list of keys), then for every key int64 count, numbers

Functions here raise WeightsError for what they refuse, and whatever pickle, zipfile and NumPy come to for what is damaged.
"""

import functools
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
BFLOAT16 = "V2"  # the upper half of a float32; NumPy has no such type
KINDS = {
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": BFLOAT16,
    "torch.DoubleStorage": "f8",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ByteStorage": "u1",
}


class Storage(NamedTuple):
    """The array that a tensor is a view of."""

    kind: str  # one of KINDS
    key: str


class Tensor(NamedTuple):
    """What stands for a tensor in the pickle, where storages are still to be read. Offset and stride count numbers, not bytes."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Storage, offset: int, size: list[int], stride: list[int], *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise WeightsError("has a tensor that is no view of a storage")
    return Tensor(storage, offset, tuple(size), tuple(stride))


ADMITTED: dict[str, Any] = {
    "collections.OrderedDict": dict,
    "torch.Size": list,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **KINDS,
}


def _load_as_list(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    def load(self: Any) -> None:
        load_tuple(self)
        self.stack[-1] = list(self.stack[-1])

    return load


def _call(self: Any) -> None:
    arguments = list(self.stack.pop())
    self.stack[-1] = self.stack[-1](*arguments)


def _drop_state(self: Any) -> None:
    self.stack.pop()


PYTHON = pickle._Unpickler.dispatch  # instruction -> what carries it out
TUPLES = (pickle.TUPLE[0], pickle.TUPLE1[0], pickle.TUPLE2[0], pickle.TUPLE3[0])


class Unpickler(pickle._Unpickler):
    """Plain data, Tensors, and nothing else: a name that is not admitted is refused before anything is imported.

    Nor can a pickle bring the process down. This is pickle's implementation in Python, as the one in C allocates as much memory
    as a memo index asks for. Tuples become lists, which cannot be keys: to hash tuples nested in tuples takes the whole stack,
    or for ever. Arguments are unpacked before the call, whose own error would print what is called, however large. Attributes (an
    OrderedDict's `_metadata`) are dropped: set on what is admitted, they would outlive the file.
    """

    dispatch: ClassVar = {
        **PYTHON,
        **{code: _load_as_list(PYTHON[code]) for code in TUPLES},
        pickle.REDUCE[0]: _call,
        pickle.BUILD[0]: _drop_state,
    }

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="utf-8")
        self.kinds: dict[str, str] = {}  # of every storage, by its key

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            raise WeightsError(f"asks for {module}.{name}, which no file of weights needs: refused, and nothing of it was run")
        return ADMITTED[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Storage:
        _, kind, key, _, _, *view = pid
        if kind not in KINDS.values() or not isinstance(key, str) or any(view):
            raise WeightsError("has a storage of an unknown kind")
        self.kinds[key] = kind
        return Storage(kind, key)


def is_pickle(member: str) -> bool:
    """Whether a member of a zip file is the pickle of a PyTorch container, by its name."""
    return f"/{member}".endswith("/data.pkl")


def read_zip(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    """The tensors, by name, of a zip container of `size` bytes."""
    if sum(member.file_size for member in archive.infolist()) > size:
        raise WeightsError("has entries that are larger than the file: PyTorch compresses none")
    names = archive.namelist()
    prefix = next(filter(is_pickle, names)).removesuffix("data.pkl")
    big = f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") == b"big"
    state = Unpickler(io.BytesIO(archive.read(f"{prefix}data.pkl"))).load()
    return _arrays(state, lambda key: archive.read(f"{prefix}data/{key}"), ">" if big else "<")


def read_stream(data: bytes) -> dict[str, np.ndarray]:
    """The tensors, by name, of a stream container."""
    stream = io.BytesIO(data)
    if Unpickler(stream).load() != MAGIC:
        raise WeightsError("is a pickle, but not one of PyTorch's")
    _, system, unpickler = Unpickler(stream).load(), Unpickler(stream).load(), Unpickler(stream)
    order = "<" if system["little_endian"] else ">"
    state, keys, storages = unpickler.load(), Unpickler(stream).load(), {}
    for key in keys:
        (count,) = struct.unpack(f"{order}q", stream.read(8))
        size = count * np.dtype(unpickler.kinds[key]).itemsize
        if not 0 <= size <= len(data) - stream.tell():
            raise WeightsError(f"is truncated: storage {key!r} is not all there")
        storages[key] = stream.read(size)
    return _arrays(state, storages.__getitem__, order)


def _arrays(state: Any, read: Callable[[str], bytes], order: str) -> dict[str, np.ndarray]:
    """The arrays of a dict of tensors, which may lie in another one as `model` or `state_dict`."""
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise WeightsError(f"holds a {type(state).__name__} where a dict of tensors is needed")
    numbers = functools.cache(lambda storage: decode(read(storage.key), storage.kind, order))
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise WeightsError("has an entry whose name is no text")
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"has an entry {name!r} that is no tensor")
    return {name: _view(name, tensor, numbers(tensor.storage)) for name, tensor in state.items()}


def _view(name: str, tensor: Tensor, storage: np.ndarray) -> np.ndarray:
    """A tensor as a view of its storage, which it must neither leave nor, by strides of 0, exceed in size."""
    _, offset, size, stride = tensor
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.size or (count > 0 and last >= storage.size):
        raise WeightsError(f"has an entry {name!r} that reaches beyond its storage")
    if count == 0:
        return np.empty(size, storage.dtype)
    return as_strided(storage[offset:], size, [step * storage.itemsize for step in stride], writeable=False)


def decode(data: bytes, kind: str, order: str = "<") -> np.ndarray:
    """The numbers that bytes stand for: flat, and read-only. kind is NumPy's code, or BFLOAT16; order is < or >."""
    if kind != BFLOAT16:
        return np.frombuffer(data, order + kind)
    return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
