"""Parquet files: layouts of the Hugging Face hub and others, columns of all types, and what is refused."""

from __future__ import annotations

import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from arrow_files import table, with_names, write
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import colour, encode_png, planes, refuses

from limbeck.data import load_data
from limbeck.data.readers import arrow
from limbeck.data.readers.table_files import cut_number


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
    assert "0000.parquet, 0001.parquet, 0002.parquet were left out: not called as a split" in data.notes


@pytest.mark.parametrize("start", ["train", "data/train", "train/data"])
def test_shards_that_are_missing_are_noted(tmp_path: Path, start: str) -> None:
    for number in (0, 2):
        write(tmp_path / f"{start}-0000{number}-of-00003.parquet", [0, 1] * 3)
    write(tmp_path / f"{start.replace('train', 'test')}-00000-of-00001.parquet", [0, 1])
    shown = start.removeprefix("data/")
    assert [note for note in load_data(tmp_path).notes if " are here" in note] == [
        f"of the 3 files of {shown}, 2 are here; fetch the others if they are meant"
    ]


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
    assert "unlabelled/ was left out: not called as a split" in load_data(tmp_path / "extra").notes
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


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
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


ENCODED = [encode_png(pixels) for pixels in colour(3)]


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
    refuses(tmp_path, "2 images do not open: train-0.parquet row 0, train-0.parquet row 1")
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
