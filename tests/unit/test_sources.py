"""Sources of images: names, .npz and idx files; one clear sentence for each thing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_files import grey, refuses, save_picture

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
    refuses("nowhere", "no data called 'nowhere'", "digits, fashion-mnist")
    refuses(tmp_path / "gone", "gone", "digits")
    (tmp_path / "notes.txt").write_text("x")
    sentence = refuses(tmp_path / "notes.txt", "unknown file type '.txt'", ".npz", "one folder of images per class")
    assert len(sentence.removeprefix(str(tmp_path))) < 280  # and a path
    save_picture(tmp_path / "cat" / "0.png", grey(1)[0])
    refuses(tmp_path / "cat" / "0.png", "0.png: one picture; name the folder above those of the classes")
    refuses(tmp_path / "cat", "images but no class folders", "the folder above")
    refuses(3, "int: not a source of data", "Dataset", "arrays (X, y)")


def test_data_already_loaded_comes_back_as_it_is() -> None:
    data = load_data("digits")
    assert load_data(data) is data
    assert load_data(data, resize=8) is data
    refuses(data, "resize, pixel_range, test and validation do nothing", resize=9)


def test_a_path_with_a_slip_is_told_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes.zip").write_bytes(b"")
    refuses(tmp_path / "shpes.zip", "did you mean shapes.zip?")
    monkeypatch.chdir(tmp_path)
    refuses("Shapes.zip", "did you mean shapes.zip?")
    refuses("digit", "did you mean digits?")
    refuses("elsewhere/shapes.zip", "give a path that exists or a known name: digits, fashion-mnist")
