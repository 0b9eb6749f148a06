"""Columns of tables: their usual names, and labels of several tables as the numbers of one list of class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.text import quote
from limbeck.data.images import Array
from limbeck.data.splits import sort_class_names, split_of
from limbeck.data.tree import File, Folder

LABEL_COLUMNS = (
    "fine_label", "target", "targets", "class", "classes", "class_name", "classname", "category", "cls", "y", "species",
    "breed", "diagnosis", "dx", "class_id",
)  # fmt: skip
MAX_NAME = 200  # characters of a class name
FIRST_LABEL_COLUMNS = ("label", "labels")  # these win over the other names
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data_set", "data_split", "dataset", "phase", "usage")


def plain_name(column: str) -> str:
    """The name of a column in lower case, with _ between its words.

    >>> plain_name("Image ID"), plain_name("className")
    ('image_id', 'class_name')
    """
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower()).strip("_")


def usual_columns(columns: Iterable[str], usual: Iterable[str]) -> list[str]:
    """Those columns that have a usual name."""
    names = set(usual)
    return [column for column in columns if plain_name(column) in names]


def label_columns(columns: Sequence[str]) -> list[str]:
    """The columns with a usual name for labels: those of the first kind where there are some."""
    return usual_columns(columns, FIRST_LABEL_COLUMNS) or usual_columns(columns, LABEL_COLUMNS)


class Labels(NamedTuple):
    """The labels of the rows of one table, or of those of one split.

    codes:    int64 (n,); -1 where a cell is empty.
    names:    class names indexed by code; None where the labels are plain numbers.
    is_words: whether the cells are the names themselves, so that the codes are ours.
    where:    the table, for messages.
    rows:     int64 (n,): the number of each row in its file.
    """

    codes: Array
    names: list[str] | None
    is_words: bool
    where: str
    rows: Array

    def subset(self, mask: Array) -> Labels:
        """The labels of the rows where the mask bool (n,) is true."""
        return self._replace(codes=self.codes[mask], rows=self.rows[mask])


class JointLabels(NamedTuple):
    """Labels of all tables by split, the class names that they count or None, and notes."""

    by_split: dict[str, Array]
    names: list[str] | None
    notes: list[str]


def join_labels(parts: Mapping[str, Sequence[Labels]], where: str) -> JointLabels:
    """The labels of every split as numbers of one list of class names.

    parts: the labels of all tables of a split, in order.

    The names are those of the first table that counts them, train first; words are sorted by `sort_class_names`.
    A split other than train whose labels are all missing is left out. Raises UserError for a label that is missing, for
    one without a name, for names given twice, and for numbers without names beside words.
    """
    hidden = [split for split in parts if split != "train" and all((part.codes < 0).all() for part in parts[split])]
    notes = [f"{split} was left out: it has no labels" for split in hidden]
    parts = {split: parts[split] for split in sorted(parts, key="train".__ne__) if split not in hidden}
    tables = [part for split in parts.values() for part in split]
    for part in tables:
        if len(part.codes) and part.codes.min() < 0:
            row = part.rows[np.argmin(part.codes)]
            raise UserError(f"{part.where} row {row}: no label (empty or negative); give every row one, or remove it")
    names = _class_names(tables)
    if names is None:
        return JointLabels({split: _concatenate([part.codes for part in parts[split]]) for split in parts}, None, notes)
    lists = {None if part.is_words else tuple(part.names) for part in tables if part.names is not None}
    for part in tables:
        if part.names is None and (None in lists or len(lists) > 1):
            raise UserError(
                f"{where}: labels are numbers without names in {part.where}, and others name their classes in words or "
                "in several orders; give all of them names"
            )
        if part.names is None:
            notes.append(f"{part.where} does not name its classes: its numbers were taken for those of the others")
        elif not part.is_words and part.names != names[: len(part.names)]:
            notes.append(f"{part.where} orders its classes otherwise: its labels were matched by name")
    position = {name: number for number, name in enumerate(names)}
    labels = {split: _concatenate([_renumber(part, position) for part in parts[split]]) for split in parts}
    return JointLabels(labels, names, notes)


def _concatenate(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _class_names(tables: Sequence[Labels]) -> list[str] | None:
    counted = [name for part in tables if not part.is_words for name in part.names or ()]
    words = sort_class_names({name for part in tables if part.is_words for name in part.names or ()})
    for part in tables:
        for name, count in Counter(part.names or ()).items():
            if len(name) > MAX_NAME:
                raise UserError(
                    f"{part.where}: a label of {len(name):,} characters ({name[:20]!r}...); give class names"
                )
            if count > 1:
                raise UserError(f"{part.where}: {count} classes are called {quote(name)}; give each a name of its own")
    return list(dict.fromkeys([*counted, *words])) or None


def _renumber(part: Labels, position: Mapping[str, int]) -> Array:
    """The codes of one table as positions of its names."""
    if part.names is None:
        return part.codes
    if len(part.codes) and part.codes.max() >= len(part.names):
        names = f"{len(part.names)} class names"
        raise UserError(f"{part.where}: label {part.codes.max()} has no name among the {names}; add one")
    return np.array([position[name] for name in part.names], np.int64)[part.codes]


def split_words(cells: Sequence[str]) -> dict[str, str]:
    """The split that each distinct cell of a column means; empty unless one of them means train."""
    splits = {cell: split for cell in dict.fromkeys(cells) if (split := split_of(cell))}
    return splits if "train" in splits.values() else {}


def find_file(folders: Sequence[Folder], path: str, where: str) -> File:
    """The file that a cell names, from the first of these folders in which it is.

    Raises UserError for a path that leads out of the folder, and where there is no such file.
    """
    shown = repr(path if len(path) <= 80 else f"...{path[-77:]}")
    if leads_out(path):
        raise UserError(f"{where}: the path {shown} leads out of the data folder; give paths below it")
    file = next((file for folder in folders if (file := folder.find(path))), None)
    if file is None:
        raise UserError(f"{where}: names the file {shown}, which is not in the data folder; give the folder with both")
    return file


def leads_out(path: str) -> bool:
    """Whether a path is absolute, an address, or leads above its folder."""
    parts = path.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or bool(re.match(r"[A-Za-z]:[/\\]|[A-Za-z]+://", path))
