"""The command that follows a run from another shell. It imports no torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional, arg

from limbeck.cli.common import SWITCH, Command, Options
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.ranges import StepSize
from limbeck.core.text import printable
from limbeck.progress.screen import PlainConsole
from limbeck.progress.watch import Sight, look

LINE_SECONDS = 15.0  # between lines of one stage where there is no terminal
STATUS = {"finished": 0, "running": 0, "absent": 0, "interrupted": 130, "failed": 1, "killed": 1}


class Watch(Options):
    """Follow a run from another shell: its stage, the time left, the last validation.

    It ends with the run: status 0 where that finished, 130 where it was interrupted, 1 where it failed or was killed.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The run folder; it may be not there yet."""
    once: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Say how the run is now, and end."""
    interval: Annotated[StepSize, arg(metavar="SECONDS")] = 1.0
    """Seconds between two looks."""


def run_watch(args: Watch, listen: Listener) -> Any:
    """Look at the run until it ends; returns what was seen last."""
    folder = Path(args.run)
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the folder of a run.")
    sight = _follow(args, folder) if not args.once else look(folder)
    result: dict[str, Any] = {"run": f"{args.run}: {sight.text()}", "state": sight.state}
    if args.as_json:
        progress = None if sight.record is None else sight.record.to_json()
        result = {"run": args.run, "state": sight.state, "seconds_left": sight.seconds_left, "progress": progress}
    return result


def _follow(args: Watch, folder: Path) -> Sight:
    """Show the run until it ends: on a terminal in one line that changes, elsewhere in a line now and then."""
    console = PlainConsole(stderr=True, quiet=args.quiet)
    stage, last_line = "", 0.0
    with console.status("") as status:
        while True:
            sight = look(folder)
            if sight.state not in ("running", "absent"):
                return sight
            status.update(Text(printable(sight.text())))
            current = "" if sight.record is None else sight.record.stage
            if not console.is_terminal and (current != stage or time.monotonic() - last_line > LINE_SECONDS):
                console.print(sight.text(), highlight=False, markup=False, soft_wrap=True)
                stage, last_line = current, time.monotonic()
            time.sleep(args.interval)


COMMANDS = {
    "watch": Command(
        Watch,
        run_watch,
        ("limbeck watch runs/digits", "limbeck watch runs/digits --once --json"),
        status=lambda result: STATUS[result["state"]],
    )
}
