"""What a person sees while a job works: its stages, the time left and small pictures, on standard error."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from limbeck.core.events import Event
from limbeck.core.text import printable
from limbeck.progress.pictures import Picture, find_protocol
from limbeck.report.text import duration, percent

LOG = logging.getLogger("limbeck")
UNEVEN = 0.005  # plain and balanced accuracy that differ by more are both shown
LINE_SECONDS = 15.0  # between lines where there is no terminal to draw a bar on


class PlainConsole(Console):
    """A console for text that may come from files: it holds no markup, no emoji codes and no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it stands, with characters that no terminal prints as their escapes."""
        lines = "\n".join(map(printable, text.split("\n")))
        return super().render_str(lines, **{**options, "markup": False, "emoji": False})


class Screen:
    """A listener that draws bars on a terminal, and elsewhere prints a line every 15 seconds.

    It is a context manager, inside which it prints what limbeck logs as well.
    quiet: Print warnings alone.
    console: Where to print; the default is standard error. environ: of the process, which says what a terminal can do.
    """

    def __init__(
        self, quiet: bool = False, console: Console | None = None, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.quiet = quiet
        self.console = PlainConsole(stderr=True) if console is None else console
        self.protocol = find_protocol(environ) if self.console.is_terminal else None
        self.progress = Progress(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            disable=quiet or not self.console.is_terminal or (self.console.is_jupyter and not _has_widgets()),
        )
        self.lines = Lines(self.console)
        self.task: TaskID | None = None
        self.name, self.total, self.done, self.done_before = "", 0, 0, 0
        self.start, self.last_line = 0.0, 0.0
        self.best: float | None = None

    def __enter__(self) -> Screen:
        LOG.addHandler(self.lines)
        LOG.setLevel(logging.WARNING if self.quiet else logging.INFO)
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error[:1] == (None,):
            self._complete()
        self.progress.stop()
        LOG.removeHandler(self.lines)
        LOG.setLevel(logging.NOTSET)

    def __call__(self, event: Event) -> None:
        handlers = {
            "estimate": self._print,
            "stage": self._stage,
            "advance": self._advance,
            "validate": self._validate,
            "preview": self._show,
            "warning": self._warn,
            "note": self._print,
            "status": self._tell,
        }
        if event["event"] in (["warning"] if self.quiet else handlers):
            handlers[event["event"]](event)

    def _stage(self, event: Event) -> None:
        self._complete()
        self.name, self.total, self.done_before = printable(event["name"]), event["total"], event.get("done", 0)
        self.done, self.start = self.done_before, time.perf_counter()
        self.last_line = self.start
        units = f"{event.get('unit', 'unit')}{'s' * (self.total != 1)}"
        self.task = self.progress.add_task(self.name, total=self.total, completed=self.done, text="", unit=units)
        if self.progress.disable:
            resumed = f", {self.done} done before" if self.done else ""
            self.console.print(f"{self.name}: {self.total} {units}{resumed}")

    def _complete(self) -> None:
        """A stage that ends may have had less to do than it might: stored rows of real images need no networks."""
        if self.task is not None:
            self.progress.update(self.task, completed=self.progress.tasks[self.task].total)

    def _advance(self, event: Event) -> None:
        self.done += 1
        text = printable(event.get("text", ""))
        if "loss" in event and self.best is not None:
            text += f", best validation {100 * self.best:.1f} %"
        if self.task is not None:
            self.progress.update(self.task, completed=self.done, text=text)
        now = time.perf_counter()
        if self.progress.disable and (now - self.last_line > LINE_SECONDS or self.done == self.total):
            self.last_line = now
            spent = now - self.start
            left = spent / max(self.done - self.done_before, 1) * (self.total - self.done)
            self.console.print(
                f"{self.name}: {self.done}/{self.total}, {duration(spent)}, about {duration(left)} left; {text}"
            )

    def _print(self, event: Event) -> None:
        self.console.print(event["text"], highlight=False, markup=False, soft_wrap=True)

    def _tell(self, event: Event) -> None:
        if self.console.is_terminal:
            self._print({"text": printable(event["text"])})

    def _warn(self, event: Event) -> None:
        self.console.print(f"warning: {printable(event['text'])}", highlight=False, markup=False, soft_wrap=True)

    def _show(self, event: Event) -> None:
        if self.protocol is not None and (content := _read(Path(event["path"]))):
            self.console.print(Picture(self.protocol, content))

    def _validate(self, event: Event) -> None:
        self.best = max(self.best or 0.0, event["accuracy_mean"])
        mean, balanced = event["accuracy_mean"], event.get("balanced_accuracy_mean")
        uneven = "" if balanced is None or abs(balanced - mean) <= UNEVEN else f", balanced {100 * balanced:.1f} %"
        self.console.print(
            f"  step {event['step']:>5}: validation {percent(mean, event['accuracy_std'])} (n = {event['n']}){uneven}"
        )


class Lines(logging.Handler):
    """Prints what limbeck logs on a console."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record; a warning begins with the word."""
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        self.console.print(f"{warning}{record.getMessage()}", highlight=False, markup=False, soft_wrap=True)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # removed since, say: pictures are kept for a few steps alone
        return None


def _has_widgets() -> bool:
    """Whether a notebook can draw rich's bars; without them it gets a line now and then."""
    from importlib.util import find_spec

    return find_spec("ipywidgets") is not None
