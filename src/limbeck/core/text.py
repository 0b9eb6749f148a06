"""Names from files and folders as a person can read them on one line. This module loads no torch."""

from __future__ import annotations

from pathlib import Path


def printable(text: str, width: int | None = None) -> str:
    """The text without control characters, invisible marks or halves of characters: each is written as its escape.

    width: at most so many characters; a longer text loses its middle, since file names often differ at their ends.

    >>> printable("a\\tb\\x1b[31m"), printable("photos-of-cats-2019", 12)
    ('a\\\\tb\\\\x1b[31m', 'photos…-2019')
    """
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if width is None or len(line) <= width:
        return line
    end = (width - 1) // 2
    return f"{line[: width - 1 - end]}…{line[len(line) - end :]}"


def shorten_path(path: str | Path) -> str:
    """A path as an error names it: of a long one its beginning and its end.

    >>> shorten_path("runs/digits"), len(shorten_path("x" * 300))
    ('runs/digits', 83)
    """
    text = str(path)
    return text if len(text) <= 83 else f"{text[:40]}...{text[-40:]}"
