"""Sources of images: names, .npz and idx files; one clear sentence for each thing wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import colour, grey, labelled_arrays, refuses, save_npz

from limbeck.data import load_data
from limbeck.data.readers import builtin


def test_digits_fill_the_range_of_a_byte() -> None:
    data = load_data("digits")
    assert data.shape == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)
    assert data.classes == tuple("0123456789")
    assert ["no test split" in note for note in data.notes] == [True, False]


@pytest.mark.skipif(not builtin.FASHION_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_whole() -> None:
    data = load_data("fashion-mnist")
    assert data.train.counts(10) == [5400] * 10
    assert data.validation.counts(10) == [600] * 10
    assert data.test.counts(10) == [1000] * 10
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"
    assert data.test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert 0.28 < data.train.images.float().mean() / 255 < 0.29


def test_fashion_mnist_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builtin, "FASHION_FOLDER", tmp_path / "gone")
    refuses("fashion-mnist", "install the Debian package dataset-fashion-mnist", "folder with the idx files")


def test_what_is_no_source_is_refused_with_what_is_known(tmp_path: Path) -> None:
    refuses("digit", "no data called 'digit'", "digits, fashion-mnist")
    refuses(tmp_path / "gone", "gone", "digits")
    (tmp_path / "notes.txt").write_text("x")
    refuses(tmp_path / "notes.txt", "unknown file type '.txt'", ".npz", "one folder of images per class")
    refuses(3, "int: not a source of data", "Dataset", "arrays (X, y)")


def test_data_already_loaded_comes_back_as_it_is() -> None:
    data = load_data("digits")
    assert load_data(data) is data
    assert load_data(data, resize=8) is data
    refuses(data, "resize, pixel_range and test do nothing", resize=9)


def test_medmnist_layout_is_used_as_it_is(tmp_path: Path) -> None:
    parts = {"train": 12, "val": 4, "test": 6}
    arrays = {f"{k}_images": grey(n, seed=n) for k, n in parts.items()}
    arrays |= {f"{k}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None] for k, n in parts.items()}
    data = load_data(save_npz(tmp_path / "medmnist.npz", **arrays))
    assert data.name == "medmnist"
    assert data.notes == ()
    for split, n in ((data.train, 12), (data.validation, 4), (data.test, 6)):
        assert np.array_equal(split.images.numpy()[:, 0], grey(n, seed=n))
        assert split.labels.tolist() == [i % 2 for i in range(n)]


def test_arrays_may_have_their_channels_first_last_or_float(tmp_path: Path) -> None:
    images, labels = colour(20), np.arange(20) % 2
    last = load_data(save_npz(tmp_path / "last.npz", x_train=images, y_train=labels))
    first = load_data(save_npz(tmp_path / "first.npz", x_train=images.transpose(0, 3, 1, 2), y_train=labels))
    real = load_data(save_npz(tmp_path / "real.npz", x_train=(images / 255).astype(np.float32), y_train=labels))
    assert last.shape == (3, 6, 5)
    assert last.fingerprint == first.fingerprint == real.fingerprint
    assert "floating-point pixels were rounded to 8 bits" in real.notes
    assert load_data(save_npz(tmp_path / "one.npz", x_train=images[..., :1], y_train=labels)).shape == (1, 6, 5)


def test_labels_with_gaps_are_renumbered_and_keep_their_names(tmp_path: Path) -> None:
    labels = np.array([7, 3, 9, 3, 7, 9] * 5)
    data = load_data(save_npz(tmp_path / "a.npz", x_train=grey(30), y_train=labels, x_test=grey(30), y_test=labels))
    assert data.classes == ("3", "7", "9")
    assert data.test.labels.tolist() == [1, 0, 2, 0, 1, 2] * 5
    assert "renumbered 0..2" in data.notes[0]


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"images": grey(3), "targets": [0, 1, 0]}, ["images, targets", "train_images and train_labels"]),
        ({"x_train": grey(3)}, ["no images with labels", "x_train"]),
        ({**labelled_arrays(), "x_test": grey(3)}, ["x_test has no partner"]),
        ({**labelled_arrays(), "y_train": np.zeros((10, 14), int)}, ["14 labels per image", "multi-label"]),
        ({**labelled_arrays(), "y_train": np.zeros((10, 1, 1), int)}, ["labels have shape (10, 1, 1)"]),
        ({**labelled_arrays(), "y_train": np.zeros(9, int)}, ["10 images but 9 labels"]),
        ({**labelled_arrays(), "y_train": np.arange(10) % 2 * 0.5}, ["labels are float64", "whole numbers"]),
        ({**labelled_arrays(), "y_train": np.array([np.nan] * 10)}, ["labels are float64", "whole numbers"]),
        ({**labelled_arrays(), "y_train": np.arange(10) % 3 - 1}, ["label -1 is negative"]),
        ({**labelled_arrays(), "y_train": np.full(10, 4)}, ["only one class (4)"]),
        ({**labelled_arrays(), "x_test": grey(2), "y_test": [0, 5]}, ["class 5 is in test and not in train"]),
        ({**labelled_arrays(), "x_test": grey(2, 7), "y_test": [0, 1]}, ["(1, 6, 5)", "(1, 7, 5)"]),
        ({**labelled_arrays(), "x_train": grey(10) - 9.0}, ["pixels run from -9 to 24", "in 0..1", "--pixel-range"]),
        (
            {**labelled_arrays(), "x_train": grey(10).astype(np.int64) - 9},
            ["pixels run from -9 to 24", "--pixel-range"],
        ),
        (
            {**labelled_arrays(), "x_train": grey(10).astype(np.float32)},
            ["run from 0 to 25", "in 0..1", "--pixel-range"],
        ),
        ({**labelled_arrays(), "x_train": np.full((10, 6, 5), np.nan)}, ["300 of 300 pixels are NaN"]),
        ({**labelled_arrays(), "x_train": grey(10) + 1j}, ["pixels are complex128"]),
        ({**labelled_arrays(), "x_train": np.zeros((10, 6, 5, 7), np.uint8)}, ["(10, 6, 5, 7)", "not that of flat"]),
        ({"x_train": grey(0), "y_train": np.zeros(0, int)}, ["no images"]),
        ({"x_train": grey(2), "y_train": [0, 1]}, ["no class has a second image"]),
        ({**labelled_arrays(), "x_train": np.array([None] * 10, object)}, ["it holds Python objects"]),
    ],
)
def test_npz_contents_that_are_unfit_are_refused(tmp_path: Path, arrays: dict[str, Any], parts: list[str]) -> None:
    refuses(save_npz(tmp_path / "bad.npz", **arrays), "bad", *parts)


def test_npz_files_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    file.write_text("hello")
    refuses(file, "not a readable .npz", "no zip archive")
    with file.open("wb") as stream_:
        np.save(stream_, grey(3))
    refuses(file, "not a readable .npz")
    whole = save_npz(tmp_path / "good.npz", **labelled_arrays(200)).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refuses(file, "bad.npz: not a readable .npz", "cut short")
    file.write_bytes(whole[:500] + bytes(100) + whole[600:])  # damaged inside: the checksum tells
    refuses(file, "bad.npz: not a readable .npz")
