"""Sources that are Datasets or arrays: images, labels and pixel values of every type."""

from __future__ import annotations

from collections import UserList
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from image_files import colour, grey, refuses
from PIL import Image
from python_objects import Pairs, as_tensor, pairs_of, pixels_of, png, whole
from sklearn.datasets import load_digits
from sklearn.utils import Bunch
from torch.utils.data import Subset, TensorDataset

from limbeck.data import load_data


def test_a_dataset_may_yield_tensors_pictures_or_arrays() -> None:
    images = colour(20)
    kinds: dict[str, list[Any]] = {
        "bytes": [as_tensor(p) for p in images],
        "float": [as_tensor(p) / 255 for p in images],
        "double": [p / 255 for p in images],
        "channels last": [torch.from_numpy(p) for p in images],
        "pil": [Image.fromarray(p) for p in images],
        "array": list(images),
        "encoded": [png(p) for p in images],
        "cells": [{"bytes": png(p), "path": None} for p in images],
        "lists": [p.tolist() for p in images],
    }
    read = {k: load_data(Pairs(pairs_of(v), ["x", "y"])) for k, v in kinds.items()}
    assert len({data.fingerprint for data in read.values()}) == 1
    assert read["pil"].shape == (3, 6, 5)
    assert read["pil"].classes == ("x", "y")
    assert read["pil"].name == "pairs"


def test_tensors_have_their_channels_first_whatever_their_width() -> None:
    images = torch.from_numpy(colour(8, h=4, w=3)).permute(0, 3, 1, 2)  # (8, 3, 4, 3)
    labels = torch.arange(8) % 2
    for source in (TensorDataset(images, labels), (images, labels), list(zip(images, labels, strict=True))):
        assert torch.equal(whole(source).train.images, images)


def test_a_dataset_may_bring_its_test_set_and_tensor_labels() -> None:
    images = torch.from_numpy(grey(10))[:, None]
    train = TensorDataset(images, torch.arange(10) % 2)
    data = load_data(train, test=TensorDataset(images[:4], torch.tensor([[1], [0], [1], [0]])), validation=0)
    assert torch.equal(data.train.images, images)
    assert torch.equal(data.test.images, images[:4])
    assert data.test.labels.tolist() == [1, 0, 1, 0]
    assert data.name == "tensordataset"


def test_the_result_shares_no_memory_with_the_source() -> None:
    images = torch.from_numpy(grey(10))[:, None]
    data = whole((images, torch.arange(10) % 2))
    images.zero_()
    assert np.array_equal(pixels_of(data), grey(10))


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1],
        [0.0, 1.0, 1.0],
        [False, True, True],
        list(np.array([0, 1, 1], np.uint8)),
        [np.array([0]), np.array([1]), np.array(1)],
        [torch.tensor(0), torch.tensor([1]), torch.tensor(1.0)],
        [torch.tensor(0, dtype=torch.bfloat16), 1, True],
    ],
)
def test_labels_of_items_may_be_whole_numbers_of_any_type(labels: list[Any]) -> None:
    assert whole(Pairs(pairs_of(grey(3), labels))).train.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 1]),
        np.array([0.0, 1.0, 1.0]),
        np.array([False, True, True]),
        np.array([[0], [1], [1]], np.uint8),
        np.array([0, 1, 1], object),
        torch.tensor([0, 1, 1]),
        [0, 1.0, True],
        (np.int8(0), torch.tensor(1), 1),
    ],
)
def test_labels_of_arrays_may_be_whole_numbers_of_any_type(labels: Any) -> None:
    assert whole((grey(3), labels)).train.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "labels",
    [
        ["10", "9", "10"],
        ("10", "9", "10"),
        np.array(["10", "9", "10"]),
        np.array([["10"], ["9"], ["10"]]),
        np.array(["10", "9", "10"], object),
    ],
)
def test_words_as_labels_become_class_names(labels: Any) -> None:
    for source in ((grey(3), labels), Pairs(pairs_of(grey(3), np.ravel(labels).tolist()))):
        data = whole(source)
        assert data.classes == ("9", "10")  # by value, since all are numbers
        assert data.train.labels.tolist() == [1, 0, 1]


def test_words_are_numbered_over_all_splits() -> None:
    data = load_data({"train": (grey(4), ["a", "c", "b", "c"]), "test": Pairs(pairs_of(grey(2), ["c", "b"]))})
    assert data.classes == ("a", "b", "c")
    assert data.test.labels.tolist() == [2, 1]
    assert not any("orders its classes" in note for note in data.notes)


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        (0.5, ["label 0.5 is not one whole number or word"]),
        (float("nan"), ["label nan is not one"]),
        (float("inf"), ["label inf is not one"]),
        ([0, 1], ["label [0, 1] is not one", "one-hot or multi-label"]),
        (torch.tensor([0.0, 1.0]), ["one-hot or multi-label"]),
        ([0, [1]], ["label [0, [1]] is not one"]),
        (None, ["label None is not one"]),
        ({"boxes": 1}, ["label {'boxes': 1} is not one"]),
        (" ", ["label ' ' is not one"]),
        (1 + 1j, ["label (1+1j) is not one"]),
        ("cat", ["label 'cat' beside 0", "numbers for all labels, or words for all"]),
    ],
)
def test_labels_that_are_no_class_are_refused(label: Any, parts: list[str]) -> None:
    refuses(Pairs(pairs_of(grey(2), [0, label])), "train Pairs item 1: ", *parts)
    if not isinstance(label, list | torch.Tensor | dict) and label is not None:
        refuses((list(grey(2)), [0, label]), "train tuple label 1: ", *parts)


