"""The network by plain NumPy, in the dtype of its input: the oracle of every operation's tests."""

from ..ops import add, batchnorm, conv, depthwise, linear, pool, relu, shuffle
from .arrays import Arrays


class Reference(Arrays):
    """A network over NumPy arrays of any float dtype."""

    functions = {
        "conv": (conv.forward_reference, conv.backward_reference),
        "depthwise": (depthwise.forward_reference, depthwise.backward_reference),
        "batchnorm": (batchnorm.forward_reference, batchnorm.backward_reference),
        "relu": (relu.forward_reference, relu.backward_reference),
        "maxpool": (pool.max_reference, pool.max_backward_reference),
        "avgpool": (pool.average_reference, pool.average_backward_reference),
        "split": (shuffle.split_reference, shuffle.split_backward_reference),
        "concat": (shuffle.concat_reference, shuffle.concat_backward_reference),
        "shuffle": (shuffle.shuffle_reference, shuffle.shuffle_backward_reference),
        "add": (add.forward_reference, add.backward_reference),
        "mean": (pool.mean_reference, pool.mean_backward_reference),
        "linear": (linear.forward_reference, linear.backward_reference),
    }
    statistics = staticmethod(batchnorm.statistics_reference)
