"""Labelled image sets: three splits of uint8 images with labels, and how arrays become one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.short_repr import short_repr
from limbeck.core.sizes import ResizeMode, Size
from limbeck.data.pixels import PixelRange

Array = npt.NDArray[Any]
DEFAULT_VALIDATION = 0.1
"""The fraction of every class that is split off train for validation."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set: images uint8 (n, c, h, w) in 0..255 and labels int64 (n,) in 0..classes-1."""

    __repr__ = short_repr

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
    validation: float | str = DEFAULT_VALIDATION
    seed: int = 0
    resize_mode: ResizeMode = "stretch"
    test: str | None = None

    def describe(self) -> dict[str, Any]:
        """Source, resize and seed as JSON values, and what else differs from its default.

        The seed of the splits is always said, since that of a run may be another one.
        """
        values = {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}
        values = {"source": self.source, "resize": self.resize, **values, "seed": self.seed}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


READING = frozenset(Origin._fields) - {"source", "seed"}
"""Keywords of `load_data` that commands and functions pass on to it."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A labelled image set with three splits, as `load_data` returns it.

    name:        of the data set.
    train, validation, test: the splits, as uint8 images and labels.
    classes:     class names, in the order of the labels.
    notes:       sentences on what was done to the source: splits held out of train, images resized, classes left out.
    fingerprint: 16 hex digits that name these pixels, labels, splits and class names.
    origin:      where it lies and how it was read.
    layout:      the kind of source, in words.
    files:       by split, the path of every image below the source; empty where images are not files of their own.

    >>> from limbeck.data import load_data
    >>> data = load_data("digits")
    >>> data.train.images.shape, data.train.images.dtype, data.size, data.num_classes
    (torch.Size([1295, 1, 8, 8]), torch.uint8, (8, 8), 10)
    """

    __repr__ = short_repr

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str
    origin: Origin = Origin()  # noqa: RUF009 (a tuple, which cannot change)
    layout: str = ""
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)

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
    resize_mode: how images of other proportions are resized, see `fit_picture`.
    """

    size: Size | None = None
    pixel_range: PixelRange | None = None
    announce: Callable[[int, str], Callable[[], None]] = lambda count, where: lambda: None
    resize_mode: ResizeMode = "stretch"


class RawData(NamedTuple):
    """The result of a reader: images and labels as they are in the source, before they are checked.

    name:   of the data set.
    images: by split ("train", and perhaps "validation" and "test"): real numbers of shape (n, h, w), (n, h, w, c) or
            (n, c, h, w) with c 1 or 3.
    labels: by split: whole numbers, (n,) or (n, 1).
    names:  class names indexed by label value; None where the source has none.
    notes:  sentences on what the reader did to the source.
    files:  by split, the path of every image below the source; no entry for images that are not files of their own.
    layout: the kind of source, in words; the caller of the reader sets it.
    """

    name: str
    images: dict[str, Array]
    labels: dict[str, Array]
    names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, Sequence[str]] = MappingProxyType({})
    layout: str = ""


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


def fit_picture(image: Image.Image, size: Size, mode: ResizeMode) -> Image.Image:
    """A picture in mode L, RGB or F at `size` (h, w), by Pillow's antialiased bilinear filter.

    mode: "stretch" changes its proportions; "crop" keeps them and cuts off what lies outside around the centre; "pad"
          keeps them and all of the picture, and repeats its edge pixels up to the size.

    >>> import numpy as np
    >>> wide = Image.fromarray(np.array([[0, 0, 90, 90, 30, 30], [0, 0, 90, 90, 30, 30]], np.uint8))
    >>> np.asarray(fit_picture(wide, (2, 2), "crop")).tolist()
    [[90, 90], [90, 90]]
    >>> np.asarray(fit_picture(wide, (4, 6), "pad"))[:, 0].tolist(), fit_picture(wide, (4, 6), "stretch").size
    ([0, 0, 0, 0], (6, 4))
    """
    height, width = size
    if mode == "stretch" or image.size == (width, height):
        return image.resize((width, height), Image.Resampling.BILINEAR)
    scales = width / image.width, height / image.height
    if mode == "crop":
        left, top = (side - part / max(scales) for side, part in zip(image.size, (width, height)))
        box = (left / 2, top / 2, image.width - left / 2, image.height - top / 2)
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    inner = [max(1, round(side * min(scales))) for side in image.size]
    pixels = np.asarray(image.resize((inner[0], inner[1]), Image.Resampling.BILINEAR))
    edges = [((whole - part) // 2, whole - part - (whole - part) // 2) for whole, part in zip(size, inner[::-1])]
    return Image.fromarray(np.pad(pixels, [*edges, *[(0, 0)] * (pixels.ndim - 2)], mode="edge"))


def resize_images(images: Array, size: Size | None, mode: ResizeMode = "stretch") -> Array:
    """Images uint8 (n, c, h, w) at `size` (h, w), every channel by `fit_picture`."""
    if size is None or images.shape[2:] == size:
        return images
    resized = np.empty((*images.shape[:2], *size), np.uint8)
    for index in np.ndindex(*images.shape[:2]):
        resized[index] = fit_picture(Image.fromarray(images[index]), size, mode)
    return resized


VERBS = {
    "stretch": "stretched",
    "crop": "resized and cropped at the centre",
    "pad": "resized and padded by their edges",
}


def describe_resize(before: Size, size: Size, mode: ResizeMode = "stretch") -> str:
    """The end of a note on images of the size `before` (h, w) that are now of `size`.

    They were stretched, say, where height and width changed by factors that differ by more than rounding to whole
    pixels.

    >>> describe_resize((72, 96), (24, 32)), describe_resize((36, 48), (16, 16))
    ('were resized to 24x32 (height x width)', 'were stretched to 16x16 (height x width)')
    """
    height = size[1] * before[0] / before[1]  # without stretching
    verb = "resized" if abs(size[0] - height) < 1 else VERBS[mode]
    return f"were {verb} to {size[0]}x{size[1]} (height x width)"
