"""Reading data: every kind of source from real files, the splits, and one clear sentence for each thing wrong."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data import ImageData, Split, load_data, sources
from limbeck.data.images import compute_fingerprint, split_off

RNG = np.random.default_rng


def grey(n: int, h: int = 6, w: int = 5, seed: int = 0) -> Any:
    return RNG(seed).integers(0, 256, (n, h, w), dtype=np.uint8)


def colour(n: int, h: int = 6, w: int = 5, seed: int = 0) -> Any:
    return RNG(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


def save(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def classes_in(folder: Path, names: str = "ab", each: int = 5, make: Any = grey, seed: int = 0) -> Path:
    for k, name in enumerate(names):
        for i, pixels in enumerate(make(each, seed=seed + k)):
            save(folder / name / f"{i}.png", pixels)
    return folder


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def labelled(n: int = 10, classes: int = 2) -> dict[str, Any]:
    return {"x_train": grey(n), "y_train": np.arange(n) % classes}


def refused(source: Any, *parts: str, **options: Any) -> str:
    """The sentence of the UserError, which holds all of `parts`."""
    with pytest.raises(UserError) as caught:
        load_data(source, **options)
    sentence = str(caught.value)
    for part in parts:
        assert part in sentence, sentence
    assert "\n" not in sentence
    return sentence


# --- values


def test_a_split_counts_and_selects() -> None:
    split = Split(torch.arange(12, dtype=torch.uint8).reshape(4, 1, 1, 3), torch.tensor([2, 0, 2, 1]))
    assert len(split) == 4
    assert split.counts(4) == [1, 1, 2, 0]
    part = split.subset(torch.tensor([2, 1]))
    assert part.labels.tolist() == [2, 0]
    assert part.images[0].flatten().tolist() == [6, 7, 8]


def test_describe_is_json_and_tells_the_counts(tmp_path: Path) -> None:
    data = load_data(classes_in(tmp_path / "set", "abc", 10, colour))
    told = json.loads(json.dumps(data.describe()))
    assert (data.channels, data.size, data.num_classes) == (3, (6, 5), 3)
    assert told["name"] == "set"
    assert told["shape"] == [3, 6, 5]
    assert told["classes"] == ["a", "b", "c"]
    assert told["counts"] == {"train": [7, 7, 7], "validation": [1, 1, 1], "test": [2, 2, 2]}
    assert len(told["notes"]) == 2
    assert told["fingerprint"] == data.fingerprint


def test_the_fingerprint_covers_pixels_labels_splits_and_names() -> None:
    data = load_data("digits", seed=3)
    parts = [data.train, data.validation, data.test]
    assert compute_fingerprint(parts, data.classes) == data.fingerprint == load_data("digits", seed=3).fingerprint
    pixel, label = data.train.images.clone(), data.train.labels.clone()
    pixel[5, 0, 4, 4] ^= 1
    label[5] = (label[5] + 1) % 10
    others = [
        compute_fingerprint([Split(pixel, data.train.labels), *parts[1:]], data.classes),
        compute_fingerprint([Split(data.train.images, label), *parts[1:]], data.classes),
        compute_fingerprint([data.train, data.test, data.validation], data.classes),
        compute_fingerprint(parts, ("zero", *data.classes[1:])),
        load_data("digits", seed=4).fingerprint,
        load_data("digits", seed=3, validation=0).fingerprint,
    ]
    assert len({data.fingerprint, *others}) == len(others) + 1


# --- splits


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_held_out_takes_of_every_class_and_leaves_of_every_class(fraction: float) -> None:
    labels = torch.tensor([0] + [1] * 2 + [2] * 3 + [3] * 40)
    split = Split(torch.arange(46, dtype=torch.uint8).reshape(46, 1, 1, 1), labels)
    kept, taken = split_off(split, 4, fraction, make_generator(0, "x"))
    assert [a + b for a, b in zip(kept.counts(4), taken.counts(4))] == [1, 2, 3, 40]
    assert taken.counts(4)[:2] == [0, 1]
    assert min(kept.counts(4)) >= 1
    assert taken.counts(4)[3] == min(round(fraction * 40), 39)
    assert sorted([*kept.images.flatten().tolist(), *taken.images.flatten().tolist()]) == list(range(46))


def test_the_splits_are_seeded_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.validation.images, again.validation.images)
    assert not torch.equal(one.test.images, other.test.images)
    assert sum(map(len, (one.train, one.validation, one.test))) == 1797


def test_validation_is_a_fraction_and_may_be_nothing(tmp_path: Path) -> None:
    file = npz(tmp_path / "a.npz", **labelled(40), x_test=grey(4), y_test=[0, 1, 0, 1])
    assert load_data(file, validation=0.25).validation.counts(2) == [5, 5]
    bare = load_data(file, validation=0)
    assert (len(bare.train), len(bare.validation), bare.validation.images.shape[1:]) == (40, 0, (1, 6, 5))
    refused(file, "validation is a fraction", "not 1", validation=1)


# --- names


def test_digits_fill_the_range_of_a_byte() -> None:
    data = load_data("digits")
    assert data.shape == (1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert (int(data.train.images.min()), int(data.train.images.max())) == (0, 255)
    assert data.classes == tuple("0123456789")
    assert ["no test split" in note for note in data.notes] == [True, False]


@pytest.mark.skipif(not sources.FASHION_FOLDER.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_whole() -> None:
    data = load_data("fashion-mnist")
    assert data.train.counts(10) == [5400] * 10
    assert data.validation.counts(10) == [600] * 10
    assert data.test.counts(10) == [1000] * 10
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"
    assert data.test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert 0.28 < data.train.images.float().mean() / 255 < 0.29


def test_fashion_mnist_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "FASHION_FOLDER", tmp_path / "gone")
    refused("fashion-mnist", "install the Debian package dataset-fashion-mnist", "folder with the idx files")


def test_what_is_no_source_is_refused_with_what_is_known(tmp_path: Path) -> None:
    refused("digit", "no data called 'digit'", "digits, fashion-mnist")
    refused(tmp_path / "gone", "gone", "digits")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path / "notes.txt", "unknown file type '.txt'", ".npz", "one folder of images per class")
    refused(3, "a int is not a source", "Dataset")


def test_data_already_loaded_comes_back_as_it_is() -> None:
    data = load_data("digits")
    assert load_data(data) is data
    assert load_data(data, resize=8) is data
    refused(data, "resize and test do nothing", resize=9)


# --- class folders


def test_class_folders_give_the_pixels_of_their_files(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("Val", 10), ("TEST", 20)):
        classes_in(tmp_path / split, "ba", 3, colour, seed)
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
            save(tmp_path / name / f"{i}.{suffix}", pixels // 8 + 100)
    data = load_data(tmp_path)
    assert data.shape == ((3 if suffix == "webp" else 1), 16, 16)  # WebP has no grey mode
    assert abs(data.train.images.float().mean() - 115.5) < 3


def test_one_coloured_picture_in_any_split_makes_all_rgb(tmp_path: Path) -> None:
    classes_in(tmp_path / "train")
    classes_in(tmp_path / "test", make=colour)
    data = load_data(tmp_path)
    assert data.channels == 3
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert "10 grey images became RGB beside 10 coloured ones" in data.notes


def one_odd(folder: Path, image: Image.Image, suffix: str = "png", **options: Any) -> tuple[Any, ImageData]:
    """The pixels (c, h, w) of `image` as read among grey ones, and the data."""
    classes_in(folder / "train")
    classes_in(folder / "test", "ab", 1)
    (folder / "test" / "a" / "0.png").unlink()
    image.save(folder / "test" / "a" / f"odd.{suffix}", **options)
    data = load_data(folder)
    return data.test.images[0].numpy(), data


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    wide = np.linspace(0, 65535, 30).reshape(6, 5).astype(np.uint16)
    pixels, data = one_odd(tmp_path, Image.fromarray(wide))
    assert np.array_equal(pixels[0], np.rint(wide / 257).astype(np.uint8))
    assert data.notes[0] == "1 images of 16 bits were scaled to 8 (65535 is 255)"


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.full((6, 5, 4), 40, np.uint8)
    pixels[:3, :, 3], pixels[3:, :, 3] = 255, 0
    seen, data = one_odd(tmp_path / "part", Image.fromarray(pixels))
    assert (seen[:, :3] == 40).all()
    assert (seen[:, 3:] == 255).all()
    assert "transparency, which was laid on white" in data.notes[0]
    pixels[..., 3] = 255
    seen, data = one_odd(tmp_path / "opaque", Image.fromarray(pixels))
    assert (seen == 40).all()
    assert "transparency" not in str(data.notes)
    both = np.stack([grey(1)[0], np.full((6, 5), 255, np.uint8)], -1)
    seen, _ = one_odd(tmp_path / "grey", Image.fromarray(both, "LA"))
    assert np.array_equal(seen, grey(1))


def test_palettes_become_what_they_show(tmp_path: Path) -> None:
    coloured = Image.fromarray(colour(1)[0]).convert("P", palette=Image.Palette.ADAPTIVE)
    seen, _ = one_odd(tmp_path / "colour", coloured)
    assert np.array_equal(seen.transpose(1, 2, 0), np.asarray(coloured.convert("RGB")))
    indices = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5)).convert("P")
    indices.putpalette([255 - i // 3 for i in range(768)])
    seen, data = one_odd(tmp_path / "grey", indices)
    assert data.channels == 1
    assert np.array_equal(seen[0], 255 - np.arange(30).reshape(6, 5))
    indices.info["transparency"] = 0
    seen, _ = one_odd(tmp_path / "clear", indices, transparency=3)
    assert (seen[:, 0, 3] == 255).all()


def test_an_animation_gives_its_first_frame_and_exif_turns(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 5), v, np.uint8)) for v in (10, 200)]
    seen, data = one_odd(tmp_path / "gif", frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (seen == 10).all()
    assert "several frames, of which the first is used" in data.notes[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    lying = np.zeros((5, 6), np.uint8)
    lying[0] = 255
    seen, _ = one_odd(tmp_path / "exif", Image.fromarray(lying), exif=exif)
    assert seen.shape == (1, 6, 5)
    assert (seen[0, :, -1] == 255).all()


def test_floating_point_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"odd.tif: 32-bit pixels \(mode F\) have no fixed range"):
        one_odd(tmp_path, Image.fromarray(np.ones((6, 5), np.float32)), "tif")


def test_sizes_that_differ_are_named_and_resize_mends_them(tmp_path: Path) -> None:
    classes_in(tmp_path)
    save(tmp_path / "b" / "wide.png", np.full((6, 9), 77, np.uint8))
    refused(tmp_path, "0.png is 5x6", "wide.png is 9x6", "--resize")
    data = load_data(tmp_path, resize=(4, 3))
    assert data.shape == (1, 4, 3)
    assert data.notes[0] == "11 images were resized to 4x3 (height x width)"
    refused(tmp_path, "at least 1 pixel", resize=0)


def test_resize_is_pillows_antialiased_bilinear_for_files_and_arrays(tmp_path: Path) -> None:
    images = colour(10, 16, 12)
    for i, pixels in enumerate(images):
        save(tmp_path / "set" / "train" / "ab"[i % 2] / f"{i}.png", pixels)
        save(tmp_path / "set" / "test" / "ab"[i % 2] / f"{i}.png", pixels)
    wanted = [np.asarray(Image.fromarray(p).resize((4, 8), Image.Resampling.BILINEAR)) for p in images]
    expected = np.stack([*wanted[::2], *wanted[1::2]]).transpose(0, 3, 1, 2)
    from_files = load_data(tmp_path / "set", resize=(8, 4))
    assert np.array_equal(from_files.test.images.numpy(), expected)
    labels = np.arange(10) % 2
    arrays = npz(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    from_arrays = load_data(arrays, resize=(8, 4))
    assert np.array_equal(from_arrays.test.images.numpy(), np.stack(wanted).transpose(0, 3, 1, 2))
    assert "20 images were resized to 8x4 (height x width)" in from_arrays.notes
    pairs = list(zip(images, labels.tolist()))
    assert torch.equal(load_data(pairs, test=pairs, resize=(8, 4)).test.images, from_arrays.test.images)


def test_folders_that_are_no_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "an empty folder", "one folder per class")
    save(tmp_path / "flat" / "a.png", grey(1)[0])
    refused(tmp_path / "flat", "images but no class folders")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    refused(tmp_path / "text", "no class folders of images")
    classes_in(tmp_path / "half")
    (tmp_path / "half" / "c").mkdir()
    (tmp_path / "half" / "c" / "a.txt").write_text("x")
    refused(tmp_path / "half", "half/c: a class folder without images", ".png")
    refused(classes_in(tmp_path / "one", "a"), "only one class (a)")
    classes_in(tmp_path / "tests" / "test")
    refused(tmp_path / "tests", "has test/ but no train/")


def test_class_folders_of_train_and_test_must_agree(tmp_path: Path) -> None:
    classes_in(tmp_path / "more" / "train", "ab")
    classes_in(tmp_path / "more" / "test", "abc")
    refused(tmp_path / "more", "class folder c is in test and not in train")
    classes_in(tmp_path / "less" / "train", "abc")
    classes_in(tmp_path / "less" / "test", "ab")
    refused(tmp_path / "less", "class folder c is in train and not in test")
    classes_in(tmp_path / "two" / "train")
    classes_in(tmp_path / "two" / "val")
    classes_in(tmp_path / "two" / "valid")
    refused(tmp_path / "two", "two folders for one split", "valid")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        for i, pixels in enumerate(grey(5)):
            save(tmp_path / name / f"{i}.png", pixels)
    assert load_data(tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_an_image_that_does_not_open_is_named(tmp_path: Path, content: bytes | None) -> None:
    classes_in(tmp_path)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "b" / "bad.png").write_bytes(whole[: len(whole) * 2 // 3] if content is None else content)
    sentence = refused(tmp_path, "bad.png: not an image", "replace or remove it")
    assert "BytesIO" not in sentence


def test_files_that_are_not_images_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    classes_in(tmp_path)
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "a" / "._0.png").write_text("x")
    (tmp_path / ".cache").mkdir()
    assert "1 files that are not images were left out" in load_data(tmp_path).notes


def test_pictures_in_hidden_folders_are_left_out(tmp_path: Path) -> None:
    """They were read, as Jupyter's copies, although the cache of decoded images did not notice when they changed."""
    classes_in(tmp_path, each=5)
    save(tmp_path / "a" / ".ipynb_checkpoints" / "0-checkpoint.png", grey(1)[0])
    data = load_data(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 2, 2]


