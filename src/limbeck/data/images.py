"""A data set as values: three splits of uint8 images with labels, and how arrays and pictures become one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator

Array = npt.NDArray[Any]
Size = tuple[int, int]  # height, width
TEST_FRACTION = 0.2
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (n, c, h, w) in 0..255 and their labels int64 (n,) in 0..classes-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int) -> list[int]:
        """How many images each of the `classes` classes has."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    def subset(self, rows: Tensor) -> Split:
        """The rows int64 (m,) (or bool (n,)) as a split of their own."""
        return Split(self.images[rows], self.labels[rows])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set: `notes` say what was done to the source, `fingerprint` names these pixels and splits."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.shape[0]

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.shape[1:]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def describe(self) -> dict[str, Any]:
        """What a record keeps of the data, as JSON values: counts are images per class, in the order of `classes`."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "counts": {name: split.counts(self.num_classes) for name, split in splits.items()},
            "notes": list(self.notes),
        }


class RawData(NamedTuple):
    """What a reader hands over: per split ("train", perhaps "validation", "test") images and labels as they were found.

    images: uint8, or float in 0..1; (n, h, w), (n, h, w, c) or (n, c, h, w) with c 1 or 3.
    labels: whole numbers, (n,) or (n, 1).
    names:  class names indexed by label value, None where the source has none.
    """

    name: str
    images: dict[str, Array]
    labels: dict[str, Array]
    names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


def fingerprint(splits: Sequence[Split], classes: Sequence[str]) -> str:
    """16 hex digits over shapes, pixels and labels of every split, and the class names."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def as_uint8(array: Array, where: str) -> Array:
    """The same pixels as uint8: floats in 0..1 are scaled by 255 and rounded, any other type is a UserError."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise UserError(f"{where}: pixels are {array.dtype}; give uint8 in 0..255 or floating point in 0..1")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also true of NaN
        raise UserError(
            f"{where}: floating-point pixels run from {low:.4g} to {high:.4g}; give them in 0..1, not normalised"
        )
    pixels: Array = np.rint(array * 255).astype(np.uint8)
    return pixels


def as_images(array: Array, where: str) -> Array:
    """uint8 (n, c, h, w) of what `Raw.images` may hold; UserError where the shape or the type is another."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise UserError(
            f"{where}: shape {array.shape} is not that of flat grey or RGB images; give (n, h, w[, 1 or 3])"
        )
    if 0 in array.shape:
        raise UserError(f"{where}: no images (shape {array.shape}); give at least one image per class")
    return as_uint8(array, where)


