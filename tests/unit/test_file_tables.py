"""Tables of file names and labels beside images: layouts of Kaggle and of the Hugging Face library, and refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from shutil import make_archive
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import colour, make_class_folders, planes, refuses, save_picture

from limbeck.data import ImageData, load_data
from limbeck.data.readers.picture_index import has_class_folders
from limbeck.data.tree import read_folder_tree


def write_images(folder: Path, names: Any, seed: int = 0) -> Any:
    """Write colour(n) as pictures of these names; returns (n, c, h, w)."""
    pixels = colour(len(names), seed=seed)
    for name, image in zip(names, pixels, strict=True):
        save_picture(folder / name, image)
    return planes(pixels)


def write_table(path: Path, header: Any, rows: Any, delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows] if header else rows)
    return path


def images_by_name(data: ImageData) -> dict[bytes, str]:
    """The class name of every image of all splits, by its pixels."""
    return {
        image.numpy().tobytes(): data.classes[label]
        for part in (data.train, data.validation, data.test)
        for image, label in zip(part.images, part.labels, strict=True)
    }


def expect(data: ImageData, images: Any, words: Any) -> None:
    assert images_by_name(data) == {image.tobytes(): word for image, word in zip(images.copy(), words, strict=True)}


NAMES = [f"{i}.png" for i in range(8)]
WORDS = ["dog", "cat"] * 4


@pytest.mark.parametrize("suffix", ["csv", "tsv", "CSV"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("inside", ["", "images/", "train/a b/"])
def test_a_table_names_images_and_labels(tmp_path: Path, suffix: str, delimiter: str, inside: str) -> None:
    images = write_images(tmp_path, [inside + name for name in NAMES])
    path = write_table(tmp_path / f"labels.{suffix}", ["file", "label"], zip(NAMES, WORDS, strict=True), delimiter)
    for source in (tmp_path, path):
        data = load_data(source)
        assert data.classes == ("cat", "dog")
        expect(data, images, WORDS)
        assert f"labels.{suffix}: images are the column file, labels label" in data.notes
        assert data.name == tmp_path.name


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ("{i}", "train/{i}.jpg.png"),
        ("{i}", "{i}.png"),
        ("img_{i}", "train/deep/IMG_{i}.PNG"),
        ("a.b{i}", "images/a.b{i}.png"),
        ("./x/{i}.png", "x/{i}.png"),
        ("x\\{i}.png", "data/x/{i}.png"),
        ("x/{i}", "data/x/{i}.png"),
        (" {i}.png", "{i}.png"),
    ],
)
def test_names_are_found_with_and_without_suffix_and_folder(tmp_path: Path, cell: str, place: str) -> None:
    if cell == "{i}" and ".jpg" in place:
        cell = "{i}.jpg"
    images = write_images(tmp_path, [place.format(i=i) for i in range(8)])
    write_table(tmp_path / "train.csv", ["id", "breed"], [(cell.format(i=i), WORDS[i]) for i in range(8)])
    expect(load_data(tmp_path), images, WORDS)


def test_kaggles_layout_with_a_test_set_without_labels(tmp_path: Path) -> None:
    images = write_images(tmp_path, [f"train/{name}" for name in NAMES])
    write_images(tmp_path, [f"test/{name}" for name in NAMES], seed=1)  # of the same names
    write_table(tmp_path / "train.csv", ["id", "label"], [(i, WORDS[i]) for i in range(8)])
    write_table(tmp_path / "test.csv", ["id"], [(i,) for i in range(8)])
    write_table(tmp_path / "sample_submission.csv", ["id", "label"], [(i, "cat") for i in range(8)])
    data = load_data(tmp_path)
    expect(data, images, WORDS)
    assert {
        "sample_submission.csv was left out: the sample of a submission",
        "test.csv was left out: no column of labels",
        "8 images were left out: no row with a label names them",
    } <= set(data.notes)


def test_labels_of_test_that_are_empty_or_another_column_are_left_out(tmp_path: Path) -> None:
    images = write_images(tmp_path, [f"train/{name}" for name in NAMES])
    write_images(tmp_path, [f"test/t{name}" for name in NAMES], seed=1)
    write_table(tmp_path / "train.csv", ["id", "label"], [(i, WORDS[i]) for i in range(8)])
    write_table(tmp_path / "test.csv", ["id", "label"], [(f"t{i}", "") for i in range(8)])
    data = load_data(tmp_path)
    expect(data, images, WORDS)
    assert "test was left out: it has no labels" in data.notes
    write_table(tmp_path / "test.csv", ["id", "width"], [(f"t{i}", 5) for i in range(8)])
    assert "test.csv was left out: no column label" in load_data(tmp_path).notes


def test_a_table_for_each_split(tmp_path: Path) -> None:
    parts = {}
    for seed, (table, split) in enumerate([("train", "train"), ("valid", "validation"), ("TEST_labels", "test")]):
        parts[split] = write_images(tmp_path, [f"images/{split}{name}" for name in NAMES], seed)
        rows = [(f"{split}{name}", word) for name, word in zip(NAMES, WORDS, strict=True)]
        write_table(tmp_path / f"{table.replace('_labels', '')}.csv", ["image_id", "class"], rows)
    data = load_data(tmp_path)
    for split, images in parts.items():
        assert np.array_equal(getattr(data, split).images.numpy(), images)
        assert [data.classes[label] for label in getattr(data, split).labels] == WORDS


@pytest.mark.parametrize("column", ["split", "Set", "data set"])
def test_a_column_of_splits_is_used(tmp_path: Path, column: str) -> None:
    write_images(tmp_path, NAMES)
    splits = ["train", "train", "Test", "valid", "train", "test", "other", "train"]
    rows = zip(NAMES, WORDS, splits, strict=True)
    data = load_data(write_table(tmp_path / "all.csv", ["filename", "label", column], rows))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [4, 1, 2]
    assert "1 row was left out: their split is not train, validation or test" in data.notes


def test_folders_that_are_called_as_splits_divide_a_table(tmp_path: Path) -> None:
    places = [f"{'train' if i < 6 else 'test'}/{i}.png" for i in range(8)]
    images = write_images(tmp_path, places)
    data = load_data(write_table(tmp_path / "labels.csv", ["path", "label"], zip(places, WORDS, strict=True)))
    assert np.array_equal(data.test.images.numpy(), images[6:])
    assert "splits are those of the folders of the images" in data.notes


def test_skin_lesions_with_their_many_columns_in_two_folders(tmp_path: Path) -> None:
    places = [f"HAM10000_images_part_{1 + i % 2}/ISIC_{i:07d}.jpg" for i in range(8)]
    for place, image in zip(places, colour(8), strict=True):
        save_picture(tmp_path / place, image)
    header = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    rows = [(f"HAM_{i}", f"ISIC_{i:07d}", "nv" if i % 2 else "mel", "histo", 80, "male", "scalp") for i in range(8)]
    write_table(tmp_path / "HAM10000_metadata.csv", header, rows)
    assert load_data(tmp_path).classes == ("mel", "nv")
    write_table(tmp_path / "HAM10000_metadata.csv", [*header[:2], "kind", *header[3:]], rows)
    refuses(tmp_path, "HAM10000_metadata.csv: which column has the labels is unclear (lesion_id, image_id, kind")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("is_split", [False, True])
def test_metadata_of_the_hugging_face_library(tmp_path: Path, suffix: str, is_split: bool) -> None:
    expected = {}
    for seed, split in enumerate(("train", "test") if is_split else ("",)):
        expected[split or "all"] = write_images(tmp_path / split, NAMES, seed)
        path = tmp_path / split / f"metadata.{suffix}"
        if suffix == "csv":
            write_table(path, ["file_name", "label"], [(name, i % 2) for i, name in enumerate(NAMES)])
        else:
            lines = [json.dumps({"file_name": name, "label": i % 2}) for i, name in enumerate(NAMES)]
            path.write_text("\n".join(lines) + "\n")
    data = load_data(tmp_path)
    assert data.classes == ("0", "1")
    if is_split:
        assert np.array_equal(data.test.images.numpy(), expected["test"])
        expect(data, np.concatenate([expected["train"], expected["test"]]), ["0", "1"] * 8)
    else:
        expect(data, expected["all"], ["0", "1"] * 4)


def test_one_column_for_each_class(tmp_path: Path) -> None:
    images = write_images(tmp_path, NAMES)
    rows = [
        (name.removesuffix(".png"), float(word == "cat"), float(word == "dog"))
        for name, word in zip(NAMES, WORDS, strict=True)
    ]
    path = write_table(tmp_path / "truth.csv", ["image", "cat", "dog"], rows)
    expect(load_data(path), images, WORDS)
    write_table(path, ["image", "cat", "dog"], [*rows[:-1], ("7", 1, 1)])
    refuses(path, "truth.csv line 9: 2 of the columns cat, dog are 1")


def test_encodings_quotes_and_marks(tmp_path: Path) -> None:
    names = ["a, b.png", "c.png", "d.png", "e.png"]
    images = write_images(tmp_path, names)
    text = (
        'file,label\r\n"a, b.png","Schäfer, ""alt"""\r\nc.png,Köter\r\n\r\nd.png,Köter\r\ne.png,"Schäfer, ""alt"""\r\n'
    )
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1"):
        (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
        data = load_data(tmp_path)
        assert data.classes == ("Köter", 'Schäfer, "alt"')
        expect(data, images, [data.classes[i] for i in (1, 0, 0, 1)])


def test_long_tables_are_read_to_their_end_in_every_encoding(tmp_path: Path) -> None:
    images = write_images(tmp_path, NAMES)
    remark = "ä" * 20_000
    lines = ["file,label,remark", *(f"{name},{word},{remark}" for name, word in zip(NAMES, WORDS, strict=True))]
    for encoding in ("utf-8", "utf-16", "latin-1"):
        (tmp_path / "labels.csv").write_bytes("\n".join(lines).encode(encoding))
        expect(load_data(tmp_path), images, WORDS)
    (tmp_path / "labels.csv").unlink()
    records = [{"file_name": n, "label": f"{w}\u2028\x85"} for n, w in zip(NAMES, WORDS, strict=True)]
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert load_data(tmp_path).classes == ("cat", "dog")


def test_a_table_without_header(tmp_path: Path) -> None:
    images = write_images(tmp_path, NAMES)
    path = write_table(tmp_path / "labels.csv", None, zip(NAMES, WORDS, strict=True))
    expect(load_data(tmp_path), images, WORDS)
    write_table(path, None, [(name, 3, word) for name, word in zip(NAMES, WORDS, strict=True)])
    refuses(tmp_path, "labels.csv: its first line names an image; add one above")


def test_lines_that_name_an_image_again(tmp_path: Path) -> None:
    images = write_images(tmp_path, NAMES)
    rows = [*zip(NAMES, WORDS, strict=True)]
    path = write_table(tmp_path / "boxes.csv", ["filename", "class"], [*rows, *rows[:3]])
    data = load_data(path)
    expect(data, images, WORDS)
    assert "3 lines were left out: they name an image again, with the same label" in data.notes
    write_table(path, ["filename", "class"], [*rows, ("1.png", "dog")])
    refuses(path, "boxes.csv lines 3 and 10: '1.png' has two labels")


def test_class_folders_win_over_tables_of_other_things(tmp_path: Path) -> None:
    make_class_folders(tmp_path, "ab", 5)
    plain = load_data(tmp_path)
    clearer = "odd.csv: names images and was left out, since the class folders hold more or are clearer"
    write_table(tmp_path / "prices.csv", ["item", "label", "price"], [("apple", "x", 3), ("pear", "y", 4)])
    (tmp_path / "broken.csv").write_text('"a\n')
    (tmp_path / "empty.csv").write_text("")
    beside = "files beside the class folders were left out: broken.csv, empty.csv, prices.csv"
    assert load_data(tmp_path).notes == (beside, *plain.notes)
    for header in (["file", "width", "height"], ["file", "reason"]):  # of some images, or without labels
        write_table(tmp_path / "odd.csv", header, [(f"a/{i}.png", *[i % 2] * (len(header) - 1)) for i in range(2)])
        data = load_data(tmp_path)
        assert data.fingerprint == plain.fingerprint
        assert clearer in data.notes
    write_table(tmp_path / "odd.csv", ["file", "label"], [("a/0.png", "blurred"), ("b/0.png", "blurred")])
    assert load_data(tmp_path).fingerprint == plain.fingerprint
    rows = [(f"{name}/{i}.png", "even" if i % 2 == 0 else "odd") for name in "ab" for i in range(5)]
    write_table(tmp_path / "odd.csv", ["file", "label"], rows)  # of all images, by a usual name
    assert load_data(tmp_path).classes == ("even", "odd")


@pytest.mark.parametrize(
    ("folders", "answer"),
    [
        ("cat dog", True),
        ("0 1 2", True),
        ("train test", False),
        ("images", False),
        ("part_1 part_2", False),
        ("train/cat train/dog", True),
        ("images/cat images/dog", True),
        ("seg_train seg_test", False),
    ],
)
def test_what_may_be_class_folders(tmp_path: Path, folders: str, answer: bool) -> None:
    for folder in folders.split():
        write_images(tmp_path / folder, ["x.png"])
    assert has_class_folders(read_folder_tree(tmp_path).root) is answer


def test_tables_that_are_unclear_or_wrong_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    write_images(tmp_path, ["part_1/same.png", "part_2/same.png"])
    save_picture(tmp_path.parent / f"{tmp_path.name}.png", colour(1)[0])
    rows = [*zip(NAMES, WORDS, strict=True)]
    path = tmp_path / "labels.csv"
    for outside in (f"../{tmp_path.name}.png", str(tmp_path / "0.png"), "C:\\0.png", "https://a.org/0.png"):
        write_table(path, ["file", "label"], [(outside, "cat"), *rows])
        refuses(tmp_path, "labels.csv line 2: the path", "is not one below the folder")
    write_table(path, ["file", "label"], [*rows, ("9.png", "cat"), ("10.png", "cat")])
    refuses(tmp_path, "labels.csv: 2 of 10 images that it names are missing, first '9.png'")
    write_table(path, ["file", "label"], [("90.png", "cat"), ("91.png", "dog")])
    refuses(tmp_path, "labels.csv: 2 of 2 images that it names are missing, first '90.png'")
    write_table(path, ["file", "label"], [*rows, ("same.png", "cat")])
    refuses(tmp_path, "labels.csv line 10: 'same.png' may be part_1/same.png, part_2/same.png")
    write_table(path, ["file", "label"], [*rows[:3], ("3.png", "")])
    refuses(tmp_path, "labels.csv row 5: no label")
    write_table(path, ["file", "label"], [*rows[:3], ("3.png",)])
    refuses(tmp_path, "labels.csv line 5: 1 cells under 2 columns")
    write_table(path, ["file", "caption"], [(name, f"a picture of {name}") for name in NAMES])
    refuses(tmp_path, "the column caption differs in every row")
    write_table(path, ["file", "species", "dx"], [(name, "a", "b") for name in NAMES])
    refuses(tmp_path, "several columns may be the labels, species, dx")
    write_table(path, ["front", "back", "label"], [(name, "0.png", "b") for name in NAMES])
    refuses(tmp_path, "several columns name images, front, back")
    write_table(path, ["name", "colour"], [("a", "b"), ("c", "d")])
    refuses(path, "none of its columns (name, colour) names images")
    write_table(path, ["file", "label"], rows)
    write_table(tmp_path / "other.csv", ["file", "label"], rows)
    refuses(tmp_path, "several tables name images, labels.csv, other.csv")
    assert load_data(path).classes == ("cat", "dog")
    (tmp_path / "other.csv").write_bytes(b"")
    refuses(tmp_path / "other.csv", "no rows")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_in_any_layout_is_read(data: st.DataObject) -> None:
    word = st.text("abcxyz019 é,;\"'", min_size=1, max_size=4).map(str.strip).filter(bool)
    names = data.draw(st.lists(word, min_size=2, max_size=4, unique=True))
    layout = data.draw(st.sampled_from(["column", "tables", "folders"]))
    delimiter = data.draw(st.sampled_from([",", ";", "\t"]))
    has_suffix = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    expected: dict[str, tuple[Any, list[str]]] = {}
    rows: dict[str, list[tuple[str, str, str]]] = {}
    with TemporaryDirectory() as folder:
        for split in ("train", "validation", "test"):
            words = [*(names if split == "train" else []), *map(str, rng.choice(names, rng.integers(1, 5)))]
            places = [f"{split}_images/{split[:2]}{i}.png" for i in range(len(words))]
            expected[split] = write_images(Path(folder), places, int(rng.integers(999))), words
            cells = [place.rpartition("/")[2] if has_suffix else place.rpartition("/")[2][:-4] for place in places]
            rows[split] = [(cell, label, split) for cell, label in zip(cells, words, strict=True)]
        if layout == "tables":
            for split, part in rows.items():
                write_table(Path(folder) / f"{split}.csv", ["id", "label"], [row[:2] for row in part], delimiter)
        else:
            every = [row if layout == "column" else row[:2] for part in rows.values() for row in part]
            header = ["id", "label", "split"] if layout == "column" else ["id", "label"]
            write_table(Path(folder) / "labels.csv", header, every, delimiter)
        read = load_data(folder)
    assert sorted(read.classes) == sorted(names)
    for split, (images, words) in expected.items():
        part = getattr(read, split)
        assert np.array_equal(part.images.numpy(), images)
        assert [read.classes[label] for label in part.labels] == words


def test_numbers_beside_the_column_of_files_are_no_names(tmp_path: Path) -> None:
    images = write_images(tmp_path, NAMES)
    rows = [(7 - i, name, WORDS[i]) for i, name in enumerate(NAMES)]
    write_table(tmp_path / "a.csv", ["age", "who", "label"], rows)
    expect(load_data(tmp_path), images, WORDS)


def test_the_cache_sees_a_changed_label_and_a_changed_image(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    path = write_table(tmp_path / "a.csv", ["file", "label"], zip(NAMES, WORDS, strict=True))
    for source in (tmp_path, path):
        write_table(path, ["file", "label"], zip(NAMES, WORDS, strict=True))
        before = load_data(source)
        write_table(path, ["file", "label"], zip(NAMES, reversed(WORDS), strict=True))
        changed = load_data(source)
        assert images_by_name(before) != images_by_name(changed)
        images = write_images(tmp_path, NAMES, seed=id(source) % 1000)
        expect(load_data(source), images, WORDS[::-1])


def test_traffic_signs_with_class_folders_for_train_alone(tmp_path: Path) -> None:
    places = [f"Train/{i % 2}/{i:05d}.png" for i in range(8)]
    train = write_images(tmp_path, places)
    test = write_images(tmp_path, [f"Test/{i:05d}.png" for i in range(4)], seed=1)
    write_images(tmp_path, ["Meta/0.png", "Meta/1.png"], seed=2)
    header = ["Width", "Height", "ClassId", "Path"]
    write_table(tmp_path / "Train.csv", header, [(5, 6, i % 2, place) for i, place in enumerate(places)])
    write_table(tmp_path / "Test.csv", header, [(5, 6, (i + 1) % 2, f"Test/{i:05d}.png") for i in range(4)])
    write_table(tmp_path / "Meta.csv", ["Path", "ClassId", "ShapeId"], [("Meta/0.png", 0, 1), ("Meta/1.png", 1, 1)])
    data = load_data(tmp_path, validation=0)
    assert np.array_equal(data.train.images.numpy(), train)
    assert np.array_equal(data.test.images.numpy(), test)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 1] * 4, [1, 0] * 2)
    assert {"Meta.csv was left out: not called as a split", "labels are the column ClassId"} & set(data.notes)


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_tables_are_read_in_an_archive(tmp_path: Path, suffix: str) -> None:
    images = write_images(tmp_path / "set" / "pets", [f"images/{name}" for name in NAMES])
    write_table(tmp_path / "set" / "pets" / "labels.csv", ["file", "label"], zip(NAMES, WORDS, strict=True))
    path = make_archive(str(tmp_path / "packed"), suffix, tmp_path / "set")
    expect(load_data(path), images, WORDS)
