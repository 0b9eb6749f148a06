"""Nothing impossible is begun: what a method's plan refuses is refused before anything is trained or written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import limbeck
from limbeck import METHODS, UserError
from limbeck.core.types import Trajectory
from limbeck.data import fit_preprocess
from limbeck.experts import Expert, ExpertConfig
from limbeck.experts.recorded import Recorded
from limbeck.experts.store import make_path
from limbeck.jobs.rehearsal import check_plan
from limbeck.methods import DataFacts, Method, MethodInputs
from limbeck.networks.registry import ModelConfig
from limbeck.objectives import MatchTrajectory
from limbeck.task import Task, make_task

EXPERT = ExpertConfig(epochs=3, batch_size=32)


@pytest.fixture(scope="module")
def tasks(task: Task) -> dict[str, Task]:
    """The shared task, and two that some methods cannot work on."""
    zca = fit_preprocess("zca", task.data.train.images)
    mlp = make_task(task.data, ModelConfig(name="mlp", width=4))
    return {"convnet": task, "zca": replace(task, preprocess=zca), "mlp": mlp}


def values(annotation: Any, default: Any) -> list[Any]:
    """What to try for a field: every literal, both truth values, whole numbers that are often too many."""
    choices = [
        choice for part in (annotation, *get_args(annotation)) for choice in get_args(part) if isinstance(choice, str)
    ]
    if choices:
        return [choice for choice in choices if choice != default]
    if annotation is bool:
        return [not default]
    parts = (annotation, *get_args(annotation))  # of `Count | None`, say, where the type has its range beside it
    return [2, 50] if any(kind is int for part in parts for kind in (part, *get_args(part))) else []


UNIMPORTANT = {
    *("iterations", "syn_steps", "inner", "net_steps", "net_epochs", "cg_steps", "pool_width", "pool", "warm_up"),
    *("batch_real", "batch_net", "batch_syn", "interval", "patience", "lr_img_every", "expansion_steps"),
}
"""Fields of which no plan refuses a value, and that would only make this slow."""


def variations(method: Method) -> Iterator[dict[str, Any]]:
    """Every option with every value alone, and pairs of two options' first values."""
    candidates = {
        name: options
        for name, field in method.config.model_fields.items()
        if name not in UNIMPORTANT and (options := values(field.annotation, field.default))
    }
    yield {}
    yield from ({name: value} for name, options in candidates.items() for value in options)
    paired = [name for name in candidates if not isinstance(candidates[name][0], str)]
    yield from ({a: candidates[a][0], b: candidates[b][0]} for a, b in combinations(paired, 2))


def refusal(act: Any) -> str | None:
    """What is refused, as text; None where nothing is."""
    try:
        act()
    except UserError as error:
        return str(error)
    return None


def expert_of(task: Task, expert: Expert, method: Method) -> list[Trajectory]:
    """The shared expert, or one of as many epochs that fits the task's network."""
    if method.experts is None:
        return []
    path = expert.trajectory(method.experts)
    assert path is not None
    if len(path.at(0)) == task.model.layout.count:
        return [path]
    points = torch.stack([task.model.init(epoch) for epoch in range(path.end + 1)])
    return [Recorded(points) if method.experts != "convex" else make_path(points, task.model.layout, EXPERT)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_rehearsal_refuses_what_the_plan_refuses_and_nothing_else(
    method: Method, tasks: dict[str, Task], expert: Expert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all options: the real plan, on all images and real experts, and the rehearsal say the same."""
    refused = 0
    for where, task in tasks.items():
        for options in variations(method) if where == "convnet" else ({}, {"canvas": 2}, {"factor": 2}, {"factor": 1}):
            if not set(options) <= set(method.config.model_fields):
                continue
            facts = DataFacts(len(task.data.train), 2, EXPERT)
            resolved: list[Any] = []
            early = refusal(lambda: resolved.append(method.resolve_options(method.config(**options), facts)))  # noqa: B023
            if early is not None:  # by `resolve`, which comes before
                continue

            def build(resolved: Any = resolved, task: Task = task) -> None:
                inputs = MethodInputs(task, expert_of(task, expert, method), 2, 0)
                plan = method.plan(resolved[0], inputs)
                plan.evaluated_set().training_pair()
                sampled = getattr(plan.objective, "objective", plan.objective)
                sampled = getattr(sampled, "objective", sampled)
                if isinstance(sampled, MatchTrajectory):
                    for step in (0, 1):
                        sampled.segment(step, 0, task.device)

            ends = None if method.experts is None else EXPERT.epochs
            sentence = refusal(lambda: check_plan(method, resolved[0], task, 2, 0, ends))  # noqa: B023
            assert sentence == refusal(build), (where, options)
            refused += sentence is not None
    assert refused or method.name not in ("mct", "mtt", "tesla", "ftd", "ptm", "idc", "dream", "dream-plus")


TINY: dict[str, Any] = {"num_experts": 1, "model": ModelConfig(width=4), "expert": ExpertConfig(epochs=2, waypoints=2)}
IMPOSSIBLE = [
    ("mct", {"teacher_labels": True, "canvas": 2}, "do not go together"),
    ("mct", {"canvas": 2, "preprocess": "zca"}, "whitening"),
    ("mct", {"canvas": 12}, "fewer than 144; an image of the set starts from 144: use a lower --factor"),
    ("mct", {"sampling": "whole", "expert_epochs": 50}, "no segment of 50 epochs"),
    ("mct", {"expert_epochs": 2.5}, "experts of 2 epochs have no segment of 2.5 epochs"),
    ("mct", {"expert_epochs": 1, "max_start_epoch": 1, "first_max_start_epoch": 1.5}, "cannot grow to 1"),
    ("mtt", {"expert_epochs": 50}, "experts of 2 epochs have no segment of 50 epochs"),
    ("datm", {"min_start_epoch": 5}, "start epochs from 5"),
    ("datm", {"first_max_start_epoch": 2, "max_start_epoch": 1}, "cannot grow"),
    ("idc", {"model": ModelConfig(name="mlp", width=4)}, "convolutions"),
    ("idc", {"factor": 9}, "cannot be cut"),
    ("dc", {"init": "forgetting"}, "judges images by trained experts"),
]


@pytest.mark.parametrize(("method", "options", "words"), IMPOSSIBLE)
def test_a_job_that_cannot_work_leaves_nothing_behind(
    method: str, options: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("limbeck.experts.handle.make_experts", lambda *args: pytest.fail("an expert is trained"))
    common = TINY if METHODS[method].experts else {"model": TINY["model"]}
    with pytest.raises(UserError, match=words):
        limbeck.distill("digits", method=method, out=tmp_path / "run", **{**common, **options})
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "home" / "experts").exists()
    assert not (tmp_path / "home" / "baselines").exists()


def test_a_refusal_on_few_images_is_confirmed_on_all(task: Task) -> None:
    """A method of somebody else may need more real images than the rehearsal has."""

    def plan(config: Any, inputs: MethodInputs) -> Any:
        if len(inputs.task.train[0]) < 200:
            raise UserError("too few images")
        return METHODS["random"].plan(config, inputs)

    method = replace(METHODS["random"], plan=plan)
    check_plan(method, method.config(), task, 1, 0, None)
