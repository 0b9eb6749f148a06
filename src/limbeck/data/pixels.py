"""Pixel values of any range as 8 bits. The range is that of a whole data set, never of a single image."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from limbeck.core.errors import UserError
from limbeck.core.text import shorten

Pixels = npt.NDArray[Any]
PixelRange = tuple[float, float]
DEPTHS = (8, 10, 12, 14, 16)  # bits of the pixels that cameras, scanners and X-ray detectors give
DARK, BRIGHT = 64, 192  # a set whose pixels are all below the first, or all from the second on, is noted
CHUNK = 1 << 24  # values that are converted at once
HINT = "pass --pixel-range LOW HIGH (pixel_range= in Python) with the values that are black and white"


def check_pixel_range(pixel_range: PixelRange | None) -> PixelRange | None:
    """The range as two floats. Raises UserError unless it is two finite numbers, the lower one first."""
    if pixel_range is None:
        return None
    low, high = map(float, pixel_range)
    if not (isfinite(low) and isfinite(high) and low < high):
        raise UserError(
            f"the pixel range is two numbers, that of black and then a larger one of white, not {low:g} and {high:g}; "
            "pass, say, --pixel-range 0 4095 (pixel_range=(0, 4095) in Python)"
        )
    return low, high


def describe_range(low: float, high: float) -> str:
    """The range as it is written in notes.

    >>> describe_range(0.0, 4095.0), describe_range(-0.25, 1.5)
    ('0 to 4095', '-0.25 to 1.5')
    """
    return f"{low:.6g} to {high:.6g}"


def refuse_nan(pixels: Pixels, where: str) -> None:
    """Raise UserError where floating-point pixels contain NaN or infinity."""
    if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
        count = int(pixels.size - finite.sum())
        raise UserError(f"{where}: {count} of {pixels.size} pixels are NaN or infinite; replace them, or leave it out")


def spread_bool(pixels: Pixels) -> Pixels:
    """False and True as 0 and 255; pixels of other types as they are."""
    return pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels


def to_numpy(array: Any) -> Pixels:
    """Any array, on any device, as numpy's."""
    if not isinstance(array, torch.Tensor):
        return np.asarray(array)
    array = array.detach().cpu()
    return np.asarray(array.float() if array.dtype == torch.bfloat16 else array)


def read_pixels(x: Any, where: str, is_batch: bool = True) -> Pixels:
    """Images, or one image, as an array (n, ...) of real numbers; booleans become 0 and 255.

    Raises UserError for what is no such array.
    """
    try:
        images = to_numpy(x)
    except Exception as error:  # whatever an object's own conversion raises
        reason = shorten(error)
        raise UserError(f"{where}: pixels are no array ({reason}); give (h, w[, 1 or 3])") from error
    if images.dtype.kind not in "uifb":
        raise UserError(f"{where}: pixels are {images.dtype}; give whole or floating-point numbers")
    images = images if is_batch else images[None]
    if isinstance(x, torch.Tensor) and images.ndim == 4 and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)  # tensors have their channels first, whatever their width
    return spread_bool(images)


def find_limits(pixels: Pixels) -> PixelRange:
    """The lowest and the highest of at least one value."""
    return float(pixels.min()), float(pixels.max())


def choose_range(low: float, high: float, is_float: bool, where: str) -> PixelRange:
    """The values that are black and white in a set whose pixels run from `low` to `high`.

    That is 0 to 1 for floating point. For whole numbers it is 0 to the highest number of 8, 10, 12, 14 or 16 bits: the
    fewest that hold `high`. Raises UserError for pixels beyond these.

    >>> choose_range(3, 4071, False, "scans")
    (0.0, 4095.0)
    """
    if is_float and low >= 0 and high <= 1:
        return 0.0, 1.0
    if not is_float and low >= 0:
        for bits in DEPTHS:
            if high < 1 << bits:
                return 0.0, float((1 << bits) - 1)
    kind = "floating-point pixels" if is_float else "pixels"
    expected, hint = "", HINT
    if is_float:
        expected = "give them in 0..1, not normalised" + (" (leave out Normalize), or " if low < 0 else ", or ")
    if is_float and low >= 0 and DARK <= high <= 255:
        expected = "give them in 0..1 (divide by 255), or "
        hint = "pass --pixel-range 0 255 (pixel_range=(0, 255) in Python)"
    raise UserError(f"{where}: {kind} run from {describe_range(low, high)}; {expected}{hint}")


