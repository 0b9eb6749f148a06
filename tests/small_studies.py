"""A small study of two methods on digits, and what its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from limbeck import UserError
from limbeck.core.events import Event
from limbeck.core.study_records import StudyRecord
from limbeck.engines import Local, Work
from limbeck.studies import child

STUDY = """
title = "Two methods"
seeds = [0]

[options]
data = "digits"
num_experts = 1
iterations = 4
validate_every = 2
validate_networks = 1
validate_epochs = 2
model = { width = 4 }
expert = { epochs = 2, lr = 0.05, batch_size = 64, keep = "both" }
eval = { networks = 2, epochs = 3, baseline_lrs = [0.01], full_networks = 0 }

[axes.method.MTT]
method = "mtt"
syn_steps = 2
max_start_epoch = 1
expert_epochs = 1
[axes.method.MCT]
method = "mct"
syn_steps = 2
max_start_epoch = 1
expert_epochs = 1

[compare]
axis = "method"
against = "MTT"
"""


def write_file(folder: Path, text: str = STUDY, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read_record(path: Path) -> StudyRecord:
    return StudyRecord.model_validate_json(path.with_suffix(".json").read_text())


class Here:
    """A work that was carried out in this process."""

    def __init__(self, work: Work):
        self.sentence: str | None = None
        try:
            child.carry_out(work.message["order"], lambda event: None)
        except UserError as error:
            self.sentence = str(error)

    def events(self) -> Iterator[Event]:
        yield {"event": "end", "sentence": self.sentence}

    def failure(self) -> str | None:
        return self.sentence

    def interrupt(self) -> None:
        """It has ended."""

    def stop(self, seconds: float) -> None:
        """It has ended."""


def start_here(begun: list[dict[str, Any]]) -> Callable[..., Here]:
    """Carries out works in this process, which spares child processes to import torch; `begun` gets the orders."""

    def start(self: Local, work: Work) -> Here:
        begun.append({**work.order, "name": work.name})
        return Here(work)

    return start
