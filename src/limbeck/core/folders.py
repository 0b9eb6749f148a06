"""The folders in which experts, baselines, decoded images and kernels wait for reuse; this module loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

from limbeck.core.errors import UserError


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder.

    Raises FileNotFoundError where there is neither.
    """
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def home_folder() -> Path:
    """The folder of experts, baselines and decoded images: $LIMBECK_HOME, else limbeck's folder in the user's cache.

    Raises UserError as `user_cache_folder` does.
    """
    folder = os.environ.get("LIMBECK_HOME")
    return Path(folder) if folder else user_cache_folder()


def kernels_folder() -> Path:
    """The folder of compiled kernels. It is always the user's own, since a group may share $LIMBECK_HOME.

    Raises UserError as `user_cache_folder` does.
    """
    return user_cache_folder() / "kernels"


def user_cache_folder() -> Path:
    """limbeck's folder in the user's cache: $XDG_CACHE_HOME/limbeck, else the system's own place for it.

    That is ~/.cache/limbeck on Linux, ~/Library/Caches/limbeck on macOS and AppData\\Local\\limbeck\\Cache on Windows.
    Raises UserError where the user has no home folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache:
        return Path(cache) / "limbeck"
    from platformdirs import user_cache_path  # takes 40 ms to import, and no --help needs it

    try:
        folder = user_cache_path("limbeck", appauthor=False)
        if folder.is_absolute():  # without a home folder, older versions of platformdirs leave ~ as it is
            return folder
    except RuntimeError:  # and newer ones raise
        pass
    raise UserError("the user has no home folder; set HOME, or XDG_CACHE_HOME, to a folder for the cache.")
