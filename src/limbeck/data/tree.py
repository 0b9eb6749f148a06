"""A data source on disk as a tree: the visible files of a folder, of an archive, or one file alone."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple, TypeVar

from limbeck.core.errors import UserError
from limbeck.core.files import RECORDS
from limbeck.core.text import shorten_path

MAX_FILE = 1 << 30  # bytes of a file that is read whole: one picture, one idx or csv file
MAX_DEPTH = 50  # folders inside each other
T = TypeVar("T")
OWN = "runs and stores of limbeck"
HEAD = 1 << 16  # bytes of a record by which it is known as one of limbeck
HIDDEN = (".", "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
HIDDEN_FILES = ("thumbs.db", "desktop.ini", "icon\r")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to the system or to a tool, and never to a data set."""
    return name.lower().startswith(HIDDEN) or name.lower() in HIDDEN_FILES


def folder_name(path: PurePath) -> str:
    """The name of a folder; "raw", into which torchvision downloads, is called as the folder around it.

    >>> folder_name(PurePath("data/MNIST/raw")), folder_name(PurePath("data/cats"))
    ('MNIST', 'cats')
    """
    return path.parent.name or path.name if path.name.lower() == "raw" else path.name


class File(NamedTuple):
    """One file of a tree.

    where: its place, for messages.
    size:  its bytes.
    open:  opens it for reading; the result is seekable.
    state: numbers that change when the file does.
    path:  its place on disk; None inside an archive.
    """

    where: str
    size: int
    open: Callable[[], BinaryIO]
    state: tuple[int, ...] = ()
    path: Path | None = None

    def read(self, limit: int = MAX_FILE) -> bytes:
        """The whole content. Raises UserError for a file of more than `limit` bytes."""
        if self.size > limit:
            raise UserError(f"{self.where}: {self.size:,} bytes, where at most {limit:,} are read; split or shrink it")
        with self.open() as stream:
            return stream.read(self.size)

    def head(self, count: int) -> bytes:
        """The first `count` bytes."""
        with self.open() as stream:
            return stream.read(count)


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of a tree, without what is hidden.

    name:    of the folder by `folder_name`, or of the archive or the file without its suffix.
    where:   its place, for messages.
    folders: by name, in order. files: likewise.
    """

    name: str
    where: str
    folders: dict[str, Folder] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)

    def walk(self) -> Iterator[tuple[str, File]]:
        """(path below this folder, file) of all files at every depth, in order of their paths, folder by folder."""
        yield from self.files.items()
        for name, folder in self.folders.items():
            for path, file in folder.walk():
                yield f"{name}/{path}", file

    def all_folders(self) -> Iterator[tuple[str, Folder]]:
        """(path below this folder, folder) of all folders at every depth, the nearer ones of a branch first."""
        for name, folder in self.folders.items():
            yield name, folder
            for path, inner in folder.all_folders():
                yield f"{name}/{path}", inner

    def find(self, path: str) -> File | None:
        """The file at this path below the folder, with / between its parts; None where there is none."""
        folder: Folder | None = self
        path = compose(path.replace("\\", "/"))
        *parents, name = [part for part in path.split("/") if part not in ("", ".")] or [""]
        for parent in parents:
            folder = folder.folders.get(parent) if folder else None
        return folder.files.get(name) if folder else None

    def digest(self) -> str:
        """A digest of the names of all files and folders, and of the states of the files."""
        digest = hashlib.sha256()
        for path, _ in self.all_folders():
            digest.update(repr(path).encode("utf-8", "surrogateescape"))
        for path, file in self.walk():
            digest.update(repr((path, file.size, file.state)).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def relative_paths(folder: Folder, files: Iterable[File]) -> list[str]:
    """The paths of files below a folder."""
    return [file.where.removeprefix(f"{folder.where}/") for file in files]


class Tree(NamedTuple):
    """A source on disk: its folder, and notes on what of it was left out."""

    root: Folder
    notes: tuple[str, ...] = ()


def compose(name: str) -> str:
    """The name with composed characters (Unicode's NFC): macOS stores an umlaut as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def sort_entries(folder: Folder) -> Folder:
    """The folder with its entries in order of their names, by `compose`, at every depth."""
    folders = {name: sort_entries(inner) for name, inner in _compose_names(folder.folders).items()}
    return Folder(compose(folder.name), folder.where, folders, _compose_names(folder.files))


def _compose_names(entries: dict[str, T]) -> dict[str, T]:
    """The entries in order of their composed names; those whose names would become one keep theirs."""
    count = Counter(map(compose, entries))
    composed = {compose(name) if count[compose(name)] == 1 else name: entry for name, entry in entries.items()}
    return {name: composed[name] for name in sorted(composed)}


def file_on_disk(path: Path, status: os.stat_result | None = None) -> File:
    """A file on disk. Its change time counts as well, since tools that copy files may set the other time back."""
    status = status or path.stat()
    state = (status.st_mtime_ns, status.st_ctime_ns)
    return File(str(path), status.st_size, partial(_open_file, path), state, path)


def _open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def read_folder_tree(path: Path, follow_links: bool = False) -> Tree:
    """The tree of a folder on disk, hidden entries left out.

    A link that leads out of `path` is followed with `follow_links` alone: whoever made the folder may have linked to
    any file of the user. A link to a folder inside `path` is followed where that folder is not reached otherwise, so
    that every folder is visited once.
    Broken links, links to folders that are visited anyway, runs and stores of limbeck, and what is neither file nor
    folder are left out and noted.
    Raises UserError for a link to something outside `path` without `follow_links`, and for a folder that holds nothing
    but runs and stores of limbeck; and OSError as the disk does.
    """
    visitor = _Visitor(path, follow_links)
    root = visitor.visit(path)
    while visitor.links:  # last, so that a folder is read at its own place
        visitor.follow(*visitor.links.pop(0))
    if visitor.own and not (root.folders or root.files):
        shown = ", ".join(sorted(visitor.own)[:2]) + (" and others" if len(visitor.own) > 2 else "")
        raise UserError(f"{path}: a folder of runs of limbeck, {shown}; name one of them, or the data set behind it")
    notes = tuple(f"left out: {kind} ({count})" for kind, count in visitor.left_out.items())
    return Tree(sort_entries(root), notes)


class _Visitor:
    def __init__(self, path: Path, follow_links: bool) -> None:
        self.root, self.follow_links = path, follow_links
        self.target = path.resolve()
        self.visited: set[tuple[int, int]] = set()
        self.links: list[tuple[Folder, Path]] = []
        self.left_out: Counter[str] = Counter()
        self.own: set[str] = set()  # runs and stores of limbeck

    def visit(self, path: Path) -> Folder:
        if len(path.parts) > len(self.root.parts) + MAX_DEPTH:
            raise UserError(f"{self.root}: folders are nested over {MAX_DEPTH} deep; name one nearer to the images")
        status = path.stat()
        self.visited.add((status.st_dev, status.st_ino))
        folder = Folder(folder_name(path.resolve()), str(path))
        with os.scandir(path) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    self._add(folder, entry)
        return folder

    def _add(self, folder: Folder, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        try:
            status = entry.stat()
        except FileNotFoundError:
            self.left_out["broken links"] += 1
            return
        except OSError as error:
            if not entry.is_symlink():
                raise
            self.left_out[f"links that cannot be followed ({error.strerror})"] += 1
            return
        if stat.S_ISREG(status.st_mode):
            if entry.is_symlink():
                self._require_inside(path, "file")
            folder.files[entry.name] = file_on_disk(path, status)
        elif not stat.S_ISDIR(status.st_mode):
            self.left_out["entries that are neither files nor folders"] += 1
        elif entry.is_symlink():
            self.links.append((folder, path))
        else:
            self._add_folder(folder, entry.name, self.visit(path))

    def _add_folder(self, folder: Folder, name: str, inner: Folder) -> None:
        """Add a folder to its parent, unless it is a run or a store of limbeck, or held nothing else."""
        if any(file in inner.files and b'"limbeck-' in inner.files[file].head(HEAD) for file in RECORDS):
            self.left_out[OWN] += 1
            self.own.add(inner.where)
        elif inner.folders or inner.files or not any(PurePath(path).is_relative_to(inner.where) for path in self.own):
            folder.folders[name] = inner

    def follow(self, folder: Folder, link: Path) -> None:
        target = self._require_inside(link, "folder")
        status = target.stat()
        if (status.st_dev, status.st_ino) in self.visited or self.target.is_relative_to(target):
            self.left_out["links to folders that are read at another place"] += 1
        else:
            folder.folders[link.name] = self.visit(link)

    def _require_inside(self, link: Path, kind: str) -> Path:
        """What a link leads to. Raises UserError where that lies outside and links are not to be followed there."""
        target = link.resolve()
        if not (self.follow_links or target.is_relative_to(self.target)):
            raise UserError(
                f"{shorten_path(link)}: a link to a {kind} outside {shorten_path(self.root)} ({shorten_path(target)}); "
                "pass --follow-links (follow_links=True in Python) where it belongs to the data, else remove it"
            )
        return target
