"""Checkpoints: a network, its parameters and what belongs to them, as .npz, .safetensors or PyTorch's .pth.

Files have torchvision's names and shapes; in memory the parameters lie as the operations read them. Here one becomes the other:

    convolution (O, I/G, K, K) <-> (K, K, I/G, O)      depthwise (C, 1, 3, 3) <-> (3, 3, C)      linear (O, I) <-> (I, O)

Our own files say which network they hold; of others, names and shapes tell it. The authors' files have names of their own, and
need `order="authors"` and images prepared as theirs were. Their V1 shuffles after the depthwise convolution and not before it,
which is made up for here.

What a file holds of bytes is the matter of containers.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from . import containers, image
from .backends.cost import parameter_shapes
from .containers import LIMIT, Entries
from .errors import PyShuffleError, WeightsError
from .nets import ARCHS, Net, ShuffleNetV1, build, describe
from .torchfile import TEXT
from .types import Params

PathLike: TypeAlias = str | os.PathLike[str]
Shape: TypeAlias = tuple[int, ...]

COUNTER = "num_batches_tracked"  # PyTorch has one for every batch normalisation: of no use here, but kept
AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}  # the axes in memory, in their order on disk
TORCHVISION_RESIZE = {1.5: 232, 2.0: 232}  # width: the short side that its accuracy was measured with, where it is not 256

UNITS = [f"stage{stage}.{i}" for stage, repeats in ((2, 4), (3, 8), (4, 4)) for i in range(repeats)]
BRANCHES = {
    "branch_main_1": "branch2",  # V1: up to the shuffle
    "branch_main_2.0": "branch2.5",
    "branch_main_2.1": "branch2.6",
    "branch_main": "branch2",  # V2
    "branch_proj": "branch1",
}
AUTHORS = {"first_conv": "conv1", "conv_last": "conv5", "classifier.0": "fc"} | {  # their name -> ours
    f"features.{i}.{theirs}": f"{unit}.{ours}" for i, unit in enumerate(UNITS) for theirs, ours in BRANCHES.items()
}


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network with its parameters, in float32 and laid out for the operations."""

    net: Net
    params: Params
    labels: tuple[str, ...] | None = None  # of the classes
    preprocess: image.Preprocess | None = None  # from an image to the network's input
    counters: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # the COUNTERs


def load(path: PathLike) -> Checkpoint:
    """The checkpoint in a file of any format, which its content tells. Nothing in it is run. Raises WeightsError."""
    content = _read(Path(path))
    try:
        return _checkpoint(*containers.parse(content))
    except PyShuffleError as error:
        raise _error(f"{path}: {error}") from None
    except Exception as error:  # on damaged bytes, pickle, zipfile, json and NumPy raise all there is
        raise _error(f"{path}: is damaged or truncated ({type(error).__name__}: {error})") from error


def save(path: PathLike, checkpoint: Checkpoint, dtype: npt.DTypeLike = np.float32) -> None:
    """Writes a checkpoint as .npz or .safetensors, by the suffix, whole or not at all. Raises WeightsError."""
    encode = {".npz": containers.encode_npz, ".safetensors": containers.encode_safetensors}.get(Path(path).suffix.lower())
    if encode is None or np.dtype(dtype) not in (np.float16, np.float32, np.float64):
        raise _error(f"cannot write {path} in {np.dtype(dtype)}: only .npz and .safetensors, in float16, float32 or float64")
    entries = published(checkpoint)
    _check_fit(checkpoint.net, entries)
    metadata = _describe(checkpoint)
    try:
        _described(metadata)  # what could not be read again is not written
    except PyShuffleError as error:
        raise _error(f"cannot write {path}: it {error}") from None
    content = encode({name: _values(name, array, dtype) for name, array in entries.items()}, metadata)
    write_atomically(path, lambda file: file.write(content))


def published(checkpoint: Checkpoint) -> Entries:
    """The entries that a checkpoint has on disk: published names, published shapes."""
    return {name: _to_disk(array) for name, array in checkpoint.params.items()} | dict(checkpoint.counters)


