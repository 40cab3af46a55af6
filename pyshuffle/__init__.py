"""ShuffleNet V1 and V2 in NumPy and Numba: small enough to read, exact enough to audit.

Names and modules are loaded when they are first used: `import pyshuffle` costs next to nothing and compiles nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.14.0"

_HOMES = {
    "ShuffleNetV1": "nets",
    "ShuffleNetV2": "nets",
    "MobileNetV1": "nets",
    "MobileNetV2": "nets",
    "Reference": "backends.reference",
    "Numba": "backends.numba",
    "Tape": "backends.tape",
    "Cost": "backends.cost",
    "initialise": "init",
    "Checkpoint": "weights",
    "Trainer": "sgd",
    "devices": "device",
}
_MODULES = (
    "audit", "backends", "classify", "data", "engine", "errors", "gradcheck", "image", "init", "nets", "ops", "sgd", "train",
    "weights",
)  # fmt: skip

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
