"""Learned labels are a switch of every method that matches trajectories: what is learned, its gradient, its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import ExpertConfig, ModelConfig, UserError
from limbeck.core.rng import make_generator
from limbeck.experts import Expert
from limbeck.jobs.job import prepare
from limbeck.laws.methods import STEP_SIZES
from limbeck.methods import METHODS, DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import TrajectoryConfig, init_label_logits
from limbeck.synthetic.loop import outer_loop
from limbeck.task import Task

MATCHING = [name for name, method in METHODS.items() if issubclass(method.config, TrajectoryConfig)]
APPROXIMATE = [name for name in MATCHING if not METHODS[name].exact_gradient]


def plan(method: Method, task: Task, expert: Expert, **options: Any) -> Plan:
    assert method.experts is not None
    path = expert.trajectory(method.experts)
    assert path is not None
    config = method.resolve_options(
        method.config(syn_steps=2, **options), DataFacts(len(task.data.train), 2, ExpertConfig(epochs=3))
    )
    return method.plan(config, MethodInputs(task, [path], 2, 0))


@pytest.mark.parametrize("name", MATCHING)
def test_labels_start_at_the_experts_and_are_learned(name: str, task: Task, expert: Expert) -> None:
    method = METHODS[name]
    hard, soft = (plan(method, task, expert, learn_labels=switch, init="random") for switch in (False, True))
    assert hard.synthetic.labels.dtype == torch.int64
    assert [*hard.synthetic.learned] == ["images", "log_lr"]
    assert {*soft.synthetic.learned} == {"images", "labels", "log_lr"}
    path = expert.trajectory(method.experts or "any")
    assert path is not None
    logits = task.model(path.at(path.end), hard.synthetic.images.detach())
    expected = init_label_logits(logits[None].detach(), hard.synthetic.labels)
    torch.testing.assert_close(soft.synthetic.labels.detach(), expected, rtol=1e-4, atol=1e-5)
    before = soft.synthetic.labels.detach().clone()
    outer_loop(soft.objective, soft.synthetic, soft.optimisers, range(2), 0, soft.accept, soft.hooks)
    assert float((soft.synthetic.labels.detach() - before).norm()) > 0
    assert soft.evaluated_set().training_pair()[1].sum(1).allclose(torch.ones(20))


@pytest.mark.parametrize("name", [name for name in MATCHING if name not in APPROXIMATE])
def test_the_gradient_of_labels_is_the_derivative(name: str, task: Task, expert: Expert) -> None:
    """Along a random direction of the logits, on a network without kinks, by central differences."""
    smooth = task.with_model(task.model_config.model_copy(update={"activation": "swish"}))
    recipe = plan(METHODS[name], smooth, expert, learn_labels=True)
    labels = recipe.synthetic.labels
    recipe.objective(recipe.synthetic, 0, 0).backward()
    assert labels.grad is not None
    direction = torch.randn(labels.shape, generator=make_generator(0, "direction"))
    centre = labels.detach().clone()

    def value(size: float) -> Tensor:
        with torch.no_grad():
            labels.copy_(centre + size * direction)
        return recipe.objective(recipe.synthetic, 0, 0).detach()

    slope, norm = float((labels.grad * direction).sum()), float(labels.grad.norm())
    differences = [float(value(size) - value(-size)) / (2 * size) for size in STEP_SIZES]
    assert min(abs(difference - slope) for difference in differences) <= 0.02 * norm


def test_keys_say_nothing_of_labels_that_are_not_learned(tmp_path: Path) -> None:
    """DATM learns labels by default and always recorded how; the others are recorded as before there was the option."""

    def key(method: str, **options: Any) -> dict[str, Any]:
        return prepare("digits", method=method, out=tmp_path / "run", model=ModelConfig(width=4), **options).resolved

    names = {"learn_labels", "lr_y", "momentum_y"}
    assert names & set(key("mtt")) == set()
    assert names & set(key("mtt", learn_labels=True)) == names
    assert names & set(key("datm")) == {"lr_y", "momentum_y"}
    assert names & set(key("datm", learn_labels=False)) == {"learn_labels"}


def test_labels_of_a_teacher_or_a_canvas_are_not_learned(task: Task, expert: Expert) -> None:
    for method, options in (
        ("tesla", {"teacher_labels": True}),
        ("mct", {"teacher_labels": True}),
        ("mtt", {"canvas": 2}),
    ):
        with pytest.raises(UserError, match=r"--learn-labels and --.* do not go together"):
            plan(METHODS[method], task, expert, learn_labels=True, **options)


def test_the_label_of_tiles_starts_at_the_mean_of_their_logits(task: Task, expert: Expert) -> None:
    hard, soft = (plan(METHODS["mtt"], task, expert, factor=2, learn_labels=switch) for switch in (False, True))
    tiles, _ = hard.synthetic.decoded_pair()
    assert expert.recorded is not None
    logits = task.model(expert.recorded.at(3), tiles.detach()).detach()
    means = logits.view(4, len(hard.synthetic.labels), -1).mean(0)  # all first tiles, all second ones ...
    expected = init_label_logits(means[None], hard.synthetic.labels)
    torch.testing.assert_close(soft.synthetic.labels.detach(), expected, rtol=1e-4, atol=1e-5)
    soft.objective(soft.synthetic, 0, 0).backward()
    assert soft.synthetic.labels.grad is not None
