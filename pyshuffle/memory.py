"""Memory that arrays free stays with the process for the next arrays, except those above 64 MB in threads other than the first.

Training makes and drops the same arrays in every step; where they are large, finding and clearing pages for them anew took a
twentieth of its time.
"""

import ctypes
from contextlib import suppress

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h


def keep() -> None:
    """Ask the C library for it, for this process and for good. Only glibc can; elsewhere nothing happens."""
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)  # no mappings that are made for one array and undone with it
        mallopt(TRIM_THRESHOLD, -1)  # never