# --- npz


def test_medmnist_layout_is_used_as_it_is(tmp_path: Path) -> None:
    parts = {"train": 12, "val": 4, "test": 6}
    arrays = {f"{k}_images": grey(n, seed=n) for k, n in parts.items()}
    arrays |= {f"{k}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None] for k, n in parts.items()}
    data = load_data(npz(tmp_path / "medmnist.npz", **arrays))
    assert data.name == "medmnist"
    assert data.notes == ()
    for split, n in ((data.train, 12), (data.validation, 4), (data.test, 6)):
        assert np.array_equal(split.images.numpy()[:, 0], grey(n, seed=n))
        assert split.labels.tolist() == [i % 2 for i in range(n)]


def test_arrays_may_have_their_channels_first_last_or_float(tmp_path: Path) -> None:
    images, labels = colour(20), np.arange(20) % 2
    last = load_data(npz(tmp_path / "last.npz", x_train=images, y_train=labels))
    first = load_data(npz(tmp_path / "first.npz", x_train=images.transpose(0, 3, 1, 2), y_train=labels))
    real = load_data(npz(tmp_path / "real.npz", x_train=(images / 255).astype(np.float32), y_train=labels))
    assert last.shape == (3, 6, 5)
    assert last.fingerprint == first.fingerprint == real.fingerprint
    assert "train: floating-point pixels were rounded to 8 bits" in real.notes
    assert load_data(npz(tmp_path / "one.npz", x_train=images[..., :1], y_train=labels)).shape == (1, 6, 5)


def test_labels_with_gaps_are_renumbered_and_keep_their_names(tmp_path: Path) -> None:
    labels = np.array([7, 3, 9, 3, 7, 9] * 5)
    data = load_data(npz(tmp_path / "a.npz", x_train=grey(30), y_train=labels, x_test=grey(30), y_test=labels))
    assert data.classes == ("3", "7", "9")
    assert data.test.labels.tolist() == [1, 0, 2, 0, 1, 2] * 5
    assert "renumbered 0..2" in data.notes[0]


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"images": grey(3), "targets": [0, 1, 0]}, ["images, targets", "train_images and train_labels"]),
        ({"x_train": grey(3)}, ["no images with labels", "x_train"]),
        ({**labelled(), "x_test": grey(3)}, ["x_test has no partner"]),
        ({**labelled(), "y_train": np.zeros((10, 14), int)}, ["14 labels per image", "multi-label"]),
        ({**labelled(), "y_train": np.zeros((10, 1, 1), int)}, ["labels have shape (10, 1, 1)"]),
        ({**labelled(), "y_train": np.zeros(9, int)}, ["10 images but 9 labels"]),
        ({**labelled(), "y_train": np.arange(10) % 2 * 0.5}, ["labels are float64", "whole numbers"]),
        ({**labelled(), "y_train": np.arange(10) % 3 - 1}, ["label -1 is negative"]),
        ({**labelled(), "y_train": np.full(10, 4)}, ["only one class (4)"]),
        ({**labelled(), "x_test": grey(2), "y_test": [0, 5]}, ["class 5 is in test and not in train"]),
        ({**labelled(), "x_test": grey(2, 7), "y_test": [0, 1]}, ["(1, 6, 5)", "(1, 7, 5)"]),
        ({**labelled(), "x_train": grey(10).astype(np.int64)}, ["pixels are int64", "uint8"]),
        ({**labelled(), "x_train": grey(10).astype(np.float32)}, ["run from 0 to 25", "in 0..1"]),
        ({**labelled(), "x_train": np.full((10, 6, 5), np.nan)}, ["run from nan"]),
        ({**labelled(), "x_train": np.zeros((10, 6, 5, 7), np.uint8)}, ["(10, 6, 5, 7)", "not that of flat"]),
        ({"x_train": grey(0), "y_train": np.zeros(0, int)}, ["no images"]),
        ({"x_train": grey(2), "y_train": [0, 1]}, ["no class has a second image"]),
        ({**labelled(), "x_train": np.array([None] * 10, object)}, ["it holds Python objects"]),
    ],
)
def test_npz_contents_that_are_unfit_are_refused(tmp_path: Path, arrays: dict[str, Any], parts: list[str]) -> None:
    refused(npz(tmp_path / "bad.npz", **arrays), "bad", *parts)


