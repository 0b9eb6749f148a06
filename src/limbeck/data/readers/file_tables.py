"""Reader of tables of file names and labels (.csv, .tsv, .jsonl) beside the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.decoding import decode_splits
from limbeck.data.images import RawData, ReadOptions
from limbeck.data.pictures import Encoded
from limbeck.data.readers import class_folders
from limbeck.data.readers.columns import Labels, join_labels, leads_out, split_words
from limbeck.data.readers.picture_index import PictureIndex, has_class_folders
from limbeck.data.readers.reader import Reader
from limbeck.data.readers.table_columns import FLAGS, Columns, choose_columns, counts_rows
from limbeck.data.readers.table_files import TableFile, describe_left_out, find_tables, holds_tables, list_names
from limbeck.data.readers.text_rows import SUFFIXES, TextRows, open_rows
from limbeck.data.splits import name_parts, split_of, split_with_prefix
from limbeck.data.tree import File, Folder, relative_paths


@dataclass(frozen=True, eq=False)
class FileTable:
    """A table of files and labels. The files lie in or below the folder of the table."""

    text: TextRows
    columns: Columns
    index: PictureIndex

    @property
    def label_names(self) -> list[str]:
        """The names of the label columns."""
        return [self.text.columns[i] for i in self.columns.labels]

    @property
    def other_names(self) -> list[str]:
        """The names of the columns that are not read, but for those that count the rows."""
        read = {self.columns.file, self.columns.split, *self.columns.labels}
        return [name for i, name in enumerate(self.text.columns) if i not in read and not counts_rows(name)]

    def with_labels_of(self, other: FileTable) -> FileTable:
        """The table with the label columns of another one, where it has columns of these names; else unchanged."""
        if not set(other.label_names) <= set(self.text.columns):
            return self
        labels = [self.text.columns.index(name) for name in other.label_names]
        return replace(self, columns=self.columns._replace(labels=labels, is_sure=other.columns.is_sure))


class Row(NamedTuple):
    """An image that a table names.

    path: below the folder of the table. label: a word. split: the cell of the column of splits, or "".
    line: number of the line in the table.
    """

    path: str
    label: str
    split: str
    line: int


Rows = list[tuple[FileTable, list[Row]]]


def _table_files(folder: Folder) -> dict[str, File]:
    return {name: file for name, file in folder.files.items() if name.lower().endswith(SUFFIXES)}


class _Tables:
    """The tables below a folder that name images, each opened once. only: the name of the only one that counts."""

    def __init__(self, only: str | None = None) -> None:
        self.only = only
        self.opened: dict[str, FileTable | None] = {}
        self.left_out: dict[str, list[str]] = defaultdict(list)  # names of tables by reason

    def find(self, folder: Folder) -> dict[str, FileTable]:
        """The tables that lie directly in a folder, by name. Raises UserError for one with unclear columns."""
        files = {name: file for name, file in _table_files(folder).items() if self.only in (None, name)}
        if not all(file.where in self.opened for file in files.values()):
            index = PictureIndex(folder)
            self.opened |= {file.where: self._open(folder, name, index) for name, file in files.items()}
        return {name: table for name, file in files.items() if (table := self.opened[file.where])}

    def _open(self, folder: Folder, name: str, index: PictureIndex) -> FileTable | None:
        file = folder.files[name]
        if "submission" in name_parts(name) and self.only is None:
            self.left_out["the sample of a submission"].append(name)
            return None
        try:
            text = open_rows(file)
        except UserError:
            if self.only:
                raise
            self.left_out["not readable as a table"].append(name)
            return None
        if any(map(index.is_named, text.columns)):
            if len(text.columns) != 2:
                raise UserError(f"{file.where}: its first line names an image; add one above with names of the columns")
            text = text.without_header(["file", "label"])
        is_bare = not has_class_folders(folder) and bool(index.count_pictures() or not folder.folders)
        columns = choose_columns(text, index, is_bare or self.only is not None)
        if columns is None:
            self.left_out["no column names images that are here"].append(name)
            return None
        if columns.has_probabilities:
            if self.only or not class_folders.recognises(folder):
                raise UserError(
                    f"{file.where}: its columns are probabilities of classes; add a column label with the class of "
                    "each image"
                )
            self.left_out["its columns are probabilities of classes"].append(name)
            return None
        return FileTable(text, columns, index)

    def select(self, folder: Folder) -> dict[str, File]:
        """Those of the tables that have labels, as files."""
        return {name: table.text.file for name, table in self.find(folder).items() if table.columns.labels}

    def __getitem__(self, source: TableFile) -> FileTable:
        table = self.opened[source.file.where]
        assert table is not None
        return table


def recognises(folder: Folder) -> bool:
    """Whether a table in a folder, or in one below it that is called train, names images beside or below itself."""
    tables = _Tables()
    try:
        is_here = holds_tables(
            folder, lambda part: {name: table.text.file for name, table in tables.find(part).items()}
        )
        has_labels = any(table and table.columns.labels for table in tables.opened.values())
        return is_here and (has_labels or not has_class_folders(folder))
    except UserError:  # unclear columns: reading says so
        return not has_class_folders(folder)


def read_file_tables(folder: Folder, options: ReadOptions, only: str | None = None) -> RawData:
    """Read the images that the tables of a folder name, with their labels.

    only: the name of the table that was asked for. None: all tables; then class folders are read instead where a table
          only names some of their images, or has no column that is called as labels are.
    Raises UserError for tables without a clear column of files or labels, and for files that are missing.
    """
    tables = _Tables(only)
    if only and not tables.find(folder):
        shown = list_names(open_rows(folder.files[only]).columns, 8)
        raise UserError(f"{folder.files[only].where}: none of its columns ({shown}) names images beside or below it")
    files, notes = find_tables(folder, tables.select)
    train = [tables[source] for source in files.get("train", [])]
    if only is None and has_class_folders(folder) and not (train and all(map(_is_of_all, train))):
        raw = class_folders.read_class_folders(folder, options)
        names = [PurePosixPath(table.text.file.where).name for table in tables.opened.values() if table]
        note = f"{list_names(names)}: names images and was left out, since the class folders hold more or are clearer"
        return raw._replace(notes=(*raw.notes, note))
    for table in tables.opened.values():
        if table and not table.columns.labels and not train:
            shown = list_names(table.text.columns, 8)
            raise UserError(f"{table.text.file.where}: which column has the labels is unclear ({shown}); call it label")
        if table and not table.columns.labels:
            tables.left_out["no column of labels"].append(PurePosixPath(table.text.file.where).name)
    if not train:
        raise UserError(f"{folder.where}: no table of images to train on; call one train.csv, or name the one to read")
    _refuse_several(folder, files["train"])
    by_split: dict[str, Rows] = {}
    for split, sources in files.items():
        for source in sources:
            table = tables[source].with_labels_of(train[0])
            if sorted(table.label_names) != sorted(train[0].label_names):
                tables.left_out[f"no column {list_names(train[0].label_names)}"].append(source.path)
                continue
            by_split.setdefault(split, []).append((table, _read_rows(table, split, notes)))
            images = table.text.columns[table.columns.file]
            notes.append(f"{source.path}: images are the column {images}, labels {list_names(table.label_names)}")
            if others := table.other_names:
                notes.append(f"{source.path}: columns left out are {list_names(others)}")
    by_split, split_notes = _divide(by_split, files["train"][0].path)
    by_split, repeated_notes = _keep_once(by_split)
    left_out = [note for reason, names in tables.left_out.items() for note in describe_left_out(names, reason)]
    return _decode(folder, by_split, options, [*left_out, *notes, *split_notes, *repeated_notes])


def _is_of_all(table: FileTable) -> bool:
    """Whether a table has a label column of a usual name, and names most images of the folders in which its are."""
    named = {path for _, cells in table.text.rows() for path in table.index.find(cells[table.columns.file])[:1]}
    return table.columns.is_sure and table.index.coverage(named) >= 0.5


def _refuse_several(folder: Folder, sources: Sequence[TableFile]) -> None:
    """Raise UserError for several tables that are train only because no name says otherwise."""
    if len(sources) > 1 and not any("/" in source.path or split_with_prefix(source.path) for source in sources):
        shown = list_names([source.path for source in sources])
        raise UserError(f"{folder.where}: several tables name images, {shown}; give the path of the one that is meant")


def _read_rows(table: FileTable, split: str, notes: list[str]) -> list[Row]:
    """The rows of a table, each image once.

    Raises UserError for paths that lead out of the folder, for images that are missing or not the only ones of a name,
    for images with two labels, and for labels without a usual name that differ in every row.
    """
    where, columns = table.text.file.where, table.columns
    rows: dict[str, Row] = {}
    missing = []
    repeated = 0
    for line, cells in table.text.rows():
        name = cells[columns.file].strip()
        shown = repr(name if len(name) <= 60 else f"...{name[-57:]}")
        if not name or leads_out(name):
            raise UserError(f"{where} line {line}: the path {shown} is not one below the folder; give such a path")
        own = cells[columns.split].strip() if columns.split is not None else ""
        paths = table.index.find(name, split_of(own) or split)
        if len(paths) > 1:
            raise UserError(
                f"{where} line {line}: {shown} may be {list_names(paths, 2)}; give the path below the folder"
            )
        if not paths:
            missing.append(shown)
            continue
        row = Row(paths[0], _label(table, cells, line), own, line)
        first = rows.setdefault(row.path, row)
        if first.label != row.label:
            raise UserError(f"{where} lines {first.line} and {line}: {shown} has two labels; keep one")
        repeated += first is not row
    if missing:
        total = len(missing) + len(rows) + repeated
        raise UserError(
            f"{where}: {len(missing)} of {total} images that it names are missing, first {missing[0]}; add them, or "
            "remove their lines"
        )
    is_only = len(columns.labels) == 1 and not columns.is_sure
    if is_only and len(rows) > 1 and len({row.label for row in rows.values()}) == len(rows):
        raise UserError(
            f"{where}: the column {table.label_names[0]} differs in every row; call that of the labels label"
        )
    notes += [f"{repeated} lines were left out: they name an image again, with the same label"] if repeated else []
    return list(rows.values())


def _label(table: FileTable, cells: Sequence[str], line: int) -> str:
    """The label of a row: the cell, or the name of the only column that is 1."""
    labels = table.columns.labels
    if len(labels) == 1:
        return cells[labels[0]].strip()
    flags = [cells[i].strip() for i in labels]
    ones = [i for i, flag in zip(labels, flags, strict=True) if flag in ("1", "1.0")]
    if len(ones) != 1 or not set(flags) <= set(FLAGS):
        raise UserError(
            f"{table.text.file.where} line {line}: {len(ones)} of the columns {list_names(table.label_names)} are 1; "
            "give each image one class"
        )
    return table.text.columns[ones[0]]


def _divide(by_split: Mapping[str, Rows], path: str) -> tuple[dict[str, Rows], list[str]]:
    """Rows by the split that their column of splits says, else that of their table, else their folders; and notes.

    path: of the first table of train.
    """
    every = [row for tables in by_split.values() for _, rows in tables for row in rows]
    cells = split_words(list(dict.fromkeys(row.split for row in every)))
    is_named = len(by_split) > 1 or "/" in path or split_with_prefix(path) is not None
    folders = {} if cells or is_named else _folder_splits(every)
    if not (cells or folders):
        return dict(by_split), []
    meaning = {row.path: cells.get(row.split, "") if cells else folders[row.path] for row in every}
    divided: dict[str, Rows] = {}
    for tables in by_split.values():
        for table, rows in tables:
            for split in dict.fromkeys(meaning[row.path] for row in rows):
                divided.setdefault(split, []).append((table, [row for row in rows if meaning[row.path] == split]))
    left_out = sum(len(rows) for _, rows in divided.pop("", []))
    notes = [f"splits are those of {'a column of the table' if cells else 'the folders of the images'}"]
    notes += [f"{left_out} rows were left out: their split is not train, validation or test"] if left_out else []
    return divided, notes


def _keep_once(by_split: Mapping[str, Rows]) -> tuple[dict[str, Rows], list[str]]:
    """The rows by split, each image once, and a note. Raises UserError for an image of two labels in two tables."""
    labels: dict[str, str] = {}
    unique: dict[str, Rows] = {}
    repeated = 0
    for split, tables in by_split.items():
        paths: set[str] = set()
        for table, rows in tables:
            by_path = {table.index.files[row.path].where: row for row in rows}
            for path, row in by_path.items():
                if labels.setdefault(path, row.label) != row.label:
                    raise UserError(f"{path}: has two labels, {labels[path][:40]} and {row.label[:40]}; keep one")
            unique.setdefault(split, []).append((table, [row for path, row in by_path.items() if path not in paths]))
            repeated += len(paths & by_path.keys())
            paths |= by_path.keys()
    return unique, [f"{repeated} rows were left out: a table before names the image"] if repeated else []


def _folder_splits(rows: Sequence[Row]) -> dict[str, str]:
    """The split of each path, where all lie in folders that are called as splits, and some in train; else empty."""
    splits = {row.path: next(filter(None, map(split_of, row.path.split("/")[:-1])), "") for row in rows}
    return splits if "" not in splits.values() and {"train"} < set(splits.values()) else {}


def _decode(folder: Folder, by_split: Mapping[str, Rows], options: ReadOptions, notes: list[str]) -> RawData:
    """The images of all rows. Raises UserError where there are none to train on, and for labels that are missing."""
    labels = {split: [_labels(table, rows) for table, rows in parts] for split, parts in by_split.items()}
    joint = join_labels(labels, folder.where)
    if not len(joint.by_split.get("train", ())):
        raise UserError(f"{folder.where}: the tables name no images to train on; give rows of train")
    files = {
        split: [table.index.files[row.path] for table, rows in by_split[split] for row in rows]
        for split in joint.by_split
    }
    splits = {split: (len(part), (Encoded(file, file.where) for file in part)) for split, part in files.items()}
    images, remarks = decode_splits(splits, options, folder.where)
    count = sum(map(len, files.values()))
    named = {file.where for part in files.values() for file in part}
    if len(named) < count:
        notes.append(f"{count - len(named)} images are in more than one split")
    if others := PictureIndex(folder).count_pictures() - len(named):
        notes.append(f"{others} images were left out: no row with a label names them")
    targets = {split: joint.by_split[split] for split in images}
    paths = {split: relative_paths(folder, files[split]) for split in images}
    return RawData(folder.name, images, targets, joint.names, (*notes, *joint.notes, *remarks), paths)


def _labels(table: FileTable, rows: Sequence[Row]) -> Labels:
    words: dict[str, int] = {}
    codes = [words.setdefault(row.label, len(words)) if row.label else -1 for row in rows]
    lines = np.array([row.line for row in rows], np.int64)
    return Labels(np.array(codes, np.int64), list(words), True, table.text.file.where, lines)


READER = Reader(
    "a .csv, .tsv or .jsonl of file names and labels beside the images", recognises, read_file_tables, decodes=True
)


def reader_of_table(name: str) -> Reader:
    """The reader of one table of a folder, which was asked for by its path."""
    return READER._replace(read=partial(read_file_tables, only=name))
