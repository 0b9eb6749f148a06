"""The cache of decoded images: picture files are decoded once, and later commands map the pixels into memory.

An entry is one file in `images_folder()`. Its name contains a key of its description: path, names, sizes and times of
the files that were read, size of the images, and the versions of our reader and of Pillow. An entry is therefore never
out of date; a changed file makes a new one. All entries together have a limit, and the least recently used ones are
removed first.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from safetensors import SafetensorError
from torch import Tensor

from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.files import content_key
from limbeck.core.folders import home_folder
from limbeck.core.locks import lock_work
from limbeck.core.tensors import read_tensors, write_tensors
from limbeck.core.text import quote
from limbeck.core.unfinished import remove_unfinished
from limbeck.data.images import Array, RawData, ReadOptions

FORMAT, VERSION = "limbeck-images", 1
PATHS = ("utf-8", "surrogateescape")  # of the paths of files, which need not be text
READER = 11  # the version of our reader; raise it whenever the pixels or the notes of the same files change
LIMIT = 20.0  # GB of all entries together; $LIMBECK_CACHE_GB sets another limit, and 0 turns the cache off

log = logging.getLogger("limbeck")


def images_folder() -> Path:
    """The folder of the entries."""
    return home_folder() / "images"


def read_with_cache(
    source: Path, digest: Callable[[], str], options: ReadOptions, read: Callable[[], RawData]
) -> RawData:
    """The result of `read`, taken from the cache where it has an entry, and stored there otherwise.

    source: the file or folder that is read.
    digest: returns a digest of all files and folders at or below `source` on which the result depends.
    A cache that cannot be written to costs one warning, and a damaged entry is replaced. Raises UserError for a limit
    that is no number, and whatever `read` raises.
    """
    if _limit() == 0:
        return read()
    description = _description(source, digest(), options)
    path = images_folder() / f"{source.resolve().name}-{content_key(description)}.safetensors"
    remove_unfinished(path.parent)
    before, raw = _stamp(path), _load_entry(path, description)
    if raw is not None:
        return raw
    with lock_work(path.stem, f"decodes {path.stem}"):
        if _stamp(path) != before:  # another process has decoded them meanwhile
            raw = _load_entry(path, description)
        if raw is None:
            raw = read()
            if _is_unchanged(source, digest, options, description):
                _store_entry(path, raw, description)
    return raw


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_unchanged(source: Path, digest: Callable[[], str], options: ReadOptions, description: dict[str, Any]) -> bool:
    """Whether the files are those of before."""
    try:
        return _description(source, digest(), options) == description
    except (OSError, UserError):
        return False


def _limit() -> float:
    """The limit of all entries together, in bytes."""
    text = os.environ.get("LIMBECK_CACHE_GB") or str(LIMIT)
    try:
        limit = 1e9 * float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise UserError(f"LIMBECK_CACHE_GB is {quote(text)}; give a number of GB, 0 to keep no decoded images.")
    return limit


def _description(source: Path, digest: str, options: ReadOptions) -> dict[str, Any]:
    """Everything on which an entry depends."""
    mode = {} if options.resize_mode == "stretch" else {"resize_mode": options.resize_mode}
    return {
        "source": str(source.resolve()),
        "files": digest,
        "size": None if options.size is None else list(options.size),
        "pixel_range": None if options.pixel_range is None else list(options.pixel_range),
        "reader": READER,
        "pillow": PIL.__version__,
        **mode,
    }


def _load_entry(path: Path, description: dict[str, Any]) -> RawData | None:
    """The entry, with its pixels mapped into memory; None where it is missing or damaged."""
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
        clock = time.time_ns()  # the kernel's own clock is as coarse as 4 ms
        os.utime(path, ns=(clock, clock))  # the time of the last use
    parts: dict[str, dict[str, Array]] = {"images": {}, "labels": {}, "files": {}}
    for name, tensor in tensors.items():
        kind, split = name.split(".")
        parts[kind][split] = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()
    splits = header["splits"]
    images, labels = ({split: parts[kind][split] for split in splits} for kind in ("images", "labels"))
    files = {split: text.tobytes().decode(*PATHS).split("\0") for split, text in parts["files"].items()}
    return RawData(header["name"], images, labels, header["names"], tuple(header["notes"]), files)


def _store_entry(path: Path, raw: RawData, description: dict[str, Any]) -> None:
    """Write an entry, and remove old ones where all together exceed the limit. Colours are stored plane by plane."""
    tensors: dict[str, Tensor] = {}
    for split, images in raw.images.items():
        planes = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images
        tensors[f"images.{split}"] = torch.from_numpy(np.ascontiguousarray(planes))
        tensors[f"labels.{split}"] = torch.from_numpy(raw.labels[split].astype(np.int64))
    for split, paths in raw.files.items():
        text = bytearray("\0".join(paths).encode(*PATHS))
        tensors[f"files.{split}"] = torch.frombuffer(text, dtype=torch.uint8)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "description": description,
        "name": raw.name,
        "splits": list(raw.images),
        "names": raw.names and list(raw.names),
        "notes": list(raw.notes),
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _limit():
        return
    try:
        _remove_old_entries(size)
        make_folder(path.parent)
        write_tensors(path, tensors, header)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error  # without the temporary name, which differs every time
        _warn_once(f"decoded images cannot be kept in {path.parent} ({reason}): every command decodes them again")


def _remove_old_entries(size: int) -> None:
    """Remove the least recently used entries until `size` more bytes fit into the limit."""
    entries = []
    for path in images_folder().glob("*.safetensors"):
        with suppress(FileNotFoundError):  # removed by another process
            status = path.stat()
            entries.append((status.st_mtime_ns, status.st_size, path))
    total = size + sum(entry_size for _, entry_size, _ in entries)
    for _, entry_size, path in sorted(entries):
        if total <= _limit():
            break
        path.unlink(missing_ok=True)
        total -= entry_size


@cache
def _warn_once(text: str) -> None:
    """Log a warning once a process."""
    log.warning(text)
