"""The conditions under which numbers are computed: they change the last bits while the settings stay the same."""

from __future__ import annotations

from typing import Any

from limbeck.core.errors import UserError

NUMERICS = 1
"""Version of limbeck's own arithmetic. Raise it with every change after which the same settings give other bits on the
same machine: another order of summation, another algorithm, another random draw. Every key of a store, a baseline and a
run holds it, so that what older arithmetic computed is never continued by newer arithmetic."""


def first_difference(recorded: Any, wanted: Any) -> tuple[str, str]:
    """The first leaf in which two JSON values differ, as text for both sides.

    >>> first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
    ('b c 2', 'b c 3')
    """
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        for key in sorted(set(recorded) | set(wanted)):
            if recorded.get(key) != wanted.get(key):
                left, right = first_difference(recorded.get(key), wanted.get(key))
                return f"{key} {left}", f"{key} {right}"
    return f"{recorded}"[:80], f"{wanted}"[:80]


def require_same_conditions(subject: str, recorded: dict[str, Any] | None, present: dict[str, Any] | None) -> None:
    """UserError unless `subject`, computed under `recorded` conditions, may go on under the `present` ones.

    recorded, present: `Task.computed`; None where nobody knows, as of files from before it was recorded.
    """
    if recorded == present:
        return
    if recorded is None or present is None:
        raise UserError(
            f"{subject} does not say under which conditions it was computed, so it can be read but not continued; "
            "name a new folder with --out."
        )
    before, now = first_difference(recorded, present)
    raise UserError(
        f"{subject} was computed with {before}, and would go on with {now}: the two round differently and are never "
        "mixed. Use the same settings as before, or name a new folder with --out."
    )
