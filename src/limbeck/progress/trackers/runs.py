"""Runs of a tracking service: they begin with the first stage, take the numbers of events, and are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from limbeck.core.events import Event, Listener
from limbeck.progress.trackers.numbers import numbers_of

PROJECT = "limbeck"


@contextmanager
def track_run(begin: Callable[[], Any]) -> Iterator[Listener]:
    """A listener that logs the numbers of events beside the step or epoch that they belong to.

    begin: Returns a run, which has `log` and `finish`; it is called at the first stage.

    >>> from types import SimpleNamespace
    >>> with track_run(lambda: SimpleNamespace(log=print, finish=lambda: print("finished"))) as listen:
    ...     listen({"event": "stage", "name": "distill", "total": 4})
    ...     listen({"event": "advance", "text": "", "step": 3, "loss": 0.5, "lr": 0.02})
    {'distill/loss': 0.5, 'distill/step size': 0.02, 'distill/step': 3}
    finished
    """
    runs: list[Any] = []

    def write(event: Event) -> None:
        if event["event"] == "stage" and not runs:
            runs.append(begin())
        if runs and (numbers := numbers_of(event)):
            runs[0].log({**numbers.values, numbers.axis: numbers.step})

    try:
        yield write
    finally:
        for run in runs:
            run.finish()
