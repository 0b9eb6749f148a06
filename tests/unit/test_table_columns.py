"""Which columns of a table beside images are the classes: one label, one column a class, or probabilities."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from image_files import colour, make_class_folders, refuses, save_picture

from limbeck.data import ImageData, load_data


def write_letters(
    folder: Path, classes: tuple[str, ...], count: int = 16, table: str = "train.csv", part: str = "img", **columns: Any
) -> list[str]:
    """Write pictures and a table with a 1 in the column of the class of each; returns the class of each picture.

    columns: others by name, as functions of the row.
    """
    words = [classes[i * i % len(classes)] if i >= len(classes) else classes[i] for i in range(count)]
    for i, image in enumerate(colour(count, seed=len(part))):
        save_picture(folder / part / f"{part}{i:02d}.png", image)
    rows = [
        [f"{part}{i:02d}.png", *(make(i) for make in columns.values()), *(int(word == name) for name in classes)]
        for i, word in enumerate(words)
    ]
    with (folder / table).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["file", *columns, *classes], *rows])
    return words


def class_of_files(data: ImageData) -> dict[str, str]:
    """The class of every picture by its path."""
    return {
        path: data.classes[label]
        for split, paths in data.files.items()
        for path, label in zip(paths, getattr(data, split).labels.tolist(), strict=True)
    }


def expect(data: ImageData, words: list[str], part: str = "img") -> None:
    assert {path: word for path, word in class_of_files(data).items() if path.startswith(f"{part}/")} == {
        f"{part}/{part}{i:02d}.png": word for i, word in enumerate(words)
    }


@pytest.mark.parametrize("name", ["y", "label", "labels", "Class", "target", "species", "dx", "split", "index", "猫"])
@pytest.mark.parametrize("others", [("w", "x", "z"), ("set", "x", "breed")])
def test_a_class_may_be_called_as_columns_are(tmp_path: Path, name: str, others: tuple[str, ...]) -> None:
    words = write_letters(tmp_path, (others[0], name, *others[1:]))
    for source in (tmp_path, tmp_path / "train.csv"):
        data = load_data(source, validation=0)
        assert data.classes == tuple(sorted((name, *others)))
        expect(data, words)


def test_two_classes_of_which_one_is_called_as_labels_are(tmp_path: Path) -> None:
    words = write_letters(tmp_path, ("x", "y"))
    expect(load_data(tmp_path), words)
    write_letters(tmp_path, ("label", "sticker"))
    refuses(tmp_path, "train.csv: the labels may be the column label, or a column for each class (label, sticker)")


def test_a_column_of_splits_beside_those_of_the_classes(tmp_path: Path) -> None:
    words = write_letters(tmp_path, ("w", "x", "y"), split=lambda i: "test" if i % 4 == 3 else "train")
    data = load_data(tmp_path)
    assert len(data.test) == 4
    expect(data, words)


def test_a_table_with_its_other_columns_or_a_flaw_is_ambiguous(tmp_path: Path) -> None:
    write_letters(tmp_path, ("w", "x", "y", "z"), source=lambda i: f"page {i % 3}")
    refuses(tmp_path, "the labels may be the column y, or a column for each class (w, x, y, z); keep the columns")
    write_letters(tmp_path, ("w", "x", "y", "z"), count=20)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[7] = f"{lines[7].partition(',')[0]},1,1,0,0"
    (tmp_path / "train.csv").write_text("\n".join(lines))
    refuses(tmp_path, "(w, x, y, z), though line 8 has not exactly one 1")


def write_targets(path: Path, others: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """Pictures, and a table of them with a column `target` and others."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "target", *others])
        for i, (image, row) in enumerate(zip(colour(len(rows)), rows)):
            save_picture(path.parent / f"{i}.png", image)
            writer.writerow([f"{i}.png", *row])


def test_flags_beside_a_label_are_no_classes(tmp_path: Path) -> None:
    """Tables may be sorted by their label: the first 200 rows alone look like a column for each class."""
    rows = [(int(i < 210), int(i >= 250), int(i % 2 and i >= 210)) for i in range(300)]
    write_targets(tmp_path / "train.csv", ("is_male", "is_old"), rows)
    assert load_data(tmp_path).classes == ("0", "1")


def test_probabilities_beside_a_label_are_no_classes(tmp_path: Path) -> None:
    rows = [(int(i > 57), i / 100, 1 - i / 100) for i in range(60)]
    write_targets(tmp_path / "predictions.csv", ("p0", "p1"), rows)
    assert load_data(tmp_path, validation=0).classes == ("0", "1")


def test_tables_of_other_splits_have_the_label_columns_of_train(tmp_path: Path) -> None:
    """Few rows may look like a column for each class by chance."""
    words = {}
    for part, flags in (("train", "1100101001011010"), ("test", "1010")):
        with (tmp_path / f"{part}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "target", "is_old"])
            for i, image in enumerate(colour(len(flags), seed=len(part))):
                save_picture(tmp_path / part / f"{part}{i:02d}.png", image)
                writer.writerow([f"{part}{i:02d}.png", flags[i], int(i % 2)])
        words[part] = [*flags]
    data = load_data(tmp_path)
    assert data.classes == ("0", "1")
    for part in words:
        expect(data, words[part], part)


def test_a_split_with_one_image_of_every_class(tmp_path: Path) -> None:
    expected = {part: write_letters(tmp_path, ("w", "x", "y"), n, f"{part}.csv", part) for part, n in SIZES.items()}
    data = load_data(tmp_path)
    assert len(data.test) == 3
    for part, words in expected.items():
        expect(data, words, part)


SIZES = {"train": 12, "test": 3}


def write_probabilities(folder: Path, classes: str, places: list[str]) -> None:
    """A table labels.csv of probabilities of classes, of which the last one is the most likely."""
    with (folder / "labels.csv").open("w", newline="") as stream:
        share = 0.1 / (len(classes) - 1)
        rows = [[place, *[f"{share:.6f}"] * (len(classes) - 1), "0.9"] for place in places]
        csv.writer(stream).writerows([["file", *classes], *rows])


@pytest.mark.parametrize("classes", ["xyz", "xy", "abc"])
def test_class_folders_win_over_probabilities(tmp_path: Path, classes: str) -> None:
    make_class_folders(tmp_path, classes, 5)
    plain = load_data(tmp_path)
    write_probabilities(tmp_path, classes, [f"{name}/{i}.png" for name in classes for i in range(5)])
    data = load_data(tmp_path)
    assert data.classes == tuple(classes)
    assert data.fingerprint == plain.fingerprint
    assert "files beside the class folders were left out: labels.csv" in data.notes
    refuses(tmp_path / "labels.csv", "labels.csv: its columns are probabilities of classes; add a column label")


def test_probabilities_without_class_folders_are_refused(tmp_path: Path) -> None:
    write_letters(tmp_path, ("x", "y"))
    (tmp_path / "train.csv").unlink()
    write_probabilities(tmp_path, "xyz", [f"img{i:02d}.png" for i in range(16)])
    refuses(tmp_path, "labels.csv: its columns are probabilities of classes; add a column label with the class of each")
