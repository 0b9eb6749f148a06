"""A contact sheet: a few images of every class and split in rows and columns, and pairs of images side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from limbeck.core.fonts import picture_font
from limbeck.core.text import printable

Pixels = npt.NDArray[np.uint8]
"""An image: uint8 (channels, height, width)."""

PER_LINE = 4  # images of a class and split side by side; further ones begin a new line
_CELL, _SMALL_CELL, _FEW_ROWS = 76, 50, 12  # pixels of a cell; with more rows than the last, cells are small
_WIDEST = 2.5  # times its height: wider images are shown smaller
_GAP, _MARGIN, _COLUMN_GAP = 3, 16, 18
_TEXT, _SMALL_TEXT, _TITLE = 13, 11, 17
_NAME_WIDTH, _WIDEST_NAME = 190, 380  # pixels; the column of names is as wide as they are, between these
_PAIR_WIDTH = 204  # pixels, of two captions side by side
_LONGEST = 400  # characters of a text that is measured
_BLACK, _GREY, _RED = (20, 20, 20), (105, 105, 105), (190, 30, 30)


@dataclass(frozen=True)
class Row:
    """A row of the sheet: its name, a smaller line below the name, and the images of each column."""

    name: str
    detail: str
    images: Sequence[Sequence[Pixels]]


@dataclass(frozen=True)
class Pair:
    """Two images to be compared: two lines of caption below each, one below both, and whether all is in red."""

    images: tuple[Pixels, Pixels]
    captions: tuple[tuple[str, str], tuple[str, str]]
    caption: str
    is_grave: bool = False


def contact_sheet(
    title: str, columns: Sequence[str], rows: Sequence[Row], note: str = "", pairs: Sequence[Pair] = ()
) -> Image.Image:
    """Draw a sheet on white: the title, a heading above every column, the rows, a note below them, and the pairs.

    All images have one size. Small ones are enlarged by a whole number, pixel by pixel, and large ones are shrunk
    smoothly. Text is drawn in DejaVu Sans, which has Latin, Greek, Cyrillic and Arabic letters, and boxes for others.
    Raises ValueError where no row has an image.
    """
    cell = _cell_size(rows, _CELL if len(rows) <= _FEW_ROWS else _SMALL_CELL)
    step = cell[0] + _GAP, cell[1] + _GAP
    widths = [max(PER_LINE * step[0], int(picture_font(_TEXT).getlength(text))) + _COLUMN_GAP for text in columns]
    longest = max(int(picture_font(_TEXT).getlength(printable(row.name, _LONGEST))) + 3 * _GAP for row in rows)
    names = min(max(longest, _NAME_WIDTH), _WIDEST_NAME)
    lefts = [_MARGIN + names, *(_MARGIN + names + end for end in accumulate(widths))]
    heights = [max(_lines(row) * step[1], _TEXT + _SMALL_TEXT + 4 * _GAP) + 2 * _GAP for row in rows]
    tops = [_MARGIN + 3 * _TITLE, *(_MARGIN + 3 * _TITLE + end for end in accumulate(heights))]
    pair_width, pair_height = max(2 * step[0], _PAIR_WIDTH) + _COLUMN_GAP, step[1] + 4 * (_SMALL_TEXT + _GAP) + _GAP
    width = max(lefts[-1] - _COLUMN_GAP + _MARGIN, 2 * _MARGIN + min(len(pairs), 4) * pair_width)
    per_line = (width - 2 * _MARGIN + _COLUMN_GAP) // pair_width
    end = tops[-1] + (2 * _TEXT if note else 0)
    pairs_top = end + 2 * _MARGIN + _TITLE
    height = (pairs_top + -(-len(pairs) // per_line) * pair_height if pairs else end) + _MARGIN

    sheet = Image.new("RGB", (width, height), "white")
    pen = _Pen(sheet)
    pen.write(title, (_MARGIN, _MARGIN), width - 2 * _MARGIN, _TITLE)
    for text, left in zip(columns, lefts):
        pen.write(text, (left, _MARGIN + int(1.7 * _TITLE)), width, colour=_GREY)
    for row, top in zip(rows, tops):
        pen.write(row.name, (_MARGIN, top + _GAP), names - 2 * _GAP, keeps_end=False)
        pen.write(row.detail, (_MARGIN, top + _TEXT + 3 * _GAP), names - 2 * _GAP, _SMALL_TEXT, _GREY)
        for images, left in zip(row.images, lefts):
            for index, image in enumerate(images):
                place = left + index % PER_LINE * step[0], top + index // PER_LINE * step[1]
                sheet.paste(_resize(image, cell), place)
            if not images:
                pen.write("none", (left, top + _GAP), width, colour=_RED)
    pen.write(note, (_MARGIN, tops[-1] + _GAP), width - 2 * _MARGIN, colour=_GREY)
    if pairs:
        pen.write("Equal and nearly equal images", (_MARGIN, end + _MARGIN), width, _TITLE)
    for index, pair in enumerate(pairs):
        left, top = _MARGIN + index % per_line * pair_width, pairs_top + _GAP + index // per_line * pair_height
        half = (pair_width - _COLUMN_GAP) // 2
        colour = _RED if pair.is_grave else _GREY
        for image, caption, x in zip(pair.images, pair.captions, (left, left + half)):
            sheet.paste(_resize(image, cell), (x, top))
            for number, line in enumerate(caption):
                at = x, top + step[1] + number * (_SMALL_TEXT + _GAP)
                pen.write(line, at, half - _GAP, _SMALL_TEXT, colour, keeps_end=number == 0)  # a file, and its class
        pen.write(pair.caption, (left, top + step[1] + 2 * (_SMALL_TEXT + _GAP)), pair_width, _SMALL_TEXT, colour)
    return sheet


class _Pen:
    """Writes text on a sheet, shortened to a width."""

    def __init__(self, sheet: Image.Image):
        self.draw = ImageDraw.Draw(sheet)

    def write(
        self,
        text: str,
        place: tuple[int, int],
        width: int,
        size: int = _TEXT,
        colour: tuple[int, int, int] = _BLACK,
        keeps_end: bool = True,
    ) -> None:
        """Write one line; where it is wider than `width` pixels, its middle is left out, or else its end."""
        font, line = picture_font(size), printable(text)
        for characters in range(min(len(line), _LONGEST), 0, -1):
            shown = printable(text, characters) if keeps_end or characters == len(line) else f"{line[:characters]}…"
            if font.getlength(shown) <= width:
                self.draw.text(place, shown, colour, font)
                return


def _cell_size(rows: Sequence[Row], target: int) -> tuple[int, int]:
    """(width, height) of an image on the sheet, of about `target` pixels in height."""
    images = [image for row in rows for column in row.images for image in column]
    if not images:
        raise ValueError("no row has an image")
    height, width = images[0].shape[1:]
    scale = min(target / height, _WIDEST * target / width)
    scale = max(1, round(scale)) if scale > 0.75 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _lines(row: Row) -> int:
    return max(1, -(-max(map(len, row.images)) // PER_LINE))


def _resize(image: Pixels, cell: tuple[int, int]) -> Image.Image:
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    enlarges = cell[0] >= picture.width
    return picture.convert("RGB").resize(cell, Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)
