"""Data sets of random pixels, written in the layouts in which known sets are downloaded."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from image_files import grey

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(values: Any) -> bytes:
    head = bytes([0, 0, CODES[values.dtype.str[1:]], values.ndim])
    head += b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return head + values.astype(values.dtype.newbyteorder(">")).tobytes()


def idx(path: Path, values: Any, pack: bool = True) -> None:
    content = idx_bytes(values.astype(np.uint8))
    path.write_bytes(gzip.compress(content) if pack else content)


def idx_folder(folder: Path, pack: bool = True, start: str = "", labels: Any = (0, 1)) -> Path:
    folder.mkdir(parents=True)
    end = ".gz" if pack else ""
    test = "test" if start else "t10k"
    for name, n in (("train", 20), (test, 6)):
        idx(folder / f"{start}{name}-images-idx3-ubyte{end}", grey(n, seed=n), pack)
        idx(folder / f"{start}{name}-labels-idx1-ubyte{end}", np.resize(labels, n), pack)
    return folder