def as_labels(array: Array, count: int, where: str) -> Array:
    """int64 (count,) of integer labels (count,) or (count, 1); UserError where they are anything else."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        raise UserError(
            f"{where}: {array.shape[1]} labels per image (multi-label or one-hot); give one class number per image"
        )
    if array.ndim != 1:
        raise UserError(f"{where}: labels have shape {array.shape}; give one class number per image, (n,) or (n, 1)")
    if len(array) != count:
        raise UserError(f"{where}: {count} images but {len(array)} labels; give one label per image")
    if array.dtype.kind not in "iub":
        raise UserError(f"{where}: labels are {array.dtype}; give whole numbers (an integer type)")
    labels = array.astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(
            f"{where}: label {labels.min()} is negative; give classes counted from 0 (-1 often means hidden)"
        )
    return labels


class Picture(NamedTuple):
    """One decoded image: pixels uint8 (h, w) grey or (h, w, 3) RGB, where it came from, what was done to it."""

    pixels: Array
    where: str
    remarks: tuple[str, ...] = ()


def decode_picture(source: Path | bytes | Image.Image, where: str, resize: Size | None = None) -> Picture:
    """Decode one image file, upright by its EXIF tag; `resize` (h, w) stretches it with an antialiased bilinear filter.

    Grey stays grey, 16 bits are scaled to 8, transparency is laid on white, of several frames the first is taken; the
    remarks say so. UserError, naming `where`, if it does not open or its pixels have no fixed range.
    """
    try:
        image = source if isinstance(source, Image.Image) else _open(source)
        remarks = ["have several frames, of which the first is used"] if _animated(image) else []
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image, done = _eight_bits(image, where)
        remarks += [done] if done else []
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: not an image in a known format; replace or remove it") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{where}: not an image that opens ({error}); replace or remove it") from error
    if resize is not None and image.size != resize[::-1]:
        image = image.resize(resize[::-1], Image.Resampling.BILINEAR)
        remarks.append(_resized_to(resize))
    return Picture(np.asarray(image), where, tuple(remarks))


def _resized_to(size: Size) -> str:
    return f"were resized to {size[0]}x{size[1]} (height x width)"


def _open(source: Path | bytes) -> Image.Image:
    if isinstance(source, bytes):
        return Image.open(BytesIO(source))
    return Image.open(BytesIO(source.read_bytes()))  # no handle is left open


def _animated(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # MPO: a photo and its preview


def _eight_bits(image: Image.Image, where: str) -> tuple[Image.Image, str]:
    """The image in mode L or RGB, and what was done to it."""
    mode = image.mode
    if mode in WIDE_MODES:
        wide = np.asarray(image).astype(np.int64)
        if wide.min() >= 0 and wide.max() <= 65535:
            return Image.fromarray(((wide + 128) // 257).astype(np.uint8)), "of 16 bits were scaled to 8 (65535 is 255)"
    if mode in (*WIDE_MODES, "F"):
        raise UserError(f"{where}: 32-bit pixels (mode {mode}) have no fixed range; save the image with 8 or 16 bits")
    if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return _on_white(image)
    if mode == "P":
        image = image.convert("RGB")
        red, green, blue = (np.asarray(channel) for channel in image.split())
        return (image.getchannel(0) if (red == green).all() and (red == blue).all() else image), ""
    return image.convert("L" if mode in ("L", "1") else "RGB"), ""


def _on_white(image: Image.Image) -> tuple[Image.Image, str]:
    target = "L" if image.mode in ("LA", "L", "1") else "RGB"
    seen = image.convert("RGBA")
    if np.asarray(seen.getchannel("A")).min() == 255:
        return seen.convert(target), ""
    white = Image.new("RGBA", seen.size, "white")
    white.alpha_composite(seen)
    return white.convert(target), "have transparency, which was laid on white"


def as_picture(image: Any, where: str, size: Size | None) -> Picture:
    """A Picture of a PIL image, an array (h, w[, c]) or a tensor ([c,] h, w)."""
    if isinstance(image, Image.Image):
        return decode_picture(image, where, size)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(f"{where}: image is a {type(image).__name__}; give a tensor, a PIL image or a numpy array")
    pixels = as_images(image[None], where)[0].transpose(1, 2, 0)
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if size is not None and pixels.shape[:2] != size:
        return decode_picture(Image.fromarray(np.ascontiguousarray(pixels)), where, size)
    return Picture(pixels, where)


def stack_pictures(pictures: Mapping[str, Sequence[Picture]]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Per split (n, h, w) if every picture is grey, else (n, h, w, 3); and notes. UserError if sizes differ."""
    everything = [picture for split in pictures.values() for picture in split]
    first = everything[0]
    for other in everything:
        if other.pixels.shape[:2] != first.pixels.shape[:2]:
            (h, w), (h2, w2) = first.pixels.shape[:2], other.pixels.shape[:2]
            raise UserError(
                f"images differ in size: {first.where} is {w}x{h} and {other.where} is {w2}x{h2}; "
                f"pass --resize (resize= in Python) to bring all to one size"
            )
    colour = any(picture.pixels.ndim == 3 for picture in everything)
    notes = [f"{n} images {remark}" for remark, n in Counter(r for p in everything for r in p.remarks).items()]
    grey = sum(picture.pixels.ndim == 2 for picture in everything)
    if colour and grey:
        notes.append(f"{grey} grey images became RGB beside {len(everything) - grey} coloured ones")
    return {split: np.stack([_rgb(p.pixels, colour) for p in found]) for split, found in pictures.items()}, tuple(notes)


def _rgb(pixels: Array, colour: bool) -> Array:
    return np.repeat(pixels[..., None], 3, axis=2) if colour and pixels.ndim == 2 else pixels


def resize_images(images: Array, size: Size | None) -> Array:
    """uint8 (n, c, h, w) at `size` (h, w): each channel of each image through Pillow's antialiased bilinear filter."""
    if size is None or images.shape[2:] == size:
        return images
    out = np.empty((*images.shape[:2], *size), np.uint8)
    for index in np.ndindex(*images.shape[:2]):
        out[index] = Image.fromarray(images[index]).resize(size[::-1], Image.Resampling.BILINEAR)
    return out


