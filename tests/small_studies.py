"""A small study of two methods on digits, and what its tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck import UserError
from limbeck.core.study_records import StudyRecord
from limbeck.studies import child, pool

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


def begin_here(begun: list[dict[str, Any]]) -> Callable[..., None]:
    """Carries out orders in this process, which spares child processes to import torch; `begun` gets the orders."""

    def begin(self: pool.Pool, unit: pool.Unit, slots: int) -> None:
        begun.append({**unit.order(slots), "name": unit.name})
        number, sentence = len(begun), None
        process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdin=subprocess.DEVNULL, text=True)
        try:
            child.carry_out(unit.order(slots), lambda event: None)
        except UserError as error:
            sentence = str(error)
        self.children[number] = pool.Child(unit, process, slots, self.errors)
        self.events.put((number, {"event": "end", "sentence": sentence}))
        self.events.put((number, None))

    return begin
