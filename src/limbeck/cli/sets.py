"""The command that lists the distilled sets that come with limbeck."""

from __future__ import annotations

from typing import Any

from limbeck.cli.common import Command, Options
from limbeck.core.events import Listener
from limbeck.core.shelf import ShelfEntry, read_shelf
from limbeck.report.text import percent, size


class Sets(Options):
    """List the distilled sets that come with limbeck, with what they reach on test."""


def run_sets(args: Sets, listen: Listener) -> Any:
    """Return the records of the sets with --json, else one line a set."""
    shelf = read_shelf()
    if args.as_json:
        return {"sets": {name: entry.to_json() for name, entry in shelf.items()}}
    return {name: describe(entry) for name, entry in shelf.items()}


def describe(entry: ShelfEntry) -> str:
    """What a set is and reaches, in one line.

    The networks of its rows are those with which it was distilled, fresh ones.
    """
    parts = []
    for name in ("distilled", "random", "kmeans"):
        row = entry.row(name)
        if row is not None:
            parts.append(f"{name} {percent(row.accuracy_mean, row.accuracy_std)} (n = {row.n})")
    tiles = "" if entry.tiles == 1 else f" of {entry.tiles} tiles"
    return f"{entry.data}, {entry.ipc}{tiles} per class, {size(entry.bytes)}, {entry.method}: {', '.join(parts)}"


COMMANDS = {"sets": Command(Sets, run_sets, ("limbeck sets", "limbeck sets --json"))}