def test_npz_files_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    file.write_text("hello")
    refused(file, "not a readable .npz", "no zip archive")
    with file.open("wb") as stream_:
        np.save(stream_, grey(3))
    refused(file, "not a readable .npz")
    whole = npz(tmp_path / "good.npz", **labelled(200)).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, "bad.npz: not a readable .npz", "cut short")
    file.write_bytes(whole[:500] + bytes(100) + whole[600:])  # damaged inside: the checksum tells
    refused(file, "bad.npz: not a readable .npz")


# --- idx


def idx(path: Path, values: Any, pack: bool = True) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    content = head + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if pack else content)


def idx_folder(folder: Path, pack: bool = True) -> Path:
    folder.mkdir()
    end = ".gz" if pack else ""
    for name, n in (("train", 20), ("t10k", 6)):
        idx(folder / f"{name}-images-idx3-ubyte{end}", grey(n, seed=n), pack)
        idx(folder / f"{name}-labels-idx1-ubyte{end}", np.arange(n) % 2, pack)
    return folder


@pytest.mark.parametrize("pack", [True, False])
def test_idx_folders_are_read(tmp_path: Path, pack: bool) -> None:
    data = load_data(idx_folder(tmp_path / "mnist", pack))
    assert data.name == "mnist"
    assert np.array_equal(data.test.images.numpy()[:, 0], grey(6, seed=6))
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (len(data.train), len(data.validation)) == (18, 2)
    other = grey(6, seed=99)  # an unpacked file wins over the packed one, whichever came first
    idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", grey(6, seed=6))
    idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte", other, pack=False)
    assert np.array_equal(load_data(tmp_path / "mnist").test.images.numpy()[:, 0], other)


