"""Reading and writing of limbeck's own files of tensors: safetensors with a JSON header and a checksum.

The checksum is verified when a file is opened. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.files import check_format, write_atomically
from limbeck.core.json_text import parse_json
from limbeck.core.text import shorten

HEADER, CHECKSUM = "limbeck", "sha256"


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

    header: JSON values, with `format` and `version` among them. Tensors may be on any device, contiguous or not. The
        folder of `path` exists.
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
        raise UserError(
            f"{path} cannot be read as safetensors ({shorten(error)}); it is damaged or not ours; restore it, or "
            "name another."
        ) from None
    if text is None:
        raise UserError(f"{path} is a safetensors file, but was not written by limbeck; name one that was.")
    try:
        header = parse_json(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is damaged: its header is not a JSON object; delete it and make it again.")
    return header


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, whatever their type; torch has no `isfinite` for floats of 8 bits.

    >>> is_finite(torch.ones(2)), is_finite(torch.tensor([1.0, torch.nan]).to(torch.float8_e5m2))
    (True, False)
    """
    is_small = tensor.is_floating_point() and tensor.element_size() == 1
    return bool((tensor.float() if is_small else tensor).isfinite().all())


def read_tensors(
    path: Path, format: str, version: int = 1, oldest: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and header of a safetensors file of this format and version, and verify its checksum.

    oldest: the first version that is read as well; by default no other one.
    Raises UserError where the file is missing or damaged, or is of another format or version.
    """
    tensors, _, header = open_tensors(path, format, (), version, oldest)
    return tensors, header


def open_tensors(
    path: Path, format: str, lazy: Collection[str], version: int = 1, oldest: int | None = None
) -> tuple[dict[str, Tensor], dict[str, LazyRows], dict[str, Any]]:
    """Read a file as `read_tensors` does, but leave the tensors named in `lazy` in it: (tensors, lazy tensors, header).

    The checksum is verified here, with one row of a lazy tensor in memory at a time, which takes about 1 s a gigabyte.
    Later reads of rows trust the file.
    """
    header = read_header(path)
    check_format(path, header, format, version, oldest)
    rows: dict[str, LazyRows] = {}
    with safe_open(str(path), framework="pt") as file:
        names = set(file.keys())
        for name in names & set(lazy):
            part = file.get_slice(name)
            if not part.get_shape():
                raise UserError(f"{path} is damaged: its {name} have no rows; delete it and make it again.")
            rows[name] = LazyRows(path, name, tuple(part.get_shape()), part[:0].dtype)
        tensors = {name: file.get_tensor(name) for name in sorted(names - set(lazy))}
    plain = {name: value for name, value in header.items() if name != CHECKSUM}
    if digest(plain, {**tensors, **rows}) != header.get(CHECKSUM):
        raise UserError(f"{path} is damaged: its contents do not match its checksum; delete it and make it again.")
    return tensors, rows, header
