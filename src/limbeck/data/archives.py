"""Archives as trees: the files of a .zip or .tar are read in place, and nothing is unpacked into a folder."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast
from weakref import finalize

from limbeck.core.errors import UserError
from limbeck.core.folders import home_folder
from limbeck.core.text import quote, shorten
from limbeck.data.memory import refuse_beyond_memory
from limbeck.data.tree import MAX_DEPTH, File, Folder, Tree, file_on_disk, is_hidden, sort_entries

SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar", ".zip")
MAX_FILES = 5_000_000
MAX_BYTES = 1 << 40  # of all files of an archive together
MAX_RATIO = 1100  # unpacked to packed bytes; DEFLATE reaches 1032
PACKERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
MAX_TAR_RATIO, MIN_LIMIT = 100, 1 << 30  # a compressed .tar may unpack to 100 times its bytes, and always to 1 GiB
LINKS = "links and special files of the archive"
BLOCK = bytes(512)  # of zeros: it ends a .tar
OUTSIDE = re.compile(r"/|[A-Za-z]:(/|$)|(.*/)?\.\.(/|$)", re.DOTALL)  # absolute, on a drive, or above
DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, struct.error,
    NotImplementedError, ValueError, OverflowError,
)  # fmt: skip

Entry = tuple[str, int, Callable[[], BinaryIO]]
"""Path inside the archive, bytes, and a function that opens it."""


def archive_suffix(path: PurePath) -> str | None:
    """The suffix of an archive; None for any other file."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def read_archive_tree(path: Path) -> Tree:
    """The tree of a .zip or .tar. A compressed .tar is unpacked into a nameless temporary file in limbeck's cache.

    Its content says which of them it is. Links are left out and noted, and of entries with one path the last counts.
    Raises UserError for an archive that is damaged or encrypted, for one with paths that lead out of it, and for one
    that claims more than `MAX_FILES` files or `MAX_BYTES` bytes.
    """
    root = Folder(path.resolve().name[: -len(archive_suffix(path) or "")], str(path))
    state = file_on_disk(path).state
    left_out: Counter[str] = Counter()
    total = 0
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(2) == b"PK"
        entries = (_zip_entries if is_zip else _tar_entries)(path, left_out)
        for count, (name, size, open_entry) in enumerate(entries, 1):
            total += size
            if count > MAX_FILES or total > MAX_BYTES:
                raise UserError(f"{path}: holds over {count:,} files or {total:,} bytes; unpack it yourself")
            name = name.replace("\\", "/")
            file = File(_printable(f"{path}/{name}"), size, partial(_guard, path, open_entry), state)
            left_out["entries of the archive with the path of a later one"] += _add(root, name, file)
    except UserError:
        raise
    except DAMAGE as error:
        raise _damage(path, error) from error
    return Tree(
        sort_entries(root), tuple(f"{number} {kind} were left out" for kind, number in left_out.items() if number)
    )


def _damage(path: Path, error: Exception) -> UserError:
    reason = shorten(error)
    return UserError(f"{path}: not an archive that opens ({_printable(reason)}); fetch it again")


