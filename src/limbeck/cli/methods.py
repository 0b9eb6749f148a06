"""The command that lists the methods."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from limbeck.cli.catalogue import Entry, load_catalogue, load_plugins
from limbeck.cli.common import Command, Options
from limbeck.core.events import Listener

WORDS = {"log_lr": "step size", "tau": "temperature"}
EXPERTS = {
    None: "no experts",
    "any": "experts of any kind",
    "convex": "convexified experts",
    "recorded": "recorded experts",
}


class Methods(Options):
    """List the methods: what they do, what they learn, and their sources."""


def learned_tensors(entry: Entry) -> str:
    """What a method optimises, in words."""
    return ", ".join(WORDS.get(name, name) for name in entry.learns) or "nothing"


def run_methods(args: Methods, listen: Listener) -> Any:
    """Return the methods as data with --json, else print two lines a method."""
    entries = load_catalogue()
    plugins, notes = load_plugins([entry.name for entry in entries])
    entries += plugins
    for note in notes:
        print(f"limbeck: {note}", file=sys.stderr)
    if args.as_json:
        return {"methods": [entry._asdict() for entry in entries]}
    width = max(len(entry.name) for entry in entries)
    console = Console(highlight=False)
    for entry in entries:
        console.print(f"[bold]{entry.name:<{width}}[/]  {entry.summary}", soft_wrap=True)
        experimental = "experimental; " if entry.experimental else ""
        facts = f"{experimental}learns {learned_tensors(entry)}; {EXPERTS[entry.experts]}; {entry.source}"
        console.print(f"{'':<{width}}  [dim]{facts}[/]", soft_wrap=True)
    return {}


COMMANDS = {"methods": Command(Methods, run_methods, ("limbeck methods",))}
