"""Test and validation images in folders of their own, and pictures that are cropped or padded to one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import colour, grey, make_class_folders, refuses, save_npz, save_picture
from PIL import Image

import limbeck
from limbeck.core.files import content_key
from limbeck.data import load_data
from limbeck.data.images import fit_picture


def sizes(data: Any) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def pixels(part: Any) -> Any:
    return part.images[:, 0].numpy()


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "pets", count=10)


@pytest.fixture
def later(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "later pictures", count=2, seed=50)


def test_test_images_of_a_folder_of_their_own(pets: Path, later: Path) -> None:
    data = load_data(pets, test=later)
    assert sizes(data) == (18, 2, 4)
    assert np.array_equal(pixels(data.test), np.concatenate([grey(2, seed=50), grey(2, seed=51)]))
    assert f"test images are those of {later}" in data.notes
    assert data.name == "pets"
    assert data.origin.test == str(later.resolve())
    assert not any("held out" in note and "test" in note for note in data.notes)


def test_validation_images_as_a_folder_or_a_fraction(pets: Path, later: Path) -> None:
    data = load_data(pets, validation=str(later))
    assert sizes(data) == (16, 4, 4)
    assert np.array_equal(pixels(data.validation), np.concatenate([grey(2, seed=50), grey(2, seed=51)]))
    assert sizes(load_data(pets, test=later, validation=0.5)) == (10, 10, 4)
    both = load_data(pets, test=later, validation=make_class_folders(pets.parent / "v", count=1, seed=70))
    assert sizes(both) == (20, 2, 4)


def test_a_fraction_beside_a_validation_split_is_noted(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "x" / "train")
    make_class_folders(tmp_path / "x" / "val", seed=9)
    notes = load_data(tmp_path / "x", validation=0.3).notes
    assert "--validation 0.3 was not needed, since there is a validation split" in notes
    assert not any("--validation" in note for note in load_data(tmp_path / "x").notes)


def test_the_folder_of_train_is_called_as_what_is_around_it(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "pets" / "train")
    make_class_folders(tmp_path / "pets" / "sent later", seed=9)
    data = load_data(tmp_path / "pets" / "train", test=tmp_path / "pets" / "sent later")
    assert (data.name, len(data.test)) == ("pets", 10)


def test_splits_beside_a_folder_that_was_named_alone_are_noted(tmp_path: Path) -> None:
    for name, seed in (("Training", 0), ("Testing", 40), ("val", 50), ("extra", 60)):
        make_class_folders(tmp_path / "x" / name, count=5, seed=seed)
    (note,) = (note for note in load_data(tmp_path / "x" / "Training").notes if "splits beside" in note)
    assert note == f"splits beside it were left out (Testing, val): name {tmp_path / 'x'} for all of them"
    notes = load_data(tmp_path / "x" / "Training", test=tmp_path / "x" / "Testing").notes
    assert f"splits beside it were left out (val): name {tmp_path / 'x'} for all of them" in notes
    assert not any("splits beside" in note for note in load_data(tmp_path / "x").notes)
    assert not any("splits beside" in note for note in load_data(tmp_path / "x" / "extra").notes)


def test_a_test_folder_inside_the_data_is_no_class_of_it(pets: Path) -> None:
    make_class_folders(pets / "held out", "a", count=3, seed=60)
    assert load_data(pets).classes == ("a", "b", "held out"), "what it would be taken for"
    data = load_data(pets, test=pets / "held out")
    assert (data.classes, len(data.test)) == (("a", "b"), 3)


def test_grey_and_coloured_folders_become_rgb_together(pets: Path, tmp_path: Path) -> None:
    colours = make_class_folders(tmp_path / "c", count=2, make=colour)
    data = load_data(pets, test=colours)
    assert (data.channels, len(data.test)) == (3, 4)


def test_16_bits_have_one_range_in_all_folders(tmp_path: Path) -> None:
    """Were each folder read alone, the darker one would be spread to the same range as the brighter one."""
    for folder, level in (("bright", 4000), ("dark", 500)):
        for name in "ab":
            for row in range(4):
                image = np.full((6, 5), level + row, np.uint16)
                save_picture(tmp_path / folder / name / f"{row}.png", image)
    data = load_data(tmp_path / "bright", test=tmp_path / "dark")
    assert pixels(data.test).max() < 40 < 240 < pixels(data.train).min()


def test_what_is_refused(pets: Path, later: Path, tmp_path: Path) -> None:
    refuses("digits", "--test", "digits is not", test=later)
    refuses((grey(4), np.arange(4) % 2), "--validation", "a tuple is not", validation=later)
    refuses(pets, "--test", "there is no such folder", "did you mean later pictures", test=tmp_path / "later picture")
    refuses(pets, "--test", "holds the images to train on", test=tmp_path)
    refuses(pets, "test=", "beside a Dataset", test=[(grey(1)[0], 0)])
    make_class_folders(tmp_path / "split" / "train")
    make_class_folders(tmp_path / "split" / "test", seed=9)
    refuses(tmp_path / "split", "holds a test split of its own; leave out --test", test=later)
    refuses(pets, "--test", "holds several splits (test, train); name one", test=tmp_path / "split")
    arrays = save_npz(tmp_path / "x.npz", x_train=grey(4), y_train=np.arange(4) % 2)
    refuses(arrays, "--test needs a folder with one folder of images per class", test=later)
    make_class_folders(tmp_path / "other", "ac")
    refuses(pets, "class folder c is in test and not in train", test=tmp_path / "other")
    refuses(pets, "--resize-mode crop needs --resize", resize_mode="crop")
    refuses(pets, "--resize-mode is stretch, crop, pad, not 'fill'", resize=8, resize_mode="fill")
    refuses(load_data(pets), "validation", "already loaded", validation=0.5)


def test_a_changed_test_folder_is_decoded_again(pets: Path, later: Path) -> None:
    before = load_data(pets, test=later).fingerprint
    save_picture(later / "a" / "0.png", grey(1, seed=99)[0])
    assert load_data(pets, test=later).fingerprint != before


WIDE = np.zeros((20, 40, 3), np.uint8)
WIDE[:, :10] = 200
WIDE[:, 30:] = 100
MODES = {"stretch": (True, 10), "crop": (False, 0), "pad": (True, 10)}
"""Whether both ends are in the result, and the width of the left one of 40 pixels."""


@pytest.mark.parametrize("mode", MODES)
def test_what_becomes_of_a_wide_picture(mode: Any) -> None:
    """A square from a picture of twice the width: all, the middle half, or all between repeated edges."""
    square = np.asarray(fit_picture(Image.fromarray(WIDE), (20, 20), mode)).astype(int)
    middle = square[10, :, 0]
    ends = bool(middle[0] == 200 and middle[-1] == 100)
    assert ends == MODES[mode][0]
    if mode == "crop":
        assert not square.any()
    if mode == "pad":
        assert (square[0] == square[5]).all()
        assert (np.asarray(Image.fromarray(WIDE).resize((20, 10), Image.Resampling.BILINEAR)) == square[5:15]).all()


@pytest.mark.parametrize("size", [(7, 5), (5, 7), (1, 9), (40, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_every_size_is_met_and_one_colour_stays(mode: Any, size: tuple[int, int]) -> None:
    image = Image.fromarray(np.full((11, 6), 3.5, np.float32))
    result = np.asarray(fit_picture(image, size, mode))
    assert result.shape == size
    assert np.allclose(result, 3.5)


def test_pictures_arrays_and_files_are_cropped_alike(tmp_path: Path) -> None:
    images = grey(8, 12, 24)
    for row, image in enumerate(images):
        save_picture(tmp_path / "x" / "ab"[row % 2] / f"{row}.png", image)
    files = load_data(tmp_path / "x", resize=(6, 8), resize_mode="crop")
    arrays = load_data((images, np.arange(8) % 2), resize=(6, 8), resize_mode="crop")
    assert sorted(map(bytes, pixels(files.train))) == sorted(map(bytes, pixels(arrays.train)))
    assert "8 images were resized and cropped at the centre to 6x8 (height x width)" in files.notes
    assert load_data(tmp_path / "x", resize=(6, 8)).fingerprint != files.fingerprint


def test_the_key_of_a_run_follows_all_of_them(pets: Path, later: Path, tmp_path: Path) -> None:
    """A run is known by the pixels, labels and splits that it saw, however they were read."""
    ways: list[dict[str, Any]] = [
        {"resize": 8},
        {"resize": 8, "resize_mode": "crop"},
        {"resize": 8, "resize_mode": "pad"},
        {"resize": (8, 10)},
        {"resize": 8, "test": later},
        {"resize": 8, "validation": 0.3},
        {"resize": 8, "validation": later},
    ]
    jobs = [limbeck.prepare(pets, method="random", out=tmp_path / "run", **way) for way in ways]
    assert len({content_key(job.resolved) for job in jobs}) == len(ways)


def test_a_set_is_evaluated_as_it_was_read(pets: Path, later: Path, tmp_path: Path) -> None:
    quick = {"eval": limbeck.EvalConfig(networks=1, epochs=1, full_networks=0), "validate_epochs": 1}
    model = limbeck.ModelConfig(width=4)
    reading = {"resize": (8, 10), "resize_mode": "crop", "test": later, "validation": 0.3}
    run = limbeck.distill(pets, method="random", out=tmp_path / "run", model=model, **reading, **quick)  # type: ignore[arg-type]
    rows = limbeck.evaluate(run, num_networks=1, epochs=1)
    assert rows[0].n == 1
    with pytest.raises(limbeck.UserError, match="fingerprint"):
        limbeck.evaluate(run, resize_mode="pad")
