"""Rows of real images and teachers are stored: damaged ones are computed again, and two commands compute them once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from limbeck.core.errors import NewerError
from limbeck.evaluation import baselines, training
from limbeck.evaluation.baselines import baseline_path, baseline_row
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.robustness import RobustnessConfig
from limbeck.evaluation.training import teacher_parameters, teacher_path
from limbeck.task import Task

CONFIG = EvalConfig(networks=1, epochs=1, baseline_lrs=(0.01,), full_epochs=1, full_networks=1)


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))


def plain_row(task: Task) -> Any:
    return baseline_row(task, "random", 1, CONFIG, 0, lambda event: None)


def row_under_attack(task: Task) -> Any:
    robustness = RobustnessConfig(attacks=("fgsm",), images=20)
    return baselines.tested_baseline_row(task, "random", 1, CONFIG, 0, lambda event: None, "none", robustness)


def teacher(task: Task) -> Any:
    return teacher_parameters(task, CONFIG, 0, lambda event: None).tolist()


STORED: dict[str, tuple[Callable[[Task], Any], str, Any, str]] = {
    "row": (plain_row, "baselines", baselines, "make_real_trials"),
    "row under attack": (row_under_attack, "baselines", baselines, "make_real_trials"),
    "teacher": (teacher, "teachers", training, "train"),
}


@pytest.mark.parametrize("kind", STORED)
def test_what_is_damaged_is_computed_again(kind: str, task: Task, tmp_path: Path) -> None:
    compute, folder, _, _ = STORED[kind]
    first = compute(task)
    paths = sorted((tmp_path / "home" / folder).iterdir())
    before = [path.read_bytes() for path in paths]
    assert paths
    for path in paths:
        path.write_bytes(path.read_bytes()[:-20])
    assert compute(task) == first
    assert [path.read_bytes() for path in paths] == before


def test_a_row_of_a_newer_version_is_not_written_over(task: Task) -> None:
    plain_row(task)
    path, _ = baseline_path(task, "random", 1, CONFIG, 0)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(NewerError):
        plain_row(task)


@pytest.mark.parametrize("kind", STORED)
def test_two_at_once_compute_it_once(kind: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for two processes: the locks of two open files exclude each other in one process, too."""
    compute, _, module, name = STORED[kind]
    calls, train, both = list[int](), getattr(module, name), Barrier(2)

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return train(*arguments, **options)

    def begin(_: int) -> Any:
        both.wait()
        return compute(task)

    monkeypatch.setattr(module, name, count)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(begin, range(2))
    assert first == second
    assert len(calls) == 1


def test_the_teacher_is_that_of_its_path(task: Task) -> None:
    theta = teacher_parameters(task, CONFIG, 0, lambda event: None)
    path, _ = teacher_path(task, CONFIG, 0)
    assert path.exists()
    assert torch.equal(teacher_parameters(task, CONFIG, 0, lambda event: None), theta)
