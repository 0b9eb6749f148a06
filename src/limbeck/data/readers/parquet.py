"""Reader of images in parquet files, as the Hugging Face library writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.images import Array, RawData, ReadOptions
from limbeck.data.pictures import Encoded, decode_splits
from limbeck.data.readers.reader import Reader
from limbeck.data.splits import split_of
from limbeck.data.tree import File, Folder

IMAGE_COLUMNS = ("img", "image", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")


def _parquet_files(folder: Folder) -> dict[str, File]:
    """The parquet files of a folder by path: those in it, else those in its folders."""
    files = {path: file for path, file in folder.walk() if path.endswith(".parquet") and path.count("/") < 2}
    return {path: file for path, file in files.items() if "/" not in path} or files


def read_parquet(folder: Folder, options: ReadOptions) -> RawData:
    """Read all splits of a folder of parquet files. A file alone is all train.

    Raises UserError for files that cannot be read as labelled images.
    """
    files = _parquet_files(folder)
    parents = sorted({path.rpartition("/")[0] for path in files})
    if len(parents) > 1:
        raise UserError(f"{folder.where}: parquet files in several folders; give one of {', '.join(parents)}")
    labels: dict[str, list[Array]] = {}
    tables: dict[str, list[_Table]] = {}
    names: dict[str, list[str]] = {}
    notes = [f"read from the folder {parents[0]}"] if parents[0] else []
    for path, file in files.items():
        split = "train" if len(files) == 1 else split_of(path.rpartition("/")[2].split("-")[0].split(".")[0])
        if split is None:
            notes.append(f"{path} was left out: not named train-, validation- or test-")
            continue
        table = _Table.open(file)
        tables.setdefault(split, []).append(table)
        if table.names is not None and names.setdefault(split, table.names) != table.names:
            raise UserError(f"{file.where}: names its classes otherwise than other {split} files; give one list")
        notes += [f"labels are the column {table.label}"] if table.label not in ("label", "labels") else []
    if not sum(table.num_rows for table in tables.get("train", [])):
        raise UserError(f"{folder.where}: no rows to train on; name a parquet file with rows train-*.parquet")
    if names:
        names.setdefault("train", next(iter(names.values())))
    splits = {
        split: (sum(table.num_rows for table in parts), _cells(parts, labels.setdefault(split, [])))
        for split, parts in tables.items()
    }
    images, remarks = decode_splits(splits, options, folder.where)
    targets = {split: np.concatenate(labels[split]) for split in images}
    return RawData(folder.name, images, targets, names or None, (*dict.fromkeys(notes), *remarks))


class _Table(NamedTuple):
    """A parquet file: its image and label columns, number of rows, and class names or None."""

    file: File
    image: str
    label: str
    num_rows: int
    names: list[str] | None

    @classmethod
    def open(cls, file: File) -> _Table:
        pa, pq = _import_pyarrow(file)
        try:
            with file.open() as stream, pq.ParquetFile(stream) as table:
                schema = table.schema_arrow
                image, label = _columns(file.where, schema, pa.types)
                return cls(file, image, label, table.metadata.num_rows, _names(schema, label))
        except pa.ArrowException as error:
            raise _damage(file, error) from error

    def cells(self, labels: list[Array]) -> Iterator[Encoded]:
        """The images, read a thousand rows at a time; their labels are appended to `labels`."""
        pa, pq = _import_pyarrow(self.file)
        row = 0
        try:
            with self.file.open() as stream, pq.ParquetFile(stream) as table:
                for batch in table.iter_batches(1000, columns=[self.image, self.label]):
                    cells = batch.column(self.image)
                    cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
                    if cells.null_count or batch.column(self.label).null_count:
                        columns = f"{self.image} (its bytes) or {self.label}"
                        raise UserError(f"{self.file.where}: empty cells in {columns}; give every row both")
                    labels.append(batch.column(self.label).to_numpy())
                    for content in cells.to_pylist():
                        yield Encoded(content, f"{self.file.where} row {row}")
                        row += 1
        except pa.ArrowException as error:
            raise _damage(self.file, error) from error


def _cells(tables: list[_Table], labels: list[Array]) -> Iterator[Encoded]:
    for table in tables:
        yield from table.cells(labels)


def _import_pyarrow(file: File) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{file.where}: reading parquet needs pyarrow; run pip install 'limbeck[hf]'") from error
    return pa, pq


def _damage(file: File, error: Exception) -> UserError:
    reason = str(error).splitlines()[0][:120]
    return UserError(f"{file.where}: not a readable parquet file ({reason}); fetch it again")


def _columns(where: str, schema: Any, types: Any) -> tuple[str, str]:
    """(image column, label column): a known name of a fitting type, or the only column of images."""

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    fitting = [field.name for field in schema if holds_bytes(field.type)]
    image = next((c for c in IMAGE_COLUMNS if c in fitting), fitting[0] if len(fitting) == 1 else None)
    whole = [field.name for field in schema if types.is_integer(field.type)]
    label = next((c for c in LABEL_COLUMNS if c in whole), None)
    if image is None or label is None:
        kind, usual = ("image", IMAGE_COLUMNS) if image is None else ("integer label", LABEL_COLUMNS)
        columns = ", ".join(schema.names)
        raise UserError(f"{where}: no {kind} column ({', '.join(usual)}) among {columns}; rename the one that is meant")
    return image, label


def _names(schema: Any, label: str) -> list[str] | None:
    """Class names from the metadata that the Hugging Face library writes; None where there are none."""
    try:
        return list(map(str, json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


READER = Reader("parquet files", lambda folder: bool(_parquet_files(folder)), read_parquet, decodes=True)
