"""Locks between processes: a lock file that is never replaced or removed, and the name of the process that has it.

The system drops a lock when its process ends, however that ends, on another host too; so what a dead process wrote
into the file locks nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from limbeck.core.disk import make_folder, write_errors
from limbeck.core.folders import home_folder
from limbeck.core.text import printable

log = logging.getLogger(__name__)
MATTERS = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR)
"""Errors that the command cannot go on with; others say that there are no locks, or that nothing can be written."""


class Locked(Exception):
    """Another process has the lock; the message names it: its number and its host."""


def try_lock(path: Path) -> FileLock:
    """Lock the file `path`, whose folder exists, and return the lock, to be released.

    A file system without locks, and a folder where nothing can be written, lock nothing. Raises Locked where another
    process has the lock, and WriteError where the disk is full or the folder is gone.
    """
    lock = FileLock(path, thread_local=False)
    try:
        _acquire(lock, path, timeout=0)
    except Timeout:
        raise Locked(_read_holder(path)) from None
    return lock


@contextmanager
def locked(path: Path, wait: Callable[[str], object] | None = None) -> Iterator[None]:
    """Lock the file `path` inside a `with` block, as `try_lock` does.

    wait: called with the name of the process that has the lock, where another one has it, before this one waits for
        it. Without `wait`, Locked is raised.
    """
    try:
        lock = try_lock(path)
    except Locked as error:
        if wait is None:
            raise
        wait(str(error))
        lock = FileLock(path, thread_local=False)
        _acquire(lock, path, timeout=-1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def lock_work(name: str, what: str) -> Iterator[None]:
    """Lock work whose result is stored in limbeck's home, so that of several processes that need it one does it.

    name: that of the lock. what: the work, in words, for the log of a process that waits.
    Nothing is locked where the home cannot be written to.
    """
    lock = home_folder() / "locks" / name
    with ExitStack() as stack:
        try:
            make_folder(lock.parent)
            stack.enter_context(locked(lock, lambda other: log.info("waiting for %s, which %s", other, what)))
        except OSError:
            log.debug("the work %s is not locked", name, exc_info=True)
        yield


def _acquire(lock: FileLock, path: Path, timeout: float) -> None:
    """Acquire a lock where there are locks, and write the name of this process into its file."""
    try:
        with write_errors(path):
            lock.acquire(timeout=timeout)
    except OSError as error:
        if isinstance(error, Timeout) or error.errno in MATTERS:
            raise
    except NotImplementedError:
        pass
    else:
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")


def _read_holder(path: Path) -> str:
    """The process that wrote its name into a lock file, which may not have come to it yet."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    return printable(text, 80) if text.startswith("process ") else "another process"
