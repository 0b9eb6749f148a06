"""Decoded images, kept for reuse: files of pictures are decoded once, and later commands map the pixels into memory.

An entry is one file in `folder()`, named by the content of its description: path, names, sizes and times of the files
that were read, size of the images, and the versions of our reader and of Pillow. So an entry is never out of date; a
changed file gives a new one. All entries together have a limit, and those used least recently are removed first.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.files import content_key
from limbeck.core.folders import home_folder
from limbeck.core.tensors import read_tensors, write_tensors
from limbeck.data.images import Array, RawData, Size

FORMAT, VERSION = "limbeck-images", 1
READER = 1  # to be raised whenever the pixels or the notes of the same files change
LIMIT = 20.0  # GB of all entries together; $LIMBECK_CACHE_GB is another limit, 0 keeps nothing
MANY = 1000  # images that take long enough to say so

log = logging.getLogger("limbeck")


def folder() -> Path:
    """Where entries lie."""
    return home_folder() / "images"


def read_with_cache(
    source: Path, files: Callable[[], Iterable[Path]], size: Size | None, read: Callable[[], RawData]
) -> RawData:
    """The result of `read`, from the cache where it has an entry; else it is read, and stored there.

    files: everything below `source` that the result depends on, files and folders.
    A cache that cannot be written costs one warning; a damaged entry is made again.
    """
    description = _description(source, files, size)
    if description is None or _limit() == 0:
        return read()
    path = folder() / f"{source.resolve().name}-{content_key(description)}.safetensors"
    raw = _load(path, description)
    if raw is None:
        raw = read()
        if _description(source, files, size) == description:  # nobody changed the files meanwhile
            _keep(path, raw, description)
    return raw


def announce_decoding(count: int, source: Path) -> None:
    """Log that many images are about to be decoded."""
    if count >= MANY:
        log.info("reading %s images of %s", f"{count:,}", source)


def _limit() -> float:
    """Bytes that all entries may take."""
    text = os.environ.get("LIMBECK_CACHE_GB") or str(LIMIT)
    try:
        limit = 1e9 * float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise UserError(f"LIMBECK_CACHE_GB is {text!r}; give a number of GB, 0 to keep no decoded images.")
    return limit


def _description(source: Path, files: Callable[[], Iterable[Path]], size: Size | None) -> dict[str, Any] | None:
    """The inputs of an entry; None where a file cannot be examined, about which the reader raises a better error."""
    names = hashlib.sha256()
    try:
        for path in files():
            facts = path.stat()
            # The time of the last change of the inode too: tools that copy files may set the other one back.
            state = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns) if path.is_file() else ()
            names.update(repr((str(path.relative_to(source)), state)).encode("utf-8", "surrogateescape"))
        place = str(source.resolve())
    except OSError:
        return None
    versions = {"reader": READER, "pillow": PIL.__version__}
    return {"source": place, "files": names.hexdigest(), "size": None if size is None else list(size), **versions}


def _load(path: Path, description: dict[str, Any]) -> RawData | None:
    """The entry, its pixels mapped into memory; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        tensors, header = read_tensors(path, FORMAT, VERSION)
    except (UserError, OSError, SafetensorError) as error:
        log.warning("%s; the images are decoded again", str(error).rstrip("."))
        return None
    if header["description"] != description:
        return None
    with suppress(OSError):
        now = time.time_ns()
        os.utime(path, ns=(now, now))  # the last use; the kernel's own time is as coarse as 4 ms
    parts: dict[str, dict[str, Array]] = {"images": {}, "labels": {}}
    for name, tensor in tensors.items():
        kind, split = name.split(".")
        parts[kind][split] = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()
    splits = header["splits"]
    images, labels = ({split: part[split] for split in splits} for part in parts.values())
    return RawData(header["name"], images, labels, header["names"], tuple(header["notes"]))


def _keep(path: Path, raw: RawData, description: dict[str, Any]) -> None:
    """Write an entry, and remove old ones where all are too large; colours lie plane by plane, as `assemble` wants."""
    tensors: dict[str, Tensor] = {}
    for split, images in raw.images.items():
        planes = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images
        tensors[f"images.{split}"] = torch.from_numpy(np.ascontiguousarray(planes))
        tensors[f"labels.{split}"] = torch.from_numpy(raw.labels[split].astype(np.int64))
    header = {
        "format": FORMAT,
        "version": VERSION,
        "description": description,
        "name": raw.name,
        "splits": list(raw.images),
        "names": None if raw.names is None else list(raw.names),
        "notes": list(raw.notes),
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _limit():
        return
    try:
        _make_room(size)
        write_tensors(path, tensors, header)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error  # its text alone: a temporary name differs every time
        _warn(f"decoded images cannot be kept in {path.parent} ({reason}): every command decodes them again")


def _make_room(size: int) -> None:
    """Remove entries, those used least recently first, until `size` more bytes fit into the limit."""
    entries = []
    for path in folder().glob("*"):
        with suppress(FileNotFoundError):  # removed by another process
            facts = path.stat()
            entries.append((facts.st_mtime_ns, facts.st_size, path))
    total = size + sum(length for _, length, _ in entries)
    for _, length, path in sorted(entries):
        if total <= _limit():
            break
        path.unlink(missing_ok=True)
        total -= length


@cache
def _warn(text: str) -> None:
    """Once a process."""
    log.warning(text)
