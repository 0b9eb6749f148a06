"""Faults put in on purpose, in memory alone, to see that a campaign finds each of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from filelock import FileLock

from limbeck.core import disk, files, tensors


@contextmanager
def skip_rename() -> Iterator[None]:
    """Files are written in place, without a temporary name."""

    def write_in_place(path: Path, write: Callable[[Path], object]) -> None:
        disk.make_folder(path.parent)
        write(path)

    original = files.write_atomically
    with ExitStack() as stack:
        for module in [module for name, module in sys.modules.items() if name.startswith("limbeck.")]:
            if getattr(module, "write_atomically", None) is original:
                stack.enter_context(patch.object(module, "write_atomically", write_in_place))
        yield


class Anything(str):
    """A text that equals every other."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


@contextmanager
def ignore_checksum() -> Iterator[None]:
    """The checksum of tensors is whatever a file says."""
    digest = tensors.digest
    with patch.object(tensors, "digest", lambda *arguments: Anything(digest(*arguments))):
        yield


@contextmanager
def drop_locks() -> Iterator[None]:
    """Every process gets every lock."""

    def acquire(self: FileLock, *arguments: Any, **options: Any) -> None:
        return None

    with patch.object(FileLock, "acquire", acquire):
        yield
