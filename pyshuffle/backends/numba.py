"""The network by the jitted kernels, in float32."""

from ..ops import add, batchnorm, conv, conv_bn, depthwise, linear, pool, relu, shuffle
from .arrays import Arrays


class Numba(Arrays):
    """A network over float32 arrays."""

    functions = {
        "conv": (conv.forward, conv.backward),
        "depthwise": (depthwise.forward, depthwise.backward),
        "batchnorm": (batchnorm.forward, batchnorm.backward),
        "conv_bn": conv_bn.conv_bn,
        "depthwise_bn": conv_bn.depthwise_bn,
        "relu": (relu.forward, relu.backward),
        "maxpool": (pool.maximum, pool.max_backward),
        "avgpool": (pool.average, pool.average_backward),
        "split": (shuffle.split, shuffle.split_backward),
        "concat": (shuffle.concat, shuffle.concat_backward),
        "shuffle": (shuffle.shuffle, shuffle.shuffle_backward),
        "concat_shuffle": (shuffle.concat_shuffle, shuffle.concat_shuffle_backward),
        "add": (add.forward, add.backward),
        "add_relu": (add.relu_forward, add.relu_backward),
        "mean": (pool.mean, pool.mean_backward),
        "linear": (linear.forward, linear.backward),
    }
    statistics = staticmethod(batchnorm.statistics)
