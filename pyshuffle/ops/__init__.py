"""The math, one file an operation: the equation, the NumPy reference with its gradient, the jitted kernels with theirs.

Read as a course, in this order: `linear` and `conv` (what is computed, and why a gradient is the same sum read from another side),
`depthwise` and `shuffle` (what makes these networks cheap, and what mends the damage), `batchnorm` (the one gradient that takes
some algebra), `relu`, `add`, `pool`, `conv_bn` (three of them as one, by way of `reading` and `sums`), then `softmax` and `loss`,
where the gradient of a whole network begins, and `sgd`, where it ends. Costs are as both papers count: multiply-adds of
convolutions and of the linear layer; and values read and written, which decide the speed of all the rest.

All activations are channels last, (N, H, W, C). A `_reference` function is plain NumPy in the dtype of its input and is the
oracle; its twin without the suffix checks float32 input and calls the jitted kernels. Every `backward` but that of the loss takes
`dy`, the gradient of some scalar with respect to the output, then what its `forward` took (and `z`, which that made, where it would
have to be made anew), and returns the gradient with respect to each array that is not a statistic, in order.
"""
