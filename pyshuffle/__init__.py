"""ShuffleNet V1 and V2 in NumPy and Numba: small enough to read, exact enough to audit.

Names are loaded when they are first used, so that `import pyshuffle` costs nothing and compiles nothing.
"""

__version__ = "0.1.0"
