"""File operations of a process, seen by Python's audit hook before each of them: one of them may be the last, or fail.

What Rust and C++ write goes into files that Python has created, so that the operations around it are seen; a limit on
the size of files ends such a write in the middle.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limbeck.core.disk

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime"}
SYNC = "torture.sync"
TORN_AFTER = 20
"""Bytes of a write that still reach the file."""


def changed_path(event: str, args: tuple[Any, ...]) -> str | None:
    """The path that an operation is about to change; None where it only reads."""
    if event in CHANGES or event == SYNC or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
        path = args[0]
        if isinstance(path, str | bytes | os.PathLike):
            return os.path.abspath(os.fsdecode(path))
    return None


class Operations:
    """Counts the operations below `root`, and calls `act` with event and path before the one of number `at`.

    after: call it before all later ones as well.
    """

    def __init__(self, root: Path, at: int = 0, act: Callable[[str, str], object] | None = None, after: bool = False):
        self.root, self.at, self.act, self.after = f"{root.resolve()}{os.sep}", at, act, after
        self.names: list[str] = []
        self.is_acting = False

    def install(self) -> None:
        """Watch this process until its end."""
        limbeck.core.disk.sync = self._sync
        sys.addaudithook(self)

    def _sync(self, handle: int) -> None:
        sys.audit(SYNC, os.readlink(f"/proc/self/fd/{handle}"))

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        path = changed_path(event, args)
        if path is None or self.is_acting or not path.startswith(self.root):
            return
        self.names.append(f"{event} {path.removeprefix(self.root)}")
        number = len(self.names)
        if self.act is not None and (number == self.at or (self.after and number > self.at)):
            self.is_acting = True
            try:
                self.act(event, path)
            finally:
                self.is_acting = False


def count_operations(root: Path, report: Path) -> Callable[[], None]:
    """For `Sandbox.run`: writes the names of all operations to `report` when the process ends."""

    def prepare() -> None:
        operations = Operations(root)
        operations.install()
        leave = os._exit

        def end(status: int) -> None:
            report.write_text("\n".join(operations.names))
            leave(status)

        os._exit = end  # type: ignore[assignment]

    return prepare


def kill_at(root: Path, number: int) -> Callable[[], None]:
    """For `Sandbox.run`: kills the process before its operation of this number."""
    return Operations(root, number, lambda event, path: os.kill(os.getpid(), signal.SIGKILL)).install


def tear_at(root: Path, number: int) -> Callable[[], None]:
    """For `Sandbox.run`: kills the process in the write that follows this operation, else before the next operation."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        numbers: list[int] = []

        def act(event: str, path: str) -> None:
            if numbers:
                os.kill(os.getpid(), signal.SIGKILL)
            numbers.append(number)
            size = os.path.getsize(path) if os.path.isfile(path) else 0
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + TORN_AFTER, hard))

        Operations(root, number, act, after=True).install()

    return prepare


def fail_at(root: Path, number: int, error: int) -> Callable[[], None]:
    """For `Sandbox.run`: from this operation on, the system answers with this error; a full disk still removes."""

    def act(event: str, path: str) -> None:
        if event in ("os.remove", "os.rmdir") and error == errno.ENOSPC:
            return
        raise OSError(error, os.strerror(error), path)

    return Operations(root, number, act, after=True).install


def vanish_at(root: Path, number: int, folder: Path) -> Callable[[], None]:
    """For `Sandbox.run`: the folder is renamed before this operation, as where a disk is unplugged."""

    def act(event: str, path: str) -> None:
        if folder.exists():
            shutil.move(folder, folder.with_name("gone"))

    return Operations(root, number, act).install
