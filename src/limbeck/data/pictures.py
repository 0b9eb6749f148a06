"""Pictures: decoding of image files, and collection of decoded images of one size into an array a split."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from limbeck.core.errors import UserError
from limbeck.data.images import Array, ReadOptions, Size, as_images, describe_resize
from limbeck.data.memory import refuse_beyond_memory
from limbeck.data.pixels import (
    HINT,
    PixelRange,
    choose_range,
    describe_range,
    describe_scaling,
    find_limits,
    read_pixels,
    refuse_nan,
    scale_pixels,
)
from limbeck.data.tree import File

FORMATS = (
    "PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP",
    "PPM", "JPEG2000", "AVIF", "ICO", "PCX", "TGA", "SGI", "QOI",
)  # fmt: skip
"""Formats that are opened: pictures of pixels. Pillow also knows some, as EPS, for which it starts other programs."""
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".webp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".jp2", ".avif", ".ico", ".pcx", ".tga", ".sgi", ".qoi",
)  # fmt: skip
WITHOUT_MAGIC = ("ICO", "PCX", "TGA")  # formats whose first bytes are also those of other files
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_PIXELS = 89_478_485  # of one picture, about 9,400 x 9,400, from where on Pillow warns; as RGB it takes 268 MB
WINDOW = 64  # pictures that are decoded ahead, at most


class Encoded(NamedTuple):
    """One image before it is decoded.

    content: a file, its bytes, an image that Pillow opened, or pixels (h, w) or (h, w, 1 or 3).
    where:   its source, for messages.
    """

    content: File | bytes | Image.Image | Array
    where: str


class Picture(NamedTuple):
    """One decoded image.

    pixels:  (h, w) in grey or (h, w, 3) in RGB; uint8, or of another type of real numbers with its own range.
    where:   its source, for messages.
    remarks: what was done to it, each the end of a sentence about images.
    """

    pixels: Array
    where: str
    remarks: tuple[str, ...] = ()


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow opens; it loads most of its formats at the first call only."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_picture(file: File) -> bool:
    """Whether a file is an image, by its suffix or else by its content."""
    return file.where.lower().endswith(SUFFIXES) or _begins_as_picture(file)


def forget_files() -> None:
    """Forget what `is_picture` found out, and so let go of the archives from which it read."""
    _begins_as_picture.cache_clear()


@lru_cache(maxsize=1 << 16)
def _begins_as_picture(file: File) -> bool:
    formats = [name for name in _formats() if name not in WITHOUT_MAGIC]
    try:
        with file.open() as stream, Image.open(stream, formats=formats):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # too large to be decoded
        return True
    except Exception:  # a damaged file makes Pillow raise almost anything
        return False


def decode_picture(encoded: Encoded, size: Size | None = None) -> Picture:
    """Decode one image, turned upright by its EXIF tag.

    size: (h, w) to which an antialiased bilinear filter stretches the image.

    Grey images stay grey, transparent pixels are composited on white, and only the first of several frames is used;
    the remarks of the result say so. Pixels of more than 8 bits keep their values.
    Raises UserError for a file that does not open, and for one of more than `MAX_PIXELS` pixels.
    """
    content, where = encoded
    if isinstance(content, np.ndarray):
        return _from_array(content, where, size)
    try:
        image = content if isinstance(content, Image.Image) else _open(content, where)
        _check_pixel_count(image, where)
        remarks = ["have several frames, of which the first is used"] if _is_animated(image) else []
        if _is_deep_colour(image):
            remarks.append("in colours of 16 bits were read with the upper 8 bits of each")
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image, remark = _to_grey_or_rgb(image)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: not an image in a known format; replace or remove it") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{where}: not an image that opens ({_shorten(error)}); replace or remove it") from error
    remarks += [remark] if remark else []
    return _resize(image, where, size, remarks)


def _open(content: File | bytes, where: str) -> Image.Image:
    data = content if isinstance(content, bytes) else content.read()
    try:
        return Image.open(BytesIO(data), formats=_formats())  # no handle is left open
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{where}: more pixels than limbeck opens ({_shorten(error)}); scale it down") from error


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def _check_pixel_count(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UserError(f"{where}: {width}x{height} pixels are more than limbeck opens; scale it down, or remove it")


def _is_animated(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # MPO: a photo and its preview


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow drops the lower 8 of 16 bits of every colour, as it does for PNG."""
    return any("RGB" in str(tile[3]) and "16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _to_grey_or_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The image in mode L, I, F or RGB, and a remark on what was done to it, "" for nothing."""
    mode = image.mode
    if mode in WIDE_MODES:
        return Image.fromarray(np.asarray(image).astype(np.int32)), ""
    if mode == "F":
        return image, ""
    if mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return _composite_on_white(image)
    if mode == "P":
        image = image.convert("RGB")
        red, green, blue = (np.asarray(channel) for channel in image.split())
        return (image.getchannel(0) if (red == green).all() and (red == blue).all() else image), ""
    return image.convert("L" if mode in ("L", "1") else "RGB"), ""


def _composite_on_white(image: Image.Image) -> tuple[Image.Image, str]:
    target = "L" if image.mode in ("LA", "L", "1") else "RGB"
    layer = image.convert("RGBA")
    if np.asarray(layer.getchannel("A")).min() == 255:
        return layer.convert(target), ""
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert(target), "have transparency, which was laid on white"


def _resize(image: Image.Image, where: str, size: Size | None, remarks: list[str]) -> Picture:
    if size is not None and image.size != size[::-1]:
        whole = image.mode == "I"
        image = image.convert("F") if whole else image
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        if whole:
            image = Image.fromarray(np.rint(np.asarray(image)).astype(np.int32))
        remarks = [*remarks, describe_resize(size)]
    return Picture(np.asarray(image), where, tuple(remarks))


def _from_array(pixels: Array, where: str, size: Size | None) -> Picture:
    """Pixels (h, w) or (h, w, 1 or 3) as a picture."""
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if size is None or pixels.shape[:2] == size:
        return Picture(pixels, where)
    if pixels.dtype == np.uint8:
        return _resize(Image.fromarray(np.ascontiguousarray(pixels)), where, size, [])
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    kind = np.int32 if pixels.dtype.kind in "ui" else np.float32
    planes = [Image.fromarray(np.ascontiguousarray(channels[..., c], kind)) for c in range(channels.shape[2])]
    resized = np.stack([_resize(plane, where, size, []).pixels for plane in planes], -1)
    return Picture(resized[..., 0] if pixels.ndim == 2 else resized, where, (describe_resize(size),))


def _decode_in_order(images: Iterable[Encoded], size: Size | None) -> Iterator[Picture]:
    """Decoded pictures in the order of `images`, decoded by as many threads as torch has."""
    workers = torch.get_num_threads()
    if workers == 1:
        yield from (decode_picture(encoded, size) for encoded in images)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        window: deque[Future[Picture]] = deque()
        for encoded in images:
            window.append(pool.submit(decode_picture, encoded, size))
            if len(window) == WINDOW:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
        low, high = find_limits(pixels)
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
                f"pass --resize (resize= in Python) to bring all to one size"
            )

    def choose_range(self, where: str) -> tuple[PixelRange, list[str]]:
        """The range of the images that are not of 8 bits, and notes on it."""
        if self.pixel_range is not None:
            return self.pixel_range, [describe_scaling(self.low, self.high, self.pixel_range, True)]
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
    advance = options.announce(sum(count for count, _ in splits.values()), where)
    for split, (_, images) in splits.items():
        for picture in _decode_in_order(images, options.size):
            stacks[split].append(collection.convert(picture))
            advance()
    pixel_range, notes = collection.choose_range(where)
    arrays = {split: stack.finish(pixel_range) for split, stack in stacks.items() if stack.size}
    if collection.rgb:
        arrays = {split: _to_rgb(array) for split, array in arrays.items()}
    return arrays, (*collection.notes(), *filter(None, notes))


def _to_rgb(images: Array) -> Array:
    if images.ndim == 4:
        return images
    return np.repeat(images[:, None], 3, axis=1).transpose(0, 2, 3, 1)


def as_encoded(image: Any, where: str) -> Encoded:
    """An image of an item: a PIL image, the bytes of a file, an array (h, w[, c]), or a tensor ([c,] h, w).

    Raises UserError for anything that is no such image.
    """
    if isinstance(image, Image.Image | bytes):
        return Encoded(image, where)
    if not isinstance(image, torch.Tensor | np.ndarray | list):
        raise UserError(f"{where}: image is a {type(image).__name__}; give a tensor, a PIL image or a numpy array")
    return Encoded(as_images(read_pixels(image, where, is_batch=False), where)[0].transpose(1, 2, 0), where)
