"""Pictures: which files are some, and decoding of one."""

from __future__ import annotations

from functools import cache, lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from limbeck.core.errors import UserError
from limbeck.core.sizes import ResizeMode, Size
from limbeck.core.text import shorten
from limbeck.data.images import Array, as_images, describe_resize, fit_picture
from limbeck.data.pixels import PixelRange, find_limits, read_pixels
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
    limits:  the lowest and highest value before it was resized, for other types than uint8; None: those of `pixels`.
    """

    pixels: Array
    where: str
    remarks: tuple[str, ...] = ()
    limits: PixelRange | None = None


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


class DamagedPicture(UserError):
    """A picture that does not open; where: its source."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: not an image {reason}; replace or remove it")
        self.where = where


def decode_picture(encoded: Encoded, size: Size | None = None, mode: ResizeMode = "stretch") -> Picture:
    """Decode one image, turned upright by its EXIF tag.

    size: (h, w) to which it is resized; mode: how, see `fit_picture`.

    Grey images stay grey, transparent pixels are composited on white, and only the first of several frames is used;
    the remarks of the result say so. Pixels of more than 8 bits keep their values.
    Raises DamagedPicture for a file that does not open, and UserError for one of more than `MAX_PIXELS` pixels.
    """
    content, where = encoded
    if isinstance(content, np.ndarray):
        return _from_array(content, where, size, mode)
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
        raise DamagedPicture(where, "in a known format") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise DamagedPicture(where, f"that opens ({shorten(error)})") from error
    remarks += [remark] if remark else []
    return _resize(image, where, size, mode, remarks)


def _open(content: File | bytes, where: str) -> Image.Image:
    data = content if isinstance(content, bytes) else content.read()
    try:
        return Image.open(BytesIO(data), formats=_formats())  # no handle is left open
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{where}: more pixels than limbeck opens ({shorten(error)}); scale it down") from error


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


def _resize(image: Image.Image, where: str, size: Size | None, mode: ResizeMode, remarks: list[str]) -> Picture:
    limits = None
    if size is not None and image.size != size[::-1]:
        whole = image.mode == "I"
        limits = find_limits(np.asarray(image)) if image.mode in ("I", "F") else None
        image = image.convert("F") if whole else image
        before = image.size[::-1]
        image = fit_picture(image, size, mode)
        if whole:
            image = Image.fromarray(np.rint(np.asarray(image)).astype(np.int32))
        remarks = [*remarks, describe_resize(before, size, mode)]
    return Picture(np.asarray(image), where, tuple(remarks), limits)


def _from_array(pixels: Array, where: str, size: Size | None, mode: ResizeMode) -> Picture:
    """Pixels (h, w) or (h, w, 1 or 3) as a picture."""
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if size is None or pixels.shape[:2] == size:
        return Picture(pixels, where)
    if pixels.dtype == np.uint8:
        return _resize(Image.fromarray(np.ascontiguousarray(pixels)), where, size, mode, [])
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    kind = np.int32 if pixels.dtype.kind in "ui" else np.float32
    planes = [Image.fromarray(np.ascontiguousarray(channels[..., c], kind)) for c in range(channels.shape[2])]
    resized = np.stack([_resize(plane, where, size, mode, []).pixels for plane in planes], -1)
    resized = resized[..., 0] if pixels.ndim == 2 else resized
    return Picture(resized, where, (describe_resize(pixels.shape[:2], size, mode),), find_limits(pixels))


def as_encoded(image: Any, where: str) -> Encoded:
    """An image of an item: a PIL image, the bytes of a file, an array (h, w[, c]), or a tensor ([c,] h, w).

    Raises UserError for anything that is no such image.
    """
    if isinstance(image, Image.Image | bytes):
        return Encoded(image, where)
    if not isinstance(image, torch.Tensor | np.ndarray | list):
        raise UserError(f"{where}: image is a {type(image).__name__}; give a tensor, a PIL image or a numpy array")
    return Encoded(as_images(read_pixels(image, where, is_batch=False), where)[0].transpose(1, 2, 0), where)
