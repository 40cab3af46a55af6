"""Compiled inference: a network and its parameters become one call. `engine.compile(net, params, shape)(x) -> logits`."""

from .model import Model, compile

__all__ = ["Model", "compile"]
