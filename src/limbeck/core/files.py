"""Reading and writing of JSON files, without torch: a file is written to a temporary name and then renamed.

A file says its format and its version. Files of tensors are in `core.tensors`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from limbeck.core.disk import flush, make_folder, write_errors
from limbeck.core.errors import NewerError, UserError
from limbeck.core.json_text import MAX_BYTES, parse_json
from limbeck.core.text import quote, shorten, shorten_path
from limbeck.core.unfinished import is_unused, remove_unfinished, reserve

T = TypeVar("T")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename that file, so that no reader ever sees half a file.

    Its folder exists: one that vanishes meanwhile, as where a disk is unplugged, is not made again without its content.
    The file gets the permissions of a new file, and outlasts a power failure. Whatever `write` raises is raised here,
    and the file that was there before stays. Raises IsADirectoryError where `path` is a folder, and WriteError where
    the system cannot write.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with write_errors(path):
        with reserve(path) as folder:
            temporary = folder / path.name
            write(temporary)
            temporary.chmod(folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
            flush(temporary)
            temporary.replace(path)
        flush(path.parent)


def write_folder(path: Path, write: Callable[[Path], T]) -> T:
    """Call `write` with a temporary folder beside `path`, then rename that folder, so that nobody sees half of it.

    path: what does not exist, or an empty folder, see `require_new_folder`. Returns what `write` returns. Whatever it
    raises is raised here, and nothing is left behind. Raises WriteError where the system cannot write, and UserError
    where another process has filled the folder meanwhile.
    """
    with write_errors(path):
        make_folder(path.parent)
        with reserve(path) as temporary:
            result = write(temporary)
            for file in temporary.rglob("*"):
                flush(file)
            try:
                if path.is_dir():
                    remove_unfinished(path)
                    require_new_folder(path, "an empty folder")
                    path.rmdir()
                temporary.replace(path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # filled between the look and the rename
                    require_new_folder(path, "an empty folder")
                raise
        flush(path.parent)
    return result


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically, into a folder that exists.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, format: str, version: int = 1) -> dict[str, Any]:
    """Read a JSON object of this format and version.

    Raises UserError where the file is missing, is no JSON object, or is of another format or version.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has over {MAX_BYTES:,} bytes")
        value = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({shorten(error)}); it is damaged or not ours; restore it, or name another."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a {format}; name a file that limbeck wrote.")
    check_format(path, value, format, version)
    return value


def check_format(path: Path, header: dict[str, Any], format: str, version: int, oldest: int | None = None) -> None:
    """Raise UserError unless a header says that the file is of this format and of a version from `oldest` to `version`.

    oldest: by default `version`. What a newer limbeck wrote is a NewerError.
    """
    if header.get("format") != format:
        raise UserError(f"{path} is not a {format} (it says {quote(header.get('format'))}); name another file.")
    written = header.get("version")
    if type(written) is not int or written < 1:
        raise UserError(f"{path} is damaged: its version is {quote(written, 40)}, not a whole number from 1.")
    if written > version:
        raise NewerError(
            f"{path} is a {format} of version {written}, and this limbeck reads up to version {version}: "
            "a newer limbeck wrote it; upgrade limbeck."
        )
    if written < (version if oldest is None else oldest):
        raise UserError(f"{path} is a {format} of version {written}, which is read no more; make it again.")


def content_key(description: dict[str, Any]) -> str:
    """12 hex digits that name a description, a JSON object, by its content; the order of keys does not matter.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def require_new_folder(path: Path, meaning: str) -> None:
    """Raise UserError unless `path` can become a new folder, or is an empty one. meaning: what was expected there.

    What a command left that was killed as it began does not count.
    """
    require_writable(path)
    if path.exists() and not (path.is_dir() and is_unused(path)):
        raise UserError(f"{path} exists and is not {meaning}; name a new folder with --out.")


def has_record(path: Path, record: str, meaning: str) -> bool:
    """Whether the folder has the file `record`; UserError where it has not, and cannot become a new folder either.

    meaning: what was expected there.
    """
    if (path / record).exists():
        return True
    try:
        require_new_folder(path, meaning)
    except UserError:
        if not (path / record).exists():  # which another process may have written meanwhile
            raise
        return True
    return False


RECORDS = {"run.json": "a run of limbeck", "store.json": "a store of experts"}
"""The file by which a folder of limbeck's own is recognised, and what the folder is."""


def require_writable(path: Path, remedy: str = "name another path with --out") -> None:
    """Raise UserError unless a file or folder can be written at `path`. remedy: what to do next.

    A temporary folder is made in the nearest folder that exists, and removed: permissions say little, since root
    passes them, and a file system may refuse all the same. A run or a store that exists is not tried: one that is
    finished can lie where nothing is written any more.
    """
    path = path.absolute()
    place = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not place.exists():
        raise UserError(f"{shorten_path(place)} is a link to nothing; {remedy}.")
    if place.is_dir():
        if place == path and any((path / name).exists() for name in RECORDS):
            return
        folder = place
    elif place != path:
        raise UserError(f"{shorten_path(place)} is a file, so {shorten_path(path)} cannot be made; {remedy}.")
    elif not place.is_file():
        raise UserError(f"{shorten_path(path)} is a device or the like, not a file or folder; {remedy}.")
    else:
        folder = place.parent
    try:
        for name in (path, *(folder / name for name in path.relative_to(folder).parts)):
            with suppress(FileNotFoundError):
                name.lstat()  # raises where a name, or all of the path, is too long
        with reserve(folder / "limbeck"):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{shorten_path(path)} cannot be written to ({reason}); {remedy}.") from None


def refuse_own_folder(folder: Path) -> None:
    """Raise UserError where a folder that should hold images is a run or a store of experts."""
    for file, content in RECORDS.items():
        if (folder / file).exists():
            raise UserError(f"{folder}: {content} and no images; name the data set that it was made from.")
