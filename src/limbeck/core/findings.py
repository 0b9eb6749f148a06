"""A finding: something that is wrong, or may be, with what to do about it."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What is found and how much of it, as a sentence without its full stop, and what to do about it.

    >>> Finding("8 images of test are also in train", "remove one of each pair").line
    '8 images of test are also in train; remove one of each pair'
    """

    text: str
    remedy: str

    @property
    def line(self) -> str:
        """The finding on one line."""
        return "; ".join(part.rstrip(".") for part in self if part)
