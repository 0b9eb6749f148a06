"""Archives as trees: the files of a .zip or .tar are read in place, and nothing is unpacked into a folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from limbeck.core.errors import UserError
from limbeck.core.folders import home_folder
from limbeck.data.tree import File, Folder, Tree, file_on_disk, is_hidden, sort_entries

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")
MAX_FILES = 5_000_000
MAX_BYTES = 1 << 40  # of all files of an archive together
MAX_RATIO = 1100  # unpacked to packed bytes; DEFLATE reaches 1032
PACKERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
MAX_TAR_RATIO, MIN_LIMIT = 100, 1 << 30  # a compressed .tar may unpack to 100 times its bytes, and always to 1 GiB
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, ValueError)

Entry = tuple[str, int, Callable[[], BinaryIO]]
"""Path inside the archive, bytes, and a function that opens it."""


def archive_suffix(path: Path) -> str | None:
    """The suffix of an archive; None for any other file."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def read_archive_tree(path: Path) -> Tree:
    """The tree of a .zip or .tar. A compressed .tar is unpacked into a nameless temporary file in limbeck's cache.

    Links are left out and noted. Raises UserError for an archive that is damaged or encrypted, for one with paths that
    lead out of it, and for one that claims more than `MAX_FILES` files or `MAX_BYTES` bytes.
    """
    suffix = archive_suffix(path) or ""
    root = Folder(path.resolve().name[: -len(suffix)], str(path))
    state = file_on_disk(path).state
    left_out: Counter[str] = Counter()
    total = 0
    try:
        entries = _zip_entries(path) if suffix == ".zip" else _tar_entries(path, left_out)
        for count, (name, size, open_entry) in enumerate(entries, 1):
            total += size
            if count > MAX_FILES or total > MAX_BYTES:
                raise UserError(f"{path}: holds over {count:,} files or {total:,} bytes; unpack it yourself")
            _add(root, name, File(f"{path}/{name}", size, partial(_guard, path, open_entry), state))
    except UserError:
        raise
    except DAMAGE as error:
        raise _damage(path, error) from error
    return Tree(sort_entries(root), tuple(f"{number} {kind} were left out" for kind, number in left_out.items()))


def _damage(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(f"{path}: not an archive that opens ({reason}); fetch it again")


def _add(root: Folder, path: str, file: File) -> None:
    *parents, name = path.replace("\\", "/").split("/")
    parents = [part for part in parents if part != "."]
    if path.startswith("/") or ".." in parents or any(":" in part for part in parents[:1]):
        raise UserError(f"{root.where}: the path {path!r} leads out of the archive; it is refused")
    if any(map(is_hidden, (*parents, name))):
        return
    folder = root
    for parent in parents:
        folder = folder.folders.setdefault(parent, Folder(parent, f"{folder.where}/{parent}"))
    if name:
        folder.files[name] = file


def _guard(path: Path, open_entry: Callable[[], BinaryIO]) -> BinaryIO:
    try:
        return open_entry()
    except DAMAGE as error:
        raise _damage(path, error) from error


def _zip_entries(path: Path) -> Iterator[Entry]:
    archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise UserError(f"{path}: {info.filename} is encrypted; unpack it, and name the folder")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise UserError(f"{path}: {info.filename} claims {info.file_size:,} bytes in {info.compress_size}: a bomb")
        yield info.filename, info.file_size, partial(_open_zip_entry, archive, info)


def _open_zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """The content in memory: going back in a compressed file would unpack it again."""
    with archive.open(info) as stream:
        return BytesIO(stream.read(info.file_size))


def _tar_entries(path: Path, left_out: Counter[str]) -> Iterator[Entry]:
    stream = _open_tar(path)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                left_out["links and special files of the archive"] += 1
                continue
            yield member.name, member.size, partial(_read_part, stream, member.offset_data, member.size)


def _read_part(stream: BinaryIO, offset: int, size: int) -> BinaryIO:
    return BytesIO(os.pread(stream.fileno(), size, offset))  # several threads may read at the same time


def _open_tar(path: Path) -> BinaryIO:
    """A .tar as a file on disk, which is unpacked where it is compressed."""
    with path.open("rb") as stream:
        start = stream.read(6)
    unpack = next((opener for magic, opener in PACKERS.items() if start.startswith(magic)), None)
    if unpack is None:
        return path.open("rb")
    limit = max(MIN_LIMIT, MAX_TAR_RATIO * path.stat().st_size)
    folder = home_folder()
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = cast(BinaryIO, TemporaryFile(dir=folder))  # noqa: SIM115 (the tree reads from it)
    with unpack(path, "rb") as stream:
        while part := stream.read(1 << 20):
            unpacked.write(part)
            if unpacked.tell() > limit:
                raise UserError(f"{path}: unpacks to over {limit:,} bytes; unpack it yourself, and name the folder")
    unpacked.seek(0)
    return unpacked
