"""The command that checks a user's own method, network, selector or reader."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from limbeck.cli.common import DATA, Command, Options
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.ranges import Side
from limbeck.laws.check import check


class Check(Options):
    """Check your own method, network, selector or reader by the laws that limbeck's own meet."""

    name: Annotated[Positional[str], arg(metavar="NAME")]
    """my_file:METHOD, my_file:make (a network), my_file:select (a selector), my_file:READER, or a name of limbeck's."""
    data: Annotated[Positional[str], DATA] = "digits"
    """Images to try a method on, and to build a network for; the path of what a reader has to read."""
    resize: Side | None = None
    """Resize every image to this many pixels a side."""
    kind: Literal["method", "network", "selector", "reader"] | None = None
    """What NAME is, where limbeck takes it for something else."""


def run_check(args: Check, listen: Listener) -> Any:
    """Print one line a law, or return them as data with --json. Raises UserError where a law is broken."""
    console, outcomes = Console(highlight=False), []
    for outcome in check(args.name, args.data, args.kind, args.resize):
        outcomes.append(outcome)
        if not args.as_json:
            console.print(outcome.text, soft_wrap=True, markup=False)
    result = {"name": args.name, "outcomes": [outcome._asdict() for outcome in outcomes]}
    failures = sum(outcome.status == "failed" for outcome in outcomes)
    if failures:
        if args.as_json:
            print(json.dumps(result, indent=2))
        raise UserError(f"{args.name} breaks {failures} of {len(outcomes)} laws.")
    return result if args.as_json else {}


COMMANDS = {
    "check": Command(
        Check, run_check, ("limbeck check my_file:METHOD", "limbeck check my_file:make digits --resize 32")
    ),
}
