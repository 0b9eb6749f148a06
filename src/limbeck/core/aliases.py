"""Options that were renamed: their old names work for one release, in Python, on the command line and in recorded runs.

A rename is a line in `ALIASES`. Code that reads options calls one of the functions below with the present names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

ALIASES = {"count": "num_experts", "draws": "grad_accum", "measure": "validation_images", "style": "to"}
"""Old name -> new name of an option, with underscores."""


def rename_options(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return `options` with old names replaced by new ones.

    names: the options that exist. An old name is replaced only where it is none of them and its new name is one, and
        not where both are in `options`, so that the duplicate is refused as an unknown option.

    >>> rename_options({"draws": 4, "seed": 1}, ["grad_accum", "seed"])
    {'grad_accum': 4, 'seed': 1}
    """
    old_names = {old for old, new in ALIASES.items() if old not in names and new in names and new not in options}
    return {ALIASES[name] if name in old_names else name: value for name, value in options.items()}


def rename_keywords(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Like `rename_options`, for keywords of a Python call: emits a DeprecationWarning for every old name."""
    current = rename_options(options, names)
    for old, new in zip(options, current):
        if old != new:
            text = f"option {old} is now called {new}; the old name works until the next release"
            warnings.warn(text, DeprecationWarning, stacklevel=level_of_caller())
    return current


def rename_flags(arguments: Sequence[str], names: Collection[str]) -> tuple[list[str], list[str]]:
    """Like `rename_options`, for words of a command line; also returns one notice for every old flag.

    >>> rename_flags(["digits", "--draws=4"], ["grad_accum"])
    (['digits', '--grad-accum=4'], ['--draws is now called --grad-accum; the old name works until the next release.'])
    """
    words, notices = [], []
    for word in arguments:
        flag, equals, value = word.partition("=")
        (name,) = rename_options({flag.removeprefix("--"): value}, names)
        if flag.startswith("--") and name != flag.removeprefix("--"):
            new_flag = f"--{name.replace('_', '-')}"
            notices.append(f"{flag} is now called {new_flag}; the old name works until the next release.")
            flag = new_flag
        words.append(f"{flag}{equals}{value}")
    return words, notices


def rename_configs(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return configurations of runs, in which an option that one of them has by its old name has the others' name.

    >>> rename_configs([{"draws": 4}, {"grad_accum": 2}])
    [{'grad_accum': 4}, {'grad_accum': 2}]
    """
    renamed = [dict(config) for config in configs]
    for other in configs:
        renamed = [rename_options(config, other) for config in renamed]
    return renamed


def old_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration as the last release recorded it, so that its key is recognised."""
    old_names = {new: old for old, new in ALIASES.items()}
    return {old_names.get(name, name): value for name, value in config.items()}


def level_of_caller() -> int:
    """Return the `stacklevel` of the first frame outside limbeck, where the user wrote the old name."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("limbeck", "contextlib"):
        level, frame = level + 1, frame.f_back
    return level
