"""What a person sees while a command works: stages with an estimate of what is left, on standard error."""

from __future__ import annotations

import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from limbeck.core.records import ResultRow
from limbeck.report.text import percent

LOG = logging.getLogger("limbeck")
LINE_SECONDS = 15.0  # between lines where there is no terminal to draw a bar on


class Screen:
    """A listener that draws bars on a terminal, and prints a line now and then elsewhere.

    Use it as a context; inside it, what limbeck logs is shown as well.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.lines = Lines(self.console)
        self.task: TaskID | None = None
        self.name, self.total, self.done, self.start, self.told = "", 0, 0, 0.0, 0.0
        self.before = 0

    def __enter__(self) -> Screen:
        LOG.addHandler(self.lines)
        LOG.setLevel(logging.INFO)
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        LOG.removeHandler(self.lines)
        LOG.setLevel(logging.NOTSET)

    def __call__(self, event: dict[str, Any]) -> None:
        known = {
            "estimate": self._estimate,
            "stage": self._stage,
            "advance": self._advance,
            "validate": self._validate,
            "warning": self._warn,
            "note": self._estimate,
        }
        if event["event"] in known:
            known[event["event"]](event)

    def _stage(self, event: dict[str, Any]) -> None:
        if self.task is not None:
            self.progress.update(self.task, completed=self.progress.tasks[self.task].total)
        self.name, self.total, self.before = event["name"], event["total"], event.get("done", 0)
        self.done, self.start = self.before, time.perf_counter()
        self.told = self.start
        self.task = self.progress.add_task(self.name, total=self.total, completed=self.done, text="")
        if self.progress.disable:
            resumed = f", {self.done} done before" if self.done else ""
            self.console.print(f"{self.name}: {self.total} {event.get('unit', 'unit')}s{resumed}")

    def _advance(self, event: dict[str, Any]) -> None:
        self.done += 1
        if self.task is not None:
            self.progress.update(self.task, completed=self.done, text=event.get("text", ""))
        now = time.perf_counter()
        if self.progress.disable and (now - self.told > LINE_SECONDS or self.done == self.total):
            self.told = now
            spent = now - self.start
            left = spent / max(self.done - self.before, 1) * (self.total - self.done)
            self.console.print(
                f"{self.name}: {self.done}/{self.total}, {spent:.0f} s, about {left:.0f} s left; "
                f"{event.get('text', '')}"
            )

    def _estimate(self, event: dict[str, Any]) -> None:
        self.console.print(event["text"], highlight=False, markup=False, soft_wrap=True)

    def _warn(self, event: dict[str, Any]) -> None:
        self.console.print(f"warning: {event['text']}", highlight=False, markup=False, soft_wrap=True)

    def _validate(self, event: dict[str, Any]) -> None:
        self.console.print(
            f"  step {event['step']:>5}: validation {percent(event['accuracy_mean'], event['accuracy_std'])} "
            f"(n = {event['n']})"
        )


class Lines(logging.Handler):
    """Shows what limbeck logs as lines on a console."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, and say so where it is a warning."""
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        self.console.print(f"{warning}{record.getMessage()}", highlight=False, markup=False, soft_wrap=True)


def results_table(rows: list[ResultRow], title: str) -> Table:
    """Results as a table: accuracy in percent, mean and standard deviation and n together, and points over random."""
    table = Table(title=title)
    for name in ("set", "network", "n", "accuracy", "balanced", "over random"):
        table.add_column(name, justify="left" if name in ("set", "network") else "right")
    random = {(row.model, row.protocol): row.accuracy_mean for row in rows if row.set == "random"}
    for row in rows:
        baseline = random.get((row.model, row.protocol))
        gain = "" if baseline is None or row.set == "random" else f"{100 * (row.accuracy_mean - baseline):+.1f}"
        table.add_row(
            (f"{row.set} ({row.which})" if row.which else row.set) + (f", {row.protocol}" if row.protocol else ""),
            row.model,
            str(row.n),
            percent(row.accuracy_mean, row.accuracy_std),
            percent(row.balanced_accuracy_mean, row.balanced_accuracy_std),
            gain,
        )
    return table
