"""What a full, read-only or vanished disk says, as one sentence; and files that outlast a power failure."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from limbeck.core.errors import UserError, WriteError
from limbeck.core.text import shorten_path

REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "make it writable again",
    errno.EACCES: "allow writing there",
    errno.EPERM: "allow writing there",
    errno.ENOENT: "bring its folder back",
    errno.ENOTDIR: "bring its folder back",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
"""What to do first, by the number of an error of the system."""
OF_THE_PATH = {
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}
"""Numbers of errors of the system about a path, for which the user can choose another."""
OF_TORCH_SAVE = ("PytorchStreamWriter", "inline_container.cc", "iostream error")
"""Words of its errors where it cannot write; which of them come depends on the byte at which the disk is full."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise WriteError where the system cannot write `path`, inside a `with` block; other errors stay as they are."""
    try:
        yield
    except UserError:  # of a damaged file, which may quote torch's or safetensors' error of reading it
        raise
    except Exception as error:
        number = _error_number(error, path)
        if number is None:
            raise
        reason, remedy = os.strerror(number).lower(), REMEDIES.get(number, "look after the disk")
        if number == errno.ENOSPC and _lacks_inodes(path):
            reason, remedy = f"{reason}, since there are as many files as it can hold", "remove some files there"
        raise WriteError(
            number,
            reason,
            f"{shorten_path(path)} cannot be written ({reason}); {remedy}, and repeat the command: what was saved "
            "before is intact, and it goes on from there.",
        ) from error


def _error_number(error: Exception, path: Path) -> int | None:
    """The number of the system's error behind an exception; None for one that is not about the disk."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os error (\d+)", str(error))  # of safetensors, which is written in Rust
    if match:
        return int(match[1])
    if any(words in str(error) for words in OF_TORCH_SAVE):  # which does not say why
        return errno.ENOSPC if _is_full(path) else errno.EIO
    return None


def _is_full(path: Path) -> bool:
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        return os.statvfs(path.parent).f_bavail == 0
    return False


def _lacks_inodes(path: Path) -> bool:
    """Whether the file system counts files, as not all do, and has no room for another."""
    with suppress(OSError, AttributeError):
        status = os.statvfs(path.parent)
        return status.f_files > 0 and status.f_favail == 0
    return False


def flush(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk; this takes about 4 ms.

    Where the system cannot say so, as on Windows for folders, nothing happens.
    """
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            sync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(handle)


def sync(handle: int) -> None:
    """`os.fsync`, by a name that tests can replace."""
    os.fsync(handle)


def make_folder(path: Path) -> None:
    """Make a folder, and its parents, where it is missing, so that it outlasts a power failure.

    Raises WriteError where the system cannot.
    """
    with write_errors(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            flush(folder.parent)
