"""The kernels for NVIDIA's GPUs, one file an operation, under the names of ops/; what they stand on is in launch.py.

But for the ReLU of a batch normalisation nothing here is one pass over several operations, as conv_bn there: training goes operation
by operation, and a compiled network (../engine/cuda.py) has normalisation, ReLU and shortcuts in its convolutions. The product is in
conv.py, softmax in loss.py.

They have never been run on a GPU by their authors: they are tested under a simulator and compiled (check.py), and report.py is for
whoever has one. What a GPU could do at best, for V2 1.0x at 224 x 224 on an H100 (SXM: 67 TFLOP/s in float32, 3.35 TB/s), if every
step of the compiled network reads its maps and weights and writes its result once, and takes as long as the slower of arithmetic
and memory:

    images   launches      read   written   weights   GFLOP   at best   of which the memory alone
         1         59   9.55 MB   8.11 MB   9.09 MB   0.292   8.38 us   7.99 us
        64         59    612 MB    519 MB   9.09 MB    18.7    449 us    340 us

At one image it is launching that takes the time: numba spends about 0.08 ms of the processor on each (measured with a driver that
does nothing), 5 ms in all, and the 7 x 7 maps of the last stage are 2 tiles of pixels, 16 to 64 blocks for 132 multiprocessors. At 64
images memory limits half of the steps and arithmetic the others; as the tile of conv.py reads shared memory once for every two
multiply-adds, half of the device's arithmetic is the most that it can reach.
"""