def scale_pixels(pixels: Pixels, pixel_range: PixelRange) -> npt.NDArray[np.uint8]:
    """Pixels as uint8: `pixel_range` becomes 0 and 255, values between are rounded and those beyond are clipped.

    >>> scale_pixels(np.array([0, 2048, 4095]), (0, 4095))
    array([  0, 128, 255], dtype=uint8)
    """
    low, high = pixel_range
    if pixels.dtype == np.uint8:
        levels = np.arange(256, dtype=np.float64) if (low, high) != (0, 255) else None
        return pixels.astype(np.uint8, copy=False) if levels is None else scale_pixels(levels, pixel_range)[pixels]
    scaled = np.empty(pixels.shape, np.uint8)
    kind = np.float32 if pixels.dtype in (np.float32, np.float16) else np.float64
    rows = max(1, CHUNK // max(1, pixels[:1].size))
    for start in range(0, len(pixels), rows):
        part: Pixels = pixels[start : start + rows].astype(kind)
        levels = (part - low) * (255 / (high - low))
        scaled[start : start + rows] = np.rint(np.clip(levels, 0, 255))
    return scaled


def scale_arrays(
    arrays: Mapping[str, Pixels], pixel_range: PixelRange | None, where: str
) -> tuple[dict[str, npt.NDArray[np.uint8]], tuple[str, ...]]:
    """The arrays of all splits as uint8, by one range for all that are not uint8 already, and notes on it.

    pixel_range: the values that are black and white; None lets `choose_range` decide for all but uint8.
    Raises UserError for arrays that hold no real numbers, and for pixels without a known range.
    """
    arrays = {split: spread_bool(array) for split, array in arrays.items()}
    for split, array in arrays.items():
        if array.dtype.kind not in "uifb":
            raise UserError(f"{where} ({split}): pixels are {array.dtype}; give whole or floating-point numbers")
        if not array.size:
            raise UserError(f"{where} ({split}): no images (shape {array.shape}); give at least one image per class")
        refuse_nan(array, f"{where} ({split})")
    if pixel_range is None and all(array.dtype == np.uint8 for array in arrays.values()):
        return {split: array.astype(np.uint8, copy=False) for split, array in arrays.items()}, ()
    scaled = [array for array in arrays.values() if pixel_range is not None or array.dtype != np.uint8]
    limits = [find_limits(array) for array in scaled]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    is_float = any(array.dtype.kind == "f" for array in scaled)
    chosen = pixel_range or choose_range(low, high, is_float, where)
    notes = [describe_scaling(low, high, chosen, pixel_range is not None)]
    if is_float and pixel_range is None:
        notes = ["floating-point pixels were rounded to 8 bits"]
    ranges = {
        split: (0.0, 255.0) if pixel_range is None and array.dtype == np.uint8 else chosen
        for split, array in arrays.items()
    }
    return {split: scale_pixels(array, ranges[split]) for split, array in arrays.items()}, tuple(filter(None, notes))


def describe_scaling(low: float, high: float, chosen: PixelRange, is_given: bool) -> str:
    """A note on pixels that run from `low` to `high`, of which the range `chosen` became 0..255; "" for none."""
    if chosen == (0, 255) and not is_given:
        return ""
    clipped = " (values beyond were clipped)" if low < chosen[0] or high > chosen[1] else ""
    hint = "" if is_given else "; --pixel-range sets another range"
    return f"pixels run from {describe_range(low, high)}: {describe_range(*chosen)} became 0 to 255{clipped}{hint}"


def describe_darkness(low: int, high: int) -> str:
    """A note on a set whose 8-bit pixels run from `low` to `high`, where people would see little in it; else "".

    >>> describe_darkness(0, 17)
    'pixels run from 0 to 17 of 255, so the images are nearly black; --pixel-range 0 17 spreads them'
    >>> describe_darkness(3, 255)
    ''
    """
    if high >= DARK and low < BRIGHT:
        return ""
    look = "nearly black" if high < DARK else "nearly white"
    spread = f"; --pixel-range {low} {high} spreads them" if low < high else ": all pixels are the same"
    return f"pixels run from {low} to {high} of 255, so the images are {look}{spread}"
