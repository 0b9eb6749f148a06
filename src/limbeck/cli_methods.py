"""The command that lists the methods."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from limbeck.cli_common import Command, Common, Listener
from limbeck.methods import METHODS, Method

WORDS = {"log_lr": "step size", "tau": "temperature"}
EXPERTS = {
    None: "no experts",
    "any": "experts of any kind",
    "convex": "convexified experts",
    "recorded": "recorded experts",
}


class Methods(Common):
    """List the methods: what each does, what it learns, where it comes from."""

    seed: int = 0
    """accepted by every command; nothing here is random"""


def learned(method: Method) -> str:
    """What a method optimises, in words."""
    return ", ".join(WORDS.get(name, name) for name in method.learns) or "nothing"


def run_methods(args: Methods, listen: Listener) -> Any:
    """The registry, as data with --json, else two lines a method."""
    if args.as_json:
        return {
            "methods": [
                {
                    "name": each.name,
                    "summary": each.summary,
                    "source": each.source,
                    "learns": list(each.learns),
                    "experts": each.experts,
                }
                for each in METHODS.values()
            ]
        }
    width = max(map(len, METHODS))
    console = Console(highlight=False)
    for each in METHODS.values():
        console.print(f"[bold]{each.name:<{width}}[/]  {each.summary}", soft_wrap=True)
        facts = f"learns {learned(each)}; {EXPERTS[each.experts]}; {each.source}"
        console.print(f"{'':<{width}}  [dim]{facts}[/]", soft_wrap=True)
    return {}


COMMANDS = {"methods": Command(Methods, run_methods)}
