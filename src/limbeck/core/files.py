"""Reading and writing of JSON files, without torch: a file is written to a temporary name and then renamed.

A file says its format and its version. Files of tensors are in `core.tensors`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, then rename that file, so that no reader ever sees half a file.

    Folders that are missing are made. The file gets the permissions of a new file. Whatever `write` raises is raised
    here, and the file that was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically.

    Raises ValueError for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, format: str, version: int = 1) -> dict[str, Any]:
    """Read a JSON object of this format and version.

    Raises UserError where the file is missing, is no JSON object, or is of another format or version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:  # the last two: no text, no JSON, nested too deeply
        raise UserError(
            f"{path} cannot be read as JSON ({error}); it is damaged or not ours; restore it, or name another."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a {format}; name a file that limbeck wrote.")
    check_format(path, value, format, version)
    return value


def check_format(path: Path, header: dict[str, Any], format: str, version: int) -> None:
    """Raise UserError unless a header says that the file is of this format and version."""
    if header.get("format") != format:
        raise UserError(f"{path} is not a {format} (it says '{header.get('format')}'); name another file.")
    if header.get("version") != version:
        raise UserError(
            f"{path} is a {format} of version {header.get('version')}; this program reads version {version}: "
            "use the program that wrote it, or make it again."
        )


def content_key(description: dict[str, Any]) -> str:
    """12 hex digits that name a description, a JSON object, by its content; the order of keys does not matter.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def require_new_folder(path: Path, meaning: str) -> None:
    """Raise UserError unless `path` can become a new folder, or is an empty one. meaning: what was expected there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not {meaning}; name a new folder with --out.")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UserError(f"{parent} is a file, so {path} cannot be made; name another folder with --out.")


def refuse_own_folder(folder: Path) -> None:
    """Raise UserError where a folder that should hold images is a run or a store of experts."""
    for file, content in (("run.json", "a run of limbeck"), ("store.json", "a store of experts")):
        if (folder / file).exists():
            raise UserError(f"{folder}: {content} and no images; name the data set that it was made from.")
