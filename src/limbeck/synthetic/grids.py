"""Grids of images to look at, one row a class or side by side. Values are clipped and enlarged for display only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from limbeck.core.files import write_atomically
from limbeck.core.fonts import drawable, picture_font
from limbeck.synthetic.set import hard_labels

_CELL = 96  # pixels: small images are enlarged to about this height
_SMALL_CELL, _MANY_ROWS = 48, 25  # with more rows than this, cells are small
_PAGE_WIDTH = 790  # pixels: ten columns fit the width of a page without being scaled down
_GAP = 4  # pixels between cells
_TEXT_SIZE = 13
_MAX_NAME_WIDTH = 150  # pixels
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_GREY = (118, 118, 118, 255)  # contrast of about 4.5 on white and on near black, so the grid suits both


def image_grid(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    sigma: float | None = 2.5,
    upscale: int | None = None,
    max_columns: int = 10,
) -> Image.Image:
    """Draw images as a grid with one row for every class that has any, and the name of the class on the left.

    images:      float (n, channels, height, width). Values in [0, 1] are shown as they are.
    labels:      classes (n,) or probabilities (n, classes).
    classes:     class names, in the order of the labels.
    sigma:       other values are clipped at mean +- sigma * std of all images and stretched; None clips at 0 and 1.
    upscale:     whole number by which images are enlarged; None chooses one.
    max_columns: images of a class that are shown, the first ones; the row says how many there are.
    Raises ValueError for images or options of another shape or range.
    """
    _check_shapes(images, labels)
    if max_columns < 1 or (upscale is not None and upscale < 1):
        raise ValueError(f"max_columns and upscale must be at least 1, got {max_columns} and {upscale}")
    hard = hard_labels(labels).tolist()
    rows: dict[int, list[int]] = {}
    for index, label in enumerate(hard):
        rows.setdefault(int(label), []).append(index)
    pixels = _to_bytes(images.detach().cpu().float(), sigma)
    columns = min(max_columns, max(len(members) for members in rows.values()))
    height, width = images.shape[2:]
    cell = _CELL if len(rows) <= _MANY_ROWS else _SMALL_CELL
    scale = upscale or max(1, min(round(cell / height), _PAGE_WIDTH // (columns * width)))
    font = picture_font(_TEXT_SIZE)
    names = {label: _name(label, classes, font) for label in rows}
    left = int(max(font.getlength(name) for name in names.values())) + 2 * _GAP
    if any(len(members) > columns for members in rows.values()):
        left = max(left, int(font.getlength("1000 of 1000")) + 2 * _GAP)
    cell_width, cell_height = width * scale, max(height * scale, 2 * _TEXT_SIZE + _GAP)
    size = (left + columns * (cell_width + _GAP) - _GAP, len(rows) * (cell_height + _GAP) - _GAP)
    grid = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(sorted(rows)):
        top, members = row * (cell_height + _GAP), rows[label]
        lines = [names[label]] + ([f"{columns} of {len(members)}"] if len(members) > columns else [])
        for number, line in enumerate(lines):
            middle = top + cell_height / 2 + (number - (len(lines) - 1) / 2) * (_TEXT_SIZE + 3)
            draw.text((left - 2 * _GAP, middle), line, fill=_GREY, font=font, anchor="rm")
        for column, index in enumerate(members[:columns]):
            grid.paste(_enlarge(pixels[index], scale), (left + column * (cell_width + _GAP), top))
    return grid


def image_strip(
    images: Tensor, labels: Tensor, classes: Sequence[str], *, sigma: float | None = 2.5, columns: int = 5
) -> Image.Image:
    """Draw images (n, channels, height, width) side by side, `columns` in a row, each below the name of its class.

    This suits one image per class, for which `image_grid` would draw a single column, taller than a screen.
    Labels, classes and sigma are those of `image_grid`.
    """
    hard = hard_labels(labels).tolist()
    pixels = _to_bytes(images.detach().cpu().float(), sigma)
    height, width = images.shape[2:]
    scale = max(1, round(_CELL / height))
    font = picture_font(_TEXT_SIZE)
    step_x, step_y = max(width * scale, _MAX_NAME_WIDTH * 2 // 3) + 2 * _GAP, height * scale + _TEXT_SIZE + 4 * _GAP
    rows = -(-len(hard) // columns)
    sheet = Image.new("RGBA", (min(columns, len(hard)) * step_x, rows * step_y), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, label in enumerate(hard):
        left, top = index % columns * step_x, index // columns * step_y
        draw.text((left, top), _name(label, classes, font, step_x - 2 * _GAP), fill=_GREY, font=font)
        sheet.paste(_enlarge(pixels[index], scale), (left, top + _TEXT_SIZE + _GAP))
    return sheet


def thumbnails(images: Tensor, labels: Tensor, *, pixels: int = 1 << 14, largest: int = 64) -> Image.Image:
    """Draw the first images of every class without enlarging them: a small picture, of which many may be kept.

    images, labels: as in `image_grid`. pixels: about how many the picture has at most; of many classes, or large
    images, the first ones are drawn alone. largest: pixels a side, to which larger images are shrunk.

    >>> thumbnails(torch.zeros(20, 1, 8, 8), torch.arange(10).repeat(2)).size
    (89, 17)
    """
    _check_shapes(images, labels)
    hard = hard_labels(labels).tolist()
    scale = min(1.0, largest / max(images.shape[2:]))
    height, width = (max(1, round(side * scale)) for side in images.shape[2:])
    cells = max(1, pixels // (height * width))
    members = [[index for index, label in enumerate(hard) if label == name] for name in sorted(set(hard))][:cells]
    depth = min(10, max(1, cells // len(members)), max(map(len, members)))
    bytes_ = _to_bytes(images.detach().cpu().float(), 2.5)
    is_row = len(members) < depth  # few classes stand below each other, many beside each other
    columns = depth if is_row else min(10, len(members))
    rows = len(members) if is_row else -(-len(members) // columns) * depth
    grid = Image.new("RGBA", (columns * (width + 1) - 1, rows * (height + 1) - 1), (0, 0, 0, 0))
    for place, indices in enumerate(members):
        for line, index in enumerate(indices[:depth]):
            picture = _enlarge(bytes_[index], 1).resize((width, height), Image.Resampling.BOX)
            column, row = (line, place) if is_row else (place % columns, place // columns * depth + line)
            grid.paste(picture, (column * (width + 1), row * (height + 1)))
    return grid


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG file atomically: to a temporary name beside `path`, which is then renamed."""
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def _check_shapes(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"need images (n, c, h, w) and n labels, got {tuple(images.shape)} and {tuple(labels.shape)}")


