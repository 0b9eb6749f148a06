"""The form of a reader of files."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from limbeck.data.images import RawData, ReadOptions
from limbeck.data.tree import Folder


class Reader(NamedTuple):
    """One layout of files.

    kind:       its name, for messages.
    recognises: folder -> whether it lies there. It reads names, and the beginnings of files at most.
    read:       (folder, options) -> its images. Raises UserError.
    decodes:    whether it decodes pictures: it then applies all options itself, and the cache stores the pixels.
                Otherwise it returns pixels as they are in the files, and the caller applies the options.
    """

    kind: str
    recognises: Callable[[Folder], bool]
    read: Callable[[Folder, ReadOptions], RawData]
    decodes: bool = False
