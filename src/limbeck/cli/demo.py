"""The command that shows what limbeck does, in two minutes."""

from __future__ import annotations

import shlex
import webbrowser
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff

from limbeck.cli.common import PATH, SWITCH, Command, Options, Threads
from limbeck.cli.distill import Distill, choose_defaults, run_distill
from limbeck.cli.parse import parse
from limbeck.core.events import Listener

WORDS = (
    *("digits", "--ipc", "1", "--model.width", "32", "--expert.epochs", "30", "--expert.lr", "0.05"),
    *("--expert.batch-size", "64", "--iterations", "200", "--syn-steps", "30", "--lr-img", "0.05"),
)
"""The job of docs/first-run.md."""


class Demo(Threads, Options):
    """Distil scikit-learn's digits to ten images in two minutes, and name the report to look at."""

    out: Annotated[str, PATH] = "runs/demo"
    """The run folder."""
    open: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Open the report in a browser at the end."""


def run_demo(args: Demo, listen: Listener) -> Any:
    """Run `limbeck distill` with `WORDS`, and return what it returns."""
    words = [*WORDS, "--out", args.out]
    listen({"event": "note", "text": f"this is: limbeck distill {shlex.join(words)}"})
    prog = "limbeck distill"
    result = run_distill(parse(prog, choose_defaults(Distill, prog, words), words), listen)
    if args.open:
        webbrowser.open(Path(result["report"]).resolve().as_uri())
    return result


COMMANDS = {"demo": Command(Demo, run_demo, ("limbeck demo", "limbeck demo --open"))}
