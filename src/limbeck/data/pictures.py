"""Pictures: decoding of image files, and stacking of decoded images of one size into arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from limbeck.core.errors import UserError
from limbeck.data.images import Array, Size, as_images, describe_resize

WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class Picture(NamedTuple):
    """One decoded image.

    pixels:  uint8, (h, w) in grey or (h, w, 3) in RGB.
    where:   its source, for error messages.
    remarks: what was done to it, each the end of a sentence about images.
    """

    pixels: Array
    where: str
    remarks: tuple[str, ...] = ()


def decode_picture(source: Path | bytes | Image.Image, where: str, resize: Size | None = None) -> Picture:
    """Decode one image file, turned upright by its EXIF tag.

    source: a path, the bytes of a file, or an image that Pillow opened.
    where:  the source, for error messages.
    resize: (h, w) to which an antialiased bilinear filter stretches the image.

    Grey images stay grey, 16 bits are scaled to 8, transparent pixels are composited on white, and only the first of
    several frames is used; the remarks of the result say so.
    Raises UserError for a file that does not open and for pixels without a fixed range.
    """
    try:
        image = source if isinstance(source, Image.Image) else _open(source)
        remarks = ["have several frames, of which the first is used"] if _is_animated(image) else []
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image, remark = _to_eight_bits(image, where)
        remarks += [remark] if remark else []
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: not an image in a known format; replace or remove it") from error
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{where}: not an image that opens ({error}); replace or remove it") from error
    if resize is not None and image.size != resize[::-1]:
        image = image.resize(resize[::-1], Image.Resampling.BILINEAR)
        remarks.append(describe_resize(resize))
    return Picture(np.asarray(image), where, tuple(remarks))


def _open(source: Path | bytes) -> Image.Image:
    if isinstance(source, bytes):
        return Image.open(BytesIO(source))
    return Image.open(BytesIO(source.read_bytes()))  # no handle is left open


def _is_animated(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"  # MPO: a photo and its preview


def _to_eight_bits(image: Image.Image, where: str) -> tuple[Image.Image, str]:
    """The image in mode L or RGB, and a remark on what was done to it, "" for nothing."""
    mode = image.mode
    if mode in WIDE_MODES:
        wide = np.asarray(image).astype(np.int64)
        if wide.min() >= 0 and wide.max() <= 65535:
            return Image.fromarray(((wide + 128) // 257).astype(np.uint8)), "of 16 bits were scaled to 8 (65535 is 255)"
    if mode in (*WIDE_MODES, "F"):
        raise UserError(f"{where}: 32-bit pixels (mode {mode}) have no fixed range; save the image with 8 or 16 bits")
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


def as_picture(image: Any, where: str, size: Size | None) -> Picture:
    """An image of a Dataset as a Picture: a PIL image, an array (h, w[, c]) or a tensor ([c,] h, w).

    size: (h, w) of the result; None leaves the image as it is. Raises UserError for anything that is no such image.
    """
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
    """Stack the pictures of every split: (n, h, w) where all are grey, else (n, h, w, 3), by split; and notes.

    Raises UserError where pictures differ in size.
    """
    all_pictures = [picture for split in pictures.values() for picture in split]
    first = all_pictures[0]
    for picture in all_pictures:
        if picture.pixels.shape[:2] != first.pixels.shape[:2]:
            (h, w), (h2, w2) = first.pixels.shape[:2], picture.pixels.shape[:2]
            raise UserError(
                f"images differ in size: {first.where} is {w}x{h} and {picture.where} is {w2}x{h2}; "
                f"pass --resize (resize= in Python) to bring all to one size"
            )
    remarks = Counter(remark for picture in all_pictures for remark in picture.remarks)
    notes = [f"{count} images {remark}" for remark, count in remarks.items()]
    num_grey = sum(picture.pixels.ndim == 2 for picture in all_pictures)
    num_rgb = len(all_pictures) - num_grey
    if num_rgb and num_grey:
        notes.append(f"{num_grey} grey images became RGB beside {num_rgb} coloured ones")
    to_array = _to_rgb if num_rgb else np.asarray
    return {name: np.stack([to_array(p.pixels) for p in split]) for name, split in pictures.items()}, tuple(notes)


def _to_rgb(pixels: Array) -> Array:
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
