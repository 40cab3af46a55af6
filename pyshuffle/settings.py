"""The settings of a training run: what determines its weights, and how images are shown to the network."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from . import nets
from .data import MIN_AREA
from .errors import TrainingError
from .image import Preprocess

MOMENTUM, DECAY, SMOOTHING = 0.9, 4e-5, 0.1  # of the authors' code


@dataclass(frozen=True)
class Settings:
    """What determines a run. Raises TrainingError, or ImageError for a size, for values that cannot be."""

    net: dict[str, Any]  # as nets.describe gives it
    data: str
    images: str  # the fingerprint of the folder
    labels: tuple[str, ...]
    detail: int  # the short side of the images in the folder, or 0 where they are no smaller than those that are shown
    size: int = 64  # of the images that are trained on
    test_size: int = 0  # of those that are measured on, and that `classify` shows the network; 0: the same
    epochs: int = 20
    batch: int = 128
    rate: float = 0.5  # the highest learning rate, for each 1024 images of a batch
    decay: float = DECAY
    smoothing: float = SMOOTHING
    min_area: float = MIN_AREA  # of the random crops that are trained on, before they are cut at the edges
    hold_out: float = 0.05  # the part of each class that is never trained on
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, low in (("size", nets.MIN_SIZE), ("epochs", 1), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise TrainingError(f"{name}={getattr(self, name)} is less than {low}")
        if self.test_size != 0 and self.test_size < nets.MIN_SIZE:
            raise TrainingError(f"test_size={self.test_size} is neither 0 nor {nets.MIN_SIZE} or more")
        if not 0 < self.min_area <= 1:
            raise TrainingError(f"min_area={self.min_area} is not in (0, 1]")
        for name, below in (("rate", math.inf), ("decay", 1), ("smoothing", 1), ("hold_out", 1)):
            if not 0 <= getattr(self, name) < below:
                raise TrainingError(f"{name}={getattr(self, name)} is not in [0, {below})")
        for side in (self.size, self.shown):
            self.preprocess(side)  # raises ImageError where there can be no such images

    @property
    def shown(self) -> int:
        """The side of the images that are not trained on."""
        return self.test_size or self.size

    def preprocess(self, side: int) -> Preprocess:
        """How images of that side are prepared."""
        return Preprocess(resize=side, crop=side, detail=self.detail)


OPTIONS = {field.name: field.default for field in dataclasses.fields(Settings) if field.default is not dataclasses.MISSING}
