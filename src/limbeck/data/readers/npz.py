"""Reader of numpy's files: an .npz with the arrays of all splits, or an .npz or .npy file for each split or array."""

from __future__ import annotations

import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy_format

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.archives import check_zip_entry
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.memory import refuse_beyond_memory
from limbeck.data.readers import idx, medmnist
from limbeck.data.readers.picture_index import has_class_folders
from limbeck.data.readers.reader import Reader
from limbeck.data.splits import NEUTRAL, SPLIT_OF, name_parts, sort_class_names
from limbeck.data.tree import File, Folder

WORDS = {
    "names": {"names", "classes", "class"},
    "labels": {"y", "labels", "label", "lbls", "targets", "target"},
    "images": {"x", "images", "image", "imgs", "img", "data", "pixels"},
}
PREPROCESS = "preprocess.npz"
"""A file of 'limbeck export' that lies beside images and holds none."""
KIND_OF = {word: kind for kind in reversed(WORDS) for word in WORDS[kind]}
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError, OverflowError, SyntaxError,
    TypeError, KeyError, RecursionError, tokenize.TokenError,
)  # fmt: skip


class Role(NamedTuple):
    """What the name of a file or an array says: a split, "images", "labels" or "names", and the other words."""

    split: str | None
    kind: str | None
    others: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> Role:
        """The role by a name.

        >>> Role.of("X_train"), Role.of("kmnist-test-labels")
        (Role(split='train', kind='images', others=()), Role(split='test', kind='labels', others=('kmnist',)))
        """
        words = name_parts(re.sub("(?<![a-z])([xy])(?=tr|te|va|de)", r"\1_", name, flags=re.IGNORECASE))
        splits = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
        kind = next((kind for kind, usual in WORDS.items() if usual & set(words)), None)
        others = tuple(word for word in words if not (word in SPLIT_OF or word in KIND_OF or word in NEUTRAL))
        return cls(splits.pop() if len(splits) == 1 else None, kind, others)


class Entry(NamedTuple):
    """An array in a file, before it is read. member: its path in an .npz; "" for an .npy."""

    file: File
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def key(self) -> str:
        """Its name: in the .npz, or else that of the file."""
        return (self.member or PurePath(self.file.where).name).removesuffix(".npy")

    @property
    def is_list_of_words(self) -> bool:
        """Whether it may hold class names."""
        return self.dtype.kind in "US" and len(self.shape) == 1

    @property
    def num_bytes(self) -> int:
        """Its bytes in memory."""
        return prod(self.shape) * self.dtype.itemsize


class Arrays(NamedTuple):
    """The arrays of one data set: its name, the arrays by split and kind, and the names of those left out."""

    name: str
    entries: dict[tuple[str, str], Entry]
    left_out: list[str]


def _array_files(folder: Folder) -> dict[str, File]:
    """The files of a folder that are read, by name: .npz files, or .npy files that are called images and labels."""
    names = [name for name in folder.files if name.lower().endswith((".npz", ".npy"))]
    if len(folder.files) > 1:
        names = [name for name in names if name != PREPROCESS]
    kinds = {Role.of(PurePath(name).stem).kind for name in names}
    has_npz = any(name.lower().endswith(".npz") for name in names)
    is_meant = len(names) == 1 or not folder.folders or kinds != {None}
    is_whole = (has_npz and is_meant) or {"images", "labels"} <= kinds
    return {name: folder.files[name] for name in names} if is_whole else {}


def _refuse_damage(file: File, error: Exception) -> UserError:
    reason = shorten(error)
    return UserError(f"{file.where}: not a readable .npz of arrays ({reason}); save it with numpy.savez")


