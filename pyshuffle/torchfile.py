"""Read the files that `torch.save` writes, without torch and without running anything that a file says.

Both containers hold a pickle, and storages: flat arrays of numbers. A tensor is a view of one: offset, size and stride.

    zip       <name>/data.pkl, and <name>/data/<key> for every storage, uncompressed; perhaps <name>/byteorder
    stream    five pickles (magic number, protocol, system, object, list of keys), then for every key int64 count, numbers

Files are not trusted: what a pickle can do is what INSTRUCTIONS and ADMITTED list, and how much it can take is what their bytes
allow, as nothing admitted copies or multiplies what is there. Functions here raise WeightsError for what they refuse, and whatever
pickle, zipfile and NumPy come to for what is damaged.
"""

import functools
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .errors import WeightsError

TEXT = 1 << 19  # bytes of a pickle, or of a header in JSON: in memory they may come to a hundred times as many
MAX_ENTRIES = 4096  # of a file: nine times those of the largest network
MAX_RANK = 32  # of a tensor
MAX_ARGUMENTS = 8  # of a call
Buffer: TypeAlias = bytes | memoryview
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


def is_shape(sizes: object) -> bool:
    """Whether they are what can be multiplied in a moment: few, and none with more digits than a number of elements has."""
    return type(sizes) is list and len(sizes) <= MAX_RANK and all(type(n) is int and 0 <= n < 1 << 63 for n in sizes)