def test_idx_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "mnist", pack=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    refused(folder, "train-images-idx3-ubyte: header says [20, 6, 5] but 599 bytes follow")
    images.write_bytes(whole[:7])
    refused(folder, "train-images-idx3-ubyte: starts with 00000803")
    images.write_bytes(labels.read_bytes())
    refused(folder, "starts with 00000801, not 00000803")
    images.unlink()
    packed = gzip.compress(whole)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed[:-20])
    refused(folder, "train-images-idx3-ubyte.gz: truncated or not gzip")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(packed)
    idx(labels, np.arange(19) % 2, pack=False)
    refused(folder, "20 images but 19 labels")
    labels.unlink()
    refused(folder, "no idx file of train labels")
    labels.mkdir()
    refused(folder, "train-labels-idx1-ubyte: cannot be read")


# --- parquet


def table(n: int = 20, column: str = "img", label: str = "label", raw: bool = False, names: Any = None) -> pa.Table:
    def png(i: int) -> bytes:
        from io import BytesIO

        held = BytesIO()
        Image.fromarray(colour(n)[i]).save(held, "png")
        return held.getvalue()

    cells = [png(i) if raw else {"bytes": png(i), "path": None} for i in range(n)]
    made = pa.table({column: cells, label: [i % 2 for i in range(n)]})
    if names:
        features = {column: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return made


@pytest.mark.parametrize("inside", ["", "data"])
def test_parquet_folders_are_read_in_the_order_of_their_files(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "set" / inside
    folder.mkdir(parents=True)
    whole = table(20, names=["cat", "dog"])
    pq.write_table(whole.slice(0, 13), folder / "train-00000-of-00002.parquet", row_group_size=5)
    pq.write_table(whole.slice(13), folder / "train-00001-of-00002.parquet")
    pq.write_table(whole, folder / "test-00000-of-00001.parquet")
    pq.write_table(whole.slice(0, 4).replace_schema_metadata(None), folder / "validation-00000-of-00001.parquet")
    data = load_data(tmp_path / "set")
    assert data.name == "set"
    assert data.classes == ("cat", "dog")
    assert data.notes == (("read from the folder data",) if inside else ())
    assert np.array_equal(data.train.images.numpy(), colour(20).transpose(0, 3, 1, 2))
    assert torch.equal(data.test.images, data.train.images)
    assert data.validation.labels.tolist() == [0, 1, 0, 1]


def test_other_columns_raw_bytes_and_a_single_file(tmp_path: Path) -> None:
    made = table(20, "photo", "fine_label", raw=True).append_column("coarse_label", [[0] * 20])
    pq.write_table(made, tmp_path / "mine.parquet")
    data = load_data(tmp_path / "mine.parquet", resize=4, name="yours")
    assert (data.name, data.shape, data.classes) == ("yours", (3, 4, 4), ("0", "1"))
    assert "labels are the column fine_label" in data.notes


def test_a_named_class_without_images_is_left_out_and_said(tmp_path: Path) -> None:
    pq.write_table(table(names=["cat", "dog", "eel"]), tmp_path / "train-0.parquet")
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert "classes without images were left out: eel" in data.notes


def test_parquet_files_that_are_unfit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), file)
    refused(tmp_path, "no image column", "text, label")
    pq.write_table(table(label="kind"), file)
    refused(tmp_path, "no integer label column", "img, kind")
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "a.png"}], "label": [0]}), file)
    refused(tmp_path, "no image column")  # a column of nulls has no bytes at all
    pq.write_table(pa.table({"img": [b"x", None], "label": [0, 1]}), file)
    refused(tmp_path, "empty cells in img")
    pq.write_table(pa.table({"img": [b"x", b"y"], "label": [0, 1]}), file)
    refused(tmp_path, "train-0.parquet row 0: not an image")
    pq.write_table(table(names=["cat"]), file)
    refused(tmp_path, "label 1 has no name among the 1 class names")
    file.write_bytes(file.read_bytes()[:300])
    refused(tmp_path, "train-0.parquet: not a readable parquet file")
    file.unlink()
    pq.write_table(table(), tmp_path / "stuff.parquet")
    refused(tmp_path, "no rows to train on")
    for name in "ab":
        (tmp_path / "many" / name).mkdir(parents=True)
        pq.write_table(table(), tmp_path / "many" / name / "train-0.parquet")
    refused(tmp_path / "many", "several folders", "many/a", "many/b")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(), tmp_path / "train-0.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(tmp_path, "pip install 'limbeck[hf]'")


