"""Opening of .pt files of strangers: nothing in them is run, and their tensors are checked before memory is taken."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.text import shorten

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class NumpyType:
    """Stands for numpy.dtype while a pickle is read, so that no code of numpy runs: the code of a type, as "f8"."""

    def __init__(self, code: object = None, *flags: object):
        self.code = code
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and ">" in state[1:2]:
            self.order = ">"


SCALARS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i"}  # numpy's codes and those of the module struct


def _read_scalar(kind: object = None, data: object = None) -> float:
    """The number that numpy's `scalar(dtype, bytes)` would build, the form in which results hold their accuracies."""
    code = SCALARS.get(str(kind.code)) if isinstance(kind, NumpyType) else None
    if not isinstance(kind, NumpyType) or code is None or not isinstance(data, bytes):
        raise pickle.UnpicklingError("weights_only: a numpy object that is no number")
    try:
        (number,) = struct.unpack(kind.order + code, data)
    except struct.error:
        raise pickle.UnpicklingError("weights_only: a numpy scalar of another length") from None
    return float(number)


STAND_INS: list[Any] = [
    (NumpyType, "numpy.dtype"),
    (_read_scalar, "numpy.core.multiarray.scalar"),
    (_read_scalar, "numpy._core.multiarray.scalar"),  # numpy 2
]
"""What is called instead of numpy's constructors of scalars, which `weights_only` refuses."""


def open_pt(path: Path) -> Any:
    """The content of a file of torch.save. Its tensors are mapped into memory, or read where that is not possible.

    Nothing in the file is run. Numbers of numpy become Python's. Raises UserError where there is no such file, where it
    is not of torch.save, where it contains anything but tensors, numbers, strings and containers of these, where a
    tensor is sparse, quantised or of another kind that holds no plain numbers, and where the content is larger than
    the file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols of pickle; a refusal is one sentence
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, OSError):  # files of torch before 1.6 cannot be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle ends in any of them: struct.error, AttributeError, MemoryError, ...
        if "Unsupported global" in str(error) or "weights_only" in str(error).lower():
            raise UserError(
                f"{path} holds pickled code or objects other than tensors, lists and dictionaries, or is not a file of "
                "torch.save; it is refused, since opening it would run what it says."
            ) from None
        raise UserError(f"{path} is not a file of torch.save, or is cut short ({shorten(error)}).") from None
    size = path.stat().st_size
    for tensor in _find_tensors(content):
        _check_tensor(tensor, size, path)
    return content


def _check_archive(path: Path) -> None:
    """Raise UserError for a zip archive whose entries are larger than itself; torch.save compresses nothing."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        return  # torch.load says what is wrong
    if claimed > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes and claims to contain {claimed}; torch.save writes no such file, "
            "so it is not opened."
        )


def _find_tensors(content: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, each container visited once."""
    stack, visited = [content], set()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | set | dict) and id(value) not in visited:
            visited.add(id(value))
            stack.extend(value.values() if isinstance(value, dict) else value)


def _check_tensor(tensor: Tensor, size: int, path: Path) -> None:
    """Raise UserError unless `tensor` is of plain numbers in memory, and no larger than a file of `size` bytes."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not plain or tensor.is_quantized or tensor.is_complex():
        raise UserError(f"{path} holds a tensor that is sparse, quantised, complex or without numbers; it is refused.")
    if tensor.numel() * tensor.element_size() > size:
        raise UserError(
            f"{path} has {size} bytes and a tensor of shape {tuple(tensor.shape)[:6]}, which needs more; it is refused."
        )
