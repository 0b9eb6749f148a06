"""Folders as well-known archives have them: what is a class there, what is left out, and what is refused as unclear."""

from __future__ import annotations

import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import grey, refuses, save_picture

from limbeck.data import ImageData, load_data
from limbeck.data.splits import is_general

GREY = {"cat": 40, "dog": 120, "bird": 220}


def write(root: Path, *paths: str, count: int = 4) -> Path:
    """Write images into each of these folders; all pixels say which class it is that the last word of a path names."""
    for path in paths:
        word = next((name for name in reversed(path.replace("_", "/").split("/")) if name in GREY), "cat")
        for i in range(count):
            save_picture(root / path / f"{i}.png", np.full((4, 4), GREY[word] + i, np.uint8))
    return root


def expect(data: ImageData, classes: str, total: int) -> None:
    """Check the classes, the number of images, and that all images are of the class that their label says."""
    assert data.classes == tuple(classes.split())
    assert len(data.train) + len(data.validation) + len(data.test) == total
    for split in (data.train, data.validation, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert 0 <= int(image[0, 0, 0]) - GREY[data.classes[label]] < 10


@pytest.mark.parametrize(
    ("folders", "general"),
    [
        (("images", "annotations/trimaps"), "images"),  # Oxford pets
        (("images", "masks"), "images"),  # segmentation
        (("train/images", "train/masks", "val/images", "val/masks"), "images"),
        (("images_001/images", "images_002/images"), "images_001"),  # NIH chest X-rays without their table
        (("part1", "part2"), "part1"),
        (("jpg",), "jpg"),  # Flowers-102
    ],
)
def test_a_folder_that_says_images_is_no_class(tmp_path: Path, folders: tuple[str, ...], general: str) -> None:
    sentence = refuses(write(tmp_path, *folders), f"{general}: a folder of images, by its name, and no class")
    assert len(sentence.removeprefix(str(tmp_path))) < 300


@pytest.mark.parametrize("name", ["photos", "full", "new", "part", "machine_part_1", "c0", "n01440764", "1", ""])
def test_other_names_may_be_classes(name: str) -> None:
    assert not is_general(name)


def test_images_are_those_of_the_folders_that_say_so(tmp_path: Path) -> None:
    write(tmp_path, "cat/images", "dog/images", "cat/masks", "dog/masks")  # the COVID-19 radiography database
    (tmp_path / "dog" / "source.txt").write_text("x")
    data = load_data(tmp_path)
    expect(data, "cat dog", 8)
    assert "images are those of the folders images; beside these masks, source.txt were left out" in data.notes


def test_a_copy_of_the_classes_beside_them_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "top", "cat", "dog", "pets_dataset/cat", "pets_dataset/dog")  # brain-mri-images-for-detection
    data = load_data(tmp_path / "top")
    expect(data, "cat dog", 8)
    assert "left out: pets_dataset/ (8 files), whose folders are called as those beside it" in data.notes
    write(tmp_path / "splits", "train/cat", "train/dog", "train/train/cat", "train/train/dog", "test/cat", "test/dog")
    expect(load_data(tmp_path / "splits"), "cat dog", 16)


@pytest.mark.parametrize(
    "folders",
    [
        ("amazon/cat", "amazon/dog", "webcam/cat", "webcam/dog", "webcam/bird"),  # PACS, Office-31
        ("color/cat", "color/dog", "gray/cat", "gray/dog", "segmented/cat_masked", "segmented/dog_masked"),
        ("original/images/cat", "original/images/dog", "augmented/cat", "augmented/dog", "augmented/bird"),
    ],
)
def test_domains_above_classes_are_never_the_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    sentence = refuses(write(tmp_path, *folders), "hold the same folders, cat, dog", "name one of the upper ones")
    assert len(sentence.removeprefix(str(tmp_path))) < 300
    expect(load_data(tmp_path / folders[0].split("/")[0]), "cat dog", 8)