# --- Datasets


class Pairs(Dataset[Any]):
    """A map-style Dataset of the given (image, label) pairs."""

    def __init__(self, pairs: list[Any], classes: list[str] | None = None) -> None:
        self.pairs = pairs
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Any:
        return self.pairs[index]


class Stream(IterableDataset[Any]):
    """A Dataset without length or rows."""

    def __iter__(self) -> Any:
        return iter(())


def test_a_dataset_may_yield_tensors_pictures_or_arrays() -> None:
    images = colour(20)
    kinds = {
        "bytes": [torch.from_numpy(p).permute(2, 0, 1) for p in images],
        "float": [torch.from_numpy(p).permute(2, 0, 1) / 255 for p in images],
        "pil": [Image.fromarray(p) for p in images],
        "array": list(images),
    }
    read = {k: load_data(Pairs([(p, i % 2) for i, p in enumerate(v)], ["x", "y"])) for k, v in kinds.items()}
    assert len({data.fingerprint for data in read.values()}) == 1
    assert read["pil"].shape == (3, 6, 5)
    assert read["pil"].classes == ("x", "y")
    assert read["pil"].name == "pairs"


def test_a_dataset_may_bring_its_test_set_and_tensor_labels() -> None:
    images = torch.from_numpy(grey(10))[:, None]
    train = TensorDataset(images, torch.arange(10) % 2)
    data = load_data(train, test=TensorDataset(images[:4], torch.tensor([[1], [0], [1], [0]])), validation=0)
    assert torch.equal(data.train.images, images)
    assert torch.equal(data.test.images, images[:4])
    assert data.test.labels.tolist() == [1, 0, 1, 0]


def test_datasets_that_are_unfit_are_refused() -> None:
    one = torch.zeros(1, 4, 4, dtype=torch.uint8)
    refused(Pairs([]), "Pairs: has length 0")
    refused(Pairs([(one, 0), one]), "item 1: not an (image, label) pair")
    refused(Pairs([(one, 0), (one, 0.5)]), "item 1: label 0.5 is not one whole number")
    refused(Pairs([(one, [0, 1])]), "item 0: label [0, 1]")
    refused(Pairs([("a.png", 0)]), "image is a str")
    refused(Pairs([(one - 1.0, 0)]), "run from -1 to -1", "not normalised")
    refused(Pairs([(one, 0), (torch.zeros(1, 4, 5), 1)]), "item 0 is 4x4", "item 1 is 5x4")
    refused(Pairs([(one, -1), (one, 0)]), "label -1 is negative")
    refused(Stream(), "a Stream is not a source", "map-style")
    refused("digits", "test= is a Dataset", test=Pairs([(one, 0)]))
