"""What every network has besides its function: settings, and what the papers print about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from ..errors import ArchError

if TYPE_CHECKING:
    from ..backends.ops import Ops

T = TypeVar("T")
MOST_CLASSES = 1_000_000


class Published(NamedTuple):
    """A published figure, for the audit to set beside what it counts."""

    mmacs: float | None  # millions of multiply-adds at 224x224, or None where the paper has none
    source: str
    with_linear: bool  # whether the figure counts the linear layer
    rounded_up: bool = False  # rather than to the nearest
    notes: tuple[str, ...] = ()  # misprints in widely copied tables, not to be reproduced


class Net:
    """The base of the networks: frozen dataclasses whose fields are their settings."""

    width: float
    classes: int
    arch: ClassVar[str]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}  # the settings that are one of a few names

    def __init__(self, **settings: Any) -> None: ...  # each dataclass has its own

    def __call__(self, ops: Ops[T], x: T) -> T:
        """(N, H, W, 3) image -> (N, classes) logits."""
        raise NotImplementedError

    @property
    def published(self) -> Published:
        """What the papers say."""
        raise NotImplementedError

    @classmethod
    def variants(cls) -> Iterator[Net]:
        """Every network, of the widths that its file lists, whose parameters differ in name or shape, for 1000 classes."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ArchError, naming the value and the valid ones."""
        if not 1 <= self.classes <= MOST_CLASSES:
            raise ArchError(f"classes={self.classes} is not in 1..{MOST_CLASSES}")
        for name, valid in self.choices.items():
            if getattr(self, name) not in valid:
                raise ArchError(f"{self.arch} has no {name} {getattr(self, name)!r}: choose one of {', '.join(valid)}")
