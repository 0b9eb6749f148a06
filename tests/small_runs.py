"""Small runs of trajectory matching on digits: their options, and what tests read from the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import EvalConfig, ExpertConfig, ModelConfig
from limbeck.core import files
from limbeck.core.records import StepLine
from limbeck.jobs.record import RunFolder

EVAL = EvalConfig(networks=1, epochs=3, baseline_lrs=(0.01,), full_networks=0)
MINIMAL: dict[str, Any] = {
    "num_experts": 2,
    "model": ModelConfig(width=4),
    "expert": ExpertConfig(epochs=2, lr=0.05, batch_size=64),
    "eval": EVAL,
    "iterations": 4,
    "syn_steps": 2,
    "max_start_epoch": 1,
    "expert_epochs": 1,
    "validate_every": 2,
    "validate_networks": 1,
    "validate_epochs": 2,
}
WITH_BASELINES: dict[str, Any] = {
    "ipc": 1,
    "num_experts": 2,
    "model": ModelConfig(width=4),
    "expert": ExpertConfig(epochs=2, lr=0.05, batch_size=64),
    "eval": EvalConfig(networks=2, epochs=5, baseline_lrs=(0.01, 0.03), full_epochs=1, full_networks=1),
    "iterations": 6,
    "syn_steps": 3,
    "max_start_epoch": 1.0,
    "expert_epochs": 1.0,
    "lr_img": 5.0,
    "lr_teacher": 0.05,
    "validate_every": 2,
    "validate_networks": 2,
    "validate_epochs": 3,
}
SETS = ("set-last.safetensors", "set-chosen.safetensors")
FILES = {"run.json", "log.jsonl", "experts.json", "results.json", "state.safetensors", "previews", "report.html"}
FILES |= {".lock", "progress.json", *SETS}


def distill_minimal(out: Path, **options: Any) -> Path:
    return limbeck.distill("digits", out=out, **{**MINIMAL, **options})


def distill_with_baselines(out: Path, data: Any = "digits", **options: Any) -> Path:
    return limbeck.distill(data, out=out, **{**WITH_BASELINES, **options})


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def result_rows(run: Path) -> Any:
    return read_json(run / "results.json")["results"]


def set_bytes(run: Path) -> list[bytes]:
    """The files of the last and the chosen set."""
    return [(run / name).read_bytes() for name in SETS]


def logged_steps(run: Path) -> list[int]:
    """The numbers of the outer steps in the log."""
    return [line.step for line in RunFolder(run).lines(StepLine)]


class Interrupted(Exception):
    """Ends a job from within, as an interruption does."""


def interrupt_in(stage: str, units: int) -> Any:
    """A listener that ends the job once this many units of a stage are done."""
    stages: list[str] = [""]

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "preview":  # of some validations, which are counted themselves
            return
        stages.append(event["name"] if event["event"] == "stage" else stages[-1])
        if event["event"] == "advance" and stages.count(stage) > units:
            raise Interrupted

    return listen


class LimitedWrites:
    """Counts the files that limbeck writes, and inside `limit(n)` raises an error instead of writing the n-th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]):
        self.write, self.error, self.count, self.last = files.write_atomically, error, 0, 0
        for module in ("limbeck.core.files", "limbeck.core.tensors", "limbeck.synthetic.grids"):
            monkeypatch.setattr(f"{module}.write_atomically", self)

    def __call__(self, *args: Any) -> None:
        self.count += 1
        if self.count == self.last:
            raise self.error
        self.write(*args)

    @contextmanager
    def limit(self, last: int) -> Iterator[None]:
        self.count, self.last = 0, last
        try:
            yield
        finally:
            self.last = 0
