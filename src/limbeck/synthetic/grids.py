"""Images to look at: one row a class, or side by side; clipped and enlarged for display only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from limbeck.core.files import write_atomically

_CELL = 96  # pixels: small images are enlarged to about this height
_SMALL_CELL, _MANY_ROWS = 48, 25
_ROOM = 790  # pixels: ten columns still fit the width of a page without being scaled down
_GAP = 4
_TEXT = 13
_WIDEST_NAME = 150
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
    """Images (n, channels, height, width) as a picture, one row per class that has any, its name at the left.

    labels are classes (n,) or probabilities (n, classes). Values within [0, 1] are shown as they are. Otherwise they
    are clipped at mean +- sigma * std of the whole set and stretched (sigma None: clipped at 0 and 1). Of each class
    the first `max_columns` images are shown; the row says how many there are.
    """
    if images.ndim != 4 or len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"need images (n, c, h, w) and n labels, got {tuple(images.shape)} and {tuple(labels.shape)}")
    if max_columns < 1 or (upscale is not None and upscale < 1):
        raise ValueError(f"max_columns and upscale must be at least 1, got {max_columns} and {upscale}")
    hard = (labels.argmax(1) if labels.ndim == 2 else labels).tolist()
    rows: dict[int, list[int]] = {}
    for index, label in enumerate(hard):
        rows.setdefault(int(label), []).append(index)
    pixels = _to_bytes(images.detach().cpu().float(), sigma)
    columns = min(max_columns, max(len(members) for members in rows.values()))
    height, width = images.shape[2:]
    cell = _CELL if len(rows) <= _MANY_ROWS else _SMALL_CELL
    scale = upscale or max(1, min(round(cell / height), _ROOM // (columns * width)))
    font = ImageFont.load_default(size=_TEXT)
    names = {label: _name(label, classes, font) for label in rows}
    left = int(max(font.getlength(name) for name in names.values())) + 2 * _GAP
    if any(len(members) > columns for members in rows.values()):
        left = max(left, int(font.getlength("1000 of 1000")) + 2 * _GAP)
    cell_width, cell_height = width * scale, max(height * scale, 2 * _TEXT + _GAP)
    size = (left + columns * (cell_width + _GAP) - _GAP, len(rows) * (cell_height + _GAP) - _GAP)
    grid = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(sorted(rows)):
        top, members = row * (cell_height + _GAP), rows[label]
        words = [names[label]] + ([f"{columns} of {len(members)}"] if len(members) > columns else [])
        for line, word in enumerate(words):
            middle = top + cell_height / 2 + (line - (len(words) - 1) / 2) * (_TEXT + 3)
            draw.text((left - 2 * _GAP, middle), word, fill=_GREY, font=font, anchor="rm")
        for column, index in enumerate(members[:columns]):
            picture = Image.fromarray(pixels[index].numpy()).convert("RGBA")
            picture = picture.resize((cell_width, height * scale), Image.Resampling.NEAREST)
            grid.paste(picture, (left + column * (cell_width + _GAP), top))
    return grid


def image_strip(
    images: Tensor, labels: Tensor, classes: Sequence[str], *, sigma: float | None = 2.5, columns: int = 5
) -> Image.Image:
    """Images (n, channels, height, width) side by side, `columns` in a row, each with its class's name above.

    For one image per class, where `image_grid` would be one column and taller than a screen. Values as there.
    """
    hard = (labels.argmax(1) if labels.ndim == 2 else labels).tolist()
    pixels = _to_bytes(images.detach().cpu().float(), sigma)
    height, width = images.shape[2:]
    scale = max(1, round(_CELL / height))
    font = ImageFont.load_default(size=_TEXT)
    step_x, step_y = max(width * scale, _WIDEST_NAME * 2 // 3) + 2 * _GAP, height * scale + _TEXT + 4 * _GAP
    rows = -(-len(hard) // columns)
    sheet = Image.new("RGBA", (min(columns, len(hard)) * step_x, rows * step_y), (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, label in enumerate(hard):
        left, top = index % columns * step_x, index // columns * step_y
        draw.text((left, top), _name(label, classes, font, step_x - 2 * _GAP), fill=_GREY, font=font)
        picture = Image.fromarray(pixels[index].numpy()).convert("RGBA")
        picture = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top + _TEXT + _GAP))
    return sheet


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all: to a temporary name beside it, then renamed."""
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG"))


def _to_bytes(images: Tensor, sigma: float | None) -> Tensor:
    """uint8 (n, h, w) of one channel or (n, h, w, 3); NaN becomes the lowest value."""
    low, high = 0.0, 1.0
    finite = images[images.isfinite()].double()
    # Undoing a normalisation leaves rounding errors outside [0, 1]; they are no reason to stretch.
    leaves = finite.numel() > 0 and bool(finite.min() < -1e-3 or finite.max() > 1 + 1e-3)
    if leaves and sigma is not None:
        mean, spread = finite.mean().item(), sigma * finite.std(correction=0).item()
        low, high = (mean - spread, mean + spread) if spread > 0 else (mean - 0.5, mean + 0.5)
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    shown = torch.nan_to_num(shown.double(), nan=low, posinf=high, neginf=low)
    shown = ((shown - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    return shown.permute(0, 2, 3, 1) if shown.shape[1] == 3 else shown[:, 0]


def _name(label: int, classes: Sequence[str], font: Font, widest: float = _WIDEST_NAME) -> str:
    """The class's name on one line, shortened to fit."""
    full = str(classes[label]) if 0 <= label < len(classes) else str(label)
    full = " ".join("".join(c if c.isprintable() else " " for c in full[:200]).split())
    name = full
    while font.getlength(name) > widest and len(full) > 1:
        full = full[:-1]
        name = full.rstrip() + "…"
    return name
