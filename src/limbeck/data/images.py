"""Labelled image sets: three splits of uint8 images with labels, and how arrays become one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data.pixels import PixelRange, describe_darkness, scale_arrays

Array = npt.NDArray[Any]
Size = tuple[int, int]  # height, width
TEST_FRACTION = 0.2  # of every class, where the source has no test split


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set: images uint8 (n, c, h, w) in 0..255 and labels int64 (n,) in 0..classes-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int) -> list[int]:
        """The number of images of each class."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    def subset(self, rows: Tensor) -> Split:
        """A split of these rows: int64 (m,) or bool (n,)."""
        return Split(self.images[rows], self.labels[rows])


class Origin(NamedTuple):
    """Where an image set lies and how it was read: the arguments of `load_data`.

    source: a name or an absolute path; None for Python objects, which cannot be read again.
    """

    source: str | None = None
    resize: int | tuple[int, int] | None = None
    pixel_range: PixelRange | None = None
    follow_links: bool = False
    validation: float = 0.1
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """Source and resize as JSON values, and what else differs from its default."""
        values = {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}
        values = {"source": self.source, "resize": self.resize, **values}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set with three splits, as `load_data` returns it.

    name:        of the data set.
    train, validation, test: the splits, as uint8 images and labels.
    classes:     class names, in the order of the labels.
    notes:       sentences on what was done to the source: splits held out of train, images resized, classes left out.
    fingerprint: 16 hex digits that name these pixels, labels, splits and class names.
    origin:      where it lies and how it was read.

    >>> from limbeck.data import load_data
    >>> data = load_data("digits")
    >>> data.train.images.shape, data.train.images.dtype, data.size, data.num_classes
    (torch.Size([1295, 1, 8, 8]), torch.uint8, (8, 8), 10)
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str
    origin: Origin = Origin()  # noqa: RUF009 (a tuple, which cannot change)

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
        """The number of classes."""
        return len(self.classes)

    def describe(self) -> dict[str, Any]:
        """A description of the data as JSON values, for records; "counts" has the images of every class by split."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "counts": {name: split.counts(self.num_classes) for name, split in splits.items()},
            "notes": list(self.notes),
        }


class ReadOptions(NamedTuple):
    """How images are read.

    size:        (h, w) to which images are resized; None leaves them as they are.
    pixel_range: the pixel values that become 0 and 255; None: see `limbeck.data.pixels.choose_range`.
    announce:    (number of images, source) -> a function to call after each of them.
    """

    size: Size | None = None
    pixel_range: PixelRange | None = None
    announce: Callable[[int, str], Callable[[], None]] = lambda count, where: lambda: None


class RawData(NamedTuple):
    """The result of a reader: images and labels as they are in the source, before they are checked.

    name:   of the data set.
    images: by split ("train", and perhaps "validation" and "test"): real numbers of shape (n, h, w), (n, h, w, c) or
            (n, c, h, w) with c 1 or 3.
    labels: by split: whole numbers, (n,) or (n, 1).
    names:  class names indexed by label value, of all splits or by split; None where the source has none.
    notes:  sentences on what the reader did to the source.
    """

    name: str
    images: dict[str, Array]
    labels: dict[str, Array]
    names: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    notes: tuple[str, ...] = ()


def compute_fingerprint(splits: Sequence[Split], classes: Sequence[str]) -> str:
    """16 hex digits of a digest of shapes, pixels and labels of every split, and of the class names."""
    digest = hashlib.sha256(repr(tuple(classes)).encode())
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def as_images(array: Array, where: str) -> Array:
    """Images as `RawData.images` may be, as (n, c, h, w). Raises UserError for other shapes."""
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
    return array


def as_labels(array: Array, count: int, where: str) -> Array:
    """Labels (count,) or (count, 1), whole numbers, as int64 (count,). Raises UserError for others, and below 0."""
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
    if array.dtype.kind not in "iub" and not (array.dtype.kind == "f" and np.array_equal(array, np.rint(array))):
        raise UserError(f"{where}: labels are {array.dtype}; give whole numbers (an integer type)")
    labels = array.astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(
            f"{where}: label {labels.min()} is negative; give classes counted from 0 (-1 often means hidden)"
        )
    return labels


def resize_images(images: Array, size: Size | None) -> Array:
    """Images uint8 (n, c, h, w) at `size` (h, w), every channel by Pillow's antialiased bilinear filter."""
    if size is None or images.shape[2:] == size:
        return images
    resized = np.empty((*images.shape[:2], *size), np.uint8)
    for index in np.ndindex(*images.shape[:2]):
        resized[index] = Image.fromarray(images[index]).resize(size[::-1], Image.Resampling.BILINEAR)
    return resized


def describe_resize(size: Size) -> str:
    """The end of a note on images that were resized to `size` (h, w)."""
    return f"were resized to {size[0]}x{size[1]} (height x width)"


def split_off(split: Split, classes: int, fraction: float, generator: torch.Generator) -> tuple[Split, Split]:
    """Split off about `fraction` of every class at random: (remaining split, split that was taken off).

    At least one image of a class is taken off, and at least one remains; a class of one image remains whole.
    """
    mask = torch.zeros(len(split), dtype=torch.bool)
    for label in range(classes):
        rows = (split.labels == label).nonzero()[:, 0]
        number = min(max(1, round(fraction * len(rows))), len(rows) - 1) if fraction else 0
        mask[rows[torch.randperm(len(rows), generator=generator)[: max(number, 0)]]] = True
    return split.subset(~mask), split.subset(mask)


