"""Sources that are Datasets or arrays: names of classes, splits, and what fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from image_files import colour, grey, refuses
from PIL import Image
from python_objects import Feature, HubDataset, Pairs, Stream, pairs_of, pixels_of, whole
from sklearn.utils import Bunch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from limbeck.data import load_data


def pairs_with_classes(names: str, count: int = 4) -> Pairs:
    return Pairs(pairs_of(grey(count)), list(names))


def test_wrappers_keep_class_names_and_the_name() -> None:
    inner = Pairs(pairs_of(grey(12)), ["cat", "dog"])
    parts = random_split(inner, [8, 4], torch.Generator().manual_seed(0))
    nested = ConcatDataset([Subset(parts[0], range(4)), ConcatDataset([parts[1], Pairs(pairs_of(grey(4)))])])
    for source in (parts[0], Subset(inner, range(6)), ConcatDataset([inner, inner]), nested):
        data = load_data(source)
        assert data.classes == ("cat", "dog")
        assert data.name == "pairs"
    refuses(
        ConcatDataset([inner, pairs_with_classes("ab")]),
        "train ConcatDataset: parts whose classes are cat, dog and a, b",
    )
    refuses(ConcatDataset([pairs_with_classes("ba"), pairs_with_classes("ab")]), "b, a and a, b")


@pytest.mark.parametrize(
    ("attributes", "classes"),
    [
        ({"classes": ["x", "y"]}, ("x", "y")),
        ({"classes": np.array(["x", "y"])}, ("x", "y")),
        ({"class_to_idx": {"y": 1, "x": 0}}, ("x", "y")),
        ({"class_to_idx": {"y": np.int64(1), "x": 0}, "classes": ("x", "y")}, ("x", "y")),
        ({"class_to_idx": {"y": 1, "why": 1, "x": 0}, "classes": [("x",), ("y", "why")]}, ("x", "y")),  # as ImageNet
        ({"class_to_idx": {"y": 1}}, ("0", "y")),
        ({"classes": [4, 5]}, ("0", "1")),
        ({"classes": 2}, ("0", "1")),
        ({"class_to_idx": {}}, ("0", "1")),
    ],
)
def test_class_names_are_found(attributes: dict[str, Any], classes: tuple[str, ...]) -> None:
    assert load_data(Pairs(pairs_of(grey(8)), **attributes)).classes == classes


def test_class_names_that_contradict_each_other_are_refused() -> None:
    dataset = Pairs(pairs_of(grey(8)), classes=["y", "x"], class_to_idx={"x": 0, "y": 1})
    refuses(dataset, "train Pairs: .classes and .class_to_idx order the classes differently")
    refuses(Pairs(pairs_of(grey(8)), ["x"]), "label 1 has no name among the 1 class names")


def test_class_names_of_train_and_test_are_matched() -> None:
    splits = {
        "train": pairs_with_classes("ab", 6),
        "validation": pairs_with_classes("ba"),
        "test": pairs_with_classes("ba"),
    }
    data = load_data(splits)
    assert data.classes == ("a", "b")
    assert data.test.labels.tolist() == data.validation.labels.tolist() == [1, 0, 1, 0]
    assert sum("orders its classes otherwise" in note for note in data.notes) == 2
    refuses(
        {"train": pairs_with_classes("ab"), "test": pairs_with_classes("ac")}, "class c is in test and not in train"
    )
    words = {"train": pairs_with_classes("ba"), "test": (grey(2), ["a", "b"])}
    assert load_data(words).test.labels.tolist() == [1, 0]
    numbers = {"train": pairs_with_classes("ba"), "test": (grey(2), [1, 0])}  # without names, they are those of train
    assert load_data(numbers).test.labels.tolist() == [1, 0]
    numbers = {"train": (grey(4), [0, 1, 0, 1]), "test": pairs_with_classes("ba")}
    assert load_data(numbers).classes == ("b", "a")


def test_a_dict_holds_splits_by_any_name() -> None:
    images = {"train": grey(8, seed=1), "validation": grey(4, seed=2), "test": grey(2, seed=3)}
    parts = {split: (array, np.arange(len(array)) % 2) for split, array in images.items()}
    for names in (("train", "val", "test"), ("Training", "dev", "Testing"), ("x_train", "x_valid", "x_test")):
        data = load_data(dict(zip(names, parts.values(), strict=True)))
        for split, array in images.items():
            assert np.array_equal(getattr(data, split).images[:, 0], array)
        assert data.notes == ()
    data = load_data({"train": parts["train"], "test": parts["test"], "unsupervised": parts["validation"], "extra": 3})
    assert "entries that are no split were left out: unsupervised, extra" in data.notes


def test_dicts_that_are_no_splits_are_refused() -> None:
    arrays = grey(4), [0, 1, 0, 1]
    refuses({}, "dict: no split to train on among no keys")
    refuses({"a": arrays, "test": arrays}, "dict: no split to train on among a, test")
    pairs = 'give them in pairs by split, {"train": (images, labels), "test": (images, labels)}'
    refuses({"image": grey(4), "label": [0, 1, 0, 1]}, "dict: arrays called image, label;", pairs)
    refuses({"x_train": grey(4), "y_train": np.array([0, 1, 0, 1])}, "dict: arrays called x_train, y_train;", pairs)
    refuses({"images": [1], "labels": [0]}, "no split to train on among images, labels")
    refuses({"train": arrays, "val": arrays, "dev": arrays}, "two names for the split validation, val and dev")
    refuses({"train": arrays, "test": "photos/test"}, "test str: not a source of data")
    refuses({"train": arrays, "test": None}, "test NoneType: not a source of data")
    refuses({"train": {"train": arrays}}, "train dict: not a source of data")
    refuses({"train": arrays}, "test= is the test split beside", test=arrays)
    refuses("digits", "test= is a Dataset", test=arrays)


def test_splits_may_be_of_different_forms_and_share_one_range() -> None:
    labels = np.arange(4) % 2
    wide = grey(4).astype(np.uint16) * 16
    data = load_data({"train": (wide, labels), "test": Pairs(pairs_of(wide // 16))}, validation=0)
    assert np.array_equal(pixels_of(data), np.rint(wide * (255 / 4095)))
    assert np.array_equal(data.test.images[:, 0], np.rint(wide // 16 * (255 / 4095)))
    bright = load_data({"train": (colour(4), labels), "test": Pairs(pairs_of(grey(4)))}, validation=0)
    assert bright.shape == (3, 6, 5)
    assert any("4 grey images became RGB beside 4 coloured ones" in note for note in bright.notes)


class Failing(Pairs):
    """A Dataset that raises at item 2, and has one item less than its length."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(pairs_of(grey(4)))
        self.error = error

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        if index == 2 and self.error:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (
            OSError("cannot identify image file\n'3.jpg'"),
            ["item 2: cannot be read (OSError: cannot identify image file '3"],
        ),
        (FileNotFoundError(2, "No such file", "3.jpg"), ["item 2: cannot be read (FileNotFoundError: [Errno 2]"]),
        (KeyError("column"), ["item 2: cannot be read (KeyError: 'column')"]),
        (StopIteration(), ["item 2: cannot be read (StopIteration: StopIteration)"]),
        (NotImplementedError("x" * 400), ["item 2: cannot be read (NotImplementedError: xxx"]),
        (IndexError("no column 7"), ["item 2 of 5 raises IndexError (no column 7)", "__len__"]),
        (None, ["item 4 of 5 raises IndexError (list index out of range)", "__len__"]),
    ],
)
def test_an_item_that_fails_is_named(error: Exception | None, parts: list[str]) -> None:
    sentence = refuses(Failing(error), "train Failing", *parts)
    assert len(sentence) <= 300
    with pytest.raises(Exception, match="train Failing") as caught:
        load_data(Failing(error))
    assert caught.value.__cause__ is error or isinstance(caught.value.__cause__, IndexError)