def _tensor(storage: Storage, offset: int, size: list[int], stride: list[int], *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not all(map(is_shape, ([offset], size, stride))):
        raise WeightsError("has a tensor that is no view of a storage")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def _ordered_dict(items: list[Any] | None = None) -> dict[Any, Any]:
    """Emptied on the way, so that a list can be copied no second time."""
    pairs = _Dict()
    for key, value in items or ():
        pairs[key] = value
    if items:
        items.clear()
    return pairs


ADMITTED: dict[str, Any] = {  # all that a pickle can name: what it gets, and what harm that could do
    "collections.OrderedDict": _ordered_dict,  # a dict of pairs that are there already
    "torch.Size": lambda sizes: sizes,  # its argument
    "torch._utils._rebuild_tensor": _tensor,  # a tuple of at most 2 * MAX_RANK + 3 values, which are looked at later
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,  # its argument
    **KINDS,  # short texts, which cannot be called
}
INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD
""".split()  # plain data, names, storages, calls; none that makes an object of a class or takes memory by a length that is only said


class _Dict(dict[Any, Any]):
    """Keys are text, or numbers whose hashes differ: with those of any length a file could make every look-up a long search."""

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, str) and not (type(key) is int and abs(key) < 1 << 63):
            raise WeightsError(f"has a dict with a key that is a {type(key).__name__} or too large")
        super().__setitem__(key, value)


def _load_as_list(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    def load(self: Any) -> None:
        load_tuple(self)
        self.stack[-1] = list(self.stack[-1])

    return load


def _push_dict(self: Any) -> None:
    self.append(_Dict())


def _push_dict_of_items(self: Any) -> None:
    items = self.pop_mark()
    self.append(_ordered_dict([items[i : i + 2] for i in range(0, len(items), 2)]))


def _call(self: Any) -> None:
    arguments = self.stack.pop()
    if type(arguments) is not list or len(arguments) > MAX_ARGUMENTS:
        raise WeightsError("has a call without arguments, or with too many")
    self.stack[-1] = self.stack[-1](*arguments)


def _drop_state(self: Any) -> None:
    self.stack.pop()


def _refuse(self: Any) -> None:
    raise WeightsError("has an instruction that no file of weights needs: refused, and nothing of it was run")


PYTHON = pickle._Unpickler.dispatch  # instruction -> what carries it out
TUPLES = (pickle.EMPTY_TUPLE[0], pickle.TUPLE[0], pickle.TUPLE1[0], pickle.TUPLE2[0], pickle.TUPLE3[0])


class Unpickler(pickle._Unpickler):
    """Plain data, Tensors, and nothing else: a name that is not admitted is refused before anything is imported.

    Nor can a pickle bring the process down. This is pickle's implementation in Python, as the one in C allocates as much memory
    as a memo index asks for. Tuples become lists, which cannot be keys: to hash tuples nested in tuples takes the whole stack,
    or for ever. Arguments are looked at before the call, whose own error would print what is called, however large. Attributes (an
    OrderedDict's `_metadata`) are dropped: set on what is admitted, they would outlive the file.
    """

    dispatch: ClassVar = {
        **dict.fromkeys(range(256), _refuse),
        **{code: PYTHON[code] for code in (getattr(pickle, name)[0] for name in INSTRUCTIONS)},
        **{code: _load_as_list(PYTHON[code]) for code in TUPLES},
        pickle.EMPTY_DICT[0]: _push_dict,
        pickle.DICT[0]: _push_dict_of_items,
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
        if type(pid) is not list or len(pid) not in (5, 6):
            raise WeightsError("has a storage without a kind and a key")
        _, kind, key, _, _, *view = pid
        if kind not in KINDS.values() or not isinstance(key, str) or any(view):
            raise WeightsError("has a storage of an unknown kind")
        if self.kinds.setdefault(key, kind) != kind:
            raise WeightsError(f"has a storage {key!r} of two kinds")
        return Storage(kind, key)


def is_pickle(member: str) -> bool:
    """Whether a member of a zip file is the pickle of a PyTorch container, by its name."""
    return f"/{member}".endswith("/data.pkl")


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """No more than the directory of the archive says that there is, however much it would unpack to."""
    with archive.open(name) as file:
        return file.read(archive.getinfo(name).file_size)


def read_zip(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
    """The tensors, by name, of a zip container of `size` bytes."""
    members = archive.infolist()
    if sum(member.file_size for member in members) > size or any(member.compress_type for member in members):
        raise WeightsError("has entries that are compressed, or larger than the file: PyTorch compresses none")
    names = archive.namelist()
    prefix = next(filter(is_pickle, names)).removesuffix("data.pkl")
    big = f"{prefix}byteorder" in names and read_member(archive, f"{prefix}byteorder") == b"big"
    content = read_member(archive, f"{prefix}data.pkl")
    if len(content) > TEXT:
        raise WeightsError(f"has a pickle of more than {TEXT} bytes")
    state = Unpickler(io.BytesIO(content)).load()
    return _arrays(state, lambda key: read_member(archive, f"{prefix}data/{key}"), ">" if big else "<")


def read_stream(data: bytes) -> dict[str, np.ndarray]:
    """The tensors, by name, of a stream container."""
    stream = io.BytesIO(data[:TEXT])
    if Unpickler(stream).load() != MAGIC:
        raise WeightsError("is a pickle, but not one of PyTorch's")
    _, system, unpickler = Unpickler(stream).load(), Unpickler(stream).load(), Unpickler(stream)
    order = "<" if system["little_endian"] else ">"
    state, keys, storages = unpickler.load(), Unpickler(stream).load(), {}
    begin = stream.tell()
    for key in keys:
        (count,) = struct.unpack_from(f"{order}q", data, begin)
        begin, size = begin + 8, count * np.dtype(unpickler.kinds[key]).itemsize
        if not 0 <= size <= len(data) - begin:
            raise WeightsError(f"is truncated: storage {key!r} is not all there")
        storages[key] = memoryview(data)[begin : begin + size]
        begin += size
    return _arrays(state, storages.__getitem__, order)


def _arrays(state: Any, read: Callable[[str], Buffer], order: str) -> dict[str, np.ndarray]:
    """The arrays of a dict of tensors, which may lie in another one as `model` or `state_dict`."""
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise WeightsError(f"holds a {type(state).__name__} where a dict of tensors is needed")
    numbers = functools.cache(lambda storage: decode(read(storage.key), storage.kind, order))
    if len(state) > MAX_ENTRIES:
        raise WeightsError(f"has more than {MAX_ENTRIES} entries")
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


def decode(data: Buffer, kind: str, order: str = "<") -> np.ndarray:
    """The numbers that bytes stand for: flat, and read-only. kind is NumPy's code, or BFLOAT16; order is < or >."""
    if kind != BFLOAT16:
        return np.frombuffer(data, order + kind)
    return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
