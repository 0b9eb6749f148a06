"""From the result of a reader to a data set: labels by name, one range of pixels, and splits held out of train."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.core.sizes import ResizeMode, Size
from limbeck.core.text import agree
from limbeck.data.images import (
    DEFAULT_VALIDATION,
    Array,
    ImageData,
    RawData,
    Split,
    as_images,
    compute_fingerprint,
    describe_resize,
    resize_images,
)
from limbeck.data.pixels import DARK, PixelRange, describe_darkness, find_limits, scale_arrays

TEST_FRACTION = 0.2  # of every class, where the source has no test split
MAX_NAMES = 5  # class names in one note
MISSING = ("nan", "null", "<na>", "nat")  # as pandas and databases write a missing value


def assemble(
    raw: RawData,
    *,
    validation: float,
    seed: int,
    resize: Size | None,
    pixel_range: PixelRange | None = None,
    resize_mode: ResizeMode = "stretch",
) -> ImageData:
    """Check the result of a reader and make it one data set; splits that it lacks are split off train.

    validation:  fraction of every class to split off train where there is no validation split.
    seed:        of these random splits.
    resize:      (h, w) of the result; None leaves the size as it is. resize_mode: how, see `fit_picture`.
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
    labels, classes, class_notes = _renumber_labels(raw.name, raw.names, labels)
    images, range_notes = scale_arrays(images, pixel_range, raw.name)
    notes = [*raw.notes, *class_notes, *_describe_names(classes), *range_notes]
    for before in dict.fromkeys(array.shape[2:] for array in images.values()):
        count = sum(len(array) for array in images.values() if array.shape[2:] == before)
        if resize is not None and before != resize and count:
            notes.append(f"{count} images {describe_resize(before, resize, resize_mode)}")
    splits = {
        split: Split(_as_tensor(resize_images(array, resize, resize_mode)), torch.from_numpy(labels[split]))
        for split, array in images.items()
    }
    notes += _describe_levels({split: find_limits(part.images.numpy()) for split, part in splits.items()})
    fractions = {"test": TEST_FRACTION, "validation": validation}
    if "validation" in splits and validation not in (0, DEFAULT_VALIDATION):
        notes.append(f"--validation {validation:g} was not needed, since there is a validation split")
    held_out = [split for split in ("validation", "test") if split not in splits and fractions[split]]
    files = dict(raw.files)
    notes += _hold_out(splits, files, fractions, len(classes), seed, raw.name)
    notes += _describe_small_classes(splits, held_out, classes)
    parts = splits["train"], splits["validation"], splits["test"]
    return ImageData(
        raw.name,
        *parts,
        classes,
        tuple(map(agree, notes)),
        compute_fingerprint(parts, classes),
        layout=raw.layout,
        files=files,
    )


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


def choose_rows(labels: Tensor, classes: int, fraction: float, generator: torch.Generator) -> Tensor:
    """A random choice of about `fraction` of every class, bool (n,).

    At least one image of a class is chosen, and at least one is not; of a class of one image none is.
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(classes):
        rows = (labels == label).nonzero()[:, 0]
        number = min(max(1, round(fraction * len(rows))), len(rows) - 1) if fraction else 0
        mask[rows[torch.randperm(len(rows), generator=generator)[: max(number, 0)]]] = True
    return mask


def _hold_out(
    splits: dict[str, Split],
    files: dict[str, Sequence[str]],
    fractions: Mapping[str, float],
    classes: int,
    seed: int,
    where: str,
) -> list[str]:
    """Split these fractions off train for the splits that are missing in `splits`, and return notes."""
    train = splits["train"]
    rows = {"train": torch.arange(len(train))}
    notes = []
    for split, fraction in fractions.items():
        if split in splits:
            continue
        mask = choose_rows(train.labels[rows["train"]], classes, fraction, make_generator(seed, "data", split))
        rows |= {"train": rows["train"][~mask], split: rows["train"][mask]}
        number = len(rows[split])
        if split == "test" and not number:
            raise UserError(f"{where}: no test split, and no class has a second image to hold out; add images")
        notes.append(f"no {split} split: {number} images ({fraction:.4g} of every class) held out of train")
    if len(rows) > 1:  # from the whole set at once, so that no image is copied twice
        splits |= {split: train.subset(part) for split, part in rows.items()}
        if paths := files.get("train"):
            files |= {split: [paths[row] for row in part.tolist()] for split, part in rows.items()}
    return notes


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
        subject = f"class {names[0]} has" if len(names) == 1 else f"classes {_list_names(names)} have"
        size = "one image" if number == 1 else f"{number} images"
        size += "" if len(names) == 1 else " each"
        notes.append(f"{subject} {size}: {'it has' if len(names) == 1 else 'they have'} {missing} image")
    return notes


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if names[MAX_NAMES:] else "")


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
        notes.append(f"classes without images were left out: {_list_names(unused)}")
    elif values[-1] != len(values) - 1:
        notes.append(f"labels were renumbered 0..{len(values) - 1}; class names keep the source's values")
    return {split: np.searchsorted(values, array) for split, array in labels.items()}, tuple(name_of.values()), notes


def _describe_levels(limits: Mapping[str, PixelRange]) -> list[str]:
    """Notes on a set that is nearly black or white, and on such splits beside others; limits: of 8 bits, by split."""
    low, high = min(low for low, _ in limits.values()), max(high for _, high in limits.values())
    if note := describe_darkness(int(low), int(high)):
        return [note]
    return [
        f"the pixels of {split} end at {end:g} of 255 and those of other splits at {high:g}: give all of them one range"
        for split, (_, end) in limits.items()
        if end < DARK
    ]


def _describe_names(classes: Sequence[str]) -> list[str]:
    """Notes on class names that may mean one class, or none."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(_plain_name(name), []).append(name)
    twins = [
        " and ".join(map(repr, names[:MAX_NAMES]))
        for names in groups.values()
        if len(names) > 1 and any(len(name) > 1 for name in names)  # A and a are letters
    ]
    notes = [f"classes are called nearly the same, {'; '.join(twins[:3])}: join them if they are one"] if twins else []
    missing = [name for name in classes if name.strip().casefold() in MISSING]
    return notes + [f"a class is called {name}, which often means that a label is missing" for name in missing]


def _plain_name(name: str) -> str:
    """A class name without what people write in several ways: case, spaces, signs and zeros before a number."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", " ", name).strip())


def _as_tensor(array: Array) -> Tensor:
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns about read-only memory
