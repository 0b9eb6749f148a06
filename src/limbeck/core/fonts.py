"""The font of texts in pictures, and which letters it has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from unicodedata import normalize

from PIL import ImageFont


@cache
def picture_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in this size, which has Latin, Greek, Cyrillic and Arabic letters; matplotlib ships it."""
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def drawable(text: str) -> str:
    """The text with a "?" for every character that `picture_font` lacks; accents are joined to their letters.

    >>> drawable("caf\u00e9 \u65e5\u672c")
    'caf\u00e9 ??'
    """
    return "".join(c if _is_known(c) else "?" for c in normalize("NFC", text))


@cache
def _is_known(character: str) -> bool:
    """Whether the font has this character: it draws all others as one box."""
    box, own = (picture_font(20).getmask(c) for c in ("\uffff", character))
    return own.size != box.size or bytes(own) != bytes(box)
