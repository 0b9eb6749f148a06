"""`limbeck info DATA`: tables, warnings and a picture for a person, the same facts as JSON, and refusals."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from limbeck.cli import data_info
from limbeck.cli.data_info import class_tables
from limbeck.cli.main import main
from limbeck.data import ImageData, Split, load_data
from limbeck.data.overview import make_overview
from limbeck.progress.screen import Screen


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_photos(folder: Path, names: tuple[str, ...] = ("cat", "dog"), side: int = 32) -> Path:
    """Class folders below train and test: test/dog/0 is train/cat/1, and test/cat/0 a darker train/cat/2."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in names:
            for index in range(count):
                coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                save(folder / split / name / f"{index}.png", np.asarray(coarse.resize((side, side))))
    (folder / "test" / names[1] / "0.png").write_bytes((folder / "train" / names[0] / "1.png").read_bytes())
    with Image.open(folder / "train" / names[0] / "2.png") as image:
        save(folder / "test" / names[0] / "0.png", (np.asarray(image) * 0.8).astype(np.uint8))
    return folder


def table_text(classes: list[str], counts: dict[str, list[int]], width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        data_info.print_tables(console, class_tables(classes, counts))
    return capture.get()


def test_a_person_sees_counts_pixels_warnings_and_where_the_picture_is(limbeck: Any, tmp_path: Path) -> None:
    result = limbeck("info", make_photos(tmp_path / "photos"), "--picture", tmp_path / "sheet.png")
    lines = result.out.splitlines()
    assert result.status == 0
    assert lines[:5] == [
        "kind: data set",
        "name: photos",
        f"source: {tmp_path / 'photos'}",
        "layout: a folder with one folder of images per class",
        "images: 18 of 32x32 pixels (height x width), RGB",
    ]
    rows = [line.split() for line in lines]
    assert ["0", "cat", "5", "1", "3"] in rows
    assert ["all", "10", "2", "6"] in rows
    assert any(
        line.startswith("warning: equal images have different labels in 1 case, as train/cat/1.png (cat) = ")
        for line in lines
    )
    assert any(line.startswith("note: no validation split") for line in lines)
    assert lines[-2:] == [
        f"picture: {tmp_path / 'sheet.png'}",
        f"next: limbeck distill {tmp_path / 'photos'}",
    ]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800


def test_nothing_is_printed_while_bars_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars move the cursor, and would overwrite lines of the tables."""
    printed: list[str] = []
    output = io.StringIO()
    end = Screen.__exit__
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(Screen, "__exit__", lambda *parts: (printed.append(output.getvalue()), end(*parts))[1])
    with pytest.raises(SystemExit):
        main(["info", str(make_photos(tmp_path / "photos"))])
    assert printed == [""]
    assert "kind: data set" in output.getvalue()


def test_the_picture_of_info_lies_in_the_cache_and_not_here(
    limbeck: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    facts = limbeck("info", "digits", "--json").json
    picture = Path(facts["picture"])
    assert picture.parent == tmp_path / "home" / "pictures"
    assert picture.name == f"digits-{facts['fingerprint']}.png"
    before = picture.read_bytes()
    assert limbeck("info", "digits").status == 0
    assert picture.read_bytes() == before, "the same picture for the same data"
    assert list((tmp_path / "here").iterdir()) == []
    assert "pictures" in limbeck("cache").out
    limbeck("cache", "--clear", "pictures")
    assert not picture.exists()


def test_json_has_the_facts_of_the_overview(limbeck: Any, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos")
    facts = limbeck("info", folder, "--json", "--picture", tmp_path / "sheet.png").json
    expected = make_overview(load_data(folder)).to_json()
    extra = {
        "kind": "data set",
        "source": str(folder),
        "layout": "a folder with one folder of images per class",
        "picture": str(tmp_path / "sheet.png"),
    }
    assert facts == {**expected, **extra}
    near = facts["duplicates"]["near"]["pairs"]
    assert [pair["images"][1]["split"] for pair in near] == ["test"]
    assert facts["duplicates"]["exact"]["contradictions"] == 1


@pytest.mark.parametrize(("choice", "side", "is_sought"), [("auto", 32, True), ("no", 32, False), ("yes", 16, False)])
def test_near_duplicates_are_an_option(limbeck: Any, tmp_path: Path, choice: str, side: int, is_sought: bool) -> None:
    folder = make_photos(tmp_path / "photos", side=side)
    facts = limbeck("info", folder, "--json", "--near-duplicates", choice).json
    assert (facts["duplicates"]["near"] is not None) == is_sought
    out = limbeck("info", folder, "--near-duplicates", choice).out
    assert ("near duplicates were not looked for" in out) != is_sought


@pytest.mark.parametrize("name", ["[bold]red[x]", ":smile: cat", "a\x1b[31mb", "tab\tand\nnewline", "猫", "x" * 200])
def test_names_are_shown_as_they_are_without_steering_the_terminal(limbeck: Any, tmp_path: Path, name: str) -> None:
    folder = make_photos(tmp_path / "photos", names=(name, "zebra"))
    result = limbeck("info", folder)
    assert result.status == 0
    assert all(line.isprintable() for line in result.out.splitlines())
    start = {"a\x1b[31mb": "a\\x1b[31mb", "tab\tand\nnewline": "tab\\tand\\nnewline"}.get(name, name)[:12]
    classes = sorted([name, "zebra"])
    assert f"    {classes.index(name)}  {start}" in result.out
    assert limbeck("info", folder, "--json").json["classes"] == classes


def test_a_class_without_test_images_is_seen_in_the_table_and_on_the_picture(limbeck: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    labels = np.arange(12) % 3
    tested = labels < 2
    np.savez(tmp_path / "some.npz", x_train=images, y_train=labels, x_test=255 - images[tested], y_test=labels[tested])
    result = limbeck("info", tmp_path / "some.npz")
    assert result.status == 0
    assert ["2", "2", "3", "1", "0"] in [line.split() for line in result.out.splitlines()]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_two_hundred_classes_are_all_listed_in_order(width: int) -> None:
    classes = [f"class {label:03d}" for label in range(200)]
    counts = {"train": [1000 + k for k in range(200)], "validation": [7] * 200, "test": [0] * 200}
    text = table_text(classes, counts, width)
    assert re.findall(r"class \d{3}", text) != [], "names are not shortened"
    for label, name in enumerate(classes):
        assert re.search(rf"\b{label} +{name} +{counts['train'][label]:,} +7 +0\b", text)
    assert all(len(line) <= width for line in text.splitlines())
    rows = [line.split() for line in text.splitlines()]
    assert sum("label" in row for row in rows) == (8 if width < 90 else 2)
    assert ["all", f"{sum(counts['train']):,}", "1,400", "0"] in rows


def test_names_of_any_length_leave_room_for_counts() -> None:
    text = table_text(["y" * 500, "z"], {"train": [54_000, 1], "validation": [1, 1], "test": [1, 1]})
    assert "54,000" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("classes", [2, 24, 25, 60])
def test_the_picture_has_the_first_classes_and_says_how_many_others_there_are(
    monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4 * classes, 8, 8), dtype=np.uint8)
    data = load_data([(image, row % classes) for row, image in enumerate(images)])
    sheets: list[Any] = []
    monkeypatch.setattr(data_info, "contact_sheet", lambda *parts: sheets.append(parts))
    data_info.draw_overview(make_overview(data))
    ((_, columns, rows, note, pairs),) = sheets
    assert len(rows) == min(classes, 24)
    assert note == ("" if classes <= 24 else f"{classes - 24} more classes are not shown, 24 to {classes - 1}")
    assert [column.split()[0] for column in columns] == ["train", "validation", "test"]
    assert list(pairs) == []
    for label, row in enumerate(rows):
        for split, shown in zip(("train", "validation", "test"), row.images, strict=True):
            part = getattr(data, split)
            members = [image.numpy().tobytes() for image in part.images[part.labels == label]]
            assert [image.tobytes() for image in shown] == members, "of few images all are shown"


def test_every_kind_of_duplicate_is_among_the_pairs_with_contradictions_first() -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (80, 24, 24), dtype=np.uint8)
    labels = np.arange(80) % 2
    images[40:60:2] = images[0:20:2]  # test has ten of train
    images[41] = images[2]  # with another label
    images[21:39:2] = images[20]  # train has one ten times
    images[63] = np.clip(images[3].astype(int) + 3, 0, 255)
    part = {"x_train": images[:40], "y_train": labels[:40], "x_test": images[40:], "y_test": labels[40:]}
    pairs = data_info._choose_pairs(make_overview(load_data_from(part)))
    kinds = [(pair.contradicts, pair.first.split == pair.second.split, pair.similarity < 1) for pair in pairs]
    assert len(pairs) <= data_info.PAIRS
    assert kinds[0][0]
    assert kinds == sorted(kinds, key=lambda kind: (kind[2], not kind[0], kind[1]))
    assert {(is_same, is_near) for _, is_same, is_near in kinds} >= {(False, False), (False, True)}


def load_data_from(part: dict[str, Any]) -> Any:
    train = list(zip(part["x_train"], part["y_train"].tolist(), strict=True))
    test = list(zip(part["x_test"], part["y_test"].tolist(), strict=True))
    return load_data(train, test=test)


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet", "folder.png", "file/sheet.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(
    refused: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    sentence = refused("info", "no such data", "--picture", tmp_path / name)
    assert "picture" in sentence
    assert "no such data" not in sentence


def test_a_picture_of_something_else_is_refused(refused: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    assert "--picture draws data sets" in refused("info", artifacts["run"], "--picture", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_cache_that_cannot_be_written_costs_the_picture_alone(
    limbeck: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    result = limbeck("info", "digits", "--json")
    assert (result.status, result.json["picture"]) == (0, None)
    assert any(warning.startswith("no picture: ") for warning in result.json["warnings"])


@st.composite
def image_sets(draw: st.DrawFn) -> ImageData:
    """Small data sets of any size of images, counts and names; every class has a train image."""
    classes = draw(st.lists(st.text(max_size=60), min_size=2, max_size=30))
    shape = draw(st.sampled_from([1, 3])), draw(st.integers(1, 40)), draw(st.integers(1, 300))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    levels = draw(st.sampled_from([1, 2, 256]))  # with few levels, images are equal or of one colour
    splits = []
    for minimum in (1, 0, 0):
        counts = draw(st.lists(st.integers(minimum, 3), min_size=len(classes), max_size=len(classes)))
        labels = np.repeat(np.arange(len(classes)), counts)
        images = generator.integers(0, levels, (len(labels), *shape), dtype=np.uint8)
        splits.append(Split(torch.from_numpy(images), torch.from_numpy(labels)))
    return ImageData(draw(st.text(max_size=300)), *splits, tuple(classes), (), "0" * 16)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(image_sets())
def test_any_data_set_has_an_overview_that_can_be_shown(tmp_path: Path, data: ImageData) -> None:
    facts = {"kind": "data set", **data_info.describe_data(data, picture=tmp_path / "sheet.png")}
    json.dumps(facts, allow_nan=False)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width * sheet.height < 1e7
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        data_info.show_data(facts, console)
    assert all(line.isprintable() for line in capture.get().splitlines())
    assert all(warning.isprintable() and len(warning) <= 300 for warning in facts["warnings"])
    images = sum(len(split) for split in (data.train, data.validation, data.test))
    exact = facts["duplicates"]["exact"]
    pixels = {image.numpy().tobytes() for split in (data.train, data.validation, data.test) for image in split.images}
    assert sum(len(group) - 1 for group in exact["groups"]) == images - len(pixels)