def test_items_that_are_no_pairs_are_refused() -> None:
    image = grey(1)[0]
    refuses(Pairs([(image, 0), None]), "item 1: not an (image, label) pair but NoneType", "leave it out")
    refuses(Pairs([(image, 0), image]), "item 1: not an (image, label) pair but ndarray")
    refuses(Pairs([(image, 0), (image,)]), "item 1: not an (image, label) pair but 1 part")
    refuses(Pairs([(image, 0), {"image": image, "label": 1}]), "item 1: has no 0 and 1 as item 0 has")
    refuses(Pairs([{"image": image, "label": 1}, (image, 0)]), "item 1: has no image and label as item 0 has")
    refuses(Pairs([{"image": image, "label": 1}, {"image": image}]), "item 1: has no image and label")
    refuses(Pairs([{"image": image, "name": 1}]), "train Pairs: no label column among image, name; call the one")
    refuses(Pairs([{"one": image, "two": image, "label": 1}]), "several image columns, one, two")


def test_parts_of_an_item_beyond_two_are_left_out_and_noted() -> None:
    triples = [(image, i % 2, i) for i, image in enumerate(grey(8))]
    tensors = TensorDataset(torch.from_numpy(grey(8)), torch.arange(8) % 2, torch.arange(8))
    for source in (Pairs(triples), triples, tensors):
        data = whole(source)
        assert np.array_equal(pixels_of(data), grey(8))
        assert "items have 3 parts: the first two are image and label" in data.notes


