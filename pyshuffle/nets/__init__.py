"""The networks, each one function over a set of operations. A new one is a file here and a line in ARCHS."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..errors import ArchError
from .net import Net, Published
from .shufflenet_v1 import ShuffleNetV1
from .shufflenet_v2 import ShuffleNetV2

__all__ = ["ARCHS", "Net", "Published", "ShuffleNetV1", "ShuffleNetV2", "add_arguments", "build", "describe", "from_arguments"]

ARCHS: dict[str, type[Net]] = {kind.arch: kind for kind in (ShuffleNetV1, ShuffleNetV2)}


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for every setting of every network, and `--arch`."""
    parser.add_argument("--arch", default="v2", help=f"the network: {', '.join(ARCHS)} (default: %(default)s)")
    types: dict[str, Any] = {"float": float, "int": int, "str": str}
    for name, kind in _all_fields().items():
        option, default = f"--{name.replace('_', '-')}", argparse.SUPPRESS
        users = f"a setting of {', '.join(arch for arch, net in ARCHS.items() if name in fields(net))}"
        if kind.startswith("bool"):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default, help=users)
        else:
            parser.add_argument(option, type=types[kind], default=default, help=users)


def from_arguments(args: argparse.Namespace, **settings: Any) -> Net:
    """The network that the options of `add_arguments` name, but for `settings`. Raises ArchError."""
    given = {name: getattr(args, name) for name in _all_fields() if hasattr(args, name)}
    return build(args.arch, **{**given, **settings})


def _all_fields() -> dict[str, str]:
    return {name: kind for net in ARCHS.values() for name, kind in fields(net).items()}
