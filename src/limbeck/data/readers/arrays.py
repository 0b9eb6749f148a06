"""Reader of pairs (X, y): images and labels as arrays, tensors, nested lists, or tables and columns of pandas."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import torch

from limbeck.core.errors import UserError
from limbeck.core.text import shorten
from limbeck.data.images import Array, as_images
from limbeck.data.pixels import read_pixels, to_numpy


class Arrays(NamedTuple):
    """One split of a data set as arrays.

    images: (n, h, w, c) with c 1 or 3.
    labels: whole numbers of shape (n,) or (n, 1), or words of shape (n,).
    name:   of the data set.
    names:  class names indexed by label value; None where there are none.
    notes:  sentences on what was assumed.
    """

    images: Array
    labels: Array
    name: str = "arrays"
    names: list[str] | None = None
    notes: tuple[str, ...] = ()


def are_arrays(source: Any) -> bool:
    """Whether it is a pair (X, y) of images and labels: its second part has one number or one word per image.

    A list of two items (image, label) is no such pair, since its second part starts with an image.

    >>> image = np.zeros((8, 8))
    >>> are_arrays(([image, image], ["cat", "dog"])), are_arrays([(image, "cat"), (image, "dog")])
    (True, False)
    """
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    images, labels = source
    if not hasattr(images, "__array__") and not (_is_filled(images) and not _is_scalar(images[0])):
        return False
    return np.ndim(labels) > 0 if hasattr(labels, "__array__") else _is_filled(labels) and all(map(_is_scalar, labels))


def is_sequence(values: Any) -> bool:
    """Whether it is a list, a tuple, or like them, as the columns of Hugging Face's tables are."""
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


def _is_filled(values: Any) -> bool:
    return is_sequence(values) and len(values) > 0


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | Number | np.generic) or (isinstance(value, torch.Tensor) and not value.ndim)


def read_arrays(x: Any, y: Any, where: str) -> Arrays:
    """Images (n, h, w), (n, h, w, c), (n, c, h, w) or, of square images, (n, d), with their labels.

    Rows of d numbers are grey where d is a square, and RGB where it is three times a square; a note says so.
    Raises UserError for images that are no such array, and for labels of more than one kind.
    """
    images = read_pixels(x, where)
    images, notes = _unflatten(images, where) if images.ndim == 2 else (images, ())
    images = as_images(images, where).transpose(0, 2, 3, 1)
    images = images.copy("K") if images.dtype == np.uint8 else images  # the caller may change theirs
    return Arrays(images, read_labels(y, len(images), where), notes=notes)


def _unflatten(rows: Array, where: str) -> tuple[Array, tuple[str, ...]]:
    """Rows (n, d) of flattened square images as (n, side, side) or (n, side, side, 3), and a note on it."""
    length = rows.shape[1]
    side = isqrt(length)
    if length and side**2 == length:
        return rows.reshape(-1, side, side), (f"rows of {length} numbers were read as grey images of {side}x{side}",)
    side = isqrt(length // 3)
    if not length or 3 * side**2 != length:
        raise UserError(f"{where}: rows of {length} numbers are no square images; reshape them to (n, h, w[, 1 or 3])")
    order = f"{side}x{side} red pixels, then green, then blue; where they are RGB by pixel, reshape them"
    notes = (f"rows of {length} numbers were read as {order} to (n, {side}, {side}, 3)",)
    return rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1), notes


def read_labels(y: Any, count: int, where: str) -> Array:
    """Labels of `count` images as numbers of any shape, or as words (count,).

    Raises UserError where they are of more than one kind, or of another number.
    """
    values = y if is_sequence(y) else np.atleast_1d(to_numpy(y))
    if len(values) != count:
        raise UserError(f"{where}: {count} images but {len(values)} labels; give one label per image")
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "iufb":
            return values
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    labels: list[int | str] = []
    for i, label in enumerate(values):
        append_label(labels, label, f"{where} label {i}")
    return np.array(labels)


def append_label(labels: list[int | str], label: Any, where: str) -> None:
    """Append one label: a whole number as int, a word as str.

    Raises UserError for anything else, and for a word beside numbers.
    """
    value = _as_label(label, where)
    if labels and isinstance(value, str) != isinstance(labels[0], str):
        pair = f"label {shorten(repr(value))} beside {shorten(repr(labels[0]))}"
        raise UserError(f"{where}: {pair}; give numbers for all labels, or words for all")
    labels.append(value)


def _as_label(label: Any, where: str) -> int | str:
    try:
        target = to_numpy(label)
        if target.size == 1 and target.dtype.kind == "U" and (word := str(target.reshape(()))).strip():
            return word
        if target.size == 1 and target.dtype.kind in "iubf" and int(target.reshape(())) == target:
            return int(target.reshape(()))
        hint = " (one-hot or multi-label)" if target.size > 1 else ""
    except Exception:  # ragged lists, NaN, infinity, and whatever an object's own conversion raises
        hint = ""
    raise UserError(f"{where}: label {shorten(repr(label))} is not one whole number or word{hint}; give its class")


def describe_parts(item: Any) -> tuple[str, ...]:
    """A note on an item, or tensors, of more than an image and a label."""
    return (f"items have {len(item)} parts: the first two are image and label",) if len(item) > 2 else ()
