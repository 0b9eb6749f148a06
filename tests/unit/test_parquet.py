"""Parquet files as the Hugging Face library writes them."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import colour, refuses
from PIL import Image

from limbeck.data import load_data


def table(n: int = 20, column: str = "img", label: str = "label", raw: bool = False, names: Any = None) -> pa.Table:
    def png(i: int) -> bytes:

        buffer = BytesIO()
        Image.fromarray(colour(n)[i]).save(buffer, "png")
        return buffer.getvalue()

    cells = [png(i) if raw else {"bytes": png(i), "path": None} for i in range(n)]
    arrow_table = pa.table({column: cells, label: [i % 2 for i in range(n)]})
    if names:
        features = {column: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        arrow_table = arrow_table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return arrow_table


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_folders_are_read_in_the_order_of_their_files(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "set" / inside
    folder.mkdir(parents=True)
    whole = table(20, names=["cat", "dog"])
    pq.write_table(whole.slice(0, 13), folder / "train-00000-of-00002.parquet", row_group_size=5)
    pq.write_table(whole.slice(13), folder / "train-00001-of-00002.parquet")
    pq.write_table(whole, folder / "test-00000-of-00001.parquet")
    pq.write_table(whole.slice(0, 4).replace_schema_metadata(None), folder / "validation-00000-of-00001.parquet")
    data = load_data(tmp_path / "set")
    assert data.name == "set"
    assert data.classes == ("cat", "dog")
    assert data.notes == (("read from the folder data",) if inside else ())
    assert np.array_equal(data.train.images.numpy(), colour(20).transpose(0, 3, 1, 2))
    assert torch.equal(data.test.images, data.train.images)
    assert data.validation.labels.tolist() == [0, 1, 0, 1]


def test_other_columns_raw_bytes_and_a_single_file(tmp_path: Path) -> None:
    arrow_table = table(20, "photo", "fine_label", raw=True).append_column("coarse_label", [[0] * 20])
    pq.write_table(arrow_table, tmp_path / "mine.parquet")
    data = load_data(tmp_path / "mine.parquet", resize=4, name="yours")
    assert (data.name, data.shape, data.classes) == ("yours", (3, 4, 4), ("0", "1"))
    assert "labels are the column fine_label" in data.notes


def test_a_named_class_without_images_is_left_out_and_said(tmp_path: Path) -> None:
    pq.write_table(table(names=["cat", "dog", "eel"]), tmp_path / "train-0.parquet")
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "classes without images were left out: eel" in data.notes


def test_parquet_files_that_are_unfit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), file)
    refuses(tmp_path, "no image column", "text, label")
    pq.write_table(table(label="kind"), file)
    refuses(tmp_path, "no integer label column", "img, kind")
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "a.png"}], "label": [0]}), file)
    refuses(tmp_path, "no image column")  # a column of nulls has no bytes at all
    pq.write_table(pa.table({"img": [b"x", None], "label": [0, 1]}), file)
    refuses(tmp_path, "empty cells in img")
    pq.write_table(pa.table({"img": [b"x", b"y"], "label": [0, 1]}), file)
    refuses(tmp_path, "train-0.parquet row 0: not an image")
    pq.write_table(table(names=["cat"]), file)
    refuses(tmp_path, "label 1 has no name among the 1 class names")
    file.write_bytes(file.read_bytes()[:300])
    refuses(tmp_path, "train-0.parquet: not a readable parquet file")
    file.unlink()
    pq.write_table(table(), tmp_path / "stuff.parquet")
    pq.write_table(table(), tmp_path / "more.parquet")
    refuses(tmp_path, "no rows to train on")
    for name in "ab":
        (tmp_path / "many" / name).mkdir(parents=True)
        pq.write_table(table(), tmp_path / "many" / name / "train-0.parquet")
    refuses(tmp_path / "many", "several folders", "a, b")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(), tmp_path / "train-0.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(tmp_path, "pip install 'limbeck[hf]'")
