"""The networks, each one function over a set of operations. A new one is a file here and a line in ARCHS."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import ArchError
from .mobilenet import MobileNetV1, MobileNetV2
from .net import Net, Published
from .shufflenet_v1 import ShuffleNetV1
from .shufflenet_v2 import ShuffleNetV2

__all__ = [
    "ARCHS", "MobileNetV1", "MobileNetV2", "Net", "Published", "ShuffleNetV1", "ShuffleNetV2", "build", "check_size", "describe",
    "fields",
]  # fmt: skip

ARCHS: dict[str, type[Net]] = {kind.arch: kind for kind in (ShuffleNetV1, ShuffleNetV2, MobileNetV1, MobileNetV2)}
DEFAULT = "v2"
MIN_SIZE = 32  # pixels: the last stage sees an image at a 32nd of its size
MAX_SIZE = 1 << 16


def build(arch: str, **settings: Any) -> Net:
    """The network `arch` with the given settings: `build("v1", groups=8, width=0.5)`. Raises ArchError, naming what is valid."""
    if arch not in ARCHS:
        raise ArchError(f"there is no network {arch!r}: choose one of {', '.join(ARCHS)}")
    known = fields(ARCHS[arch])
    for name in settings:
        if name not in known:
            raise ArchError(f"{arch} has no setting {name!r}: it has {', '.join(known)}")
    return ARCHS[arch](**settings)


def fields(kind: type[Net]) -> dict[str, str]:
    """The settings of a network: name -> type."""
    return {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def describe(net: Net) -> dict[str, Any]:
    """The settings of a network as JSON has them: `build(**describe(net)) == net`."""
    return {"arch": net.arch} | {name: getattr(net, name) for name in fields(type(net))}


def check_size(size: int) -> None:
    """Raises ArchError for images that are too small for the networks, or too large for any memory."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ArchError(
            f"size={size} is too {'small' if size < MIN_SIZE else 'large'}: {MIN_SIZE} to {MAX_SIZE} pixels are needed"
        )
