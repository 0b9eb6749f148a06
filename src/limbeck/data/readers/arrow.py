"""Reader of Arrow files, as the Hugging Face library saves them, and what it shares with that of parquet files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.decoding import decode_splits
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.pictures import Encoded, as_encoded
from limbeck.data.readers.arrow_columns import (
    cell_contents,
    choose_columns,
    class_names,
    holds_words,
    is_text,
    label_codes,
    stack_pixels,
    word_codes,
)
from limbeck.data.readers.columns import (
    FIRST_LABEL_COLUMNS,
    SPLIT_COLUMNS,
    Labels,
    find_file,
    join_labels,
    split_words,
    usual_columns,
)
from limbeck.data.readers.reader import Reader
from limbeck.data.readers.table_files import Select, TableFile, find_tables, holds_tables
from limbeck.data.tree import File, Folder

MAX_ROWS = 1 << 26  # of one file
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream; its second half alone in the format before Arrow 0.15
LABEL_ROWS, IMAGE_ROWS = 1 << 16, 64  # that are read at once

Batches = Callable[[Sequence[str], int], Iterable[Any]]
"""(columns, rows at once) -> record batches."""


class Format(NamedTuple):
    """A format of tables of columns.

    name:   for messages.
    select: the files of this format in a folder.
    open:   file -> (its pyarrow schema, a function that reads batches), as a context.
    """

    name: str
    select: Select
    open: Callable[[File], AbstractContextManager[tuple[Any, Batches]]]


@dataclass(frozen=True, eq=False)
class Table:
    """A file of rows whose labels are read, and whose images are not.

    format, source: how and where it is read. root: the folder of the data set.
    image, label:   names of columns. labels: of all rows.
    splits:         the cells of the column of splits, as positions in `split_names`; -1 without such a column.
    """

    format: Format
    source: TableFile
    root: Folder
    image: str
    label: str
    labels: Labels
    splits: Array
    split_names: list[str]

    def images(self, mask: Array) -> Iterator[Encoded]:
        """The images of the rows where the mask bool (n,) is true, in order."""
        where, row = self.source.file.where, 0
        with _guard(self.format, self.source.file), self.format.open(self.source.file) as (_, read):
            for batch in read([self.image], IMAGE_ROWS):
                if mask[row : row + len(batch)].any():
                    for number, content in enumerate(cell_contents(batch.column(self.image)), row):
                        if mask[number]:
                            yield self._encode(content, f"{where} row {number}")
                row += len(batch)

    def _encode(self, content: Any, where: str) -> Encoded:
        if content is None:
            raise UserError(f"{where}: no image in the column {self.image}; give every row one, or remove the row")
        if isinstance(content, bytes):
            return Encoded(content, where)
        if isinstance(content, str):
            return Encoded(find_file((self.source.folder, self.root), content, where), where)
        return as_encoded(content if isinstance(content, np.ndarray) else stack_pixels(content, where), where)


@contextmanager
def _guard(kind: Format, file: File) -> Iterator[None]:
    """Raise UserError for whatever pyarrow raises for a damaged file: errors of its own, of values and of memory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = shorten(error, 120)
        raise UserError(f"{file.where}: not a readable {kind.name} file ({reason}); fetch it again") from error


