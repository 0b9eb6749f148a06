"""The memory of this machine, which sizes that a file claims are compared with before anything is allocated."""

from __future__ import annotations

import os

from limbeck.core.errors import UserError


def machine_memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def refuse_beyond_memory(needed: int, content: str, advice: str) -> None:
    """Raise UserError where `content`, which takes `needed` bytes, does not fit into the memory of this machine."""
    memory = machine_memory()
    if memory is not None and needed > memory:
        raise UserError(
            f"{content} need {needed / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB of memory; {advice}"
        )