def assemble(
    raw: RawData, *, validation: float, seed: int, resize: Size | None, pixel_range: PixelRange | None = None
) -> ImageData:
    """Check the result of a reader and make it one data set; splits that it lacks are split off train.

    validation:  fraction of every class to split off train where there is no validation split.
    seed:        of these random splits. resize: (h, w) of the result; None leaves the size as it is.
    pixel_range: of pixels that become 0 and 255; None for pixels that are right as they are.
    Raises UserError where images, labels or classes are not what `RawData` says, or where splits do not agree.
    """
    images = {split: as_images(array, f"{raw.name} ({split})") for split, array in raw.images.items()}
    labels = {split: as_labels(raw.labels[split], len(images[split]), f"{raw.name} ({split})") for split in images}
    train_shape = images["train"].shape[1:]
    for split, array in images.items():
        if array.shape[1:] != train_shape and (resize is None or array.shape[1] != train_shape[0]):
            shapes = f"train images are (c, h, w) {train_shape} and {split} images {array.shape[1:]}"
            raise UserError(f"{raw.name}: {shapes}; give both in one size and colour")
    names, labels, label_notes = _align_labels(raw, labels)
    labels, classes, class_notes = _renumber_labels(raw.name, names, labels)
    images, range_notes = scale_arrays(images, pixel_range, raw.name)
    notes = [*raw.notes, *label_notes, *class_notes, *range_notes]
    if resize is not None and (count := sum(len(array) for array in images.values() if array.shape[2:] != resize)):
        notes.append(f"{count} images {describe_resize(resize)}")
    splits = {
        split: Split(_as_tensor(resize_images(array, resize)), torch.from_numpy(labels[split]))
        for split, array in images.items()
    }
    held_out = [split for split in ("validation", "test") if split not in splits and (split == "test" or validation)]
    levels = [int(level) for split in splits.values() for level in split.images.aminmax()]
    notes += [note] if (note := describe_darkness(min(levels), max(levels))) else []
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
    notes += _describe_small_classes(splits, held_out, classes)
    parts = splits["train"], splits["validation"], splits["test"]
    return ImageData(raw.name, *parts, classes, tuple(notes), compute_fingerprint(parts, classes))


MAX_NAMES = 5  # class names in one note


def _describe_small_classes(splits: dict[str, Split], held_out: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Notes on the classes that were too small to give an image to every split in `held_out`."""
    counts = {split: part.counts(len(classes)) for split, part in splits.items()}
    groups: dict[tuple[int, str], list[str]] = {}
    for label, name in enumerate(classes):
        missing = " and ".join(f"no {split}" for split in held_out if not counts[split][label])
        if missing:
            number = sum(counts[split][label] for split in ("train", *held_out))
            groups.setdefault((number, missing), []).append(name)
    notes = []
    for (number, missing), names in sorted(groups.items()):
        listed = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if names[MAX_NAMES:] else "")
        subject = f"class {listed} has" if len(names) == 1 else f"classes {listed} have"
        size = "one image" if number == 1 else f"{number} images"
        size += "" if len(names) == 1 else " each"
        notes.append(f"{subject} {size}: {'it has' if len(names) == 1 else 'they have'} {missing} image")
    return notes


def _align_labels(raw: RawData, labels: dict[str, Array]) -> tuple[Sequence[str] | None, dict[str, Array], list[str]]:
    """The class names of train, the labels of all splits as indices of these names, and notes."""
    if not isinstance(raw.names, Mapping):
        return raw.names, labels, []
    names = list(raw.names["train"])
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{raw.name}: {count} classes of train are called {name!r}; give each a name of its own")
    aligned, notes = dict(labels), []
    for split, own_names in raw.names.items():
        if split not in labels or list(own_names) == names:
            continue
        _check_names(f"{raw.name} ({split})", own_names, labels[split])
        for label in np.unique(labels[split]):
            if own_names[label] not in names:
                raise UserError(
                    f"{raw.name}: class {own_names[label]} is in {split} and not in train; give it training images"
                )
        position = np.array([names.index(name) if name in names else -1 for name in own_names])
        aligned[split] = position[labels[split]]
        notes.append(f"{split} orders its classes otherwise: its labels were matched to those of train by name")
    return names, aligned, notes


def _check_names(where: str, names: Sequence[str], labels: Array) -> None:
    if len(labels) and labels.max() >= len(names):
        raise UserError(f"{where}: label {labels.max()} has no name among the {len(names)} class names; add one")


def _renumber_labels(
    name: str, names: Sequence[str] | None, labels: dict[str, Array]
) -> tuple[dict[str, Array], tuple[str, ...], list[str]]:
    """Labels by split as 0..C-1 for the C classes that train has, the names of these classes, and notes."""
    values = np.unique(labels["train"])
    all_values = np.unique(np.concatenate(list(labels.values())))
    if names is not None:
        _check_names(name, names, all_values)
    name_of = {int(value): names[value] if names is not None else str(value) for value in all_values}
    for split, array in labels.items():
        for value in np.setdiff1d(array, values)[:1]:
            raise UserError(f"{name}: class {name_of[value]} is in {split} and not in train; give it training images")
    if len(values) < 2:
        raise UserError(f"{name}: only one class ({name_of[int(values[0])]}) in train; give at least two")
    notes = []
    if names is not None and len(values) < len(names):
        unused = [class_name for value, class_name in enumerate(names) if value not in name_of]
        notes.append(f"classes without images were left out: {', '.join(unused)}")
    elif values[-1] != len(values) - 1:
        notes.append(f"labels were renumbered 0..{len(values) - 1}; class names keep the source's values")
    return {split: np.searchsorted(values, array) for split, array in labels.items()}, tuple(name_of.values()), notes


def _as_tensor(array: Array) -> Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns about read-only memory
