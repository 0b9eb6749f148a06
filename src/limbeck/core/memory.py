"""The memory of this machine, and the most that this process has had; this module loads no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def total_memory() -> int | None:
    """The bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def peak_memory() -> int | None:
    """The most bytes of memory that this process has had; None where the system does not say.

    On Linux it is VmHWM: what `getrusage` says there counts the memory of the parent, too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line.split() for line in status.read_text(encoding="utf-8").splitlines()]
        sizes = [int(words[1]) for words in lines if words[:1] == ["VmHWM:"]]
        return 1024 * sizes[0] if sizes else None
    if sys.platform == "win32":  # which has no such counter in the standard library
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
