"""A folder of class folders -> batches of images and labels.

Everything random is drawn from (seed, epoch, index of the image), so a batch can be made again without those before it: that is
what lets a run that was killed go on as if nothing had happened.
"""

import hashlib
import math
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from . import image
from .errors import DataError, ImageError
from .types import Array

T = TypeVar("T")
Batch = tuple[Array, npt.NDArray[np.int64]]  # images (N, size, size, 3), labels (N,)
Decode: TypeAlias = Callable[[Path], Image.Image]

ORDER, CROP = 1, 2  # what is drawn: each has numbers of its own
MIN_AREA = 0.5  # of a random crop, as a part of the image, before it is cut at the edges: mild, as small networks underfit
MAX_STRETCH = 4 / 3
ROOM = 4 << 30  # bytes of decoded images that are kept, at most
SPARE = 1 << 30  # bytes of the disk that are left free, at least


@dataclass(frozen=True)
class ImageFolder:
    """Image files and their labels; the classes are the folder names in sorted order."""

    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]

    @classmethod
    def scan(cls, root: Path) -> "ImageFolder":
        """Read the names in `root`/<class>/<image>. Raises DataError for a folder that cannot be trained on."""
        if not root.is_dir():
            raise DataError(f"{root}: {'is a file, not a folder' if root.exists() else 'no such folder'}")
        folders = sorted((path for path in root.glob("[!.]*") if path.is_dir()), key=lambda path: path.name)
        if len(folders) < 2:
            raise DataError(f"{root}: holds {len(folders)} class folders, at least 2 are needed")
        files = [image.files_in(folder) for folder in folders]
        for folder, found in zip(folders, files, strict=True):
            if not found:
                raise DataError(f"{folder}: holds no images ({', '.join(sorted(image.SUFFIXES))})")
        labels = np.repeat(np.arange(len(folders)), [len(found) for found in files])
        classes = tuple(os.fsencode(folder.name).decode("utf-8", "surrogateescape") for folder in folders)  # in any locale
        return cls(classes, tuple(path for found in files for path in found), labels)

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self) -> str:
        """The same for folders of the same classes and file names, wherever they lie."""
        names = "\n".join(f"{path.parent.name}/{path.name}" for path in self.files)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()

    def typical_side(self, sample: int = 99) -> int:
        """The median short side, in pixels, of images spread over the folder. Raises DataError where they cannot be decoded."""
        sides = []
        for path in self.files[:: max(1, len(self) // sample)]:
            with suppress(ImageError):
                sides.append(min(image.decode(path).size))
        if not sides:
            raise DataError(f"{self.files[0].parent.parent}: none of the images looked at can be decoded")
        return int(np.median(sides))

    def hold_out(self, fraction: float) -> tuple["ImageFolder", "ImageFolder"]:
        """(to train on, to measure on): the last `fraction` of each class's files, at least one, is set aside. Raises DataError."""
        held = self.last(fraction)
        counts, kept = (np.bincount(labels, minlength=len(self.classes)) for labels in (self.labels, self.labels[~held]))
        if kept.min() < 1:
            name, count = self.classes[int(kept.argmin())], counts[kept.argmin()]
            raise DataError(
                f"class {name!r}: none of its images, {count} in all, is left to train on where {fraction} are held out"
            )
        return self.select(~held), self.select(held)

    def last(self, fraction: float) -> npt.NDArray[np.bool_]:
        """Which files are among the last `fraction` of their class: at least one of each."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        place = np.arange(len(self)) - (np.cumsum(counts) - counts)[self.labels]  # of each file in its class
        first: npt.NDArray[np.int64] = counts - np.maximum(1, np.round(fraction * counts).astype(int))
        return np.asarray(place >= first[self.labels])

    def select(self, chosen: npt.NDArray[np.bool_]) -> "ImageFolder":
        """The chosen ones of the files, with all classes."""
        return ImageFolder(self.classes, tuple(compress(self.files, chosen)), self.labels[chosen])


class Decoder:
    """Decodes each image once: what comes of it is kept in a file that has no name, and so is gone with the process.

    What cannot be decoded is kept in mind as well, in `faults`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # whose disk is used
        self.faults: dict[Path, str] = {}
        self._places: dict[Path, tuple[int, tuple[int, int]]] = {}  # where the pixels lie, and the image's size
        self._file: IO[bytes] | None = None
        self._end = 0

    def __call__(self, path: Path) -> Image.Image:
        """The RGB image. Raises ImageError for one that is damaged, DataError for one that cannot be read just now."""
        if path in self.faults:
            raise ImageError(self.faults[path])
        with suppress(OSError):
            if kept := self._kept(path):
                return kept
        try:
            picture = image.decode(path)
        except ImageError as error:
            if isinstance(error.__cause__, MemoryError) or getattr(error.__cause__, "errno", None):
                raise DataError(str(error)) from error
            self.faults[path] = str(error)
            raise
        with suppress(OSError):  # of a disk that is full or cannot be written: the next epoch decodes again
            self._keep(path, picture)
        return picture

    def _kept(self, path: Path) -> Image.Image | None:
        if path not in self._places or self._file is None:
            return None
        begin, size = self._places[path]
        self._file.seek(begin)
        return Image.frombytes("RGB", size, self._file.read(3 * size[0] * size[1]))

    def _keep(self, path: Path, picture: Image.Image) -> None:
        pixels = picture.tobytes()
        if self._end + len(pixels) > ROOM or shutil.disk_usage(self.folder).free < SPARE + len(pixels):
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - closed with the decoder
            weakref.finalize(self, self._file.close)
        self._file.seek(self._end)
        if self._file.write(pixels) == len(pixels):
            self._places[path] = self._end, picture.size
            self._end += len(pixels)


def training_batches(
    folder: ImageFolder,
    preprocess: image.Preprocess,
    batch: int,
    seed: int,
    epoch: int,
    start: int = 0,
    decode: Decode = image.decode,
    min_area: float = MIN_AREA,
) -> Iterator[Batch]:
    """The shuffled, augmented batches of an epoch from number `start` on, each of `batch` images (what is left over is left out)."""
    order = np.random.default_rng((seed, ORDER, epoch)).permutation(len(folder))
    groups = [order[i * batch : (i + 1) * batch] for i in range(start, len(folder) // batch)]

    def crop(index: int) -> Image.Image:
        rng = np.random.default_rng((seed, CROP, epoch, index))
        return random_crop(decode(folder.files[index]), preprocess.crop, rng, min_area)

    return ahead(partial(load, folder, preprocess, indices, crop) for indices in groups)


def measuring_batches(
    folder: ImageFolder, preprocess: image.Preprocess, batch: int, decode: Decode = image.decode
) -> Iterator[Batch]:
    """All images in order, prepared as `classify` prepares them."""
    groups = [np.arange(i, min(i + batch, len(folder))) for i in range(0, len(folder), batch)]

    def crop(index: int) -> Image.Image:
        return image.crop(decode(folder.files[index]), preprocess)

    return ahead(partial(load, folder, preprocess, indices, crop) for indices in groups)


def load(
    folder: ImageFolder, preprocess: image.Preprocess, indices: npt.NDArray[np.int64], crop: Callable[[int], Image.Image]
) -> Batch:
    """The images at the given places, cropped by `crop` and normalised, and their labels; without those that are damaged, perhaps
    none."""
    pixels, labels = [], []
    for index in indices:
        with suppress(ImageError):
            pixels.append(np.asarray(crop(int(index))))
            labels.append(folder.labels[index])
    shape = (-1, preprocess.crop, preprocess.crop, 3)
    return image.normalise(np.array(pixels, np.uint8).reshape(shape), preprocess), np.array(labels, np.int64)


def random_crop(picture: Image.Image, size: int, rng: np.random.Generator, min_area: float = MIN_AREA) -> Image.Image:
    """A part of the image as size x size pixels, mirrored half the time.

    It has `min_area` to all of the image's area and is a little out of square; what of that is outside the image is cut off.
    """
    area, aspect = rng.uniform(min_area, 1), math.exp(rng.uniform(-1, 1) * math.log(MAX_STRETCH))
    width = min(picture.width, math.sqrt(area * aspect * picture.width * picture.height))
    height = min(picture.height, math.sqrt(area / aspect * picture.width * picture.height))
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of the jobs, in order, the next two made by a thread while the caller works."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
