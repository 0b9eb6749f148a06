"""Tables of labelled images as parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_files import colour, encode_png


def table(n: int = 20, column: str = "img", label: str = "label", raw: bool = False, names: Any = None) -> pa.Table:
    cells = [encode_png(pixels) if raw else {"bytes": encode_png(pixels), "path": None} for pixels in colour(n)]
    return with_names(pa.table({column: cells, label: [i % 2 for i in range(n)]}), column, label, names)


def with_names(arrow_table: pa.Table, column: str, label: str, names: Any) -> pa.Table:
    """The table with class names in the metadata, as the Hugging Face library writes them."""
    if not names:
        return arrow_table
    features = {column: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    return arrow_table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, labels: Any, images: Any = None, column: str = "image", **columns: Any) -> Path:
    """Write a parquet file of labelled images, colour(n) by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = [encode_png(pixels) for pixels in colour(len(labels))]
    pq.write_table(pa.table({column: images, "label": labels, **columns}), path)
    return path