def _printable(text: str) -> str:
    """The text on one line and in characters that can be printed."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _add(root: Folder, path: str, file: File) -> bool:
    """Add a file at this path, with / between its parts, to a tree; returns whether it replaces another one."""
    if OUTSIDE.match(path):
        shown = _printable(path if len(path) < 100 else f"{path[:100]}...")
        raise UserError(
            f"{root.where}: the path {quote(shown)} leads out of the archive; pack it anew, without such paths"
        )
    *parents, name = path.split("/")
    parents = [part for part in parents if part not in ("", ".")]
    if not name or any(map(is_hidden, (*parents, name))):
        return False
    if len(parents) > MAX_DEPTH:
        raise UserError(f"{root.where}: folders are nested over {MAX_DEPTH} deep; unpack what you need")
    folder = root
    for parent in parents:
        folder = folder.folders.setdefault(parent, Folder(parent, f"{folder.where}/{_printable(parent)}"))
    is_double = name in folder.files
    folder.files[name] = file
    return is_double


def _guard(path: Path, open_entry: Callable[[], BinaryIO]) -> BinaryIO:
    try:
        return open_entry()
    except DAMAGE as error:
        raise _damage(path, error) from error


def check_zip_entry(info: zipfile.ZipInfo, where: str, size: int) -> None:
    """Raise UserError for an entry of a zip of `size` bytes that is encrypted, or whose claims cannot be true."""
    shown = _printable(info.filename[-100:])
    if info.flag_bits & 1:
        raise UserError(f"{where}: {shown} is encrypted; unpack it, and name the folder")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = zipfile.compressor_names.get(info.compress_type, info.compress_type)  # type: ignore[attr-defined]
        raise UserError(
            f"{where}: {shown} is compressed by {method}, which is not read; unpack it, and name the folder"
        )
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else MAX_RATIO
    if info.compress_size > size or info.file_size > ratio * info.compress_size:
        raise UserError(
            f"{where}: {shown} claims {info.file_size:,} bytes in {min(info.compress_size, size):,}, which cannot be; "
            "fetch it again"
        )


class _DiskFile:
    """A file on disk for zipfile and tarfile, which read as many bytes as a header claims: bounded by those there are.

    It is closed when the last entry that reads from it is forgotten.
    """

    def __init__(self, stream: BinaryIO) -> None:
        descriptor = os.dup(stream.fileno())
        finalize(self, os.close, descriptor)
        self.descriptor, self.position = descriptor, 0
        self.length = os.fstat(descriptor).st_size

    def read(self, count: int = -1) -> bytes:
        content = self.part(self.position, self.length if count < 0 else count)
        self.position += len(content)
        return content

    def part(self, offset: int, size: int) -> bytes:
        """The bytes of a part; several threads may read at the same time."""
        return os.pread(self.descriptor, max(0, min(size, self.length - offset)), offset)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        if not 0 <= position <= self.length:
            raise EOFError("unexpected end of data")
        self.position = position
        return position

    def tell(self) -> int:
        return self.position

    def seekable(self) -> bool:
        return True


def _zip_entries(path: Path, left_out: Counter[str]) -> Iterator[Entry]:
    with path.open("rb") as opened:
        stream = _DiskFile(opened)
    archive = zipfile.ZipFile(cast(BinaryIO, stream))
    for info in archive.infolist():
        check_zip_entry(info, str(path), stream.length)
        if stat.S_ISLNK(info.external_attr >> 16):
            left_out[LINKS] += 1
            continue
        yield _zip_name(info), info.file_size, partial(_open_zip_entry, str(path), archive, info)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The path of an entry: in UTF-8, which many programs write without its flag, else in code page 437."""
    try:
        return info.filename if info.flag_bits & 0x800 else info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _open_zip_entry(where: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """The content in memory: going back in a compressed file would unpack it again."""
    refuse_beyond_memory(
        info.file_size, f"{where}: the bytes of {_printable(info.filename[-100:])}", "unpack it yourself"
    )
    with archive.open(info) as stream:
        return BytesIO(stream.read(info.file_size))


def _tar_name(member: tarfile.TarInfo) -> str:
    """The path of an entry: in UTF-8, else in Latin-1."""
    content = member.name.encode("utf-8", "surrogateescape")
    try:
        return content.decode()
    except UnicodeError:
        return content.decode("latin-1")


def _tar_entries(path: Path, left_out: Counter[str]) -> Iterator[Entry]:
    with _open_tar(path) as opened:
        stream = _DiskFile(opened)
    places: dict[str, tuple[int, int]] = {}  # offset and bytes of the files by path
    last = -1
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as archive:
        for member in archive:
            if member.offset <= last or member.size < 0 or member.offset_data + member.size > stream.length:
                raise EOFError(f"{member.name} is cut short")
            last = member.offset
            if member.isdir():
                continue
            place = None
            if member.islnk():  # another name of a file before it
                place = places.get(member.linkname)
            elif member.isreg() and not member.issparse():
                place = places[member.name] = member.offset_data, member.size
            if place is None:
                left_out[LINKS] += 1
                continue
            yield _tar_name(member), place[1], partial(_open_tar_entry, stream, *place)
        if stream.part(archive.offset, len(BLOCK)) != BLOCK:  # a damaged header ends the loop as well
            raise EOFError(f"no valid entry at byte {archive.offset:,}")


def _open_tar_entry(stream: _DiskFile, offset: int, size: int) -> BinaryIO:
    return BytesIO(stream.part(offset, size))


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
    with ExitStack() as stack, unpack(path, "rb") as stream:
        unpacked = cast(BinaryIO, stack.enter_context(TemporaryFile(dir=folder)))
        while part := stream.read(1 << 20):
            unpacked.write(part)
            if unpacked.tell() > limit:
                raise UserError(f"{path}: unpacks to over {limit:,} bytes; unpack it yourself, and name the folder")
        unpacked.flush()
        stack.pop_all()
    return unpacked