@pytest.mark.parametrize(
    ("folders", "contents"),
    [
        (("cat/train", "cat/test", "dog/train"), "cat test, train and dog train"),
        (("bird", "cat/train", "cat/test", "dog/train", "dog/test"), "bird none and cat test, train"),
        (("cat/train", "dog/test"), "cat train and dog test"),
        (("cat/test", "dog/test", "cat/extra", "dog/extra"), "cat extra, test and dog extra, test"),
    ],
)
def test_splits_below_the_classes_have_to_be_the_same(tmp_path: Path, folders: tuple[str, ...], contents: str) -> None:
    refuses(write(tmp_path, *folders), f"called as splits, but not alike: {contents}; give all the same")


@pytest.mark.parametrize("test", ["a_test/a_test", "test/images", "test"])
def test_loose_pictures_of_a_split_below_its_own_name_are_left_out(tmp_path: Path, test: str) -> None:
    train = "a_train/a_train" if test[0] == "a" else "train"  # the ASL alphabet; Intel's scenes
    data = load_data(write(tmp_path, f"{train}/cat", f"{train}/dog", test))
    expect(data, "cat dog", 8)
    assert any(note.startswith(f"left out: {test.split('/')[0]}/ (4 files)") for note in data.notes)


def test_loose_pictures_of_a_split_below_its_own_name_are_no_class(tmp_path: Path) -> None:
    expect(load_data(write(tmp_path, "cat", "dog", "test/test")), "cat dog", 8)


def test_a_data_set_deep_inside_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, "snapshots/1f2e/train/cat", "snapshots/1f2e/train/dog", "blobs")  # the cache of Hugging Face
    refuses(tmp_path, "the data set seems to lie in its folder snapshots/1f2e")
    write(tmp_path / "work", "data/cat", "data/dog", "figures")
    refuses(tmp_path / "work", "the data set seems to lie in its folder data")


def test_names_are_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, name in (("train", one), ("test", two)):
        write(tmp_path / split, name, "tea")
    assert load_data(tmp_path).classes == (one, "tea")
    write(tmp_path / "table", two)
    (tmp_path / "table" / "labels.csv").write_text(f"file,label\n{one}/0.png,x\n{one}/1.png,y\n{one}/2.png,x\n")
    assert load_data(tmp_path / "table" / "labels.csv").classes == ("x", "y")
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for path in sorted(tmp_path.glob("t*t/*/*.png")) + sorted(tmp_path.glob("train/*/*.png")):
            archive.write(path, path.relative_to(tmp_path))
    assert load_data(tmp_path / "mac.zip").fingerprint == load_data(tmp_path).fingerprint
    write(tmp_path / "both", one, two, "tea")  # neither may replace the other
    data = load_data(tmp_path / "both")
    assert set(data.classes) == {one, two, "tea"}
    assert any(note.startswith("classes are called nearly the same") for note in data.notes)


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        ("Cat cat", True),
        ("cat cat_", True),
        ("01 1", True),
        ("class_1 class_01", True),
        ("T-shirt t_shirt", True),
        ("A a", False),
        ("10 100", False),
        ("class_1 class_10", False),
        ("nan cat", False),
    ],
)
def test_class_names_that_may_be_one_are_noted(tmp_path: Path, names: str, noted: bool) -> None:
    data = load_data(write(tmp_path, *names.split()))
    assert len(data.classes) == 2
    assert any("nearly the same" in note for note in data.notes) == noted
    assert any("a label is missing" in note for note in data.notes) == ("nan" in names)


def test_notes_stay_few_and_short(tmp_path: Path) -> None:
    classes = [f"c{k}/{part}" for k in range(12) for part in (f"x{k}", f"y{k}")]
    write(tmp_path / "nested", *classes)
    write(tmp_path / "splits", "train/cat", "train/dog", *(f"other{k}" for k in range(30)), count=3)
    for root in (tmp_path / "nested", tmp_path / "splits"):
        for k in range(40):
            (root / f"log{k}.txt").write_text("x")
            (root / next(iter(classes if root.name == "nested" else ["train/cat"])) / f"a.suffix{k}").write_text("x")
        notes = load_data(root).notes
        assert len(notes) <= 6
        assert max(map(len, notes)) < 250
    assert "files beside the class folders were left out: log0.txt, log1.txt, log10.txt, log11.txt and 36 more" in (
        load_data(tmp_path / "nested").notes
    )


