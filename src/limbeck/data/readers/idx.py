"""Reader of idx files, the format of MNIST, Fashion-MNIST, KMNIST, EMNIST and QMNIST."""

from __future__ import annotations

import gzip
import re
import zlib
from math import prod
from string import ascii_lowercase, ascii_uppercase, digits
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.memory import refuse_beyond_memory
from limbeck.data.readers.reader import Reader
from limbeck.data.splits import SPLIT_OF
from limbeck.data.tree import File, Folder

IDX_FILE = re.compile(
    r"(?:(?P<set>.+)-)?(?P<split>[a-z0-9]+)-(?P<kind>images|labels)[-.]idx[1-4][-.](?:ubyte|int)(\.gz)?", re.I
)
SPLITS = {**SPLIT_OF, "t10k": "test"}  # MNIST's 10,000
DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
DIMENSIONS = {"images": (3, 4), "labels": (1, 2)}
GZIP_RATIO = 1100  # unpacked to packed bytes; DEFLATE reaches 1032
CHUNK = 1 << 20

# Characters of the labels by NIST: its merged sets have one class for a letter whose two cases look alike.
MERGED = digits + ascii_uppercase + "abdefghnqrt"
CLASSES: dict[str, tuple[str, ...]] = {
    "fashionmnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    "emnistletters": tuple(ascii_uppercase),
    "emnistbalanced": tuple(MERGED),
    "emnistbymerge": tuple(MERGED),
    "emnistbyclass": tuple(digits + ascii_uppercase + ascii_lowercase),
}
"""Class names of known sets in the order of the labels; the others count digits."""


class IdxFiles(NamedTuple):
    """The idx files of one data set.

    name:  what stands before the split in their names, as in emnist-letters-train-images; "" for nothing.
    files: by (split, "images" or "labels").
    notes: on files that were left out.
    """

    name: str
    files: dict[tuple[str, str], File]
    notes: list[str]


def _find_idx_files(folder: Folder) -> dict[str, IdxFiles]:
    """The data sets of idx files in a folder by name; an unpacked file wins over the .gz beside it."""
    sets: dict[str, IdxFiles] = {}
    for file_name in sorted(folder.files, reverse=True):
        match = IDX_FILE.fullmatch(file_name)
        if match is None:
            continue
        name = (match["set"] or "").lower()
        sets.setdefault(name, IdxFiles(name, {}, []))
        if split := SPLITS.get(match["split"].lower()):
            sets[name].files[split, match["kind"].lower()] = folder.files[file_name]
        else:
            sets[name].notes.append(f"{file_name} was left out: {match['split']} is not the name of a split")
    return sets


def read_idx(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the idx files of a folder. EMNIST, which stores its images transposed, is turned upright.

    Raises UserError for files of several data sets, and for files that do not fit.
    """
    sets = _find_idx_files(folder)
    if len(sets) > 1:
        names = ", ".join(name or "files without a name before the split" for name in sorted(sets))
        raise UserError(f"{folder.where}: idx files of several data sets, {names}; give one set a folder of its own")
    ((name, files, notes),) = sets.values()
    images, labels = {}, {}
    for split in ("train", "validation", "test"):
        pair = [files.get((split, kind)) for kind in DIMENSIONS]
        if pair[0] and pair[1]:
            images[split], labels[split] = (_read_array(file, kind) for file, kind in zip(pair, DIMENSIONS) if file)
        elif split == "train" or any(pair):
            missing = "images" if pair[0] is None else "labels"
            raise UserError(f"{folder.where}: no idx file of {split} {missing}; add it, with the name it has in MNIST")
    if name.startswith("emnist"):
        images = {split: np.swapaxes(array, 1, 2) for split, array in images.items()}
        notes.append("EMNIST's files hold transposed images, which were turned upright")
    if name.endswith("letters") and all(array.min(initial=1) > 0 for array in labels.values()):
        labels = {split: array.astype(np.int64) - 1 for split, array in labels.items()}
        notes.append("labels 1 to 26 became 0 to 25, the letters A to Z")
    if name == "qmnist" and all(array.ndim == 2 for array in labels.values()):
        labels = {split: array[:, 0] for split, array in labels.items()}
        notes.append("labels are the first column, the digit; QMNIST's others say who wrote it and where")
    classes = CLASSES.get(re.sub("[^a-z0-9]", "", name or folder.name.lower()))
    if classes and any(array.max(initial=0) >= len(classes) for array in labels.values()):
        notes.append(f"labels are not those of {name or folder.name}, so that the classes have no names")
        classes = None
    return RawData(name or folder.name, images, labels, classes, tuple(notes))


def _read_array(file: File, kind: str) -> Array:
    """The content of an idx file; kind: "images" or "labels". Its header is checked before memory is taken."""
    with file.open() as stream:
        if file.head(2) != b"\x1f\x8b":
            return _read_values(file, kind, stream, file.size)
        try:
            with gzip.open(stream) as unpacked:
                return _read_values(file, kind, cast(BinaryIO, unpacked), GZIP_RATIO * file.size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{file.where}: truncated or not gzip ({shorten(error)}); fetch it again") from error


def _read_values(file: File, kind: str, stream: BinaryIO, limit: int) -> Array:
    """The array in a stream of at most `limit` bytes."""
    magic = stream.read(4)
    dimensions = magic[3] if len(magic) == 4 else 0
    sizes = stream.read(4 * dimensions)
    is_idx = magic[:2] == b"\0\0" and dimensions in DIMENSIONS[kind] and magic[2] in DTYPES
    if not is_idx or len(sizes) < 4 * dimensions:
        expected = bytes([0, 0, 8, DIMENSIONS[kind][0]]).hex()
        raise UserError(f"{file.where}: starts with {magic.hex()}, not {expected}; give idx files as MNIST's")
    shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
    dtype = np.dtype(DTYPES[magic[2]])
    claim = prod(shape) * dtype.itemsize
    content = bytearray()
    if claim <= limit:
        refuse_beyond_memory(claim, f"{file.where}: {kind} of shape {shape}", "give fewer of them")
        while part := stream.read(min(CHUNK, claim + 1 - len(content))):
            content += part
    if len(content) != claim:
        number = f"{len(content)}" if content else f"at most {limit - 4 - len(sizes)}"
        follow = f"{number} bytes follow (truncated?)" if len(content) <= claim else "more bytes follow"
        raise UserError(f"{file.where}: header says {shape} but {follow}; fetch it again")
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


READER = Reader("idx files", lambda folder: bool(_find_idx_files(folder)), read_idx)
