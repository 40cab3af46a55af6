"""Parameters to start training from, as the authors' code draws them.

First convolution N(0, 0.01^2), other convolutions N(0, 1/f^2) with f input channels per group, linear N(0, 0.01^2); batch
normalisation with weight 1, bias 1e-4, running mean 0 and variance 1.
"""

import numpy as np

from .backends.cost import parameter_shapes
from .nets import Net
from .types import Array, Params


def initialise(net: Net, seed: int = 0) -> Params:
    """Fresh float32 parameters of a network, the same for the same seed."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(net)
    first = next(iter(shapes))
    linear = {name.removesuffix("weight") + "bias" for name, shape in shapes.items() if len(shape) == 2}
    return {name: _draw(name, shape, name == first, name in linear, rng) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], first: bool, of_linear: bool, rng: np.random.Generator) -> Array:
    if len(shape) > 1:
        fan = shape[2] if len(shape) == 4 else 1  # a depthwise filter (3, 3, C) sees one channel
        deviation = 0.01 if first or len(shape) == 2 else 1 / fan
        return (deviation * rng.standard_normal(shape)).astype(np.float32)
    bias = 0.0 if of_linear else 1e-4
    value = {"weight": 1.0, "bias": bias, "running_mean": 0.0, "running_var": 1.0}[name.rpartition(".")[2]]
    return np.full(shape, value, np.float32)