def write_atomically(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or not at all: an old one stays until the new one is on the disk. Raises WeightsError."""
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = target.with_name(f".{target.name}.part")  # always the same name: what a kill leaves is written over
    try:
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _error(f"cannot write {path}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Has the new name survive a power cut too, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checkpoint(entries: Entries, metadata: str | None) -> Checkpoint:
    labels = preprocess = None
    authors = False
    if "meta" in entries and any(name.startswith("params/") for name in entries):
        raise WeightsError("is the state of a run of training, to go on from: its weights are in weights.npz beside it")
    if metadata is None:
        entries, authors = _rename(entries)
        net = _infer(entries)
    else:
        net, labels, preprocess = _described(metadata)
    _check_fit(net, entries)
    params = {name: _values(name, _from_disk(entries[name], shape)) for name, shape in parameter_shapes(net).items()}
    if authors:
        net, preprocess = _with(net, order="authors"), image.AUTHORS
        if isinstance(net, ShuffleNetV1):
            _shuffle_before_depthwise(params, net.groups)
    elif metadata is None:
        preprocess = dataclasses.replace(image.TORCHVISION, resize=TORCHVISION_RESIZE.get(net.width, 256))
    counters = {name: _values(name, array) for name, array in entries.items() if name.endswith(COUNTER)}
    return Checkpoint(net, params, labels, preprocess, counters)


def _values(name: str, array: np.ndarray, dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    """A copy in that dtype, or of a counter in int64. Raises WeightsError for values that no network has."""
    if array.dtype.kind != ("i" if name.endswith(COUNTER) else "f"):
        raise WeightsError(f"{name} holds {array.dtype}")
    if name.endswith(COUNTER):
        return array.astype(np.int64)
    with np.errstate(all="ignore"):
        array = array.astype(dtype, order="C")
    if not np.isfinite(array).all():
        raise WeightsError(f"{name} holds values that are not finite in {array.dtype}")
    if name.endswith("running_var") and (array < 0).any():
        raise WeightsError(f"{name} holds a negative variance")
    return array


# Names and shapes


def _rename(entries: Entries) -> tuple[Entries, bool]:
    """The entries by our names, and whether they had the authors'."""
    plain = {name: name.removeprefix("module.") for name in entries}
    renamed = {_our_name(plain[name]): array for name, array in entries.items()}
    if len(renamed) < len(entries):
        raise WeightsError("has two entries for one parameter")
    return renamed, any(name not in renamed for name in plain.values())


def _our_name(name: str) -> str:
    for theirs, ours in AUTHORS.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name


def _infer(entries: Entries) -> Net:
    """The network whose names and shapes differ least from those of a file, whatever its number of classes."""
    shapes = {name: array.shape for name, array in entries.items() if not name.endswith(COUNTER)}
    nets = (_with(net, classes=_classes(net, shapes)) for kind in ARCHS.values() for net in kind.variants())
    return min(nets, key=lambda net: len(_disk_shapes(net).items() ^ shapes.items()))


def _classes(net: Net, shapes: Mapping[str, Shape]) -> int:
    """How many there would be in a file if it held this network, whose one linear layer is the classifier."""
    (name,) = (name for name, shape in _disk_shapes(net).items() if len(shape) == 2)
    (classes,) = shapes.get(name, ())[:1] or (net.classes,)
    return classes


def _with(net: Net, **settings: Any) -> Net:
    return build(**{**describe(net), **settings})


def _check_fit(net: Net, entries: Entries) -> None:
    """Raises WeightsError for the first difference between the entries that a network needs and those there are."""
    needed = _disk_shapes(net)
    for name, shape in needed.items():
        if name not in entries:
            raise WeightsError(f"does not fit {net}: {name} is missing")
        if entries[name].shape != shape:
            raise WeightsError(f"does not fit {net}: {name} has the shape {entries[name].shape} and not {shape}")
    for name in entries:
        if name.replace(COUNTER, "running_mean") not in needed:
            raise WeightsError(f"does not fit {net}: {name!r} is none of its parameters")


def _shuffle_before_depthwise(params: Params, groups: int) -> None:
    """Moves the channels of V1's depthwise convolutions and their BNs to where the authors' shuffle, after them, would."""
    for name, array in params.items():
        if ".branch2.3." in name or ".branch2.4." in name:
            by_group = array.reshape(*array.shape[:-1], -1, groups)  # (..., n, g)
            params[name] = np.ascontiguousarray(by_group.swapaxes(-1, -2).reshape(array.shape))


@functools.lru_cache(maxsize=256)
def _disk_shapes(net: Net) -> dict[str, Shape]:
    shapes = {name: _as_conv(shape) for name, shape in parameter_shapes(net).items()}
    return {name: tuple(shape[axis] for axis in AXES[len(shape)]) for name, shape in shapes.items()}


def _to_disk(array: np.ndarray) -> np.ndarray:
    array = array.reshape(_as_conv(array.shape))
    return np.ascontiguousarray(array.transpose(AXES[array.ndim]))


def _from_disk(array: np.ndarray, shape: Shape) -> np.ndarray:
    return array.transpose(np.argsort(AXES[array.ndim])).reshape(shape)


def _as_conv(shape: Shape) -> Shape:
    """A depthwise filter (3, 3, C) as one of a convolution with one input channel a group, (3, 3, 1, C)."""
    return (*shape[:2], 1, shape[2]) if len(shape) == 3 else shape


# Files


def _read(path: Path) -> bytes:
    try:
        if not path.exists():
            raise _error(f"no such file: {path}")
        if not path.is_file():
            raise _error(f"not a file: {path}")
        if path.stat().st_size > LIMIT:
            raise _error(f"{path}: has more than {LIMIT} bytes, and no checkpoint has")
        return path.read_bytes()
    except OSError as error:
        raise _error(f"cannot read {path}: {error.strerror or error}") from error


def _describe(checkpoint: Checkpoint) -> str:
    preprocess = checkpoint.preprocess and dataclasses.asdict(checkpoint.preprocess)
    return json.dumps({"net": describe(checkpoint.net), "labels": checkpoint.labels, "preprocess": preprocess})


def _described(metadata: str) -> tuple[Net, tuple[str, ...] | None, image.Preprocess | None]:
    """The opposite of _describe."""
    if len(metadata) > TEXT:
        raise WeightsError(f"describes itself in more than {TEXT} characters")
    facts = json.loads(metadata)
    net, labels, preprocess = build(**facts["net"]), facts["labels"], facts["preprocess"]
    if labels is not None and (len(labels) != net.classes or [*map(str, labels)] != labels):
        raise WeightsError(f"does not have a label for each of {net.classes} classes")
    if preprocess is not None:
        settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in preprocess.items()}
        preprocess = image.Preprocess(**settings)
    return net, None if labels is None else tuple(labels), preprocess


def _error(message: str) -> WeightsError:
    """In one line of bearable length, whatever a file's names hold."""
    return WeightsError(" ".join(message[:5000].split())[:500])
