"""Parquet files: layouts of the Hugging Face hub and others, columns of all types, and what is refused."""

from __future__ import annotations

import json
import struct
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import colour, encode_png, grey, planes, refuses, save_picture

from limbeck.data import ImageData, load_data
from limbeck.data.readers import arrow
from limbeck.data.readers.table_files import cut_number


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


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_folders_are_read_in_the_order_of_their_files(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "set" / inside
    folder.mkdir(parents=True)
    whole = table(20, names=["cat", "dog"])
    pq.write_table(whole.slice(0, 13), folder / "train-00000-of-00002.parquet", row_group_size=5)
    pq.write_table(whole.slice(13), folder / "train-00001-of-00002.parquet")
    pq.write_table(whole, folder / "test-00000-of-00001-a1b2c3.parquet")
    pq.write_table(whole.slice(0, 4).replace_schema_metadata(None), folder / "validation-00000-of-00001.parquet")
    data = load_data(tmp_path / "set")
    assert data.name == "set"
    assert data.classes == ("cat", "dog")
    unnamed = "validation-00000-of-00001.parquet does not name its classes"
    assert data.notes[:-1] == (("read from the folder data",) if inside else ())
    assert data.notes[-1].startswith(unnamed)
    assert np.array_equal(data.train.images.numpy(), planes(colour(20)))
    assert torch.equal(data.test.images, data.train.images)
    assert data.validation.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("partial-train/0000.parquet", "partial-test/0000.parquet"),
        ("split=train/part-0.parquet", "split=test/part-0.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("TRAIN.PARQUET", "TEST.PARQUET"),
        ("training_set.parquet", "my_test_set.parquet"),
        ("train_part1.parquet", "test_part1.parquet"),
        ("pets_train_0.parquet", "pets_test_0.parquet"),
    ],
)
def test_splits_are_those_that_files_and_folders_are_called(tmp_path: Path, train: str, test: str) -> None:
    pq.write_table(table(6), write(tmp_path / train, [0, 1]))
    write(tmp_path / test, [0, 1, 0])
    data = load_data(tmp_path, validation=0)
    assert (len(data.train), len(data.test)) == (6, 3)


def test_shards_without_the_name_of_a_split_are_train_in_their_order(tmp_path: Path) -> None:
    for name, first in (("0000", 0), ("0001", 4), ("0002", 9)):
        pq.write_table(table(12).slice(first, 5), tmp_path / f"{name}.parquet")
    data = load_data(tmp_path, validation=0)
    assert len(data.train) + len(data.test) == 5 + 5 + 3
    write(tmp_path / "train.parquet", [0, 1] * 2)
    data = load_data(tmp_path, validation=0)
    assert len(data.train) + len(data.test) == 4
    assert "0000.parquet was left out: its name is not that of a split" in data.notes


def test_files_of_other_names_are_train_and_said(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [0, 1])
    write(tmp_path / "a.parquet", [1, 1, 0])
    notes = load_data(tmp_path).notes
    assert notes[0] == "a.parquet, b.parquet: no name is that of a split, so all are train, in this order"


def test_a_file_alone_is_train(tmp_path: Path) -> None:
    file = write(tmp_path / "test.parquet", [0, 1] * 5)
    for source in (tmp_path, file):
        data = load_data(source)
        assert len(data.train) + len(data.validation) + len(data.test) == 10
        assert "test.parquet was read as train, since it is alone" in data.notes


def test_several_configurations_are_named_and_files_at_other_depths_noted(tmp_path: Path) -> None:
    for name in ("fine", "coarse"):
        write(tmp_path / "many" / name / "train" / "0000.parquet", [0, 1])
    refuses(tmp_path / "many", "several data sets lie in it, in coarse, fine")
    write(tmp_path / "deep" / "train.parquet", [0, 1] * 3)
    write(tmp_path / "deep" / "old" / "train.parquet", [0, 1] * 3)
    assert "the files in old were left out, since others lie above them" in load_data(tmp_path / "deep").notes
    write(tmp_path / "extra" / "train" / "0.parquet", [0, 1] * 3)
    write(tmp_path / "extra" / "unlabelled" / "0.parquet", [0, 1] * 3)
    assert "unlabelled/ was left out: it is not called as a split" in load_data(tmp_path / "extra").notes
    write(tmp_path / "two" / "train.parquet", [0, 1])
    write(tmp_path / "two" / "training.parquet", [0, 1])
    refuses(tmp_path / "two", "two names for the split train")


def test_the_number_of_a_part_is_cut_and_nothing_else() -> None:
    names = (
        "train-00000-of-00002-b2.parquet",
        "train12.parquet",
        "cifar10.parquet",
        "cifar100_train.parquet",
        "0000.parquet",
    )
    assert [cut_number(name) for name in names] == ["train", "train", "cifar10", "cifar100_train", "0000"]


