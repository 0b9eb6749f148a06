"""Folders of idx files: MNIST and its relatives, under all names in which they are downloaded."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import grey, refuses
from image_layouts import idx, idx_bytes, idx_folder

from limbeck.data import load_data
from limbeck.data.augment import DSA, default_strategy


@pytest.mark.parametrize("pack", [True, False])
def test_idx_folders_are_read(tmp_path: Path, pack: bool) -> None:
    data = load_data(idx_folder(tmp_path / "mnist", pack))
    assert data.name == "mnist"
    assert np.array_equal(data.test.images.numpy()[:, 0], grey(6, seed=6))
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (len(data.train), len(data.validation)) == (18, 2)
    unpacked = grey(6, seed=99)  # an unpacked file wins over the packed one, whichever came first
    idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", grey(6, seed=6))
    idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte", unpacked, pack=False)
    assert np.array_equal(load_data(tmp_path / "mnist").test.images.numpy()[:, 0], unpacked)


def test_idx_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "mnist", pack=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    refuses(folder, "train-images-idx3-ubyte: header says [20, 6, 5] but 599 bytes follow")
    images.write_bytes(whole[:7])
    refuses(folder, "train-images-idx3-ubyte: starts with 00000803")
    images.write_bytes(labels.read_bytes())
    refuses(folder, "starts with 00000801, not 00000803")
    images.unlink()
    packed = gzip.compress(whole)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed[:-20])
    refuses(folder, "train-images-idx3-ubyte.gz: truncated or not gzip")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)
    idx(labels, np.arange(19) % 2, pack=False)
    refuses(folder, "20 images but 19 labels")
    labels.unlink()
    refuses(folder, "no idx file of train labels")
    labels.mkdir()
    refuses(folder, "no idx file of train labels")


def test_torchvision_folders_are_called_as_their_data_set(tmp_path: Path) -> None:
    idx_folder(tmp_path / "data" / "MNIST" / "raw")
    for source in (tmp_path / "data", tmp_path / "data" / "MNIST", tmp_path / "data" / "MNIST" / "raw"):
        data = load_data(source)
        assert data.name == "MNIST"
        assert "flip" not in DSA(default_strategy(data.name)).families
    idx_folder(tmp_path / "other" / "FashionMNIST" / "raw", labels=range(10))
    data = load_data(tmp_path / "other")
    assert (data.name, data.classes[9]) == ("FashionMNIST", "Ankle boot")
    assert "flip" in DSA(default_strategy(data.name)).families
    assert data.classes == load_data(tmp_path / "other" / "FashionMNIST" / "raw").classes
    assert load_data(idx_folder(tmp_path / "KMNIST", labels=range(10))).classes[:3] == ("o", "ki", "su")
    idx_folder(tmp_path / "hub" / "default")  # the name of a configuration on the Hugging Face hub
    assert load_data(tmp_path / "hub").name == "hub"
    idx_folder(tmp_path / "data" / "KMNIST" / "raw")
    refuses(tmp_path / "data", "several data sets", "KMNIST/raw, MNIST/raw")


@pytest.mark.parametrize(
    ("name", "labels", "first", "last"),
    [
        ("letters", range(1, 27), "A", "Z"),
        ("digits", range(10), "0", "9"),
        ("mnist", range(10), "0", "9"),
        ("balanced", range(47), "0", "t"),
        ("bymerge", range(47), "0", "t"),
        ("byclass", range(62), "0", "z"),
    ],
)
def test_emnist_is_turned_upright_and_its_classes_have_names(
    tmp_path: Path, name: str, labels: range, first: str, last: str
) -> None:
    folder = tmp_path / "gzip"
    folder.mkdir()
    (folder / f"emnist-{name}-mapping.txt").write_text("0 48")
    for split, n in (("train", 2 * len(labels)), ("test", len(labels))):
        idx(folder / f"emnist-{name}-{split}-images-idx3-ubyte.gz", grey(n, seed=n).transpose(0, 2, 1))
        idx(folder / f"emnist-{name}-{split}-labels-idx1-ubyte.gz", np.resize(labels, n))
    data = load_data(folder, validation=0)
    assert (data.name, data.classes[0], data.classes[-1]) == (f"emnist-{name}", first, last)
    assert len(data.classes) == len(labels)
    assert data.test.labels.tolist() == list(range(len(labels)))
    assert np.array_equal(data.test.images.numpy()[:, 0], grey(len(labels), seed=len(labels)))
    assert any("transposed" in note for note in data.notes)
    assert "flip" not in DSA(default_strategy(data.name)).families


def test_other_splits_are_left_out_and_noted(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "qmnist")
    idx(folder / "test50k-images-idx3-ubyte.gz", grey(6))
    assert "test50k-images-idx3-ubyte.gz was left out: test50k is not the name of a split" in load_data(folder).notes


def test_letters_of_emnist_that_look_alike_share_a_class(tmp_path: Path) -> None:
    labels = np.array([12, 36, 38, 46] * 5)
    folder = idx_folder(tmp_path / "EMNIST", start="emnist-balanced-", labels=labels)
    assert load_data(folder).classes == ("C", "a", "d", "t")


def test_several_sets_in_a_folder_are_named(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "raw", start="emnist-letters-", labels=(1, 2))
    for path in list(folder.iterdir()):
        path.with_name(path.name.replace("letters", "digits")).write_bytes(path.read_bytes())
    refuses(folder, "several data sets, emnist-digits, emnist-letters", "a folder of its own")


def test_labels_of_another_set_have_no_names(tmp_path: Path) -> None:
    data = load_data(idx_folder(tmp_path / "fashion-mnist", labels=(0, 11)))
    assert data.classes == ("0", "11")
    assert any("not those of fashion-mnist" in note for note in data.notes)


def test_the_first_column_of_qmnist_is_its_label(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("test", 6)):
        idx(tmp_path / f"qmnist-{split}-images-idx3-ubyte.gz", grey(n, seed=n))
        rows = np.arange(8 * n, dtype=np.int32).reshape(n, 8) * 1000
        rows[:, 0] = np.arange(n) % 2
        (tmp_path / f"qmnist-{split}-labels-idx2-int.gz").write_bytes(gzip.compress(idx_bytes(rows)))
    data = load_data(tmp_path)
    assert (data.name, data.test.labels.tolist()) == ("qmnist", [0, 1, 0, 1, 0, 1])
    assert any("first column" in note for note in data.notes)


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "train-images-idx3-ubyte", "Train-Images-idx3-ubyte.gz"])
@pytest.mark.parametrize("pack", [True, False])
def test_the_content_says_whether_a_file_is_packed(tmp_path: Path, name: str, pack: bool) -> None:
    idx(tmp_path / name, grey(20), pack)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(20, dtype=np.uint8) % 2))
    data = load_data(tmp_path, validation=0)
    assert len(data.train) == 16


@given(
    dtype=st.sampled_from(["u1", "i2", "i4"]),
    label_dtype=st.sampled_from(["u1", "i1", "i2", "i4"]),
    colour=st.booleans(),
    validation=st.booleans(),
    packs=st.lists(st.booleans(), min_size=2, max_size=2),
    seed=st.integers(0, 9),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, label_dtype: str, colour: bool, validation: bool,
    packs: list[bool], seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(seed)
    written = {}
    for split in ("train", "test", *["validation"] * validation):
        shape = (12, 4, 5, 3) if colour else (12, 4, 5)
        pixels, labels = rng.integers(0, 256, shape), np.arange(12) % 3
        pixels.flat[0] = 255  # so that whole numbers of more bits keep their values
        written[split] = pixels, labels
        for kind, array, code, pack in (("images", pixels, dtype, packs[0]), ("labels", labels, label_dtype, packs[1])):
            content = idx_bytes(array.astype(code))
            (folder / f"{split}-{kind}-idx{array.ndim}-ubyte").write_bytes(gzip.compress(content) if pack else content)
    data = load_data(folder, validation=0)
    for split, (pixels, labels) in written.items():
        images = pixels.transpose(0, 3, 1, 2) if colour else pixels[:, None]
        assert np.array_equal(getattr(data, split).images.numpy(), images)
        assert getattr(data, split).labels.tolist() == labels.tolist()


@pytest.mark.parametrize("pack", [False, True])
def test_a_claim_of_a_header_takes_no_memory(tmp_path: Path, pack: bool) -> None:
    folder = idx_folder(tmp_path / "mnist", pack)
    claim = bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(1000)
    path = folder / ("train-images-idx3-ubyte" + (".gz" if pack else ""))
    path.write_bytes(gzip.compress(claim) if pack else claim)
    tracemalloc.start()
    refuses(folder, "header says [4294967295, 4294967295, 4294967295] but")
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_a_gzip_bomb_is_unpacked_as_far_as_its_header_says(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "mnist")
    bomb = gzip.compress(idx_bytes(grey(20)) + bytes(300_000_000), 1)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    tracemalloc.start()
    refuses(folder, "header says [20, 6, 5] but more bytes follow")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
