"""A user's own reader by name: sources of the form READER=PATH, as in `my_file:READER=path/to/data`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from limbeck.core.errors import UserError
from limbeck.core.text import quote, shorten
from limbeck.core.user_imports import entry_points, find_object
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import Tree


class OwnSource(NamedTuple):
    """A source that names its reader: MODULE:NAME, or an entry point of the group `limbeck.readers`."""

    reader: str
    path: Path

    @property
    def absolute(self) -> str:
        """The same source as it is found again from another folder."""
        return f"{self.reader}={self.path.resolve()}"

    def read(self, tree: Tree, options: ReadOptions) -> RawData:
        """The images of the tree. Raises UserError where the reader fails or does not recognise it."""
        reader = find_reader(self.reader)
        try:
            if not reader.recognises(tree.root):
                raise UserError(f"{self.path}: the reader {quote(self.reader)} does not recognise it as {reader.kind}")
            raw = reader.read(tree.root, options)
        except UserError:
            raise
        except Exception as error:  # of the user's own code, anything
            reason = shorten(error, 120)
            raise UserError(
                f"{self.path}: the reader {quote(self.reader)} failed: {type(error).__name__}: {reason}"
            ) from error
        if not isinstance(raw, RawData):
            raise UserError(
                f"the reader {quote(self.reader)} returned a {type(raw).__name__}; it has to return a RawData"
            )
        return raw._replace(notes=(*tree.notes, *raw.notes), layout=reader.kind)


def split_source(source: object) -> OwnSource | None:
    """The reader and the path of a source READER=PATH; None for any other, and for a path that exists.

    >>> split_source("my_file:READER=photos.bin")
    OwnSource(reader='my_file:READER', path=PosixPath('photos.bin'))
    >>> split_source("photos.bin")
    """
    if not isinstance(source, str) or "=" not in source or Path(source).exists():
        return None
    name, _, path = source.partition("=")
    return OwnSource(name, Path(path)) if path and (":" in name or name in entry_points("reader")) else None


def find_reader(name: str) -> Reader:
    """The user's reader of this name. Raises UserError for what cannot be imported, and for what is no `Reader`."""
    reader = find_object(name, "reader", {})
    if not isinstance(reader, Reader):
        raise UserError(
            f"the reader {quote(name)} is a {type(reader).__name__}; it has to be a limbeck.data.readers.reader.Reader."
        )
    return reader