def split_off(split: Split, classes: int, fraction: float, generator: torch.Generator) -> tuple[Split, Split]:
    """(kept, taken): of every class about `fraction` is taken, at least one image, and at least one is kept."""
    taken = torch.zeros(len(split), dtype=torch.bool)
    for label in range(classes):
        rows = (split.labels == label).nonzero()[:, 0]
        number = min(max(1, round(fraction * len(rows))), len(rows) - 1) if fraction else 0
        taken[rows[torch.randperm(len(rows), generator=generator)[: max(number, 0)]]] = True
    return split.subset(~taken), split.subset(taken)


def assemble(raw: RawData, *, validation: float, seed: int, resize: Size | None) -> ImageData:
    """Check what a reader found and make it one data set, with every split it lacks held out of train.

    UserError if images, labels or classes of the splits are unfit or do not agree.
    """
    images = {split: as_images(found, f"{raw.name} ({split})") for split, found in raw.images.items()}
    labels = {k: as_labels(raw.labels[k], len(images[k]), f"{raw.name} ({k})") for k in images}
    for split, found in images.items():
        if found.shape[1:] != images["train"].shape[1:] and (
            resize is None or found.shape[1] != images["train"].shape[1]
        ):
            shapes = f"train images are (c, h, w) {images['train'].shape[1:]} and {split} images {found.shape[1:]}"
            raise UserError(f"{raw.name}: {shapes}; give both in one size and colour")
    labels, classes, notes = _contiguous(raw, labels)
    notes = [*raw.notes, *notes]
    notes += [
        f"{k}: floating-point pixels were rounded to 8 bits" for k, v in raw.images.items() if v.dtype.kind == "f"
    ]
    if resize is not None and (other := sum(len(v) for v in images.values() if v.shape[2:] != resize)):
        notes.append(f"{other} images {_resized_to(resize)}")
    splits = {k: Split(_tensor(resize_images(images[k], resize)), torch.from_numpy(labels[k])) for k in images}
    if "test" not in splits:
        generator = make_generator(seed, "data", "test")
        splits["train"], splits["test"] = split_off(splits["train"], len(classes), TEST_FRACTION, generator)
        if not len(splits["test"]):
            raise UserError(f"{raw.name}: no test split, and no class has a second image to hold out; add images")
        notes.append(
            f"no test split: {len(splits['test'])} images ({TEST_FRACTION:.4g} of every class) held out of train"
        )
    if "validation" not in splits:
        generator = make_generator(seed, "data", "validation")
        splits["train"], splits["validation"] = split_off(splits["train"], len(classes), validation, generator)
        number = len(splits["validation"])
        notes.append(f"no validation split: {number} images ({validation:.4g} of every class) held out of train")
    parts = splits["train"], splits["validation"], splits["test"]
    return ImageData(raw.name, *parts, classes, tuple(notes), fingerprint(parts, classes))


def _contiguous(raw: RawData, labels: dict[str, Array]) -> tuple[dict[str, Array], tuple[str, ...], list[str]]:
    """Labels 0..C-1 of the classes that train has, the names of those, and notes."""
    values = np.unique(labels["train"])
    every = np.unique(np.concatenate(list(labels.values())))
    if raw.names is not None and every[-1] >= len(raw.names):
        raise UserError(f"{raw.name}: label {every[-1]} has no name among the {len(raw.names)} class names; add one")
    names = {int(v): raw.names[v] if raw.names is not None else str(v) for v in every}
    for split, found in labels.items():
        for value in np.setdiff1d(found, values)[:1]:
            raise UserError(f"{raw.name}: class {names[value]} is in {split} and not in train; give it training images")
    if len(values) < 2:
        raise UserError(f"{raw.name}: only one class ({names[int(values[0])]}) in train; give at least two")
    notes = []
    if raw.names is not None and len(values) < len(raw.names):
        unused = [name for value, name in enumerate(raw.names) if value not in names]
        notes.append(f"classes without images were left out: {', '.join(unused)}")
    elif values[-1] != len(values) - 1:
        notes.append(f"labels were renumbered 0..{len(values) - 1}; class names keep the source's values")
    return {k: np.searchsorted(values, v) for k, v in labels.items()}, tuple(names.values()), notes


def _tensor(array: Array) -> Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns about read-only memory
