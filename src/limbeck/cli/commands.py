"""The commands by name: find one, parse its options, call it, print its result.

This module imports neither torch nor the parser, so that `limbeck --help` and a mistyped command answer at once. The
module of a command is imported when the command is called.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.cli.interrupt import raise_on_interrupt
from limbeck.cli.processes import require_shareable, silence_others
from limbeck.core.errors import UserError, suggest_names
from limbeck.core.launch import Launch
from limbeck.core.text import quote

if TYPE_CHECKING:
    from limbeck.cli.common import Command


class Entry(NamedTuple):
    """A line of the list of commands: the module that holds the command, and what it does."""

    module: str
    summary: str


COMMANDS = {
    "demo": Entry("demo", "Distil scikit-learn's digits to ten images in two minutes, and name the report to look at."),
    "distill": Entry("distill", "Distil a data set: train experts, distil, evaluate, write a report."),
    "estimate": Entry(
        "distill",
        "Estimate how long 'limbeck distill' would take, and the size of its experts, from a few timed steps.",
    ),
    "doctor": Entry(
        "doctor", "Say what is wrong with images and a job on them, a store of experts or a run: one finding a line."
    ),
    "methods": Entry("methods", "List the methods: what they do, what they learn, and their sources."),
    "experts": Entry("experts", "Train experts into a store; it keeps those it has."),
    "convexify": Entry("experts", "Convexify recorded experts into a new store."),
    "evaluate": Entry("evaluate", "Train fresh networks on a distilled set and measure their test accuracy."),
    "compare": Entry(
        "compare",
        "Compare the sets of runs by networks of the same seeds: the difference, its standard error and an interval.",
    ),
    "study": Entry(
        "study",
        "Compute the grid of runs of a study file, compare its cells over the same seeds, and write one page.",
    ),
    "inspect": Entry(
        "experts", "Analyse the experts of a store: accuracy along paths, update directions, straightness, storage."
    ),
    "watch": Entry("watch", "Follow a run from another shell: its stage, the time left, the last validation."),
    "report": Entry("records", "Write the report of a run, or the comparison of several, as one HTML page."),
    "table": Entry("records", "Write one Markdown table of many finished runs."),
    "info": Entry(
        "records", "Describe a file or folder: data set, store of experts, distilled set, run or folder of runs."
    ),
    "cache": Entry("cache", "Show what limbeck keeps for reuse and how large it is, or clear it."),
    "import-experts": Entry("interop", "Import experts of MTT, TESLA, FTD, DATM or MCT (.pt files) into a store."),
    "import-set": Entry(
        "interop",
        "Import a distilled set of MTT and its kin, DC, DSA, DM, DataDAM, IDC or DREAM (.pt files) into one file.",
    ),
    "export": Entry(
        "interop",
        "Export a run or a set as files that need no limbeck, or as those of other code, as stores of experts too.",
    ),
    "check": Entry("check", "Check your own method, network, selector or reader by the laws that limbeck's own meet."),
    "sets": Entry("sets", "List the distilled sets that come with limbeck, with what they reach on test."),
    "presets": Entry("presets", "List the published settings, with their sources and accuracies."),
    "completion": Entry("completion", "Print a script by which a shell completes commands, options and their values."),
}


HIDDEN = {"results", "scores", "format", "version", "key", "computed", "protocol", "seconds", "bytes", "memory", "data"}
HIDDEN |= {"changed", "published"}  # which "comparison" says in words
"""Parts of a result that are for programs, and not printed below the table."""


SWITCHES = ("--debug", "--quiet", "--json")
"""Switches of every command, which may stand before its name."""


def run(arguments: list[str]) -> int:
    """Run the command that the words after `limbeck` name, and return the exit status."""
    if arguments[:1] in (["--version"], ["-V"]):
        from limbeck import __version__

        _print(f"limbeck {__version__}")
        return 0
    if arguments[:1] == ["help"] and len(arguments) == 2:
        arguments = [arguments[1], "--help"]
    if arguments[:1] and arguments[0] in SWITCHES and len(arguments) > 1:  # limbeck --debug COMMAND
        return run([*arguments[1:], arguments[0]])
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print(_usage())
        return 0 if arguments else 2
    return _run_command(arguments[0], arguments[1:])


def find_command(name: str) -> Command:
    """Import the command of this name; UserError names the nearest ones, or all."""
    if name == "reproduce":  # for one release
        raise UserError("'limbeck reproduce' is gone; type: limbeck distill DATA --preset NAME --OPTION VALUE ...")
    if name not in COMMANDS:
        raise UserError(f"there is no command {quote(name)}; {suggest_names(name, COMMANDS)}")
    command: Command = import_module(f"limbeck.cli.{COMMANDS[name].module}").COMMANDS[name]
    return command


def find_defaults(name: str, command: Command, arguments: list[str]) -> Any:
    """The options from which these arguments start: those of the method that they name, say."""
    from limbeck.cli.parse import make_default

    if command.choose_defaults:
        return command.choose_defaults(f"limbeck {name}", arguments)
    return make_default(command.options)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        ["usage: limbeck COMMAND ...", "", *lines, "", "limbeck COMMAND --help lists the options of a command."]
    )


def _run_command(name: str, arguments: list[str]) -> int:
    with _loading(arguments):
        command = find_command(name)
    require_shareable(name, command.is_shareable)
    from limbeck.cli.common import Threads
    from limbeck.cli.parse import parse

    with silence_others():
        default = find_defaults(name, command, arguments)
        args = parse(f"limbeck {name}", default, arguments, command.examples, command.everyday)
    if isinstance(args, Threads) and args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    out = getattr(args, "out", None)
    if out is not None:
        from limbeck.core.files import require_writable

        require_writable(Path(out))
    from limbeck.cli.next_command import next_command
    from limbeck.core.allocator import keep_freed_memory
    from limbeck.progress.screen import Screen  # after parsing, so that --help does not wait for rich

    keep_freed_memory()
    raise_on_interrupt()
    if Launch.of_environment().rank:  # rank 0 speaks for all
        return command.status(command.run(args, lambda event: None))
    with Screen(args.quiet) as screen:
        result = command.run(args, screen)
    follow_up = None if args.as_json or args.quiet else next_command(name, args, result, arguments)
    _show(result if follow_up is None else {key: value for key, value in result.items() if key != "next"}, args.as_json)
    if follow_up is not None:
        _print(f"next: {follow_up}")
    return command.status(result)


@contextmanager
def _loading(arguments: list[str]) -> Iterator[None]:
    """Say on a terminal that something is going on, until the `with` block ends: torch takes seconds to import."""
    shows = sys.stderr.isatty() and "--quiet" not in arguments
    print("loading ..." if shows else "", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K" if shows else "", end="", file=sys.stderr, flush=True)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print(json.dumps(result, indent=2))
        return
    from limbeck.progress.screen import PlainConsole

    console = PlainConsole()
    if result.get("kind") == "data set":
        from limbeck.cli.data_info import show_data

        show_data(result, console)
        return
    from limbeck.cli import screen
    from limbeck.core.evaluation_records import EvaluationRow, ScoreRow

    rows = result.get("results")
    if rows:
        records = [EvaluationRow.model_validate(row) for row in rows]
        several = screen.networks_table(records) if any(row.lr_from for row in records) else None
        console.print(several or screen.results_table(records, screen.results_title(result)))
        two_classes = screen.two_class_table(records)
        for table in (*([two_classes] if two_classes else []), *screen.robustness_screen(records)):
            console.print(table)
    if result.get("scores"):
        console.print(screen.scores_table([ScoreRow.model_validate(row) for row in result["scores"]]))
    for key, value in result.items():
        if key in HIDDEN and rows:
            continue
        lines = [f"note: {note}" for note in value] if key == "notes" else [f"{key}: {screen.format_value(value)}"]
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `limbeck --help | head -1`: nobody reads on, and Python is not to flush again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
