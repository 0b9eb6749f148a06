"""Sizes of pictures as people write them, and ways to bring pictures to one size."""

from __future__ import annotations

from typing import Literal

from limbeck.core.errors import UserError
from limbeck.core.text import quote

Size = tuple[int, int]  # height, width
ResizeMode = Literal["stretch", "crop", "pad"]
"""How pictures of other proportions are brought to one size: see `limbeck.data.images.fit_picture`."""


def parse_size(text: str) -> int | Size:
    """Pixels a side, or a height and a width, from "32" or "32x48".

    Raises UserError for other text and for a size of no pixels.

    >>> parse_size("32"), parse_size("32x48")
    (32, (32, 48))
    """
    parts = text.lower().split("x")
    if not all(part.strip().isdecimal() and int(part) for part in parts) or len(parts) > 2:
        raise UserError(f"--resize is pixels a side, or HEIGHTxWIDTH, not {quote(text)}; give, say, 32 or 32x48.")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
