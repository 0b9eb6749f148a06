"""Damage to the bytes of right files, and to JSON; all from one generator.

A mutation is a function (content, generator) -> (damaged content, what was done).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], tuple[bytes, str]]
TRACE = "code-was-run"
"""The file that hostile content makes where its code is run."""


class Hostile:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {TRACE}",)


# --- bytes


def _flip_bits(content: bytes, generator: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 8, 64)) if damaged else 0):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _cut(content: bytes, generator: Random) -> bytes:
    ends = (0, 1, 7, 8, 9, generator.randrange(len(content) + 1), max(0, len(content) - generator.randrange(1, 40)))
    return content[: generator.choice(ends)]


def _overwrite_number(content: bytes, generator: Random) -> bytes:
    """A number of 1 to 8 bytes, at the limits of its type or any, mostly near the front, where headers are."""
    size = generator.choice((1, 2, 4, 8))
    limits = (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, generator.getrandbits(8 * size))
    number = generator.choice(limits).to_bytes(size, generator.choice(("little", "big")))
    place = generator.randrange(max(1, min(len(content), generator.choice((16, 64, len(content))))))
    return content[:place] + number + content[place + size :]


def _move_part(content: bytes, generator: Random) -> bytes:
    start, end = sorted(generator.randrange(len(content) + 1) for _ in range(2))
    place = generator.randrange(len(content) + 1)
    tail = generator.randbytes(generator.choice((1, 8, 4096)))
    return generator.choice(
        (content[:start] + content[end:], content[:place] + content[start:end] + content[place:], content + tail)
    )


def damage_bytes(content: bytes, generator: Random) -> bytes:
    """One to three of: flipped bits, a cut, a number overwritten, a part removed, repeated or added."""
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        change = generator.choice((_flip_bits, _flip_bits, _cut, _overwrite_number, _overwrite_number, _move_part))
        content = change(content, generator)
    return content


def mutate_bytes(content: bytes, generator: Random) -> tuple[bytes, str]:
    """A file without a format that matters."""
    return damage_bytes(content, generator), "bytes"


# --- JSON

STRANGE: tuple[Callable[[], Any], ...] = (
    *(
        lambda value=value: value
        for value in (None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**12, 0.5, -0.5)
    ),
    *(lambda value=value: value for value in (1e308, float("nan"), float("inf"), float("-inf"), "", "abc", "0", "nan")),
    *(
        lambda value=value: value
        for value in ("../../../etc/passwd", "/etc/passwd", "\ud800", "a\0b", "[/red]", "\x1b[2J")
    ),
    lambda: 10**400,
    lambda: "<script>alert(1)</script>",
    lambda: "x" * 100_000,
    *(lambda text=text: json.loads(text) for text in ("[]", "{}", "[[]]", "[null]", "[-1, 0]", '["a"]', '{"a": 1}')),
    *(
        lambda text=text: json.loads(text)
        for text in ("[1e999, 1e999]", "[[1, 2], [3]]", "[1099511627776, 1099511627776]")
    ),
)
"""Values that are JSON, or nearly, and that hardly any field expects."""


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(inner for key, part in parts for inner in _places(part, (*place, key)))]


def change_value(value: Any, generator: Random) -> tuple[Any, str]:
    """JSON of which one part is dropped, renamed, repeated or replaced."""
    place = generator.choice(_places(value))
    if not place:
        root = generator.choice(STRANGE)()
        return root, f"all of it is {root!r:.60}"
    value = json.loads(json.dumps(value))
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    key, name, kind = place[-1], ".".join(map(str, place)), generator.randrange(8)
    if kind == 0:
        del parent[key]
        return value, f"{name} dropped"
    if kind == 1 and isinstance(parent, dict):
        parent[generator.choice(("", "x", "\ud800", "__class__", "../x"))] = parent.pop(key)
        return value, f"{name} renamed"
    if kind == 2 and isinstance(parent, list):
        parent += [parent[key]] * generator.choice((1, 3, 1000))
        return value, f"{name} repeated"
    before = parent[key]
    if kind == 3 and isinstance(before, int | float) and not isinstance(before, bool):
        others = (str(before), -before, before + 1, before * 10**9, float(before), [before], before == 0)
        parent[key] = generator.choice(others)
    else:
        parent[key] = generator.choice(STRANGE)()
    return value, f"{name} is {parent[key]!r:.60}"


def mutate_json(content: bytes, generator: Random) -> tuple[bytes, str]:
    """A JSON document, or lines of them: mostly their values, sometimes encoding, nesting or bytes."""
    kind = generator.randrange(20)
    if kind == 0:
        return b"[" * 200_000, "lists nested 200,000 deep"
    if kind == 1:
        return b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "objects nested 100,000 deep"
    if kind == 2:
        marked = (content.decode("utf-8", "replace").encode("utf-16"), b"\xef\xbb\xbf" + content, content + b"\xff")
        return generator.choice(marked), "encoding"
    if kind < 6:
        return mutate_bytes(content, generator)
    lines = content.decode().splitlines()
    if len(lines) > 1 and lines[0].startswith("{") and lines[0].endswith("}"):
        return _mutate_line(lines, kind, generator)
    value, changes = json.loads(content), []
    for _ in range(generator.choice((1, 1, 2))):
        if isinstance(value, dict | list):
            value, change = change_value(value, generator)
            changes.append(change)
    return json.dumps(value).encode(), "; ".join(changes)


def _mutate_line(lines: list[str], kind: int, generator: Random) -> tuple[bytes, str]:
    number = generator.randrange(len(lines))
    if kind == 6:
        lines[number] = generator.choice(("[1]", "3", '"a"', "null", "NaN", "[" * 5000, "\0" * 50, ""))
        return "\n".join(lines).encode(), f"line {number} is {lines[number]!r:.40}"
    value, change = change_value(json.loads(lines[number]), generator)
    lines[number] = json.dumps(value)
    return ("\n".join(lines) + "\n").encode(), f"line {number}: {change}"
