"""Folders of class folders: what is a split, what a class, what is left out, and where the data set lies."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import colour, grey, refuses, save_picture
from PIL import Image

from limbeck.data import ImageData, load_data
from limbeck.data.splits import find_splits, split_of

NAMES = ["cat", "dog"]


def make(folder: Path, names: list[str] | str = NAMES, count: int = 3, seed: int = 0) -> Path:
    for k, name in enumerate(names):
        for i, pixels in enumerate(grey(count, seed=seed + k)):
            save_picture(folder / name / f"{i}.png", pixels)
    return folder


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


SPELLINGS = {
    "test": [
        ("train", "test"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("TRAIN", "TEST"),
        ("TrainingSet", "TestSet"),
        ("train_images", "test_images"),
        ("trainset", "testset"),
        ("train1", "test1"),
        ("01_train", "02_test"),
        ("seg_train", "seg_test"),
        ("asl_alphabet_train", "asl_alphabet_test"),
        ("training data", "testing data"),
        ("train", "holdout"),
    ],
    "validation": [
        ("train", "val"),
        ("train", "Valid"),
        ("Train_Set", "Validation_Set"),
        ("train", "dev"),
        ("train", "eval"),
        ("traindata", "valdata"),
        ("pets-train", "pets-val"),
    ],
}


@pytest.mark.parametrize(
    ("split", "train", "other"), [(split, *pair) for split, pairs in SPELLINGS.items() for pair in pairs]
)
def test_splits_are_known_in_any_spelling(tmp_path: Path, split: str, train: str, other: str) -> None:
    make(tmp_path / train, count=8)
    make(tmp_path / other, count=2, seed=50)
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    part: torch.Tensor = getattr(data, split).images
    expected = np.concatenate([grey(2, seed=50), grey(2, seed=51)])
    assert np.array_equal(part[:, 0].numpy(), expected)


@pytest.mark.parametrize(
    "name", ["cat", "tests of bread", "contest", "trainer", "latest", "devil", "value", "set", "images", "1", "te st"]
)
def test_other_names_are_no_splits(name: str) -> None:
    assert split_of(name) is None
    assert find_splits([name, "cat"], "x") == {}


@pytest.mark.parametrize("pair", [("day", "night"), ("fold1", "fold2"), ("benign", "malignant")])
def test_folders_that_hold_the_same_folders_are_never_the_classes(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        make(tmp_path / name, ["40x", "100x"])
    refuses(tmp_path, *pair, "hold the same folders, 100x, 40x", "train, validation and test")


def test_classes_above_their_splits(tmp_path: Path) -> None:
    for k, name in enumerate(NAMES):
        make(tmp_path / name, ["train", "test"], seed=10 * k)
    data = load_data(tmp_path, validation=0)
    assert data.classes == ("cat", "dog")
    assert np.array_equal(data.test.images[:, 0].numpy(), np.concatenate([grey(3, seed=1), grey(3, seed=11)]))


def test_every_folder_that_is_left_out_is_noted(tmp_path: Path) -> None:
    for name in ("train", "dev", "extra"):
        make(tmp_path / name, count=10)
    save_picture(tmp_path / "overview.png", grey(1)[0])
    data = load_data(tmp_path)
    assert sizes(data) == (16, 20, 4)
    assert data.notes[:2] == (
        "left out: extra/ (20 files), which is not named like a split or has no class folders",
        "1 image beside the folders of the splits was left out",
    )


def test_loose_pictures_of_a_split_are_no_class(tmp_path: Path) -> None:
    make(tmp_path, ["cat", "dog", "test", "Valid"], count=5)
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "left out: test/, which is named like a split and has images but no class folders" in data.notes
    assert "left out: Valid/, which is named like a split and has images but no class folders" in data.notes
    make(tmp_path / "two", ["control", "test"])
    refuses(tmp_path / "two", "control and test hold images and no class folders", "rename test/ if it is a class")
    make(tmp_path / "loose", ["train"])
    refuses(tmp_path / "loose", "train/ holds images and no class folders")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = load_data(make(tmp_path, ["bus", "car", "train"], count=5))
    assert data.classes == ("bus", "car", "train")
    assert "train/ was read as a class, since its images have no class folders" in data.notes


HIDDEN = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "__pycache__", "System Volume Information"]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_and_system_folders_do_not_count_at_any_depth(tmp_path: Path, name: str) -> None:
    for split in ("train", "test"):
        make(tmp_path / split, count=5)
    data = load_data(tmp_path)
    for place in ("", "train", "train/cat", "train/cat/deep"):
        save_picture(tmp_path / place / name / "x.png", grey(1)[0])
        save_picture(tmp_path / place / name / "cat" / "x.png", grey(1)[0])
    again = load_data(tmp_path)
    assert (again.fingerprint, again.notes) == (data.fingerprint, data.notes)


def test_nested_class_folders_count_for_the_class(tmp_path: Path) -> None:
    make(tmp_path / "cat", ["persian", "siamese"])
    make(tmp_path / "dog", ["pug", "lab", "husky"])
    data = load_data(tmp_path, validation=0)
    assert data.classes == ("cat", "dog")
    assert sum(sizes(data)) == 15
    assert "the images of class dog come from its folders husky, lab, pug, too" in data.notes


def test_the_only_data_set_inside_is_read_and_noted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make(tmp_path / "outer" / "data" / split, count=5)
    (tmp_path / "outer" / "README.md").write_text("pets")
    data = load_data(tmp_path / "outer")
    direct = load_data(tmp_path / "outer" / "data")
    assert (data.fingerprint, data.name) == (direct.fingerprint, "outer")
    assert "read from the folder data" in data.notes
    make(tmp_path / "outer" / "docs", ["figures"])
    refuses(tmp_path / "outer", "the data set seems to lie in its folder data")
    for split in ("train", "test"):
        make(tmp_path / "outer" / "more" / split)
    refuses(tmp_path / "outer", "several data sets lie in it, in data, more; name one of them")


def test_splits_may_have_a_folder_of_the_same_name_inside(tmp_path: Path) -> None:
    make(tmp_path / "seg_train" / "seg_train")
    make(tmp_path / "seg_test" / "seg_test")
    make(tmp_path / "seg_pred", ["seg_pred"])
    data = load_data(tmp_path, validation=0)
    assert data.classes == ("cat", "dog")
    assert sizes(data) == (6, 0, 6)
    assert "left out: seg_pred/ (3 files), which is not named like a split or has no class folders" in data.notes


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(i) for i in range(11)], [str(i) for i in range(11)]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["010", "009", "1"], ["1", "009", "010"]),
        (["class10", "class9"], ["class10", "class9"]),
        (["10", "9", "x"], ["10", "9", "x"]),
    ],
)
def test_names_that_are_all_numbers_are_sorted_by_value(tmp_path: Path, names: list[str], order: list[str]) -> None:
    assert load_data(make(tmp_path, names)).classes == tuple(order)


SUFFIXES = ["jfif", "ppm", "pgm", "tif", "bmp", "webp", "JPEG", "tga", "jp2", "img", "dat", "png.bak", ""]
FORMATS = {"jfif": "JPEG", "ppm": "PPM", "pgm": "PPM", "tif": "TIFF", "tga": "TGA", "jp2": "JPEG2000", "JPEG": "JPEG"}


def test_pictures_are_known_by_their_content(tmp_path: Path) -> None:
    make(tmp_path, ["a", "b"], count=1)
    for i, suffix in enumerate(SUFFIXES):
        format = FORMATS.get(suffix, suffix.upper() if suffix in ("bmp", "webp") else "PNG")
        save_picture(tmp_path / "a" / f"x{i}{'.' * bool(suffix)}{suffix}", grey(1)[0], format=format)
    for i, content in enumerate(
        [b"", b"x", b"label,file\n", b"%PDF-1.4\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
    ):
        (tmp_path / "b" / f"{i}.txt").write_bytes(content)
    data = load_data(tmp_path, validation=0)
    assert sum(sizes(data)) == 2 + len(SUFFIXES)
    assert "5 files other than images were left out (5 .txt)" in data.notes


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=["Cs", "Cc"]), max_size=8)
CLASS = TEXT.map(lambda text: normalize("NFC", f"k{text}")).filter(lambda name: split_of(name) is None)
"""Names of classes as they come back: file systems differ in how they write letters with marks."""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(CLASS, min_size=2, max_size=4, unique_by=str.casefold),
    counts=st.lists(st.integers(1, 3), min_size=12, max_size=12),
    splits=st.sampled_from([("Train", "TEST"), ("training", "val", "test"), ("train", "dev", "holdout")]),
    is_colour=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_class_folders_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    counts: list[int],
    splits: tuple[str, ...],
    is_colour: bool,
    seed: int,
) -> None:
    root = tmp_path_factory.mktemp("set")
    expected = {}
    for s, split in enumerate(splits):
        images = []
        for k, name in enumerate(sorted(names)):
            pixels = (colour if is_colour else grey)(counts[4 * s + k], seed=seed + 10 * s + k)
            images.append(pixels)
            for i, one in enumerate(pixels):
                save_picture(root / split / name / f"{i}.png", one)
        labels = np.repeat(np.arange(len(names)), [len(part) for part in images])
        expected[split_of(split)] = np.concatenate(images), labels
    data = load_data(root, validation=0)
    assert data.classes == tuple(sorted(names))
    for split, (pixels, labels) in expected.items():
        part = getattr(data, str(split))
        array = part.images.numpy()
        assert np.array_equal(array.transpose(0, 2, 3, 1) if is_colour else array[:, 0], pixels)
        assert part.labels.tolist() == labels.tolist()


def test_every_image_knows_its_file(tmp_path: Path) -> None:
    """Also where splits are drawn from train, when it comes from the cache, and below a folder that was entered."""
    make(tmp_path / "outer" / "pets", ["cat", "dog"], count=9)
    for source in (tmp_path / "outer", tmp_path / "outer", tmp_path / "outer" / "pets"):
        data = load_data(source)
        assert data.layout == "a folder with one folder of images per class"
        for split in ("train", "validation", "test"):
            part = getattr(data, split)
            assert len(data.files[split]) == len(part)
            for file, image in zip(data.files[split], part.images):
                assert np.array_equal(np.asarray(Image.open(source / file)), image[0].numpy())
    assert load_data("digits").files == {}