def _enlarge(pixels: Tensor, scale: int) -> Image.Image:
    """Pixels of one image, (h, w) or (h, w, 3), as a picture in which each is scale x scale."""
    picture = Image.fromarray(pixels.numpy()).convert("RGBA")
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _to_bytes(images: Tensor, sigma: float | None) -> Tensor:
    """Floats as uint8, (n, h, w) for one channel, else (n, h, w, 3); NaN becomes the lowest value."""
    low, high = 0.0, 1.0
    finite = images[images.isfinite()].double()
    # Inverting a normalisation leaves rounding errors outside of [0, 1], which are no reason to stretch.
    exceeds = finite.numel() > 0 and bool(finite.min() < -1e-3 or finite.max() > 1 + 1e-3)
    if exceeds and sigma is not None:
        mean, spread = finite.mean().item(), sigma * finite.std(correction=0).item()
        low, high = (mean - spread, mean + spread) if spread > 0 else (mean - 0.5, mean + 0.5)
    pixels = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    pixels = torch.nan_to_num(pixels.double(), nan=low, posinf=high, neginf=low)
    pixels = ((pixels - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels[:, 0]


def _name(label: int, classes: Sequence[str], font: Font, max_width: float = _MAX_NAME_WIDTH) -> str:
    """The name of a class on one line, shortened to `max_width` pixels; its number where no letter can be drawn."""
    full = str(classes[label]) if 0 <= label < len(classes) else str(label)
    full = " ".join("".join(c if c.isprintable() else " " for c in full[:200]).split())
    letters = drawable(full)
    full = letters if full.isascii() or any(c.isalnum() for c in letters) else str(label)
    name = full
    while font.getlength(name) > max_width and len(full) > 1:
        full = full[:-1]
        name = full.rstrip() + "…"
    return name
