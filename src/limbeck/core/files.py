"""Reading and writing of limbeck's own files, JSON and safetensors.

A file is written to a temporary name and then renamed. It says its format, its version and, where it holds tensors,
its checksum, which is verified when the file is opened. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.core.errors import UserError

HEADER, CHECKSUM = "limbeck", "sha256"


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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); it is damaged or not ours.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a {format}.")
    _check_format(path, value, format, version)
    return value


def _check_format(path: Path, header: dict[str, Any], format: str, version: int) -> None:
    if header.get("format") != format:
        raise UserError(f"{path} is not a {format} (it says '{header.get('format')}').")
    if header.get("version") != version:
        raise UserError(
            f"{path} is a {format} of version {header.get('version')}; this program reads version {version}: "
            "use the program that wrote it, or make it again."
        )


@dataclass(frozen=True)
class LazyRows:
    """A tensor that stays in its file. Indexing reads one row, and nothing is kept in memory.

    path:  the safetensors file. name: of the tensor in it.
    shape: (rows, ...) of the whole tensor. dtype: of its elements.
    Indexing takes row numbers from 0 on and raises IndexError for any other; iterating reads row after row.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> Tensor:
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name} has rows 0 to {len(self) - 1}, not {row}")
        with safe_open(str(self.path), framework="pt") as file:
            part: Tensor = file.get_slice(self.name)[row : row + 1]
            return part[0].clone()

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))


def digest(header: dict[str, Any], tensors: Mapping[str, Tensor | LazyRows]) -> str:
    """SHA-256 in hex over the header, then over name, type, shape and bytes of every tensor, in the order of names."""
    sha = hashlib.sha256(json.dumps(header, allow_nan=False, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        for part in [tensor] if isinstance(tensor, Tensor) else tensor:
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write one safetensors file atomically: the tensors, with `header` and a checksum as JSON in its metadata.

    header: JSON values, with `format` and `version` among them. Tensors may be on any device, contiguous or not.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one metadata entry, because safetensors writes several of them in random order
    metadata = {HEADER: json.dumps({**header, CHECKSUM: digest(header, plain)}, allow_nan=False)}
    write_atomically(path, lambda temporary: save_file(plain, str(temporary), metadata=metadata))


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of one of limbeck's safetensors files; the checksum is not verified.

    Raises UserError where the file is missing or damaged, or where limbeck did not write it.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); it is damaged or not ours.") from None
    if text is None:
        raise UserError(f"{path} is a safetensors file, but was not written by limbeck.")
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is not a JSON object; delete it and make it again.")
    return header


def read_tensors(path: Path, format: str, version: int = 1) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header of a safetensors file of this format and version, and verify its checksum.

    Raises UserError where the file is missing or damaged, or is of another format or version.
    """
    tensors, _, header = open_tensors(path, format, (), version)
    return tensors, header


def open_tensors(
    path: Path, format: str, lazy: Collection[str], version: int = 1
) -> tuple[dict[str, Tensor], dict[str, LazyRows], dict[str, Any]]:
    """Read a file as `read_tensors` does, but leave the tensors named in `lazy` in it: (tensors, lazy tensors, header).

    The checksum is verified here, with one row of a lazy tensor in memory at a time, which takes about 1 s a gigabyte.
    Later reads of rows trust the file.
    """
    header = read_header(path)
    _check_format(path, header, format, version)
    rows: dict[str, LazyRows] = {}
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        for name in names & set(lazy):
            part = file.get_slice(name)
            rows[name] = LazyRows(path, name, tuple(part.get_shape()), part[:0].dtype)
        tensors = {name: file.get_tensor(name) for name in sorted(names - set(lazy))}
    plain = {name: value for name, value in header.items() if name != CHECKSUM}
    if digest(plain, {**tensors, **rows}) != header.get(CHECKSUM):
        raise UserError(f"{path} is damaged: its contents do not match its checksum; delete it and make it again.")
    return tensors, rows, header


def content_key(description: dict[str, Any]) -> str:
    """12 hex digits that name a description, a JSON object, by its content; the order of keys does not matter.

    >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def refuse_own_folder(folder: Path) -> None:
    """Raise UserError where a folder that should hold images is a run or a store of experts."""
    for file, what in (("run.json", "a run of limbeck"), ("store.json", "a store of experts")):
        if (folder / file).exists():
            raise UserError(f"{folder}: {what} and no images; name the data set that it was made from")
