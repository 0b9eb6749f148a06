"""Arrow files: folders of Dataset.save_to_disk in the layout of the Hugging Face library, and single files."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import colour, encode_png, planes, refuses, save_picture

from limbeck.data import load_data


def make_table(pixels: Any, labels: Any, names: Any = None) -> pa.Table:
    """A table as the library makes it: structs of bytes and path, numbers as labels, names in the metadata."""
    cells = [{"bytes": encode_png(image), "path": None} for image in pixels]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features: Any = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    schema = pa.schema({"image": kind, "label": pa.int64()}) if names else None
    table = pa.table({"image": pa.array(cells, kind), "label": labels}, schema)
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})} if names else {})


def write_stream(path: Path, table: pa.Table, rows: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def save_to_disk(folder: Path, table: pa.Table, shards: int = 1) -> Path:
    """Write the files that Dataset.save_to_disk writes."""
    rows = -(-len(table) // shards)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        write_stream(folder / name, table.slice(i * rows, rows), rows=3)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None, "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))
    return folder


def save_splits(folder: Path, **tables: pa.Table) -> Path:
    """Write the files that DatasetDict.save_to_disk writes."""
    for split, table in tables.items():
        save_to_disk(folder / split, table)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_dataset_is_read(tmp_path: Path, shards: int) -> None:
    save_to_disk(tmp_path / "pets", make_table(colour(20), [0, 1] * 10, ["cat", "dog"]), shards)
    write_stream(tmp_path / "pets" / "cache-1a2b3c.arrow", make_table(colour(20), [0, 1] * 10, ["eel", "fox"]))
    data = load_data(tmp_path / "pets", validation=0)
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    assert (len(data.train), len(data.test)) == (16, 4)
    images = {image.numpy().tobytes() for part in (data.train, data.test) for image in part.images}
    assert images == {image.tobytes() for image in planes(colour(20)).copy()}
    assert [note for note in data.notes if "left out" in note] == []


def test_a_saved_dictionary_is_read_and_its_classes_are_matched_by_name(tmp_path: Path) -> None:
    pixels = colour(8)
    save_splits(
        tmp_path,
        train=make_table(pixels, [0, 1] * 4, ["cat", "dog"]),
        test=make_table(pixels[:4], [0, 1, 1, 1], ["dog", "cat"]),
        unsupervised=make_table(pixels, [-1] * 8, ["cat", "dog"]),
    )
    data = load_data(tmp_path, validation=0)
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.train.images.numpy(), planes(pixels))
    assert data.test.labels.tolist() == [1, 0, 0, 0]
    orders = "test/data-00000-of-00001.arrow orders its classes otherwise: its labels were matched by name"
    assert {orders, "unsupervised/ was left out: not called as a split"} <= set(data.notes)


def test_state_json_says_which_files_count(tmp_path: Path) -> None:
    save_to_disk(tmp_path, make_table(colour(20), [0, 1] * 10, ["cat", "dog"]), 2)
    write_stream(tmp_path / "data-00000-of-00001.arrow", make_table(colour(4), [0, 1] * 2))
    data = load_data(tmp_path, validation=0)
    assert len(data.train) + len(data.test) == 20
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    refuses(tmp_path, "state.json: lists the file 'data-00001-of-00002.arrow', which is missing")
    for damage in ("{", "[]", "{}", '{"_data_files": [1]}', "[" * 100_000):
        (tmp_path / "state.json").write_text(damage)
        refuses(tmp_path, "state.json: does not list the files")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_files_are_read(tmp_path: Path, compression: str) -> None:
    for split, n in (("train", 6), ("test", 3)):
        table = make_table(colour(n), ["cat", "dog", "cat"] * (n // 3))
        feather.write_feather(table, tmp_path / f"{split}.feather", compression, chunksize=2)
    data = load_data(tmp_path, validation=0)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [0, 1, 0]
    assert np.array_equal(data.train.images.numpy(), planes(colour(6)))


def test_files_of_the_librarys_own_cache_are_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_stream(tmp_path / f"cifar10-{split}.arrow", make_table(colour(6), [0, 1] * 3, ["cat", "dog"]))
    assert len(load_data(tmp_path, validation=0).test) == 6


def test_paths_in_arrow_files_are_below_their_folder(tmp_path: Path) -> None:
    for i, pixels in enumerate(colour(6)):
        save_picture(tmp_path / "set" / "train" / f"{i}.png", pixels)
    table = pa.table({"image": [f"{i}.png" for i in range(6)], "label": [0, 1] * 3})
    write_stream(tmp_path / "set" / "train" / "a.arrow", table)
    assert len(load_data(tmp_path / "set", validation=0).train) == 4
    refuses(tmp_path / "set" / "train" / "a.arrow", "names the file '0.png'", "not in the data folder")


def test_damaged_arrow_files_are_refused(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "a.arrow", make_table(colour(6), [0, 1] * 3))
    whole = path.read_bytes()
    for content in (b"", b"ARROW1", whole[:100], whole[:-200], b"x" * 1000, b"\0" * 1000, b"FEA1" + whole):
        path.write_bytes(content)
        refuses(path, "a.arrow")


def test_a_stream_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "a.arrow", make_table(colour(8), [0, 1] * 4), rows=2)
    whole = path.read_bytes()
    for length in range(0, len(whole), 8):  # batches end at multiples of 8, where pyarrow sees nothing amiss
        path.write_bytes(whole[:length])
        refuses(path, "a.arrow: ")


@pytest.mark.parametrize("column", ["label", "split", "image"])
def test_text_with_damaged_offsets_is_refused(tmp_path: Path, column: str) -> None:
    offsets = np.array([0, 5, 1 << 30, 15, 20], np.int32)  # of the third of four words
    damaged = pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(offsets), pa.py_buffer(b"train" * 4)])
    good = make_table(colour(4), ["cat", "dog"] * 2)
    table = pa.table({"image": good["image"], "label": good["label"], "split": good["label"]} | {column: damaged})
    refuses(write_stream(tmp_path / "a.arrow", table), "a.arrow: not a readable arrow file")


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_saved_is_read(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text("abcxyz019 é", min_size=1, max_size=4), min_size=2, max_size=4, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    shape = (*data.draw(st.tuples(*[st.integers(1, 4)] * 2)), 3)
    expected: dict[str, tuple[Any, list[str]]] = {}
    tables = {}
    for split in ("train", "validation", "test"):
        words = [*(names if split == "train" else []), *map(str, rng.choice(names, rng.integers(1, 5)))]
        pixels = rng.integers(0, 256, (len(words), *shape), dtype=np.uint8)
        order = [str(name) for name in rng.permutation(names)]
        tables[split] = make_table(pixels, [order.index(word) for word in words], order)
        expected[split] = planes(pixels), words
    with TemporaryDirectory() as folder:
        read = load_data(save_splits(Path(folder), **tables))
    for split, (images, words) in expected.items():
        part = getattr(read, split)
        assert np.array_equal(part.images.numpy(), images)
        assert [read.classes[label] for label in part.labels] == words
