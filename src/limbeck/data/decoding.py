"""Decoding of a whole data set: all pictures of one size, in one array a split, by one range of pixels."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from math import prod

import numpy as np
import torch

from limbeck.core.errors import UserError
from limbeck.data.images import Array, ReadOptions
from limbeck.data.memory import refuse_beyond_memory
from limbeck.data.pictures import DamagedPicture, Encoded, Picture, decode_picture
from limbeck.data.pixels import (
    HINT,
    PixelRange,
    choose_range,
    describe_range,
    describe_scaling,
    find_limits,
    refuse_nan,
    scale_pixels,
)
from limbeck.data.tree import File

SHOWN = 3  # damaged pictures in a sentence
# Bytes of a file from which on a second thread helps. Time with two threads by that with one, for JPEG files: 32 pixels
# a side 1.69, 64 pixels 1.39, 128 pixels (9 kB) 0.93, 256 pixels (33 kB) 0.72, 512 pixels 0.56.
LARGE = 15_000
WINDOW = 64  # pictures that are decoded ahead, at most


def decode_splits(
    splits: Mapping[str, tuple[int, Iterable[Encoded]]], options: ReadOptions, where: str
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Decode the images of every split into one array: uint8 (n, h, w) where all are grey, else (n, h, w, 3).

    Returns the arrays by split, and notes.

    splits: by split, the highest number of images and the images. Splits without images are left out.
    where:  the source, for messages.

    Pixels of more than 8 bits become 8 bits by one range for the whole set, see `choose_range`.
    Raises UserError where images differ in size, do not open, or have pixels without a known range.
    """
    collection = _Collection(options.pixel_range)
    stacks = {split: _Stack(count) for split, (count, _) in splits.items()}
    failures: list[DamagedPicture] = []
    advance = options.announce(sum(count for count, _ in splits.values()), where)
    for split, (_, images) in splits.items():
        for picture in _decode_in_order(images, options):
            if isinstance(picture, DamagedPicture):
                failures.append(picture)
            else:
                stacks[split].append(collection.convert(picture))
            advance()
    _refuse_failures(failures, where)
    pixel_range, notes = collection.choose_range(where)
    arrays = {split: stack.finish(pixel_range) for split, stack in stacks.items() if stack.size}
    if collection.rgb:
        arrays = {split: _to_rgb(array) for split, array in arrays.items()}
    return arrays, (*collection.notes(), *filter(None, notes))


def _decode_in_order(images: Iterable[Encoded], options: ReadOptions) -> Iterator[Picture | DamagedPicture]:
    """Decoded pictures, or the errors of those that do not open, in the order of `images`, by torch's threads."""
    images = iter(images)
    first = list(islice(images, 1))
    images = chain(first, images)
    workers = torch.get_num_threads()
    if workers == 1 or all(_count_bytes(encoded) < LARGE for encoded in first):
        yield from (_decode(encoded, options) for encoded in images)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        window: deque[Future[Picture | DamagedPicture]] = deque()
        for encoded in images:
            window.append(pool.submit(_decode, encoded, options))
            if len(window) == WINDOW:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _count_bytes(encoded: Encoded) -> int:
    """The bytes of an image that is yet to be decoded; 0 for one that is decoded."""
    content = encoded.content
    return content.size if isinstance(content, File) else len(content) if isinstance(content, bytes) else 0


def _decode(encoded: Encoded, options: ReadOptions) -> Picture | DamagedPicture:
    try:
        return decode_picture(encoded, options.size, options.resize_mode)
    except DamagedPicture as error:
        return error


def _refuse_failures(failures: Sequence[DamagedPicture], where: str) -> None:
    """Raise the error of the only damaged picture, or UserError that names the first of several."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        names = ", ".join(error.where.removeprefix(f"{where}/") for error in failures[:SHOWN])
        others = f" and {len(failures) - SHOWN:,} more" if len(failures) > SHOWN else ""
        raise UserError(f"{where}: {len(failures):,} images do not open: {names}{others}; replace or remove them")


class _Stack:
    """The images of one split in one array, which becomes RGB or wide when the first such image comes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.size = 0
        self.planes: Array = np.empty((0, 1, 0, 0), np.uint8)  # (n, c, h, w)
        self.is_wide = np.zeros(count, bool)

    def append(self, pixels: Array) -> None:
        if not self.size:
            self.planes = _allocate(self.count, pixels)
        if pixels.ndim == 3 and self.planes.shape[1] == 1:
            self._check_growth(3)
            self.planes = np.repeat(self.planes, 3, axis=1)
        if pixels.dtype != np.uint8 and self.planes.dtype == np.uint8:
            self._check_growth(2)
            self.planes = self.planes.astype(np.uint16)
        self.is_wide[self.size] = pixels.dtype != np.uint8
        self.planes[self.size] = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels
        self.size += 1

    def _check_growth(self, factor: int) -> None:
        _check_memory((1 + factor) * self.planes.nbytes, self.count, self.planes.shape[2:])

    def finish(self, pixel_range: PixelRange) -> Array:
        """uint8 (n, h, w) or (n, h, w, 3); `pixel_range` of wide images becomes 0..255."""
        planes = self.planes[: self.size]
        if planes.dtype != np.uint8:
            scaled = planes.astype(np.uint8)
            rows = np.flatnonzero(self.is_wide)
            scaled[rows] = scale_pixels(planes[rows], pixel_range)
            planes = scaled
        return planes[:, 0] if planes.shape[1] == 1 else planes.transpose(0, 2, 3, 1)


