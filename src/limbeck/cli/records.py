"""The commands that read what others wrote: report, table and info. Only info needs torch, for images and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from limbeck.cli.common import PATH, SWITCH, Command, Options, Reading, load_keywords
from limbeck.core.errors import UserError
from limbeck.core.events import Listener

RUNS = arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")


class Report(Options):
    """Write the report of a run, or the comparison of several, as one HTML page."""

    runs: Annotated[Positional[list[str]], RUNS]
    """One run folder, or several to compare."""
    out: Annotated[str | None, PATH] = None
    """The file to write; the default is report.html in the run folder, and comparison.html here for several runs."""


class Table(Options):
    """Write one Markdown table of many finished runs."""

    runs: Annotated[Positional[list[str]], RUNS]
    """Run folders; those that are not finished are named and left out."""
    out: Annotated[str, PATH] = "results.md"
    """The file to write."""
    force: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Write over a file that is there."""
    note: Annotated[str, arg(metavar="TEXT")] = ""
    """A paragraph to put above the table."""


class Info(Reading, Options):
    """Describe a file or folder: data set, store of experts, distilled set, run or folder of runs."""

    source: Annotated[Positional[str], PATH]
    """A file, a folder, or the name of a data set."""
    picture: Annotated[str | None, PATH] = None
    """The PNG file for images of each class and split; the default lies in limbeck's cache folder."""
    near_duplicates: Literal["auto", "yes", "no"] = "auto"
    """Look for images of a data set that nearly equal one of another split; auto: among at most 200,000."""


def run_report(args: Report, listen: Listener) -> Any:
    """Write one run's report, or a comparison of several."""
    from limbeck.report.page import write_comparison, write_report

    runs = [Path(run) for run in args.runs]
    if len(runs) == 1:
        return {"report": str(write_report(runs[0], None if args.out is None else Path(args.out)))}
    return {"report": str(write_comparison(runs, Path(args.out or "comparison.html")))}


def run_table(args: Table, listen: Listener) -> Any:
    """Call `limbeck.report.table.write_table` on the finished ones of these runs."""
    from limbeck.report.table import write_table

    out, runs = Path(args.out), [Path(run) for run in args.runs]
    if out.is_file() and not args.force:
        raise UserError(f"{out} exists; name another file with --out, or add --force to write over it.")
    finished = [run for run in runs if (run / "results.json").exists() or not (run / "run.json").exists()]
    for run in runs:
        if run not in finished:
            listen({"event": "warning", "text": f"{run} is not finished and is left out; run its command again"})
    if not finished:
        raise UserError("none of these runs is finished; run their commands again.")
    return {"table": str(write_table(finished, out, args.note))}


def run_info(args: Info, listen: Listener) -> Any:
    """Call `limbeck.cli.info.describe`."""
    from limbeck.cli.info import describe

    near = {"auto": None, "yes": True, "no": False}[args.near_duplicates]
    picture = None if args.picture is None else Path(args.picture)
    return describe(args.source, listen, near=near, picture=picture, **load_keywords(args))


COMMANDS = {
    "report": Command(
        Report, run_report, ("limbeck report runs/digits", "limbeck report runs/mct runs/mtt --out both.html")
    ),
    "table": Command(Table, run_table, ("limbeck table runs/mct runs/mtt --out results.md",)),
    "info": Command(
        Info, run_info, ("limbeck info digits --resize 32 --picture digits.png", "limbeck info runs/digits")
    ),
}