def test_what_lies_beside_the_folder_that_is_read_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "food" / "images", "cat", "dog")  # Food-101 and CUB-200, whose lists of splits are not read
    (tmp_path / "food" / "meta").mkdir()
    for name in ("meta/train.txt", "meta/test.txt", "README.txt"):
        (tmp_path / "food" / name).write_text("x")
    notes = load_data(tmp_path).notes
    assert notes[:2] == ("read from the folder food/images", "3 files beside it were left out: README.txt, meta/")


def test_archives_inside_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        archive.writestr("train.zip", b"PK")
    refuses(tmp_path / "pets.zip", "holds archives, train.zip; unpack them, or name one")
    refuses(tmp_path, "holds archives, pets.zip")


@pytest.mark.parametrize("column", ["classname", "who"])
def test_class_folders_with_a_number_in_their_names_win_over_unclear_tables(tmp_path: Path, column: str) -> None:
    for k in range(3):  # State Farm's drivers
        for i in range(4):
            save_picture(tmp_path / "imgs" / "train" / f"c{k}" / f"img_{k}{i}.png", grey(1, seed=4 * k + i)[0])
    rows = [f"p{i % 2},c{k},img_{k}{i}.png\n" for k in range(3) for i in range(4)]
    (tmp_path / "list.csv").write_text(f"subject,{column},img\n" + "".join(rows))
    data = load_data(tmp_path)
    assert data.classes == ("c0", "c1", "c2")
    assert data.train.counts(3) == [2, 2, 2]


def test_columns_that_are_not_read_are_noted(tmp_path: Path) -> None:
    write(tmp_path, "images")
    rows = "".join(f",images/{i}.png,{'xy'[i % 2]},{i % 2}\n" for i in range(4))
    (tmp_path / "train.csv").write_text(f",file,label,is_valid\n{rows}")  # fastai's column of a split
    assert "train.csv: columns left out are is_valid" in load_data(tmp_path).notes


def test_a_range_for_two_depths_is_noted(tmp_path: Path) -> None:
    for i in range(3):
        save_picture(tmp_path / "a" / f"{i}.png", np.full((4, 4), 200, np.uint8))
        save_picture(tmp_path / "b" / f"{i}.png", np.full((4, 4), 60000, np.uint16))
    assert (
        "3 images of 8 bits were scaled by the range of the 3 others"
        in load_data(tmp_path, pixel_range=(0, 65535)).notes
    )


def test_one_split_that_is_nearly_black_is_noted(tmp_path: Path) -> None:
    pixels, labels = grey(8), np.arange(8) % 2
    np.savez(tmp_path / "x.npz", x_train=pixels // 128, y_train=labels, x_test=pixels | 255, y_test=labels)
    note = "the pixels of train end at 1 of 255 and those of other splits at 255: give all of them one range"
    assert note in load_data(tmp_path / "x.npz").notes


def test_a_long_list_of_classes_without_images_is_cut(tmp_path: Path) -> None:
    labels = np.arange(8) % 2
    np.savez(tmp_path / "x.npz", images=grey(8), labels=labels, names=[f"wnid {k}" for k in range(1000)])
    note = "classes without images were left out: wnid 2, wnid 3, wnid 4, wnid 5, wnid 6 and 993 more"
    assert note in load_data(tmp_path / "x.npz").notes


def test_hard_links_of_a_tar_are_files(tmp_path: Path) -> None:
    for name in ("cat", "dog"):  # as copies of `cp -l` and packers of deduplicated folders have them
        save_picture(tmp_path / "all" / f"{name}.png", np.full((4, 4), GREY[name], np.uint8))
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "pets" / name / f"{i}.png").hardlink_to(tmp_path / "all" / f"{name}.png")
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(tmp_path / "pets", "pets")
        assert sum(member.islnk() for member in archive.getmembers()) == 6
    expect(load_data(tmp_path / "pets.tar"), "cat dog", 8)


def test_many_tables_have_few_notes(tmp_path: Path) -> None:
    write(tmp_path, "images")
    (tmp_path / "train.csv").write_text("file,label\n" + "".join(f"images/{i}.png,{i % 2}\n" for i in range(4)))
    for k in range(30):
        (tmp_path / f"boxes{k}.csv").write_text("x,y\n1,2\n")
        (tmp_path / f"names{k}.csv").write_text("file\nimages/0.png\n")
        (tmp_path / f"old{k}.csv").write_text("file,label\nimages/0.png,x\n")
    notes = load_data(tmp_path).notes
    assert len(notes) < 9
    assert max(map(len, notes)) < 200
    assert "boxes0.csv, boxes1.csv, boxes10.csv, boxes11.csv and 26 more were left out: no column names images" in (
        " ".join(notes)
    )


