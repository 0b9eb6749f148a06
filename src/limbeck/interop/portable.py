"""Distilled sets as files that need no limbeck: class folders of pictures, and one file of numpy's arrays."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image

from limbeck.data.splits import is_general, pair_splits
from limbeck.data.tree import is_hidden
from limbeck.interop.rounding import as_pixels
from limbeck.synthetic.distilled import DistilledSet

NPZ, LABELS, PREPROCESS = "distilled.npz", "labels.csv", "preprocess.npz"
MAX_NAME = 80  # characters of a folder's name: at most 240 bytes of UTF-8 without those beyond the basic plane
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
"""Names that Windows keeps for devices."""


def folder_names(classes: Sequence[str]) -> list[str]:
    r"""Class names as names of folders, which are different from each other wherever case does not count.

    Letters of any script stay. Separators, dots and what cannot be printed or named on Windows become "_". Where
    `load_data` would take a name for a split, for images of any kind or for a folder of the system, it becomes "class_"
    and its number.

    >>> folder_names(["cat", "a/b", "..", "Cat", "größe"])
    ['cat', 'a_b', '__', 'Cat_2', 'größe']
    >>> folder_names(["dog", "train", "test"])
    ['dog', 'class_1', 'class_2']
    """
    names = _number_repeats(map(_clean, classes))
    while misread := _find_misread(names):
        names = _number_repeats(f"class_{label}" if name in misread else name for label, name in enumerate(names))
    return names


def _clean(name: str) -> str:
    letters = (char if char.isprintable() and char not in '<>:"/\\|?*.' else "_" for char in normalize("NFC", name))
    start = "".join(letters).strip()[:MAX_NAME].encode()[:200].decode(errors="ignore").strip() or "class"
    return f"{start}_" if start.casefold() in RESERVED else start


def _number_repeats(starts: Iterable[str]) -> list[str]:
    """The names, with a number behind those that one before them equals but for case."""
    names: list[str] = []
    taken_names: set[str] = set()
    for start in starts:
        unique, number = start, 1
        while unique.casefold() in taken_names:
            number += 1
            unique = f"{start}_{number}"
        taken_names.add(unique.casefold())
        names.append(unique)
    return names


def _find_misread(names: Sequence[str]) -> set[str]:
    """The names of class folders that `load_data` would not read as classes."""
    pairs = pair_splits(names)
    is_class = [split for split, _ in pairs] == ["train"]  # alone it is read as a class, as the train of CIFAR-100
    splits = set() if is_class else {name for _, name in pairs}
    return splits | {name for name in names if is_hidden(name) or is_general(name)}


def pictures_of(distilled: DistilledSet) -> list[Image.Image]:
    """The images as pictures of 8 bits, grey or RGB."""
    pixels = as_pixels(distilled).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else one) for one in pixels]


def picture_paths(distilled: DistilledSet) -> list[str]:
    """CLASS/00000.png for every image: the folder of its class, and its number among the images of that class."""
    names = folder_names(distilled.classes)
    counts = [0] * len(names)
    paths = []
    for label in distilled.hard_labels().tolist():
        paths.append(f"{names[label]}/{counts[label]:05d}.png")
        counts[label] += 1
    return paths


def export_imagefolder(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write a folder of PNG pictures for every class, as torchvision's ImageFolder reads them; returns the files.

    Soft labels go into labels.csv: the path of a picture, and the probability of every class in the order of labels.
    """
    files = []
    for path, picture in zip(paths := picture_paths(distilled), pictures_of(distilled)):
        file = folder / path
        file.parent.mkdir(exist_ok=True)
        picture.save(file, format="PNG")
        files.append(file)
    if distilled.labels.is_floating_point():
        rows = [[path, *map(str, row)] for path, row in zip(paths, distilled.labels.numpy())]  # float32, exact
        with (folder / LABELS).open("w", encoding="utf-8", errors="replace", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([["file", *distilled.classes], *rows])
        files.append(folder / LABELS)
    return [*files, save_preprocess(distilled, folder)]


def save_preprocess(distilled: DistilledSet, folder: Path) -> Path:
    """Write what maps pixels to network input: mean and std, or those matrices of ZCA; returns the file."""
    return _save_npz(folder / PREPROCESS, _preprocess_arrays(distilled))


def export_npz(distilled: DistilledSet, folder: Path) -> list[Path]:
    """Write one file of numpy's arrays, and return it.

    x: float32 (n, c, h, w) in network input space. y: int64 (n,), or float32 (n, classes) with int64 labels beside it.
    pixels: uint8 (n, h, w[, 3]), to look at. classes: text. lr: the step size. mean and std, or mean, whiten, colour.
    targets: float32 (n, classes), where the set was made for a regression.
    """
    pixels = as_pixels(distilled).permute(0, 2, 3, 1).numpy()
    arrays: dict[str, Any] = {
        "x": distilled.images.float().numpy(),
        "y": distilled.labels.numpy(),
        "pixels": pixels[..., 0] if pixels.shape[3] == 1 else pixels,
        "classes": np.array(distilled.classes),
        "lr": np.float64(distilled.lr),
        **_preprocess_arrays(distilled),
    }
    if distilled.labels.is_floating_point():
        arrays["labels"] = distilled.hard_labels().numpy()
    if distilled.targets is not None:
        arrays["targets"] = distilled.targets.numpy()
    return [_save_npz(folder / NPZ, arrays)]


def _preprocess_arrays(distilled: DistilledSet) -> dict[str, Any]:
    return {name: tensor.cpu().numpy() for name, tensor in distilled.preprocess.state().items()}


def _save_npz(path: Path, arrays: dict[str, Any]) -> Path:
    with path.open("wb") as stream:  # given a path, numpy adds a suffix
        np.savez(stream, **arrays)
    return path
