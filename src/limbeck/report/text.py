"""Numbers as a person reads them; a dash stands for a missing one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"
FEWEST_FOR_INTERVAL = 4
"""Pairs that a bootstrap interval of 95 % needs: a resample of n is n times the lowest with a probability of n^-n, and
that is below 2.5 % from four on. With fewer, the percentiles are the smallest and the largest difference."""


def percent(mean: float | None, std: float | None, digits: int = 1) -> str:
    """Format an accuracy and its standard deviation, as fractions, in percent; one network has no deviation.

    >>> percent(0.8891, 0.0068), percent(0.5, None), percent(None, None)
    ('88.9 ± 0.7 %', '50.0 %', '–')
    """
    if mean is None:
        return NONE
    return f"{100 * mean:.{digits}f}{'' if std is None else f' ± {100 * std:.{digits}f}'} %"


def points(difference: float | None) -> str:
    """Format a difference of two accuracies, as fractions, in percentage points with a sign."""
    return NONE if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def describe_interval(low: float | None, high: float | None, n: int) -> str:
    """The percentiles of a bootstrap over n differences, in percentage points: with fewer than four, the ends of all.

    >>> describe_interval(0.03, 0.07, 5), describe_interval(0.03, 0.07, 3), describe_interval(None, None, 1)
    ('95 % interval +3.0 to +7.0', 'all between +3.0 and +7.0', '–')
    """
    if low is None or high is None:
        return NONE
    if n < FEWEST_FOR_INTERVAL:
        return f"all between {points(low)} and {points(high)}"
    return f"95 % interval {points(low)} to {points(high)}"


def size(count: float | None) -> str:
    """Format bytes in decimal units.

    >>> size(12), size(65_432), size(6.5e9), size(None)
    ('12 B', '65.4 kB', '6.5 GB', '–')
    """
    if count is None or count < 0:
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.95 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Format seconds in hours, minutes and seconds.

    >>> duration(3.21), duration(125), duration(3725), duration(None)
    ('3.2 s', '2 min 5 s', '1 h 2 min', '–')
    """
    if seconds is None or seconds < 0:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def per_class(ipc: int | None, config: Mapping[str, Any]) -> str:
    """Format the stored images per class of a run, with the tiles that its images hold, or the size of its canvases.

    >>> per_class(1, {"factor": 2}), per_class(10, {"factor": 1}), per_class(10, {}), per_class(None, {})
    ('1 of 2 x 2 tiles', '10', '10', '–')
    >>> per_class(1, {"canvas": 2})
    '1 of 2 x 2 image sides'
    """
    tiles, sides = count_sides(config, "factor"), count_sides(config, "canvas")
    parts = [f" of {n} x {n} {word}" for n, word in ((tiles, "tiles"), (sides, "image sides")) if n > 1]
    return count(ipc) + "".join(parts if ipc is not None else ())


def count_sides(config: Mapping[str, Any], name: str) -> int:
    """Tiles ("factor") or image sides ("canvas") along a side of a run's stored images; 1 where none are recorded."""
    value = config.get(name)
    return value if isinstance(value, int) and value > 1 else 1


def count(value: float | None) -> str:
    """Format a whole number with thousands separators."""
    return NONE if value is None else f"{value:,.0f}"
