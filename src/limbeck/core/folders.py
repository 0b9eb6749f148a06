"""Where things are kept for reuse, and how large they are; without torch."""

from __future__ import annotations

import os
from pathlib import Path

from limbeck.core.errors import UserError


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def home_folder() -> Path:
    """Where experts, baselines and decoded images are kept for reuse: $LIMBECK_HOME, else the user's cache folder."""
    folder = os.environ.get("LIMBECK_HOME")
    return Path(folder) if folder else user_cache_folder()


def kernels_folder() -> Path:
    """Where compiled kernels are kept: in the user's own cache, since a group may share $LIMBECK_HOME."""
    return user_cache_folder() / "kernels"


def user_cache_folder() -> Path:
    """limbeck's folder in the user's cache: below $XDG_CACHE_HOME, else ~/.cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"
    except RuntimeError:
        raise UserError(
            "the user has no home folder; set HOME, or XDG_CACHE_HOME, to a folder for the cache."
        ) from None
