"""Strict parsing of JSON from files, which anybody may have written. This module loads no torch."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

MAX_BYTES = 1 << 28
"""Bytes of a document. The largest that limbeck writes, of an evaluation on many networks, have some megabytes."""

MAX_DEPTH = 64
"""Lists and objects inside each other. limbeck's own documents have at most 10."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # one that has no end goes to the end of the text
_NUL = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")  # which no path and no name may have
_BRACKETS = re.compile(r"[\[\]{}]")


def parse_json(content: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON document of at most `MAX_BYTES`, nested at most `MAX_DEPTH` deep.

    finite: refuse NaN and infinity, which JSON does not have and Python writes.
    Raises ValueError, with the reason as a phrase, for anything else, for whole numbers of more than 64 bits, and for
    text with the character NUL.

    >>> parse_json('{"steps": [1, 2]}')
    {'steps': [1, 2]}
    >>> parse_json("[NaN]")
    Traceback (most recent call last):
    ValueError: NaN is no number in JSON
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has over {MAX_BYTES:,} bytes")
    text = content if isinstance(content, str) else content.decode("utf-8")
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"it is nested over {MAX_DEPTH} deep")
    if "\\u0000" in text and _NUL.search(text):
        raise ValueError("a text in it holds the character NUL")
    return json.loads(
        text,
        parse_int=_parse_whole,
        parse_float=_parse_finite if finite else float,
        parse_constant=_refuse_constant if finite else float,
    )


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _parse_whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"a whole number in it, {digits[:20]}, has more than 64 bits")
    return int(digits)


def _parse_finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
