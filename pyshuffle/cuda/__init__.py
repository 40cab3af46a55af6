"""The kernels for NVIDIA's GPUs, one file an operation, with the names and in the order of ops/."""
