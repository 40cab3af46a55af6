"""The memory of a process."""

import ctypes
from contextlib import suppress
from pathlib import Path

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h


def keep() -> None:
    """Have memory that arrays free stay for the next arrays, except those above 64 MB in threads other than the first.

    Training makes and drops the same arrays in every step; where they are large, finding and clearing pages for them anew took a
    twentieth of its time. For this process and for good. Only glibc can; elsewhere nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)  # no mappings that are made for one array and undone with it
        mallopt(TRIM_THRESHOLD, -1)  # never


def peak(process: int | str = "self") -> int:
    """The most bytes that it has held since its program began; 0 where that cannot be known."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