def test_tables_of_one_split_name_an_image_once(tmp_path: Path) -> None:
    write(tmp_path, "images", count=8)
    rows = [f"images/{i}.png,{'xy'[i % 2]}\n" for i in range(8)]
    (tmp_path / "train.csv").write_text("file,label\n" + "".join(rows[:5]))
    (tmp_path / "train2.csv").write_text("file,label\n" + "".join(rows[3:]))
    data = load_data(tmp_path)
    values = [
        value for split in (data.train, data.validation, data.test) for value in split.images[:, 0, 0, 0].tolist()
    ]
    assert sorted(values) == list(range(40, 48))
    assert "2 rows were left out: a table before names the image" in data.notes
    (tmp_path / "train2.csv").write_text("file,label\nimages/0.png,y\n")
    refuses(tmp_path, "images/0.png: has two labels, x and y; keep one")
    (tmp_path / "train2.csv").rename(tmp_path / "val.csv")
    refuses(tmp_path, "images/0.png: has two labels, x and y; keep one")


def test_columns_of_classes_may_be_in_any_order(tmp_path: Path) -> None:
    for split, names in (("train", ["cat", "dog"]), ("valid", ["dog", "cat"])):  # Roboflow
        write(tmp_path, split, count=8)
        rows = [f"{i}.png,{int(names[i % 2] == 'cat')},{int(names[i % 2] != 'cat')}\n" for i in range(8)]
        text = "file,cat,dog\n" + "".join(rows)
        table = "".join(",".join(line.split(",")[k] for k in (0, 2, 1)) + "\n" for line in text.split())
        (tmp_path / split / "_classes.csv").write_text(text if split == "train" else table)
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.validation.labels.tolist() == [1, 0] * 4


def test_arrays_beside_class_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/cat", "train/dog")
    for content in ({"mean": np.zeros(3)}, {"features": np.zeros((8, 5)), "labels": np.zeros(8)}):
        np.savez(tmp_path / "other.npz", **content)
        data = load_data(tmp_path)
        expect(data, "cat dog", 8)
        assert "files beside the folders of the splits were left out: other.npz" in data.notes
    (tmp_path / "other.npz").write_bytes(b"x")
    expect(load_data(tmp_path), "cat dog", 8)
    np.savez(tmp_path / "other.npz", x=grey(6), y=np.arange(6) % 2)
    assert "8 image files were left out, since an .npz file lies beside them" in load_data(tmp_path).notes


@pytest.mark.parametrize("kind", ["uint16", "int64", "float32", "float64", "bool"])
def test_a_split_of_8_bits_stays_as_it_is_beside_others(kind: str) -> None:
    bright = {"uint16": 65535, "int64": 255, "bool": 1}.get(kind, 1.0)
    other = np.where(grey(8) > 127, bright, 0).astype(kind)
    labels = np.arange(8) % 2
    for splits in ({"train": grey(8), "test": other}, {"train": other, "test": grey(8)}):
        data = load_data({split: (images, labels) for split, images in splits.items()}, validation=0)
        for split, images in splits.items():
            expected = grey(8) if images is not other else np.where(grey(8) > 127, 255, 0)
            assert np.array_equal(getattr(data, split).images[:, 0].numpy(), expected)


def test_loose_files_inside_a_split_or_a_class_of_splits_are_noted(tmp_path: Path) -> None:
    write(tmp_path / "a", "train", "train/cat", "train/dog", "test/cat", "test/dog")
    (tmp_path / "a" / "test" / "list.txt").write_text("x")
    assert load_data(tmp_path / "a").notes[:2] == (
        "files beside the class folders of test were left out: list.txt",
        "4 images beside the class folders of train were left out",
    )
    write(tmp_path / "b", "cat", "cat/train", "dog/train", "cat/test", "dog/test", count=3)
    assert "3 files beside the folders of splits in the classes were left out" in load_data(tmp_path / "b").notes
