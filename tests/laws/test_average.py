"""The average of the set is an option of every job: what is averaged, what is kept of it, and whose keys it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import EVAL, Interrupted, interrupt_in, set_bytes
from torch import Tensor

import limbeck
from limbeck import ModelConfig, UserError
from limbeck.experts import Expert, ExpertConfig
from limbeck.jobs.job import prepare
from limbeck.methods import METHODS, DataFacts, Method, MethodInputs, Plan
from limbeck.synthetic.loop import outer_loop
from limbeck.task import Task

LEARNING = {name: method for name, method in METHODS.items() if method.learns}
SMALL = {"syn_steps": 2, "pool": 2, "pool_width": 2, "net_epochs": 1, "net_steps": 1, "batch_real": 8, "warm_up": 0}
SMALL_JOB: dict[str, Any] = {
    "model": ModelConfig(width=4),
    "eval": EVAL,
    "iterations": 4,
    "batch_real": 8,
    "validate_every": 2,
    "validate_networks": 1,
    "validate_epochs": 2,
}


def plan(method: Method, task: Task, expert: Expert) -> Plan:
    facts = DataFacts(len(task.data.train), 1, ExpertConfig(epochs=3))
    fields = method.config.model_fields
    options = method.config(**{name: value for name, value in SMALL.items() if name in fields})
    trajectory = None if method.experts is None else expert.trajectory(method.experts)
    inputs = MethodInputs(task, [] if trajectory is None else [trajectory], 1, 0)
    return method.plan(method.resolve_options(options, facts), inputs)


def raw_states(recipe: Plan, steps: int) -> Iterator[dict[str, Tensor]]:
    """The raw tensors of the set before the first step and after every one."""
    states = [recipe.synthetic.snapshot().state()]
    hooks = [*recipe.hooks, lambda synthetic, step, loss: states.append(synthetic.snapshot().state())]
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(steps), 0, recipe.accept, hooks)
    yield from states


@pytest.mark.parametrize("name", LEARNING)
def test_every_method_can_be_averaged(name: str, task: Task, expert: Expert) -> None:
    """All that is learned but the step size, by the recurrence in float64; the steps themselves stay the same."""
    method, decay = LEARNING[name], 0.75
    recipe = plan(method, task, expert)
    states = list(raw_states(recipe, 3))
    averaged = plan(method, task, expert).with_average(decay, unbiased=method.ema_unbiased)
    for state, other in zip(states, raw_states(averaged, 3), strict=True):
        assert all(torch.equal(state[key], other[key]) for key in state)
    expected = dict(states[-1])
    for key in set(method.learns) - {"log_lr"}:
        total = torch.zeros_like(states[0][key]) if method.ema_unbiased else states[0][key]
        for state in states[1:]:
            total = decay * total.double() + (1 - decay) * state[key].double()
        expected[key] = (total / (1 - decay**3) if method.ema_unbiased else total).to(states[0][key])
        assert not torch.allclose(expected[key], states[-1][key], rtol=0, atol=1e-7), f"'{key}' does not move"
    recipe.synthetic.load(expected)
    evaluated = averaged.evaluated_set().state()
    for key, tensor in recipe.evaluated_set().state().items():
        torch.testing.assert_close(evaluated[key], tensor, rtol=1e-4, atol=1e-6)


def test_a_continued_run_keeps_its_average(tmp_path: Path) -> None:
    options = {**SMALL_JOB, "method": "dm", "ema_decay": 0.9}
    whole = limbeck.distill("digits", out=tmp_path / "whole", **options)
    with suppress(Interrupted):
        limbeck.distill("digits", out=tmp_path / "part", listen=interrupt_in("distill", 3), **options)
    assert not (tmp_path / "part" / "set-last.safetensors").exists()
    part = limbeck.distill("digits", out=tmp_path / "part", **options)
    assert set_bytes(part) == set_bytes(whole)
    last = limbeck.distill("digits", out=tmp_path / "last", **options | {"ema_decay": None})
    assert set_bytes(last) != set_bytes(whole)
    with pytest.raises(UserError, match=r"holds a run with ema_decay 0\.9"):
        limbeck.distill("digits", out=part, **options | {"ema_decay": 0})


def test_the_option_is_in_a_key_where_it_says_something(tmp_path: Path) -> None:
    """A run that was recorded before the option was there is the run of the same command now."""

    def key(method: str, **options: Any) -> dict[str, Any]:
        return prepare("digits", method=method, out=tmp_path / "run", model=ModelConfig(width=4), **options).resolved

    assert "ema_decay" not in key("mtt")
    assert key("mtt") == key("mtt", ema_decay=0.0) != key("mtt", ema_decay=0.5)
    assert key("mct")["ema_decay"] == 0.98
    assert key("mct", ema_decay=0)["ema_decay"] == 0
    with pytest.raises(UserError, match="random takes no outer steps"):
        prepare("digits", method="random", out=tmp_path / "run", ema_decay=0.5)
