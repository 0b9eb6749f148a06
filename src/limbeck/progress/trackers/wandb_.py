"""Weights & Biases: a run of the project limbeck; WANDB_MODE=offline keeps it on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.core.events import Event, Listener
from limbeck.progress.trackers.numbers import numbers_of

PROJECT = "limbeck"


@contextmanager
def track(folder: Path, config: Mapping[str, Any]) -> Iterator[Listener]:
    """A listener that logs the numbers of events beside the step or epoch that they belong to."""
    import wandb  # which not everybody has

    runs: list[Any] = []

    def write(event: Event) -> None:
        if event["event"] == "stage" and not runs:
            runs.append(wandb.init(project=PROJECT, name=folder.name, config=dict(config), dir=str(folder)))
        if runs and (numbers := numbers_of(event)):
            runs[0].log({**numbers.values, numbers.axis: numbers.step})

    try:
        yield write
    finally:
        for run in runs:
            run.finish()
