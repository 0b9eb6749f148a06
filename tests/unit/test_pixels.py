"""Pixel values of any range: one range for a whole data set, and no set that is nearly black without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import grey, refuses, save_npz, save_picture
from PIL import Image

from limbeck.core.errors import UserError
from limbeck.data import ImageData, load_data
from limbeck.data.pixels import check_pixel_range, choose_range, scale_pixels


def make(folder: Path, pixels: Any, suffix: str = "png") -> Path:
    """Images (10, h, w) in two classes, of which the first two are the test images."""
    for i, image in enumerate(pixels):
        save_picture(folder / ("train" if i > 1 else "test") / "ab"[i % 2] / f"{i}.{suffix}", image)
    return folder


def pixels_of(data: ImageData) -> Any:
    """The pixels in the order of `make`: rows of test, then of train, whose classes alternate."""
    train = data.train.images[:, 0].numpy().reshape(2, -1, *data.size).swapaxes(0, 1)
    return np.concatenate([data.test.images[:, 0].numpy(), train.reshape(-1, *data.size)])


def wide(bits: int, dtype: Any = np.uint16) -> Any:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (10, 6, 5))
    values[3, 2, 1] = (1 << bits) - 1
    return values.astype(dtype)


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15, 16])
@pytest.mark.parametrize("suffix", ["png", "tif", "npz"])
def test_whole_numbers_end_at_the_fewest_bits_that_hold_the_set(tmp_path: Path, bits: int, suffix: str) -> None:
    images = wide(bits)
    top = (1 << (bits + bits % 2)) - 1
    expected = np.rint(images / top * 255)
    if suffix == "npz":
        data = load_data(write("npz", tmp_path, images), validation=0)
        assert np.array_equal(data.train.images[:, 0].numpy(), expected[2:])
        assert np.array_equal(data.test.images[:, 0].numpy(), expected[:2])
    else:
        data = load_data(make(tmp_path, images, suffix), validation=0)
        assert np.array_equal(pixels_of(data), expected)
    (note,) = [note for note in data.notes if "--pixel-range" in note]
    assert f"pixels run from {images.min()} to {images.max()}: 0 to {top} became 0 to 255" in note


def test_no_image_and_no_split_is_scaled_by_itself(tmp_path: Path) -> None:
    images = wide(12)
    images[:2] //= 16  # the test images are dark, and stay so
    assert np.array_equal(pixels_of(load_data(make(tmp_path, images), validation=0)), np.rint(images / 4095 * 255))
    arrays = {"x_train": images[2:], "y_train": np.arange(8) % 2, "x_test": images[:2], "y_test": [0, 1]}
    data = load_data(save_npz(tmp_path / "x.npz", **arrays))
    assert np.array_equal(data.test.images[:, 0].numpy(), np.rint(images[:2] / 4095 * 255))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_bytes_in_wide_files_stay_bytes(tmp_path: Path, dtype: Any) -> None:
    data = load_data(make(tmp_path, grey(10).astype(dtype), "tif"), validation=0)
    assert np.array_equal(pixels_of(data), grey(10))
    assert any("10 images have more than 8 bits" in note for note in data.notes)


def test_files_of_8_and_of_16_bits_each_keep_their_range(tmp_path: Path) -> None:
    images = wide(16)
    make(tmp_path, images)
    save_picture(tmp_path / "train" / "a" / "2.png", grey(1)[0])
    expected = np.rint(images / 65535 * 255)
    expected[2] = grey(1)[0]
    assert np.array_equal(pixels_of(load_data(tmp_path, validation=0)), expected)


@pytest.mark.parametrize("source", ["folder", "npz", "pairs"])
def test_the_pixel_range_is_the_users(tmp_path: Path, source: str) -> None:
    images = np.random.default_rng(0).integers(-1000, 3000, (10, 6, 5)).astype(np.int32)
    expected = np.rint(np.clip((images + 160) / 400 * 255, 0, 255))  # a window of computed tomography
    data = load_data(
        write(source, tmp_path, images), pixel_range=(-160, 240), validation=0, **split_of_pairs(source, images)
    )
    assert np.array_equal(np.sort(data.test.images.numpy().ravel()), np.sort(expected[:2].ravel()))
    assert np.array_equal(np.sort(data.train.images.numpy().ravel()), np.sort(expected[2:].ravel()))
    assert any("-160 to 240 became 0 to 255 (values beyond were clipped)" in note for note in data.notes)
    refuses(
        write(source, tmp_path, images),
        "run from -990 to 2988",
        "--pixel-range LOW HIGH",
        **split_of_pairs(source, images),
    )


def write(source: str, folder: Path, images: Any) -> Any:
    labels = np.arange(10) % 2
    if source == "folder":
        return make(folder / "set", images, "tif")
    if source == "npz":
        parts = {"x_train": images[2:], "y_train": labels[2:], "x_test": images[:2], "y_test": labels[:2]}
        return save_npz(folder / "x.npz", **parts)
    return [(image, int(label)) for image, label in zip(images[2:], labels[2:])]


def split_of_pairs(source: str, images: Any) -> dict[str, Any]:
    return {"test": [(images[0], 0), (images[1], 1)]} if source == "pairs" else {}


def test_bytes_have_the_users_range_too(tmp_path: Path) -> None:
    images = grey(10) // 15  # 0 to 17
    data = load_data(make(tmp_path, images), validation=0)
    assert (
        "pixels run from 0 to 17 of 255, so the images are nearly black; --pixel-range 0 17 spreads them" in data.notes
    )
    data = load_data(tmp_path, validation=0, pixel_range=(0, 17))
    assert np.array_equal(pixels_of(data), np.rint(images * 15.0))
    assert not any("nearly" in note for note in data.notes)


@pytest.mark.parametrize(
    ("level", "spread", "words"),
    [(0, 64, "nearly black"), (192, 64, "nearly white"), (7, 1, "nearly black: all pixels are the same"), (0, 65, "")],
)
def test_sets_in_which_little_is_seen_are_noted(tmp_path: Path, level: int, spread: int, words: str) -> None:
    values = level + grey(10) % spread
    values[0, 0, :2] = level, level + spread - 1
    notes = [note for note in load_data(make(tmp_path, values)).notes if "nearly" in note]
    assert len(notes) == bool(words)
    assert words in "".join(notes)


def test_wide_pictures_are_resized_before_they_are_scaled(tmp_path: Path) -> None:
    images = wide(12)
    data = load_data(make(tmp_path, images), validation=0, resize=(3, 4))
    resized = [np.asarray(Image.fromarray(image.astype(np.float32)).resize((4, 3), 2)) for image in images]
    assert np.abs(pixels_of(data) - np.stack(resized) / 4095 * 255).max() <= 0.54


@pytest.mark.parametrize("source", ["folder", "pairs"])
def test_the_range_is_that_of_the_files_at_every_size(tmp_path: Path, source: str) -> None:
    """Resizing averages the few brightest pixels away: 12 bits looked like 10."""
    images = wide(10)
    images[:, 0, 0] = 4095
    for size in (None, (2, 2)):
        data = load_data(write(source, tmp_path, images), resize=size, **split_of_pairs(source, images))
        assert any("to 4095: 0 to 4095 became 0 to 255" in note for note in data.notes), data.notes


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    images = np.random.default_rng(0).random((10, 6, 5), np.float32)
    images[4, 1, 1] = value
    refuses(make(tmp_path, images, "tif"), "train/a/4.tif: 1 of 30 pixels are NaN or infinite")
    refuses(save_npz(tmp_path / "x.npz", x_train=images, y_train=np.arange(10) % 2), "1 of 300 pixels are NaN")
    refuses(list(zip(images, np.arange(10) % 2)), "item 4: 1 of 30 pixels are NaN")


@pytest.mark.parametrize("pixel_range", [(1, 1), (2, 1), (0, np.inf), (np.nan, 1)])
def test_a_range_that_is_none_is_refused(pixel_range: tuple[float, float]) -> None:
    with pytest.raises(UserError, match=r"then a larger one of white, not .*; pass, say, --pixel-range 0 4095"):
        load_data("digits", pixel_range=pixel_range)
    assert check_pixel_range((0, 1)) == (0.0, 1.0)


NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(low=NUMBERS, width=st.floats(1e-3, 1e6), values=st.lists(NUMBERS, min_size=1, max_size=20))
def test_scaling_is_monotone_and_reaches_both_ends(low: float, width: float, values: list[float]) -> None:
    array = np.sort(np.array([low, low + width, *values]))
    levels = scale_pixels(array, (low, low + width))
    assert (np.diff(levels.astype(int)) >= 0).all()
    assert (levels.min(), levels.max()) == (0, 255)


@given(st.integers(0, 65535))
def test_the_chosen_range_holds_the_highest_value(high: int) -> None:
    low, top = choose_range(0, high, False, "x")
    assert low == 0
    assert high <= top < max(256, 4 * (high + 1))
    for bad in (-1, 65536):
        with pytest.raises(UserError):
            choose_range(min(bad, 0), max(bad, 0), False, "x")