def _allocate(count: int, pixels: Array) -> Array:
    """An array (count, c, h, w) for images like the first. Raises UserError where memory does not hold them."""
    shape = (count, 3 if pixels.ndim == 3 else 1, *pixels.shape[:2])
    _check_memory(prod(shape), count, shape[2:])
    return np.empty(shape, np.uint8)


def _check_memory(needed: int, count: int, size: tuple[int, ...]) -> None:
    content = f"{count:,} images of {size[1]}x{size[0]} pixels"
    refuse_beyond_memory(needed, content, "pass --resize (resize= in Python) to make them smaller")


class _Collection:
    """All pictures of one data set: stacks by split, their common size and range, and what was done to them."""

    def __init__(self, pixel_range: PixelRange | None) -> None:
        self.pixel_range = pixel_range
        self.remarks: Counter[str] = Counter()
        self.grey = self.rgb = self.wide = self.floats = 0
        self.low, self.high = np.inf, -np.inf
        self.first: Picture | None = None

    def convert(self, picture: Picture) -> Array:
        """The pixels as a stack holds them: 8 bits where their range is known by now, else whole numbers to 65535."""
        self._check_size(picture)
        self.remarks.update(picture.remarks)
        pixels = picture.pixels
        self.rgb += pixels.ndim == 3
        self.grey += pixels.ndim == 2
        if pixels.dtype == np.uint8 and self.pixel_range is None:
            return pixels
        refuse_nan(pixels, picture.where)
        low, high = picture.limits or find_limits(pixels)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.floats += pixels.dtype.kind == "f"
        self.wide += pixels.dtype.kind in "ui" and pixels.dtype != np.uint8
        if self.pixel_range is not None:
            return scale_pixels(pixels, self.pixel_range)
        if pixels.dtype.kind == "f":
            return scale_pixels(pixels, (0.0, 1.0))
        return np.clip(pixels, 0, 65535).astype(np.uint16)

    def _check_size(self, picture: Picture) -> None:
        self.first = first = self.first or picture
        if picture.pixels.shape[:2] != first.pixels.shape[:2]:
            (h, w), (h2, w2) = first.pixels.shape[:2], picture.pixels.shape[:2]
            raise UserError(
                f"images differ in size: {first.where} is {w}x{h} and {picture.where} is {w2}x{h2}; "
                "pass, say, --resize 32 (resize=32 in Python) to bring all to one size"
            )

    def choose_range(self, where: str) -> tuple[PixelRange, list[str]]:
        """The range of the images that are not of 8 bits, and notes on it."""
        if self.pixel_range is not None:
            bytes_only = self.grey + self.rgb - self.wide - self.floats
            mixed = f"{bytes_only} images of 8 bits were scaled by the range of the {self.wide + self.floats} others"
            scaling = describe_scaling(self.low, self.high, self.pixel_range, True)
            return self.pixel_range, [scaling, mixed if bytes_only and self.wide + self.floats else ""]
        if not (self.wide or self.floats):
            return (0.0, 255.0), []
        if self.wide and self.floats:
            raise UserError(
                f"{where}: {self.floats} images have floating-point pixels and {self.wide} whole numbers, running from "
                f"{describe_range(self.low, self.high)}; {HINT}"
            )
        chosen = choose_range(self.low, self.high, bool(self.floats), where)
        if self.floats:
            return chosen, ["floating-point pixels were rounded to 8 bits"]
        scaling = describe_scaling(self.low, self.high, chosen, False) or f"read as 8 bits (they end at {self.high:g})"
        return chosen, [f"{self.wide} images have more than 8 bits: {scaling}"]

    def notes(self) -> list[str]:
        notes = [f"{count} images {remark}" for remark, count in self.remarks.items()]
        if self.grey and self.rgb:
            notes.append(f"{self.grey} grey images became RGB beside {self.rgb} coloured ones")
        return notes


def _to_rgb(images: Array) -> Array:
    if images.ndim == 4:
        return images
    return np.repeat(images[:, None], 3, axis=1).transpose(0, 2, 3, 1)