def _list_entries(file: File) -> list[Entry]:
    """The arrays of a file. Raises UserError for a damaged file, and for sizes that cannot be true."""
    try:
        with file.open() as stream:
            if file.where.lower().endswith(".npy"):
                return [_read_header(file, "", stream, file.size)]
            if not zipfile.is_zipfile(stream):
                raise ValueError("no zip archive, or cut short")
            entries = []
            with zipfile.ZipFile(stream) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        check_zip_entry(info, file.where, file.size)
                        with archive.open(info) as part:
                            entries.append(_read_header(file, info.filename, cast(BinaryIO, part), info.file_size))
            return entries
    except UserError:
        raise
    except DAMAGE as error:
        raise _refuse_damage(file, error) from error


def _read_header(file: File, member: str, stream: BinaryIO, size: int) -> Entry:
    """The header of an array of `size` bytes, which it has to account for."""
    version = npy_format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version} of {member} is not that of plain arrays")
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    entry = Entry(file, member, shape, dtype)
    if not dtype.hasobject and entry.num_bytes != size - stream.tell():
        raise ValueError(f"{entry.key} claims shape {shape} in {size - stream.tell():,} bytes")
    return entry


def _read_entry(entry: Entry) -> Array:
    """The array. Raises UserError for one that is damaged."""
    try:
        with entry.file.open() as stream:
            if not entry.member:
                return npy_format.read_array(stream, allow_pickle=False)
            with zipfile.ZipFile(stream) as archive, archive.open(entry.member) as part:
                return npy_format.read_array(part, allow_pickle=False)
    except DAMAGE as error:
        raise _refuse_damage(entry.file, error) from error


def _choose_whole(entry: Entry, other: Entry) -> Entry | None:
    """That of two arrays of one meaning which holds whole numbers, where the other does not: pixels or labels."""
    whole = [one for one in (entry, other) if one.dtype.kind in "iu"]
    return whole[0] if len(whole) == 1 and {entry.dtype.kind, other.dtype.kind} <= set("iuf") else None


def _find_arrays(folder: Folder) -> Arrays:
    """The arrays of the only data set in a folder. Raises UserError where there is none, or more."""
    files = _array_files(folder)
    where = folder.where if len(files) > 1 else next(iter(files.values())).where
    groups: dict[tuple[str, ...], dict[tuple[str, str], Entry]] = {}
    keys, left_out = [], []
    for name, file in files.items():
        entries = _list_entries(file)
        of_file = Role.of(PurePath(name).stem) if len(files) > 1 else Role(None, None, ())
        for entry in entries:
            keys.append(entry.key if len(files) == 1 else f"{name}/{entry.key}" if entry.member else name)
            role = Role.of(entry.key) if entry.member else Role(None, None, ())
            if len(entries) == 1 and role.kind is None:  # an array without a name, as arr_0, is called as its file
                role = Role(None, of_file.kind, ())
            if role.kind is None or (role.kind == "names" and not entry.is_list_of_words):
                left_out.append(keys[-1])
                continue
            slot = role.split or of_file.split or "train", role.kind
            group = groups.setdefault(of_file.others + role.others, {})
            if slot in group and (whole_one := _choose_whole(group[slot], entry)):
                left_out.append((group[slot] if whole_one is entry else entry).key)
                group[slot] = whole_one
                continue
            if slot in group:
                twice = f"{group[slot].key} and {entry.key} are both {slot[1]} of {slot[0]}"
                raise UserError(f"{where}: {twice}; keep one of them")
            group[slot] = entry
    whole = {
        words: group for words, group in groups.items() if {("train", "images"), ("train", "labels")} <= set(group)
    }
    if not whole:
        raise UserError(
            f"{where}: no images with labels to train on; it holds {_list_names(keys)}, and needs arrays that "
            "are called x_train and y_train, or images and labels"
        )
    if len(whole) > 1:
        raise UserError(
            f"{where}: several data sets, {_list_names([' '.join(words) for words in whole])}; name one file"
        )
    ((words, chosen),) = whole.items()
    left_out += [entry.key for group in groups.values() if group is not chosen for entry in group.values()]
    name = "-".join(words) or (PurePath(next(iter(files))).stem if len(files) == 1 else folder.name)
    for (split, kind), entry in chosen.items():
        if entry.dtype.hasobject:  # pickles, which run code when they are read
            raise _refuse_damage(entry.file, ValueError(f"it holds Python objects, {entry.key}"))
        partner = {"images": "labels", "labels": "images"}.get(kind)
        if partner and (split, partner) not in chosen:
            raise UserError(f"{where}: {entry.key} has no partner among {_list_names(keys)}; add it or remove this")
    return Arrays(name, chosen, left_out)


