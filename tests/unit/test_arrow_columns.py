"""Columns of parquet and Arrow tables: images, labels and splits of all types, and class names of several files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from arrow_files import table, write
from image_files import colour, encode_png, grey, planes, refuses, save_picture
from PIL import Image

from limbeck.data import ImageData, load_data


def test_other_columns_raw_bytes_and_a_single_file(tmp_path: Path) -> None:
    arrow_table = table(20, "scan", "fine_label", raw=True).append_column("coarse_label", [[0] * 20])
    pq.write_table(arrow_table, tmp_path / "mine.parquet")
    data = load_data(tmp_path / "mine.parquet", resize=4, name="yours")
    assert (data.name, data.shape, data.classes) == ("yours", (3, 4, 4), ("0", "1"))
    assert "labels are the column fine_label" in data.notes


def read_all(folder: Path) -> ImageData:
    """The data of a train.parquet, whose rows are the test rows, too."""
    (folder / "test.parquet").write_bytes((folder / "train.parquet").read_bytes())
    return load_data(folder, validation=0)


ENCODED = [encode_png(pixels) for pixels in colour(6)]
SAME_SIZE = [cell.ljust(max(map(len, ENCODED)), b"\0") for cell in ENCODED]  # PNG decoders ignore what follows the end


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(ENCODED, pa.large_binary()),
        pa.array(ENCODED, pa.binary_view()),
        pa.array(ENCODED).dictionary_encode(),
        pa.array(SAME_SIZE, pa.binary(len(SAME_SIZE[0]))),
        pa.array([{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(ENCODED)]),
        pa.array([("x", cell) for cell in ENCODED], pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})),
        pa.array(colour(6).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        pa.array(colour(6).tolist(), pa.list_(pa.large_list(pa.list_(pa.uint8(), 3)), 6)),
        pa.array(planes(colour(6)).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        pa.array(colour(6).tolist()),  # int64
    ],
    ids=lambda cells: str(cells.type)[:40],
)  # fmt: skip
def test_images_are_read_from_columns_of_all_types(tmp_path: Path, cells: Any) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 3, cells)
    assert np.array_equal(read_all(tmp_path).test.images.numpy(), planes(colour(6)))


@pytest.mark.parametrize("side", [1, 5])
def test_flat_lists_are_grey_squares(tmp_path: Path, side: int) -> None:
    pixels = grey(6, side, side)
    write(tmp_path / "train.parquet", [0, 1] * 3, pa.array(pixels.reshape(6, -1).tolist(), pa.list_(pa.uint8())))
    assert np.array_equal(read_all(tmp_path).test.images.numpy(), pixels[:, None])


def test_tensors_of_a_fixed_shape_are_read(tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(colour(6))
    write(tmp_path / "train.parquet", [0, 1] * 3, tensors)
    assert np.array_equal(read_all(tmp_path).test.images.numpy(), planes(colour(6)))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        (pa.array(["dog", "cat", "dog"]).dictionary_encode(), ("cat", "dog"), [1, 0, 1]),
        (pa.array(["dog", "cat", "dog"], pa.large_string()), ("cat", "dog"), [1, 0, 1]),
        (pa.array(["dog", "cat", "dog"], pa.string_view()), ("cat", "dog"), [1, 0, 1]),
        (pa.array([7, 3, 7]).dictionary_encode(), ("3", "7"), [1, 0, 1]),
        (pa.array([7, 3, 7], pa.uint8()), ("3", "7"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([[1], [0], [1]], ("0", "1"), [1, 0, 1]),
        ([["dog"], ["cat"], ["dog"]], ("cat", "dog"), [1, 0, 1]),
        (pa.array([[1], [0], [1]], pa.list_(pa.int32(), 1)), ("0", "1"), [1, 0, 1]),
    ],
    ids=str,
)
def test_labels_are_numbers_words_or_truth_values(tmp_path: Path, labels: Any, classes: Any, numbers: Any) -> None:
    write(tmp_path / "train.parquet", labels)
    data = read_all(tmp_path)
    assert data.classes == classes
    assert data.test.labels.tolist() == numbers


@pytest.mark.parametrize("shards", [1, 2])
def test_class_names_of_every_file_are_matched_by_name(tmp_path: Path, shards: int) -> None:
    pq.write_table(table(6, names=["cat", "dog"]), tmp_path / "train.parquet")
    for i in range(shards):
        names = ["dog", "cat"] if i == 0 else ["cat", "dog"]
        pq.write_table(table(6, names=names), tmp_path / f"test-{i}.parquet")
    data = load_data(tmp_path, validation=0)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == ([1, 0] * 3 + [0, 1] * 3)[: 6 * shards]
    assert "test-0.parquet orders its classes otherwise: its labels were matched by name" in data.notes


def test_words_are_matched_with_names_and_new_ones_refused(tmp_path: Path) -> None:
    pq.write_table(table(6, names=["dog", "cat"]), tmp_path / "train.parquet")
    write(tmp_path / "test.parquet", ["cat", "dog"])
    data = load_data(tmp_path, validation=0)
    assert (data.classes, data.test.labels.tolist()) == (("dog", "cat"), [1, 0])
    write(tmp_path / "test.parquet", ["cat", "eel"])
    refuses(tmp_path, "class eel is in test and not in train")
    write(tmp_path / "test.parquet", [0, 1])
    assert load_data(tmp_path, validation=0).test.labels.tolist() == [0, 1]
    write(tmp_path / "validation.parquet", ["cat", "dog"])
    refuses(tmp_path, "labels are numbers without names in test.parquet")
    pq.write_table(table(6, names=["cat", "dog"]), tmp_path / "validation.parquet")
    refuses(tmp_path, "labels are numbers without names in test.parquet")
    pq.write_table(table(6, names=["cat", "cat"]), tmp_path / "train.parquet")
    refuses(tmp_path, "train.parquet: 2 classes are called 'cat'")


def test_labels_that_are_texts_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["cat", "x" * 100_000])
    assert len(refuses(tmp_path, "train.parquet: a label of 100,000 characters ('xxxxx")) < 300 + len(str(tmp_path))


def test_a_named_class_without_images_is_left_out_and_said(tmp_path: Path) -> None:
    pq.write_table(table(names=["cat", "dog", "eel"]), tmp_path / "train-0.parquet")
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "classes without images were left out: eel" in data.notes


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_split_whose_labels_are_hidden_is_left_out_and_said(tmp_path: Path, hidden: int | None) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 5)
    write(tmp_path / "validation.parquet", [0, 1])
    write(tmp_path / "test.parquet", pa.array([hidden] * 4, pa.int64()))
    data = load_data(tmp_path)
    assert len(data.train) + len(data.test) == 10
    assert "test was left out: it has no labels" in data.notes
    write(tmp_path / "test.parquet", [0, hidden, 1])
    refuses(tmp_path, "test.parquet row 1: no label (empty or negative)")


def test_a_column_of_splits_divides_a_file(tmp_path: Path) -> None:
    splits = ["train", "test", "train", "val", "extra", None, "test"]
    path = write(tmp_path / "all.parquet", [0, 0, 1, 1, 0, 1, 1], split=splits)
    data = load_data(path)
    images = planes(colour(7))
    for part, rows in ((data.train, [0, 2]), (data.test, [1, 6]), (data.validation, [3])):
        assert np.array_equal(part.images.numpy(), images[rows])
    assert data.test.labels.tolist() == [0, 1]
    assert "2 rows were left out: that column does not say train, validation or test there" in data.notes
    for split, shard in (("train", 0), ("test", 1)):
        write(tmp_path / "shards" / f"{shard}.parquet", [0, 1], split=[split] * 2)
    assert len(load_data(tmp_path / "shards", validation=0).test) == 2
    write(tmp_path / "topics.parquet", [0, 1] * 5, split=["odd", "even"] * 5)
    assert len(load_data(tmp_path / "topics.parquet", validation=0).train) == 8


def test_image_cells_may_name_files_below_the_folder(tmp_path: Path) -> None:
    for i, pixels in enumerate(colour(6)):
        save_picture(tmp_path / "set" / "pictures" / f"{i}.png", pixels)
    paths = [f"pictures/{i}.png" for i in range(6)]
    for cells in (paths, [{"bytes": None, "path": path} for path in paths], pa.array(paths).dictionary_encode()):
        write(tmp_path / "set" / "train.parquet", [0, 1] * 3, cells)
        assert np.array_equal(read_all(tmp_path / "set").test.images.numpy(), planes(colour(6)))
    write(tmp_path / "set" / "train.parquet", [0, 1] * 3, paths, "file_name")
    read_all(tmp_path / "set")
    save_picture(tmp_path / "set" / "pictures" / "0.png", grey(1)[0])  # the cache sees it
    assert torch.unique(read_all(tmp_path / "set").test.images[0], dim=0).shape[0] == 1
    (tmp_path / "set" / "test.parquet").unlink()
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "C:\\secret.png", "https://example.org/a.png"):
        save_picture(tmp_path / "secret.png", grey(1)[0])
        write(tmp_path / "set" / "train.parquet", [0, 1], [paths[0], outside])
        refuses(tmp_path / "set", "train.parquet row 1", "leads out of the data folder")
    write(tmp_path / "set" / "train.parquet", [0, 1], [paths[0], "pictures/9.png"])
    refuses(tmp_path / "set", "row 1: names the file 'pictures/9.png'", "not in the data folder")


def test_a_png_of_the_helper_is_what_it_encodes() -> None:
    assert np.array_equal(np.asarray(Image.open(BytesIO(SAME_SIZE[0]))), colour(6)[0])
