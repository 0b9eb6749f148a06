"""The command that computes a study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from limbeck.cli.common import PATH, SWITCH, Command, Options, WithEngine, WithEstimate
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.ranges import Workers
from limbeck.core.record_files import read_record
from limbeck.core.study_records import FORMAT, StudyRecord
from limbeck.engines import ENGINES
from limbeck.progress.screen import PlainConsole
from limbeck.report.study import comparison_sentence, costs_table, reach_sentence, results_table
from limbeck.report.study_page import write_study_page
from limbeck.studies.opened import describe_plan, plan_study
from limbeck.studies.run import run_study

WIDTH = 160
"""Columns of tables where standard output is a file, say."""


class Study(Options, WithEstimate, WithEngine):
    """Compute the grid of runs of a study file, compare its cells over the same seeds, and write one page."""

    file: Annotated[Positional[str], arg(metavar="FILE.toml")]
    """The study file; its record is written beside it as FILE.json after every run."""
    work: Annotated[str | None, PATH] = None
    """The folder of the runs, where interrupted ones are resumed; the default lies in limbeck's cache folder."""
    jobs: Workers | None = None
    """Runs at a time, each a process of its own; the default is as many as the cores or the cluster allow, and one on
    a GPU."""
    threads: Workers = 1
    """Processor threads of each run."""
    merge: Annotated[tuple[str, ...], arg(metavar="PATH [PATH ...]")] = ()
    """Records of the same study from other machines, whose runs are taken over."""
    page_only: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Write the page from the record as it is now, and compute nothing."""
    dry_run: Annotated[FlagCreatePairsOff[bool], SWITCH] = False
    """Check every run and say what is done and what is left, and compute nothing."""


def run_study_command(args: Study, listen: Listener) -> Any:
    """Compute what is left of a study; returns its record with --json, else prints its tables."""
    path = Path(args.file)
    if args.dry_run:
        plan = plan_study(path, work=args.work, threads=args.threads, merge=args.merge, listen=listen)
        return {"plan": describe_plan(plan), "left": [run.name for run in plan.left]}
    if args.page_only:
        record = read_record(path.with_suffix(".json"), StudyRecord, FORMAT)
    else:
        with ENGINES[args.engine](args.address, args.jobs) as engine:
            record = run_study(
                path,
                work=args.work,
                threads=args.threads,
                merge=args.merge,
                tell_cost=args.estimate,
                engine=engine,
                listen=listen,
            )
    files = {"record": str(path.with_suffix(".json")), "page": str(write_study_page(record, path.with_suffix(".html")))}
    if not args.as_json:
        show_study(record, PlainConsole(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    if record.failures and not args.page_only:
        count, first = len(record.failures), record.failures[0]
        raise UserError(
            f"{count} of {record.planned} runs failed, the first because {first.sentence.rstrip('.')}; the same "
            f"command tries them again, and {files['record']} has every sentence."
        )
    return {**record.to_json(), **files} if args.as_json else files


def show_study(record: StudyRecord, console: Console) -> None:
    """Print the tables of a study, and its comparisons."""
    for title, (head, lines) in (
        (f"{record.title}: accuracy on test in %", results_table(record)),
        ("means over seeds, and the largest peak memory", costs_table(record)),
    ):
        table = Table(title=title)
        for place, name in enumerate(head):
            table.add_column(name, justify="right" if place >= len(record.axes) else "left", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for row in record.comparisons:
        console.print(comparison_sentence(row), soft_wrap=True, markup=False)
        sentence = reach_sentence(row) if row.which == "chosen" and row.measure == "accuracy" else None
        if sentence is not None:
            console.print(f"  {sentence}", soft_wrap=True, markup=False)


COMMANDS = {"study": Command(Study, run_study_command, ("limbeck study study.toml --jobs 2",))}