def numbers() -> Iterator[int]:
    yield 1


def test_objects_that_are_no_dataset_are_refused() -> None:
    class Endless(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return grey(1)[0], 0

    refuses(Pairs([]), "Pairs: has length 0")
    refuses([], "list: has length 0")
    refuses(Endless(), "train Endless: has no length", "define __len__")
    refuses(Stream(), "train Stream: a stream", "map-style")
    refuses({"train": Stream()}, "train Stream: a stream", "map-style")
    refuses(numbers(), "train generator: a stream", "map-style")
    refuses(DataLoader(Pairs(pairs_of(grey(4)))), "train DataLoader: it gives batches", ".dataset")
    refuses(grey(4), "train ndarray: one array", "(images, labels)")
    refuses(torch.zeros(4, 3, 8, 8), "train Tensor: one array")
    refuses(3, "train int: not a source of data", "map-style Dataset", "(X, y)", "path")
    refuses(None, "train NoneType: not a source of data")
    refuses(b"photos", "train bytes: not a source of data")
    refuses(
        [*(grey(4) for _ in range(4))], "several arrays", '{"train": (X, y), "test": (X, y)}'
    )  # as train_test_split


def hub(images: list[Any], names: list[str] | None, label: str = "label", image: str = "image") -> HubDataset:
    rows = [{image: picture, label: i % 2, "id": i} for i, picture in enumerate(images)]
    return HubDataset(rows, {image: Feature(), label: Feature(names), "id": Feature()})


def test_datasets_of_hugging_face_are_read() -> None:
    images = colour(8)
    pictures = [Image.fromarray(p) for p in images]
    data = whole(hub(pictures, ["cat", "dog"]))
    assert np.array_equal(pixels_of(data), images)
    assert data.classes == ("cat", "dog")
    assert data.name == "hubdataset"
    assert data.notes == ()
    fine = whole(hub(pictures, ["cat", "dog"], "fine_label", "img"))
    assert fine.fingerprint == data.fingerprint
    assert fine.notes == ("labels are the column fine_label",)
    assert whole(hub(pictures, ["cat", "dog"], "animal", "look")).fingerprint == data.fingerprint
    refuses(hub(pictures, None, "animal"), "no label column among image, animal, id")
    split = random_split(hub(pictures, ["cat", "dog"]), [6, 2], torch.Generator().manual_seed(0))
    assert load_data({"train": split[0], "test": split[1]}).classes == ("cat", "dog")
    named = hub(pictures, ["cat", "dog"])
    named.info = Bunch(dataset_name="Pets")  # type: ignore[attr-defined]
    assert load_data(named).name == "pets"


def test_a_split_whose_labels_are_hidden_is_left_out() -> None:
    hidden = Pairs(pairs_of(grey(4), [-1] * 4))
    for test in (hidden, (grey(4), np.full(4, -1)), TensorDataset(torch.from_numpy(grey(4)), torch.full((4,), -1))):
        data = load_data({"train": Pairs(pairs_of(grey(10))), "test": test})
        assert "test was left out: it has no labels" in data.notes
        assert len(data.test) == 2
    refuses(hidden, "pairs (train) row 0: no label")
    refuses(Pairs(pairs_of(grey(4), [0, 1, -1, -1])), "label -1 is negative")


def test_splits_of_hugging_face_are_matched_by_name() -> None:
    pictures = [Image.fromarray(p) for p in colour(8)]
    data = load_data({"train": hub(pictures, ["cat", "dog"]), "test": hub(pictures[:4], ["dog", "cat"])})
    assert data.test.labels.tolist() == [1, 0, 1, 0]