def test_labels_of_arrays_that_are_unfit_are_refused() -> None:
    refuses((grey(3), np.eye(3)), "3 labels per image", "one-hot")
    refuses((grey(3), np.array([0, 0.5, 1])), "labels are float64", "whole numbers")
    refuses((grey(3), [0, 1]), "train tuple: 3 images but 2 labels")
    refuses((list(grey(3)), [0, 1]), "train tuple: 3 images but 2 labels")
    refuses((grey(3), [0, 1, -1]), "label -1 is negative")
    refuses((grey(2), np.array(["a", 1], object)), "label 1: label 1 beside 'a'")
    words, numbers = (grey(2), ["a", "b"]), (grey(2), [0, 1])
    refuses({"train": words, "test": numbers}, "labels are numbers without names in arrays (test)")
    refuses({"train": numbers, "test": words}, "labels are numbers without names in arrays (train)")


PIXELS: list[Callable[[Any], Any]] = [
    lambda p: p,
    lambda p: p.astype(np.int64),
    lambda p: (p / 255).astype(np.float16),
    lambda p: (p / 255).astype(np.float32),
    lambda p: p / 255,
    lambda p: torch.from_numpy(p / 255),
    lambda p: torch.from_numpy(p).to(torch.int32),
]
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "arrays": lambda images, labels: (images, labels),
    "lists": lambda images, labels: (list(images), list(labels)),
    "pairs": lambda images, labels: list(zip(images, labels, strict=True)),
    "dicts": lambda images, labels: [{"image": p, "label": k} for p, k in zip(images, labels, strict=True)],
    "tensors": lambda images, labels: TensorDataset(torch.as_tensor(images), torch.as_tensor(labels)),
    "subset": lambda images, labels: Subset(Pairs(list(zip(images, labels, strict=True))), range(len(images))),
    "bunch": lambda images, labels: Bunch(images=images, target=labels),
}


@pytest.mark.parametrize("form", FORMS)
def test_pixels_of_any_type_come_out_right_in_every_form(form: str) -> None:
    levels, labels = grey(6, h=16, w=16), np.arange(6) % 2
    for convert in PIXELS:
        assert np.array_equal(pixels_of(whole(FORMS[form](convert(levels), labels))), levels)
    wide = whole(FORMS[form](levels.astype(np.int32) * 16, labels))
    assert np.array_equal(pixels_of(wide), np.rint(levels.astype(int) * 16 * 255 / 4095))  # the fewest bits: 12
    assert any("0 to 4095 became 0 to 255" in note for note in wide.notes)
    assert np.array_equal(pixels_of(whole(FORMS[form](levels > 127, labels))), (levels > 127) * 255)


@pytest.mark.parametrize("form", FORMS)
def test_pixels_without_a_known_range_are_refused_in_every_form_and_read_with_one(form: str) -> None:
    levels, labels = grey(6, h=16, w=16), np.arange(6) % 2

    def source(pixels: Any) -> Any:
        return FORMS[form](pixels, labels)

    refuses(source(levels.astype(np.float32)), "run from 0 to 255", "divide by 255", "pixel_range=(0, 255)")
    assert np.array_equal(pixels_of(whole(source(levels.astype(np.float32)), pixel_range=(0, 255))), levels)
    normalised = levels / 255 * 4 - 2
    refuses(source(normalised), "run from -2 to 2", "leave out Normalize", "--pixel-range")
    assert np.array_equal(pixels_of(whole(source(normalised), pixel_range=(-2, 2))), levels)
    refuses(source(levels.astype(np.int64) - 9), "run from -9 to 246", "--pixel-range")
    refuses(source(levels.astype(np.int64) * 1000), "run from 0 to 255000", "--pixel-range")
    missing = levels / 255
    missing[3, 0, :2] = np.nan, np.inf
    refuses(source(missing), "2 of ", "pixels are NaN or infinite", "replace them")