@pytest.mark.parametrize("suffix", [".zip"])
def test_parquet_files_are_read_in_an_archive(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set" / "data" / f"{split}-0.parquet", [0, 1] * 3)
    path = tmp_path / f"packed{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in (tmp_path / "set").rglob("*.parquet"):
                archive.write(file, file.relative_to(tmp_path))
    else:
        with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as packed:
            packed.add(tmp_path / "set", "set")
    data = load_data(path, validation=0)
    assert np.array_equal(data.train.images.numpy(), planes(colour(6)))
    assert data.test.labels.tolist() == [0, 1] * 3


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


def test_parquet_files_that_are_unfit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), file)
    refuses(tmp_path, "no image column", "text, label")
    pq.write_table(table(label="kind"), file)
    refuses(tmp_path, "no label column", "img, kind")
    write(file, [0.5, 1.0], [b"x", b"y"])
    refuses(tmp_path, "no label column")
    pq.write_table(pa.table({"img": [b"x"], "image": [b"x"], "label": [0]}), file)
    refuses(tmp_path, "several image columns, img, image")
    pq.write_table(pa.table({"front": [b"x"], "back": [b"x"], "label": [0]}), file)
    refuses(tmp_path, "several image columns, front, back")
    pq.write_table(pa.table({"img": [b"x"], "class": [0], "species": ["a"]}), file)
    refuses(tmp_path, "several label columns, class, species")
    pq.write_table(pa.table({"img": [{"bytes": None, "path": None}], "label": [0]}), file)
    refuses(tmp_path, "no image column")  # a column of nulls has neither bytes nor paths
    pq.write_table(pa.table({"img": [b"x", None], "label": [0, 1]}), file)
    refuses(tmp_path, "train-0.parquet row")
    write(file, [0, 1], [ENCODED[0], None])
    refuses(tmp_path, "train-0.parquet row 1: no image in the column image")
    write(file, [0, None, 1], ENCODED[:3])
    refuses(tmp_path, "train-0.parquet row 1: no label")
    write(file, [[0], [0, 1]], ENCODED[:2])
    refuses(tmp_path, "lists of several labels")
    write(file, [0, 1], [[[1, 2], [3]], [[1, 2], [3, 4]]])
    refuses(tmp_path, "train-0.parquet row 0: its lists of pixels differ in length")
    write(file, [0, 1], [[[1, 2], [3, None]]] * 2)
    refuses(tmp_path, "train-0.parquet row 0: 1 pixels are missing")
    write(file, [0, 1], [[1, 2, 3], [1, 2, 3]])
    refuses(tmp_path, "a flat list of 3 pixels is no grey square")
    pq.write_table(pa.table({"img": [b"x", b"y"], "label": [0, 1]}), file)
    refuses(tmp_path, "train-0.parquet row 0: not an image")
    pq.write_table(table(names=["cat"]), file)
    refuses(tmp_path, "label 1 has no name among the 1 class names")
    pq.write_table(table(0), file)
    refuses(tmp_path, "no ")
    file.write_bytes(file.read_bytes()[:300])
    refuses(tmp_path, "train-0.parquet: not a readable parquet file")
    file.rename(tmp_path / "test.parquet")
    write(tmp_path / "validation.parquet", [0, 1])
    refuses(tmp_path, "test.parquet: not a readable")
    write(tmp_path / "test.parquet", [0, 1])
    refuses(tmp_path, "no rows to train on")


def claim_rows(path: Path, count: int, claimed: int) -> None:
    """Change the number of rows at all four places where a file with two columns states it."""
    data = path.read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8]
    old, new = bytes([0x16, count << 1]), b"\x16" + as_varint(claimed << 1)  # an i64 field of thrift's compact protocol
    assert footer.count(old) == 4
    footer = footer.replace(old, new)
    path.write_bytes(data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")


def as_varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@pytest.mark.parametrize("claimed", [10**12, 1 << 61])
def test_the_number_of_rows_that_a_file_claims_takes_no_memory(tmp_path: Path, claimed: int) -> None:
    path = write(tmp_path / "train.parquet", [0, 1] * 10)
    claim_rows(path, 20, claimed)
    assert pq.ParquetFile(path).metadata.num_rows == claimed
    data = load_data(path, validation=0)
    assert len(data.train) + len(data.test) == 20


def test_more_rows_than_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "MAX_ROWS", 9)
    refuses(write(tmp_path / "train.parquet", [0, 1] * 5), "over 9 rows in one file")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(), tmp_path / "train-0.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(tmp_path, "pip install 'limbeck[hf]'")


LAYOUTS = (
    "{split}-{shard:05d}-of-00002.parquet",
    "data/{split}-{shard}.parquet",
    "{split}/{shard:04d}.parquet",
    "x/{split}/{shard}.parquet",
)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_written_in_any_layout_is_read(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text("abcxyz019 é", min_size=1, max_size=4), min_size=2, max_size=4, unique=True))
    kind = data.draw(st.sampled_from(["words", "names", "categories"]))
    layout = data.draw(st.sampled_from(LAYOUTS))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    expected: dict[str, tuple[Any, list[str]]] = {}
    with TemporaryDirectory() as folder:
        for split in ("train", "validation", "test"):
            words, pixels = [], []
            for shard in range(data.draw(st.integers(1, 2))):
                part = [*names * (split == "train" and shard == 0), *rng.choice(names, rng.integers(1, 5))]
                images = rng.integers(0, 256, (len(part), 3, 4, 3), dtype=np.uint8)
                order = [str(name) for name in rng.permutation(names)]
                labels = {
                    "words": part,
                    "names": [order.index(word) for word in part],
                    "categories": pa.array(part).dictionary_encode(),
                }[kind]
                cells = [{"bytes": encode_png(image), "path": None} for image in images]
                arrow_table = pa.table({"image": cells, "label": labels})
                path = Path(folder) / layout.format(split=split, shard=shard)
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(with_names(arrow_table, "image", "label", order if kind == "names" else None), path)
                words += map(str, part)
                pixels.append(images)
            expected[split] = planes(np.concatenate(pixels)), words
        read = load_data(folder)
    assert sorted(read.classes) == sorted(names)
    for split, (images, words) in expected.items():
        part = getattr(read, split)
        assert np.array_equal(part.images.numpy(), images)
        assert [read.classes[label] for label in part.labels] == words


def test_a_png_of_the_helper_is_what_it_encodes() -> None:
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(BytesIO(SAME_SIZE[0]))), colour(6)[0])
