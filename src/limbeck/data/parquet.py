"""Reader of images in parquet files, as the Hugging Face library writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.core.errors import UserError
from limbeck.data.cache import announce_decoding
from limbeck.data.images import SPLITS, Array, RawData, Size
from limbeck.data.pictures import Picture, decode_picture, stack_pictures

IMAGE_COLUMNS = ("img", "image", "images", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")


def parquet_files(path: Path) -> list[Path]:
    """The parquet files of a source, in order: the file itself, or those of a folder, which may be none."""
    if not path.is_dir():
        return [path] if path.suffix == ".parquet" else []
    return sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet"))


def read_parquet(source: Any, size: Size | None) -> RawData:
    """Read all splits of a parquet file or a folder of them. A file that is named itself is all train.

    size: (h, w) to which images are resized. Raises UserError for files that cannot be read as labelled images.
    """
    path = Path(source)
    files = parquet_files(path)
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise UserError(f"{path}: parquet files in several folders; give one of {', '.join(folders)}")
    pictures: dict[str, list[Picture]] = {}
    labels: dict[str, list[Array]] = {}
    names: list[str] | None = None
    notes = [] if folders[0] in (str(path), str(path.parent)) else [f"read from the folder {Path(folders[0]).name}"]
    for file in files:
        match = re.match(r"[a-z]+", file.name)
        split = "train" if file == path else SPLITS.get(match[0] if match else "")
        if split is None:
            notes.append(f"{file.name} was left out: not named train-, validation- or test-")
            continue
        rows, targets, classes, column = _rows(file, size)
        names = names or classes
        pictures.setdefault(split, []).extend(rows)
        labels.setdefault(split, []).append(targets)
        notes += [f"labels are the column {column}"] if column not in ("label", "labels") else []
    if not pictures.get("train"):
        raise UserError(f"{path}: no rows to train on; name a parquet file with rows train-*.parquet")
    images, remarks = stack_pictures({split: rows for split, rows in pictures.items() if rows})
    targets_of = {split: np.concatenate(labels[split]) for split in images}
    name = path.resolve().name.removesuffix(".parquet")
    return RawData(name, images, targets_of, names, (*dict.fromkeys(notes), *remarks))


def _rows(file: Path, size: Size | None) -> tuple[list[Picture], Array, list[str] | None, str]:
    """Pictures, labels, class names and the name of the label column of one file, read a thousand rows at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{file}: reading parquet needs pyarrow; run pip install 'limbeck[hf]'") from error
    pictures: list[Picture] = []
    labels: list[Array] = [np.empty(0, np.int64)]
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            image, label = _columns(file, schema, pa.types)
            announce_decoding(table.metadata.num_rows, file)
            for batch in table.iter_batches(1000, columns=[image, label]):
                cells = batch.column(image)
                cells = cells.field("bytes") if pa.types.is_struct(cells.type) else cells
                if cells.null_count or batch.column(label).null_count:
                    raise UserError(f"{file}: empty cells in {image} (its bytes) or {label}; give every row both")
                labels.append(batch.column(label).to_numpy())
                start = len(pictures)
                pictures += [
                    decode_picture(b, f"{file} row {start + i}", size) for i, b in enumerate(cells.to_pylist())
                ]
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: not a readable parquet file ({reason}); fetch it again") from error
    return pictures, np.concatenate(labels), _names(schema, label), label


def _columns(file: Path, schema: Any, types: Any) -> tuple[str, str]:
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
        raise UserError(f"{file}: no {kind} column ({', '.join(usual)}) among {columns}; rename the one that is meant")
    return image, label


def _names(schema: Any, label: str) -> list[str] | None:
    """Class names from the metadata that the Hugging Face library writes; None where there are none."""
    try:
        return list(map(str, json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
