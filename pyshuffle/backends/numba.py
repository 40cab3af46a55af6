"""The network by the jitted kernels, in float32."""

from ..ops import add, batchnorm, conv, depthwise, linear, pool, relu, shuffle
from .arrays import Arrays


class Numba(Arrays):
    """A network over float32 arrays."""

    functions = {
        "conv": (conv.forward, conv.backward),
        "depthwise": (depthwise.forward, depthwise.backward),
        "batchnorm": (batchnorm.forward, batchnorm.backward),
        "relu": (relu.forward, relu.backward),
        "maxpool": (pool.maximum, pool.max_backward),
        "avgpool": (pool.average, pool.average_backward),
        "split": (shuffle.split, shuffle.split_backward),
        "concat": (shuffle.concat, shuffle.concat_backward),
        "shuffle": (shuffle.shuffle, shuffle.shuffle_backward),
        "add": (add.forward, add.backward),
        "mean": (pool.mean, pool.mean_backward),
        "linear": (linear.forward, linear.backward),
    }
    statistics = staticmethod(batchnorm.statistics)
