"""The math, one file an operation: the equation, the NumPy reference with its gradient, the jitted kernels with theirs.

Read as a course, in this order: `linear`, then `windows` and `conv` (what is computed, and why a gradient is the same sum read from
another side), `depthwise` and `shuffle` (what makes these networks cheap, and what mends the damage), `batchnorm` (the one gradient
that takes some algebra), `relu`, `add`, `pool`, `conv_bn` (three of them as one, by way of `moments`, `reading` and `sums`), then
`softmax` and `loss`, where the gradient of a whole network begins, and `sgd`, where it ends. Of each read the reference first;
`product`, `panels` and all that takes a `Source` is how the kernels come to be fast, and can wait. Costs are as both papers count
(V1's table 1 leaves out the linear layer): multiply-adds of convolutions and of the linear layer; and values read and written, which
decide the speed of all the rest.

All activations are channels last, (N, H, W, C). In the equations n is an image, (h, l) a pixel of x and (i, j) one of y, (u, v) a
place in a window, c a channel that is read and o one that is made; P counts the pixels of all images. [condition] is 1 where it
holds, else 0; <a, b> is the sum of all products a b.

A `_reference` function is plain NumPy in the dtype of its input and is the oracle. Its twin computes the same by kernels and takes
float32 alone; where there is next to nothing to compute, it calls the reference, that of the loss in float64. Every `backward` takes
`dy` (of a split `dleft, dright`), the gradient of some scalar with respect to the output, then what its `forward` took, and its
output `z` where recomputing that would cost; it returns the same scalar's gradient with respect to each array that is no statistic,
in order: `dx` is that of `x`. The loss is the scalar, and has `run`, which gives its value and its gradient at once.
"""
