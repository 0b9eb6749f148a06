"""The commands that read what others wrote: report, table and info. Only info of images and tensors needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro
from pydantic import Field

from limbeck.cli.common import Command, Common, Listener


class Report(Common):
    """Write report.html; of several runs, a comparison."""

    runs: tyro.conf.Positional[list[str]]
    """run folders"""
    out: str | None = None
    """the file; by default report.html in the run folder, or comparison.html here"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


class Table(Common):
    """One Markdown table from many finished runs."""

    runs: tyro.conf.Positional[list[str]]
    """run folders"""
    out: str = "results.md"
    """the file to write"""
    note: str = ""
    """a paragraph to put above the table"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


class Info(Common):
    """Say what a file or folder is: data set, store, set or run."""

    what: tyro.conf.Positional[str]
    """any file, folder or data set name"""
    resize: int | None = Field(default=None, ge=1)
    """of a data set: resize every image to this many pixels a side"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


def run_report(args: Report, listen: Listener) -> Any:
    """Write one run's report, or a comparison of several."""
    from limbeck.report.page import write_comparison, write_report

    runs = [Path(run) for run in args.runs]
    if len(runs) == 1:
        return {"report": str(write_report(runs[0], None if args.out is None else Path(args.out)))}
    return {"report": str(write_comparison(runs, Path(args.out or "comparison.html")))}


def run_table(args: Table, listen: Listener) -> Any:
    """Call `limbeck.report.table.write_table`."""
    from limbeck.report.table import write_table

    return {"table": str(write_table([Path(run) for run in args.runs], Path(args.out), args.note))}


def run_info(args: Info, listen: Listener) -> Any:
    """Call `limbeck.cli.info.describe`."""
    from limbeck.cli.info import describe

    return describe(args.what, args.resize)


COMMANDS = {
    "report": Command(Report, run_report),
    "table": Command(Table, run_table),
    "info": Command(Info, run_info),
}
