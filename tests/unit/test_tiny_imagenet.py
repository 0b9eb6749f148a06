"""Tiny-ImageNet as it is downloaded, and as scripts sort it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import refuses
from image_layouts import tiny_imagenet_folder

from limbeck.data import load_data


@given(is_sorted=st.booleans(), seed=st.integers(0, 5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, is_sorted: bool, seed: int) -> None:
    folder = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    train, val = tiny_imagenet_folder(folder, seed, is_sorted)
    data = load_data(folder, validation=0)
    assert data.classes == ("n01443537", "n02124075", "n04067472")
    assert np.array_equal(data.train.images.numpy(), train.transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert np.array_equal(data.test.images.numpy(), val.transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "val was read as the test split" in data.notes[0]
    assert data.notes[1] == "1 file of test was left out: they have no labels"


def test_annotations_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tiny_imagenet_folder(tmp_path)
    file = tmp_path / "val" / "val_annotations.txt"
    rows = file.read_text()
    file.write_text(rows.replace("n01443537", "n99999999"))
    refuses(tmp_path, "val_0.png: its class, n99999999, is not one of train")
    file.write_text(rows + "gone.png\tn01443537\n")
    refuses(tmp_path, "gone.png of val_annotations.txt is missing")
    file.write_text(rows.partition("\n")[2])
    refuses(tmp_path, "val_5.png: its class, images, is not one of train")
    file.write_text("val_0.png n01443537")
    refuses(tmp_path, "val_annotations.txt line 1: no name of a picture")
