"""How glibc returns memory to the system: a setting of the whole process, which only processes of our own make."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD, ARENA_MAX = -3, -1, -8  # malloc.h


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory instead of returning large blocks between steps; do nothing without glibc.

    glibc maps blocks above 32 MB anew each time, and every page is cleared on its first use: a convolution of 3 to 128
    channels at 32 pixels took 40 ms, 11 without (100 images, one thread). A thread's own arena could not keep blocks
    above 64 MB, so there is one for all.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    if not mallopt(MMAP_THRESHOLD, 1 << 30):  # older versions accept no more than this
        mallopt(MMAP_THRESHOLD, 32 << 20)
    mallopt(TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(ARENA_MAX, 1)
