"""The network by the kernels for NVIDIA's GPUs, in float32: `net(Cuda(on_device(params)), upload(images))`, then `download`."""

from ..cuda import add, batchnorm, conv, depthwise, linear, pool, relu, shuffle
from ..cuda.launch import zeros_like
from .arrays import Arrays


class Cuda(Arrays):
    """A network over arrays on the device, parameters too."""

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
    follow = staticmethod(batchnorm.follow)
    zeros_like = staticmethod(zeros_like)