def _list_names(names: list[str]) -> str:
    shown = ", ".join(name[:30] for name in sorted(names)[:6])
    return (shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"


def read_npz(folder: Folder, _options: ReadOptions) -> RawData:
    """Read the arrays of all splits. Labels may be words. Class names are those of the file, or of known sets.

    Raises UserError for files that cannot be read, lack images or labels, or hold several data sets.
    """
    for name, file in _array_files(folder).items():
        medmnist.find_classes(PurePath(name).stem, file.where)  # which refuses sets of several labels, and of volumes
    data_name, entries, left_out = _find_arrays(folder)
    refuse_beyond_memory(
        sum(entry.num_bytes for entry in entries.values()), f"{folder.where}: its arrays", "give fewer"
    )
    arrays = {slot: _read_entry(entry) for slot, entry in entries.items()}
    images = {split: array for (split, kind), array in arrays.items() if kind == "images"}
    labels = {split: arrays[split, "labels"] for split in images}
    notes = [f"{len(left_out)} arrays were left out: {_list_names(left_out)}"] if left_out else []
    usual = medmnist.find_classes(data_name, folder.where) or idx.CLASSES.get(data_name)
    names: Sequence[str] | None = None
    if all(array.dtype.kind in "US" for array in labels.values()):
        labels, names = _number_words(labels, folder.where)
    elif ("train", "names") in arrays:
        names = _read_words(arrays["train", "names"], folder.where)
    elif usual and all(array.dtype.kind in "iu" and array.max(initial=0) < len(usual) for array in labels.values()):
        names = usual
    elif usual:
        notes.append(f"labels are not those of {data_name}, so that the classes have no names")
    return RawData(data_name if usual else folder.name, images, labels, names, tuple(notes))


def _read_words(array: Array, where: str) -> list[str]:
    """The words of an array of text or of bytes in UTF-8. Raises UserError for what is no text."""
    if array.dtype.kind == "U" and array.size:
        codes = np.frombuffer(array.astype(array.dtype.newbyteorder("="), copy=False).tobytes(), np.uint32)
        is_text = ((codes < 0xD800) | ((codes > 0xDFFF) & (codes < 0x110000))).all()  # numpy checks none of them
        if not is_text:
            raise UserError(f"{where}: words contain codes that are no characters; fetch it again")
    try:
        return [word.decode() if isinstance(word, bytes) else str(word) for word in array.flat]
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: words are not in UTF-8; save them as text") from error


def _number_words(labels: dict[str, Array], where: str) -> tuple[dict[str, Array], list[str]]:
    """Labels that are words as numbers, and the words in the order of these numbers."""
    words = {split: _read_words(array, where) for split, array in labels.items()}
    names = sort_class_names(set().union(*words.values()))
    number = {name: label for label, name in enumerate(names)}
    numbers = {split: np.array([number[word] for word in part], np.int64) for split, part in words.items()}
    return {split: array.reshape(labels[split].shape) for split, array in numbers.items()}, names


def recognises(folder: Folder) -> bool:
    """Whether arrays lie in a folder; beside class folders of pictures only where they are images with labels."""
    if not _array_files(folder) or not has_class_folders(folder):
        return bool(_array_files(folder))
    try:
        return bool(_find_arrays(folder))
    except UserError:
        return False


READER = Reader("an .npz file", recognises, read_npz)