def read_tables(kind: Format, folder: Folder, options: ReadOptions) -> RawData:
    """Read all splits of the files of one format in a folder. Raises UserError for unfit files."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(f"{folder.where}: reading {kind.name} needs pyarrow; run pip install 'limbeck[hf]'") from error
    files, notes = find_tables(folder, kind.select)
    tables = {split: [_open_table(kind, source, folder) for source in sources] for split, sources in files.items()}
    parts = _divide(tables, notes)
    labels = {split: [table.labels.subset(mask) for table, mask in pairs] for split, pairs in parts.items()}
    if not sum(len(part.codes) for part in labels.get("train", [])):
        raise UserError(f"{folder.where}: no rows to train on; name a {kind.name} file with rows train-*")
    joint = join_labels(labels, folder.where)
    splits = {
        split: (len(numbers), (image for table, mask in parts[split] for image in table.images(mask)))
        for split, numbers in joint.by_split.items()
    }
    images, remarks = decode_splits(splits, options, folder.where)
    columns = dict.fromkeys(table.label for pairs in parts.values() for table, _ in pairs)
    notes += [f"labels are the column {column}" for column in columns if column not in FIRST_LABEL_COLUMNS]
    targets = {split: joint.by_split[split] for split in images}
    return RawData(folder.name, images, targets, joint.names, (*notes, *joint.notes, *remarks))


def _divide(tables: dict[str, list[Table]], notes: list[str]) -> dict[str, list[tuple[Table, Array]]]:
    """The tables of every split, each with a mask of its rows: as their column of splits says, else as files are named.

    What that means for users is appended to `notes`.
    """
    names = [name for split in tables.values() for table in split for name in table.split_names]
    meaning = split_words(names)
    parts: dict[str, list[tuple[Table, Array]]] = {}
    moved: dict[str, int] = {}
    for split, table in [(split, table) for split, group in tables.items() for table in group]:
        if not (meaning and table.split_names):
            parts.setdefault(split, []).append((table, np.ones(len(table.splits), bool)))
            continue
        of_row = np.array([*(meaning.get(name, "") for name in table.split_names), ""], object)[table.splits]
        for own in dict.fromkeys(of_row):
            mask = of_row == own
            moved[own] = moved.get(own, 0) + (int(mask.sum()) if own != split else 0)
            if own:
                parts.setdefault(own, []).append((table, mask))
    if any(moved.values()):
        notes.append(f"splits are those that a column of the files says: {', '.join(filter(None, moved))}")
    if moved.get(""):
        notes.append(f"{moved['']} rows were left out: that column does not say train, validation or test there")
    return parts


def _open_table(kind: Format, source: TableFile, root: Folder) -> Table:
    """Choose the columns of a file, and read its labels.

    The number of rows is counted, because damaged and hostile files claim other numbers.
    """
    codes, splits = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    words: dict[str, int] = {}
    split_names: dict[str, int] = {}
    count = 0
    with _guard(kind, source.file), kind.open(source.file) as (schema, read):
        image, label = choose_columns(source.file.where, schema)
        is_words = holds_words(schema.field(label).type)
        split = next(iter(usual_columns([field.name for field in schema if is_text(field.type)], SPLIT_COLUMNS)), None)
        for batch in read([label, split] if split else [label], LABEL_ROWS):
            count += len(batch)
            if count > MAX_ROWS:
                raise UserError(f"{source.file.where}: over {MAX_ROWS:,} rows in one file; divide it")
            codes.append(label_codes(batch.column(label), words if is_words else None, source.file.where))
            splits.append(word_codes(batch.column(split), split_names) if split else np.full(len(batch), -1))
        names = list(words) if is_words else class_names(schema, label)
    labels = Labels(np.concatenate(codes), names, is_words, source.path, np.arange(count))
    return Table(kind, source, root, image, label, labels, np.concatenate(splits), list(split_names))


@contextmanager
def open_arrow(file: File) -> Iterator[tuple[Any, Batches]]:
    """An Arrow file, as a stream (the Hugging Face library) or with an index (Feather). Mapped into memory on disk."""
    import pyarrow as pa

    with (
        file.open() as stream,
        pa.memory_map(str(file.path)) if file.path else pa.BufferReader(stream.read()) as source,
    ):
        is_indexed = file.head(6) == b"ARROW1"
        source.seek(max(0, source.size() - len(END)))
        if not is_indexed and not source.read().endswith(END if file.head(4) == END[:4] else END[4:]):
            raise UserError(f"{file.where}: cut short, or still being written: its end is not marked; copy it again")
        source.seek(0)
        start = pa.ipc.open_file if is_indexed else pa.ipc.open_stream
        schema = start(source).schema

        def read(columns: Sequence[str], rows: int) -> Iterator[Any]:
            source.seek(0)
            options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])
            reader = start(source, options=options)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_indexed else reader
            for batch in batches:
                yield from (batch.slice(first, rows) for first in range(0, len(batch), rows))

        yield schema, read


def saved_files(folder: Folder) -> dict[str, File]:
    """The Arrow files of a folder: those that its state.json lists, else all but those of the library's own cache."""
    files = {name: file for name, file in folder.files.items() if name.lower().endswith((".arrow", ".feather"))}
    files = {name: file for name, file in files.items() if not name.startswith(("cache-", "indices-", "tmp"))}
    if not files or "state.json" not in folder.files:
        return files
    state = folder.files["state.json"]
    try:
        listed = [str(entry["filename"]) for entry in json.loads(state.read(1 << 24))["_data_files"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{state.where}: does not list the files of the data set; save it again") from error
    for name in listed:
        if name not in files:
            raise UserError(f"{state.where}: lists the file {name[:80]!r}, which is missing; copy the folder again")
    return {name: files[name] for name in listed}


ARROW = Format("arrow", saved_files, open_arrow)
READER = Reader(
    "arrow files",
    lambda folder: holds_tables(folder, saved_files),
    partial(read_tables, ARROW),
    decodes=True,
)
