"""Reader of idx files, the format of MNIST."""

from __future__ import annotations

import gzip
import re
import zlib
from io import BytesIO
from math import prod

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.readers.reader import Reader
from limbeck.data.tree import File, Folder

IDX_FILE = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
MAX_BYTES = 1 << 33  # of one unpacked file


def _idx_files(folder: Folder) -> dict[tuple[str, str], File]:
    """The idx files of a folder by (split, "images" or "labels"); an unpacked file wins over the .gz beside it."""
    files: dict[tuple[str, str], File] = {}
    for name in sorted(folder.files, reverse=True):
        if match := IDX_FILE.fullmatch(name):
            files["train" if match[1] == "train" else "test", match[2]] = folder.files[name]
    return files


def read_idx(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the idx files of train and, where there are some, of test. Raises UserError for files that do not fit."""
    files = _idx_files(folder)
    images, labels = {}, {}
    for split in ("train", "test"):
        pair = [files.get((split, kind)) for kind in ("images", "labels")]
        if pair[0] and pair[1]:
            images[split], labels[split] = _idx_array(pair[0], 3), _idx_array(pair[1], 1)
        elif split == "train" or any(pair):
            missing = "images" if pair[0] is None else "labels"
            raise UserError(f"{folder.where}: no idx file of {split} {missing}; add it, with the name it has in MNIST")
    return RawData(folder.name, images, labels)


def _idx_array(file: File, dimensions: int) -> Array:
    """The content of an idx file of uint8 with this number of dimensions."""
    content = file.read()
    if content[:2] == b"\x1f\x8b":
        content = _unpack(content, file.where)
    magic, start = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if len(content) < start or content[:4] != magic:
        raise UserError(f"{file.where}: starts with {content[:4].hex()}, not {magic.hex()}; give idx files as MNIST's")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != prod(shape):
        raise UserError(
            f"{file.where}: header says {shape} but {len(values)} bytes follow (truncated?); fetch it again"
        )
    return values.reshape(shape)


def _unpack(content: bytes, where: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=BytesIO(content)) as stream:
            return stream.read(MAX_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{where}: truncated or not gzip ({error}); fetch it again") from error


READER = Reader("a folder of idx files", lambda folder: bool(_idx_files(folder)), read_idx)
