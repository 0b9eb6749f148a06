"""Where things are kept for reuse, and how large they are; without torch."""

from __future__ import annotations

import os
from pathlib import Path

from limbeck.errors import UserError


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def home() -> Path:
    """Where experts, baselines and decoded images are kept for reuse: $LIMBECK_HOME, else the user's cache folder."""
    given = os.environ.get("LIMBECK_HOME")
    return Path(given) if given else _user_cache()


def kernels_folder() -> Path:
    """Where compiled kernels are kept: in the user's own cache, whatever $LIMBECK_HOME is, which a group may share."""
    return _user_cache() / "kernels"


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "limbeck"
    except RuntimeError:
        raise UserError(
            "the user has no home folder; set HOME, or XDG_CACHE_HOME, to a folder for the cache."
        ) from None