def test_images_that_are_none_are_refused() -> None:
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    refuses(Pairs([("a.png", 0)]), "item 0: image is a str")
    refuses([("a.png", 0), ("b.png", 1)], "item 0: image is a str")
    refuses((["a.png", "b.png"], [0, 1]), "image is a str")
    refuses(Pairs([(None, 0)]), "item 0: image is a NoneType")
    refuses(Pairs([({"path": "a.png"}, 0)]), "item 0: image is a dict without bytes")
    refuses(Pairs([(b"no picture", 0)]), "item 0: not an image")
    refuses(Pairs([(torch.zeros(5, 4, 4), 0)]), "item 0: shape (1, 5, 4, 4) is not that")
    refuses(Pairs([(np.zeros((4, 4), complex), 0)]), "item 0: pixels are complex128")
    refuses(Pairs([(np.array([["a"]]), 0)]), "item 0: pixels are <U1")
    refuses(Pairs([([[1, 2], [3]], 0)]), "item 0: pixels are no array")
    refuses(Pairs([(torch.zeros(1, 0, 4), 0)]), "item 0: no images")
    refuses(Pairs([(image, 0), (torch.zeros(1, 4, 5), 1)]), "item 0 is 4x4", "item 1 is 5x4")
    refuses(([[[1, 2], [3]]], [0]), "pixels are no array")
    refuses((np.zeros((4, 3, 3), complex), [0, 1, 0, 1]), "pixels are complex128")
    refuses((np.array([None, None]), [0, 1]), "pixels are object")
    refuses((np.zeros(4), [0, 1, 0, 1]), "shape (4,) is not that of")
    refuses(Bunch(images=[], target=[]), "shape (0,) is not that of")


def test_rows_are_square_images() -> None:
    labels = np.arange(12) % 2
    data = whole((grey(12, 6, 6).reshape(12, 36), labels))
    assert np.array_equal(pixels_of(data), grey(12, 6, 6))
    assert "rows of 36 numbers were read as grey images of 6x6" in data.notes
    planes = colour(12, 6, 6).transpose(0, 3, 1, 2)
    data = whole((planes.reshape(12, 108), labels))
    assert np.array_equal(data.train.images.numpy(), planes)
    assert any("6x6 red pixels, then green, then blue" in note for note in data.notes)
    refuses((grey(12, 6, 5).reshape(12, 30), labels), "rows of 30 numbers are no square images")
    refuses((np.zeros((12, 0)), labels), "rows of 0 numbers")


def test_sets_of_scikit_learn_are_read() -> None:
    digits = load_digits()
    refuses(digits, "run from 0 to 16", "pixel_range")
    data = load_data(digits, pixel_range=(0, 16))
    assert torch.equal(data.train.images, load_data("digits").train.images)
    assert data.classes == tuple("0123456789")
    assert data.name == "arrays"
    flat = load_data(load_digits(return_X_y=True), pixel_range=(0, 16))
    assert torch.equal(flat.train.images, data.train.images)
    faces = Bunch(
        data=grey(4, 6, 6).reshape(4, 36), images=grey(4, 6, 6), target=[0, 1, 0, 1], target_names=["Al", "Bo"]
    )
    assert whole(faces).classes == ("Al", "Bo")
    pictures = Bunch(images=list(map(Image.fromarray, grey(4))), target=[0, 1, 0, 1], target_names=["Al", "Bo"])
    assert whole(pictures).classes == ("Al", "Bo")
    openml = Bunch(data=grey(4, 6, 6).reshape(4, 36), target=[0, 1, 0, 1], target_names=["class"])
    assert whole(openml).classes == ("0", "1")  # the name of the column is none of a class
    openml = Bunch(data=grey(4, 6, 6).reshape(4, 36), target=np.array(list("7575"), object), target_names=["class"])
    assert whole(openml).classes == ("5", "7")


class Table:
    """What pandas' DataFrame and Series are to numpy."""

    iloc = None

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values

    def __len__(self) -> int:
        return len(self.values)


def test_tables_of_pandas_are_arrays() -> None:
    data = whole((Table(grey(4, 6, 6).reshape(4, 36)), Table(np.array(list("abab"), object))))
    assert np.array_equal(pixels_of(data), grey(4, 6, 6))
    assert data.classes == ("a", "b")
    refuses(Table(grey(4)), "train Table: one array or table; give a tuple of two")


def test_columns_of_hugging_face_are_arrays() -> None:
    pictures = UserList(map(Image.fromarray, grey(4)))  # a Sequence that is no list, as a column is
    assert np.array_equal(pixels_of(whole((pictures, UserList("abab")))), grey(4))
    assert whole((UserList(grey(4).tolist()), range(4))).num_classes == 4


def test_two_items_are_told_from_images_and_labels() -> None:
    a, b = grey(2)
    for items in (
        [(a, 0), (b, 1)],
        ((a, 0), (b, 1)),
        [[a, "x"], [b, "y"]],
        [{"image": a, "label": 0}, {"image": b, "label": 1}],
    ):
        assert np.array_equal(pixels_of(whole(items)), grey(2))
    for arrays in (([a, b], [0, 1]), [grey(2), [0, 1]], ([a.tolist(), b.tolist()], ["x", "y"])):
        assert np.array_equal(pixels_of(whole(arrays)), grey(2))
    refuses(((grey(4), [0, 1, 0, 1]), (grey(2), [0, 1])), 'say what they are: {"train": (X, y), "test": (X, y)}')
