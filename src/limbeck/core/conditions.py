"""Conditions of a computation, which change the last bits of a result under the same settings."""

from __future__ import annotations

from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.text import printable

NUMERICS = 1
"""The version of limbeck's own arithmetic. Raise it with every change after which the same settings give other bits on
the same machine: another order of summation, another algorithm, another random draw. The key of every store, baseline
and run holds it, so that newer arithmetic never continues what older arithmetic computed."""


def first_difference(recorded: Any, present: Any) -> tuple[str, str]:
    """The first leaf in which two JSON values differ, as its path and its value (at most 50 characters) on both sides.

    >>> first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    ('b c 2', 'b c 3')
    """
    if isinstance(recorded, dict) and isinstance(present, dict):
        for key in sorted(set(recorded) | set(present)):
            if recorded.get(key) != present.get(key):
                left, right = first_difference(recorded.get(key), present.get(key))
                name = printable(key, 30)
                return f"{name} {left}", f"{name} {right}"
    return f"{recorded}"[:50], f"{present}"[:50]


def require_same_conditions(subject: str, recorded: dict[str, Any] | None, present: dict[str, Any] | None) -> None:
    """Check that `subject`, which was computed under `recorded` conditions, may be continued under the `present` ones.

    recorded, present: as `Task.conditions` returns them; None where they are unknown, as in files of older versions.
    Raises UserError where they differ, or where only one of them is known.
    """
    if recorded == present:
        return
    if recorded is None or present is None:
        raise UserError(
            f"{subject} does not say under which conditions it was computed, so it can be read but not continued; "
            "name a new folder with --out."
        )
    previous, current = first_difference(recorded, present)
    raise UserError(
        f"{subject} was computed with {previous}, and would go on with {current}: the two round differently "
        "and are never mixed. Use the same settings as before, or name a new folder with --out."
    )
