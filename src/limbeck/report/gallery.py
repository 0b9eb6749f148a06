"""Pictures of a run as the page holds them: PNG files as they are, or smaller where they are large."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TITLES = {
    "chosen": "Chosen",
    "initial": "Initial",
    "last": "Last step",
    "random": "Random real images",
    "kmeans": "k-means real images",
}
"""Titles of the pictures of a run by the names of their files, in the order in which they are shown."""
REAL = ("random", "kmeans")
MOST_BYTES = 120_000  # of a picture; larger ones are compressed with losses, so that a page stays below about 1 MB
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A picture as a data address, with its size in pixels."""

    name: str
    data: str
    width: int
    height: int

    @property
    def title(self) -> str:
        """What it shows, in a word or two."""
        return TITLES.get(self.name, self.name)


@dataclass(frozen=True)
class Frame:
    """A picture of the set after `step` outer steps."""

    step: int
    picture: Picture


def cell_width(shown: Sequence[tuple[str, Picture]]) -> int:
    """Pixels of the column of a picture: tall ones stand five in a row on a wide page, others two."""
    width, height = (max(getattr(picture, side) for _, picture in shown) for side in ("width", "height"))
    return min(width, 400) if height < 1.4 * width else 165


def read_picture(path: Path) -> Picture | None:
    """Read a PNG file; None where there is none, or it is none."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if not content.startswith(_PNG) or len(content) < 24:
        return None
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    form, content = _compress(content) if len(content) > MOST_BYTES else ("png", content)
    return Picture(path.stem, f"data:image/{form};base64,{base64.b64encode(content).decode()}", width, height)


def _compress(content: bytes) -> tuple[str, bytes]:
    """The format and bytes of a large picture: WebP of quality 80 where Pillow has it and the file can be decoded."""
    from PIL import Image, features

    if not features.check("webp"):
        return "png", content
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.save(buffer, format="WEBP", quality=80, method=4)
    except (OSError, ValueError, SyntaxError):  # a file that is cut off, say
        return "png", content
    return "webp", buffer.getvalue()


def read_frames(folder: Path) -> list[Frame]:
    """The pictures of outer steps in a folder of previews, in the order of the steps."""
    frames = []
    for path in folder.glob("step-*.png"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal() and (picture := read_picture(path)):
            frames.append(Frame(int(number), picture))
    return sorted(frames, key=lambda frame: frame.step)


def side_by_side(runs: Sequence[tuple[str, Sequence[Picture]]]) -> list[tuple[str, Picture]]:
    """The chosen pictures of named runs with their names, and the pictures of real images, of which equal ones once."""
    own = [(name, picture) for name, pictures in runs for picture in pictures if picture.name == "chosen"]
    real = {
        (picture.name, picture.data): (picture.title, picture)
        for _, ps in runs
        for picture in ps
        if picture.name in REAL
    }
    return own + sorted(real.values(), key=lambda pair: REAL.index(pair[1].name))
