"""Names from files and folders as a person can read them on one line. This module loads no torch."""

from __future__ import annotations

import re
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


def quote(value: object, width: int = 60) -> str:
    """A value of a file or of a command as a sentence quotes it: as Python writes it, in about `width` characters.

    >>> quote("mct"), quote([1, None]), quote("x" * 100_000, 12)
    ("'mct'", '[1, None]', "'xxxxx…xxxx'")
    """
    return printable(repr(value), width)


def shorten(message: object, width: int = 80) -> str:
    """The message of another library, or the name of its exception without one, on one line of at most `width`.

    >>> shorten(ValueError("no header\\nin the file")), shorten(KeyError()), shorten("unknown variant", 9)
    ('no header in the file', 'KeyError', 'unknown …')
    """
    line = printable(" ".join(str(message).split())) or type(message).__name__
    return line if len(line) <= width else f"{line[: width - 1]}…"


def shorten_path(path: str | Path) -> str:
    """A path as an error names it: of a long one its beginning and its end.

    >>> shorten_path("runs/digits"), len(shorten_path("x" * 300))
    ('runs/digits', 83)
    """
    text = str(path)
    return text if len(text) <= 83 else f"{text[:40]}...{text[-40:]}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, which gets an s for all numbers but 1.

    >>> counted(1, "image"), counted(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


PLURAL = re.compile(r"(^|: |, )1 ((?:[\w-]+ )?)(image|file|row|class)(?:e?s)((?: [^,;:]*?)?) (were|have|are|became)\b")
SINGULAR = {"were": "was", "have": "has", "are": "is", "became": "became"}


def agree(sentence: str) -> str:
    """A sentence that counts in the plural, with the grammar of the singular where it counts one.

    >>> agree("1 images were stretched to 8x8"), agree("no test split: 11 images held out of train")
    ('1 image was stretched to 8x8', 'no test split: 11 images held out of train')
    >>> agree("1 images beside the class folders were left out")
    '1 image beside the class folders was left out'
    """
    sentence = re.sub(r"\b(?<![\d.,])1 (image|file|row)s (?=\(|held)", r"1 \1 ", sentence)
    return PLURAL.sub(lambda match: f"{match[1]}1 {match[2]}{match[3]}{match[4]} {SINGULAR[match[5]]}", sentence)
