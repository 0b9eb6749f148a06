"""Unfinished files: how they are named, whom they belong to, and how those of dead processes are removed.

A file is written into a temporary folder beside it and then renamed. While its process lives, that folder is locked
(`flock`); the system drops the lock when the process ends, however that ends. So what can be locked belongs to nobody,
and whoever writes the same file again, or owns the folder around it, removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so that nothing of another process is ever removed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""The file by which the owner of a folder is known, see `core.locks`."""

ERRORS = ".errors"
"""The folder, inside a store, for what the processes of an engine write to standard error."""

NAME_LENGTH = 40  # characters of a file's own name in its temporary one


@contextmanager
def reserve(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, locked for this process inside a `with` block and removed at its end.

    Rename it, or what was written into it, to `path` inside the block. It is a folder because libraries have temporary
    files of their own beside what they write. Unfinished files for `path` of dead processes are removed first.
    """
    remove_unfinished(path.parent, path.name)
    temporary, handle = _create(path)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            _remove(temporary)
        if handle is not None:
            os.close(handle)


def _create(path: Path) -> tuple[Path, int | None]:
    """A new temporary folder with the permissions of any other, and the handle that keeps it locked."""
    while True:
        temporary = path.with_name(f".{path.name[:NAME_LENGTH]}.{secrets.token_hex(4)}.part")
        try:
            temporary.mkdir()
        except FileExistsError:
            continue
        try:
            handle = None if fcntl is None else os.open(temporary, os.O_RDONLY)
        except FileNotFoundError:  # removed by another process before it was locked
            if not path.parent.is_dir():
                raise
            continue
        if handle is None or not _try_lock(handle) or _is_there(temporary, handle):
            return temporary, handle
        os.close(handle)


def is_unfinished(name: str, target: str | None = None) -> bool:
    """Whether a file name is that of an unfinished file, of any or of `target`.

    >>> is_unfinished(".run.json.0a1b2c3d.part"), is_unfinished(".run.json.0a1b2c3d.part", "store.json")
    (True, False)
    """
    start = ".+" if target is None else re.escape(target[:NAME_LENGTH])
    return re.fullmatch(rf"\.{start}\.[a-z0-9_]{{8}}\.part", name) is not None


def remove_unfinished(folder: Path, target: str | None = None) -> None:
    """Remove the unfinished files of dead processes from a folder: all of them, or those for the file `target`.

    Those that cannot be locked stay, and so does what cannot be removed.
    """
    if fcntl is None:
        return
    with suppress(OSError):
        for name in os.listdir(folder):
            if is_unfinished(name, target):
                _remove_dead(folder / name)


def _remove_dead(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if _try_lock(handle):
                _remove(path)
        finally:
            os.close(handle)


def _try_lock(handle: int) -> bool:
    """Lock an open file or folder; False where another process has it, or where the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Remove a file or a folder; FileNotFoundError where it was renamed."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_unused(folder: Path) -> bool:
    """Whether a folder is empty but for unfinished files, and what a command makes before all else."""
    return all(name in (LOCK, ERRORS) or is_unfinished(name) for name in os.listdir(folder))
