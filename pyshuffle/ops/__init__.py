"""The math, one file an operation: the equation, the NumPy reference with its gradient, the jitted kernels with theirs.

All activations are channels last, (N, H, W, C). A `_reference` function is plain NumPy in the dtype of its input and is the
oracle; its twin without the suffix checks float32 input and calls the jitted kernels. Every `backward` takes `dy`, the gradient
of some scalar by the output, then what its `forward` took, and returns the gradient by each array, in order.
"""
