"""The command that prints a completion script of a shell; tyro writes it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.extras import subcommand_cli_from_dict

from limbeck.cli.common import Command, Options
from limbeck.core.events import Listener

FILES = {"bash": "complete -o default -F _tyro_limbeck limbeck\n", "zsh": ""}
"""What makes a shell complete the names of files where no option fits."""


class Completion(Options):
    """Print a script by which a shell completes commands, options and their values."""

    shell: Annotated[Positional[Literal["bash", "zsh"]], arg(metavar="SHELL", help_behavior_hint="(required)")]
    """The shell: bash or zsh."""


def completion_script(shell: str) -> str:
    """The script for a shell, with the options of every command; those of distill are its default method's."""
    from limbeck.cli.commands import COMMANDS as NAMES  # which holds the list that this module is in
    from limbeck.cli.parse import REGISTRY

    commands = {name: _signature(name) for name in NAMES}
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        subcommand_cli_from_dict(commands, prog="limbeck", args=["--tyro-print-completion", shell], registry=REGISTRY)
    return text.getvalue() + FILES[shell]


def _signature(name: str) -> Any:
    """A function that takes the options of a command, for tyro to describe."""
    from limbeck.cli.commands import COMMANDS as NAMES
    from limbeck.cli.commands import find_command, find_defaults

    default = find_defaults(name, find_command(name), [])

    def command(options: Any = default) -> None:
        """Is described, and never called."""

    command.__annotations__["options"] = Annotated[type(default), OmitArgPrefixes]
    command.__doc__ = NAMES[name].summary
    return command


def run_completion(args: Completion, listen: Listener) -> Any:
    """Print the script, or return it with --json."""
    text = completion_script(args.shell)
    if args.as_json:
        return {"shell": args.shell, "script": text}
    print(text, end="")
    return {}


COMMANDS = {"completion": Command(Completion, run_completion, ("limbeck completion bash",))}
