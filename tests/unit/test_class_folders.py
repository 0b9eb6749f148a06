"""Folders with one folder of pictures a class: decoding of all kinds of files, splits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import colour, grey, make_class_folders, refuses, save_npz, save_picture
from PIL import Image

from limbeck.core.errors import UserError
from limbeck.data import ImageData, decoding, load_data


def test_class_folders_give_the_pixels_of_their_files(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("Val", 10), ("TEST", 20)):
        make_class_folders(tmp_path / split, "ba", 3, colour, seed)
    data = load_data(tmp_path)
    assert data.classes == ("a", "b")
    assert data.notes == ()
    for split, seed in ((data.train, 0), (data.validation, 10), (data.test, 20)):
        assert split.labels.tolist() == [0, 0, 0, 1, 1, 1]
        expected = np.concatenate([colour(3, seed=seed + 1), colour(3, seed=seed)]).transpose(0, 3, 1, 2)
        assert np.array_equal(split.images.numpy(), expected)


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "bmp", "webp", "gif", "tif"])
def test_every_suffix_is_read_and_grey_stays_grey(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        for i, pixels in enumerate(grey(3, 16, 16)):
            save_picture(tmp_path / name / f"{i}.{suffix}", pixels // 8 + 100)
    data = load_data(tmp_path)
    assert data.shape == ((3 if suffix == "webp" else 1), 16, 16)  # WebP has no grey mode
    assert abs(data.train.images.float().mean() - 115.5) < 3


def test_one_coloured_picture_in_any_split_makes_all_rgb(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "train")
    make_class_folders(tmp_path / "test", make=colour)
    data = load_data(tmp_path)
    assert data.channels == 3
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert "10 grey images became RGB beside 10 coloured ones" in data.notes


def load_odd_picture(folder: Path, image: Image.Image, suffix: str = "png", **options: Any) -> tuple[Any, ImageData]:
    """Load a picture among grey ones: its pixels (c, h, w), and the data."""
    make_class_folders(folder / "train")
    make_class_folders(folder / "test", "ab", 1)
    (folder / "test" / "a" / "0.png").unlink()
    image.save(folder / "test" / "a" / f"odd.{suffix}", **options)
    data = load_data(folder)
    return data.test.images[0].numpy(), data


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 30).reshape(6, 5).astype(np.uint16)
    pixels, data = load_odd_picture(tmp_path, Image.fromarray(wide))
    assert np.array_equal(pixels[0], np.rint(wide / 257).astype(np.uint8))
    assert "1 image has more than 8 bits: pixels run from 0 to 65535: 0 to 65535 became 0 to 255" in data.notes[0]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.full((6, 5, 4), 40, np.uint8)
    pixels[:3, :, 3], pixels[3:, :, 3] = 255, 0
    decoded, data = load_odd_picture(tmp_path / "part", Image.fromarray(pixels))
    assert (decoded[:, :3] == 40).all()
    assert (decoded[:, 3:] == 255).all()
    assert "transparency, which was laid on white" in data.notes[0]
    pixels[..., 3] = 255
    decoded, data = load_odd_picture(tmp_path / "opaque", Image.fromarray(pixels))
    assert (decoded == 40).all()
    assert "transparency" not in str(data.notes)
    grey_alpha = np.stack([grey(1)[0], np.full((6, 5), 255, np.uint8)], -1)
    decoded, _ = load_odd_picture(tmp_path / "grey", Image.fromarray(grey_alpha, "LA"))
    assert np.array_equal(decoded, grey(1))


def test_palettes_become_what_they_show(tmp_path: Path) -> None:
    coloured = Image.fromarray(colour(1)[0]).convert("P", palette=Image.Palette.ADAPTIVE)
    decoded, _ = load_odd_picture(tmp_path / "colour", coloured)
    assert np.array_equal(decoded.transpose(1, 2, 0), np.asarray(coloured.convert("RGB")))
    indices = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5)).convert("P")
    indices.putpalette([255 - i // 3 for i in range(768)])
    decoded, data = load_odd_picture(tmp_path / "grey", indices)
    assert data.channels == 1
    assert np.array_equal(decoded[0], 255 - np.arange(30).reshape(6, 5))
    indices.info["transparency"] = 0
    decoded, _ = load_odd_picture(tmp_path / "clear", indices, transparency=3)
    assert (decoded[:, 0, 3] == 255).all()


def test_an_animation_gives_its_first_frame_and_exif_turns(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 5), v, np.uint8)) for v in (10, 200)]
    decoded, data = load_odd_picture(tmp_path / "gif", frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (decoded == 10).all()
    assert "several frames, of which the first is used" in data.notes[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    lying = np.zeros((5, 6), np.uint8)
    lying[0] = 255
    decoded, _ = load_odd_picture(tmp_path / "exif", Image.fromarray(lying), exif=exif)
    assert decoded.shape == (1, 6, 5)
    assert (decoded[0, :, -1] == 255).all()


def test_floating_point_files_are_refused_but_in_0_to_1(tmp_path: Path) -> None:
    levels = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
    pixels, _ = load_odd_picture(tmp_path / "unit", Image.fromarray(levels), "tif")
    assert np.array_equal(pixels[0], np.rint(levels * 255))
    with pytest.raises(UserError, match=r"floating-point pixels run from 0 to 255; .*pass --pixel-range 0 255"):
        load_odd_picture(tmp_path / "bytes", Image.fromarray(levels * 255), "tif")


def test_sizes_that_differ_are_named_and_resize_mends_them(tmp_path: Path) -> None:
    make_class_folders(tmp_path)
    save_picture(tmp_path / "b" / "wide.png", np.full((6, 9), 77, np.uint8))
    refuses(tmp_path, "0.png is 5x6", "wide.png is 9x6", "pass, say, --resize 32 (resize=32 in Python)")
    data = load_data(tmp_path, resize=(4, 3))
    assert data.shape == (1, 4, 3)
    assert data.notes[:2] == (
        "10 images were resized to 4x3 (height x width)",
        "1 image was stretched to 4x3 (height x width)",
    )
    for resize in (0, -1, 10**9, 1.5, True, (8, 0), (10**9, 8)):
        refuses(tmp_path, "at least 1 pixel", resize=resize)


def test_resize_is_pillows_antialiased_bilinear_for_files_and_arrays(tmp_path: Path) -> None:
    images = colour(10, 16, 12)
    for i, pixels in enumerate(images):
        save_picture(tmp_path / "set" / "train" / "ab"[i % 2] / f"{i}.png", pixels)
        save_picture(tmp_path / "set" / "test" / "ab"[i % 2] / f"{i}.png", pixels)
    resized = [np.asarray(Image.fromarray(p).resize((4, 8), Image.Resampling.BILINEAR)) for p in images]
    expected = np.stack([*resized[::2], *resized[1::2]]).transpose(0, 3, 1, 2)
    from_files = load_data(tmp_path / "set", resize=(8, 4))
    assert np.array_equal(from_files.test.images.numpy(), expected)
    labels = np.arange(10) % 2
    arrays = save_npz(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    from_arrays = load_data(arrays, resize=(8, 4))
    assert np.array_equal(from_arrays.test.images.numpy(), np.stack(resized).transpose(0, 3, 1, 2))
    assert "20 images were stretched to 8x4 (height x width)" in from_arrays.notes
    pairs = list(zip(images, labels.tolist()))
    assert torch.equal(load_data(pairs, test=pairs, resize=(8, 4)).test.images, from_arrays.test.images)


def test_folders_that_are_no_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "an empty folder", "one folder per class")
    save_picture(tmp_path / "flat" / "a.png", grey(1)[0])
    refuses(tmp_path / "flat", "images but no class folders")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    refuses(tmp_path / "text", "no class folders of images")
    make_class_folders(tmp_path / "half")
    (tmp_path / "half" / "c").mkdir()
    (tmp_path / "half" / "c" / "a.txt").write_text("x")
    refuses(tmp_path / "half", "half/c: a class folder without images")
    refuses(make_class_folders(tmp_path / "one", "a"), "only one class (a)")
    make_class_folders(tmp_path / "tests" / "test")
    refuses(tmp_path / "tests", "has test/ but no train/")


def test_class_folders_of_train_and_test_must_agree(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "more" / "train", "ab")
    make_class_folders(tmp_path / "more" / "test", "abc")
    refuses(tmp_path / "more", "class folder c is in test and not in train")
    make_class_folders(tmp_path / "less" / "train", "abc")
    make_class_folders(tmp_path / "less" / "test", "ab")
    data = load_data(tmp_path / "less")
    assert data.test.counts(3) == [5, 5, 0]
    assert "test has no folder of c" in data.notes
    make_class_folders(tmp_path / "two" / "train")
    make_class_folders(tmp_path / "two" / "val")
    make_class_folders(tmp_path / "two" / "valid")
    refuses(tmp_path / "two", "two names for the split validation", "valid")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        for i, pixels in enumerate(grey(5)):
            save_picture(tmp_path / name / f"{i}.png", pixels)
    assert load_data(tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_image_that_does_not_open_is_named(tmp_path: Path, content: bytes | None) -> None:
    make_class_folders(tmp_path)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "b" / "bad.png").write_bytes(whole[: len(whole) * 2 // 3] if content is None else content)
    sentence = refuses(tmp_path, "bad.png: not an image", "replace or remove it")
    assert "BytesIO" not in sentence


def test_threads_change_no_bit_and_small_pictures_get_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_class_folders(tmp_path, "ab", 40, colour)
    monkeypatch.setenv("LIMBECK_CACHE_GB", "0")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    pools: list[int] = []
    pool = decoding.ThreadPoolExecutor
    monkeypatch.setattr(decoding, "ThreadPoolExecutor", lambda workers: pools.append(workers) or pool(workers))
    plain = load_data(tmp_path)
    assert pools == []
    monkeypatch.setattr(decoding, "LARGE", 1)
    assert load_data(tmp_path).fingerprint == plain.fingerprint
    assert pools == [2]


@pytest.mark.parametrize("threads", [1, 2])
def test_all_damaged_pictures_are_named_at_once(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(decoding, "LARGE", 0)
    make_class_folders(tmp_path, "ab", 9)
    for name in ("a/3", "b/0", "b/1", "b/8"):
        (tmp_path / f"{name}.png").write_bytes(b"damaged")
    refuses(tmp_path, "4 images do not open: a/3.png, b/0.png, b/1.png and 1 more; replace or remove them")


def test_files_that_are_not_images_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    make_class_folders(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "a" / "._0.png").write_text("x")
    (tmp_path / ".cache").mkdir()
    assert "1 file other than images was left out (1 .txt)" in load_data(tmp_path).notes


def test_pictures_in_hidden_folders_are_left_out(tmp_path: Path) -> None:
    """They used to be read, Jupyter's copies for example, and the cache of decoded images did not see them change."""
    make_class_folders(tmp_path, count=5)
    save_picture(tmp_path / "a" / ".ipynb_checkpoints" / "0-checkpoint.png", grey(1)[0])
    data = load_data(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 2, 2]
