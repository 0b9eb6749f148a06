"""Several networks at once: each score belongs to its own trial, whatever order they end in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.data import load_data
from limbeck.evaluation.baselines import real_images
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.sets import evaluated_network
from limbeck.evaluation.trials import Summary, best_lr, evaluate_set, make_trials, run_trials
from limbeck.networks.registry import ModelConfig
from limbeck.task import Task, make_task
from limbeck.training.plain import Score

LRS = (1e-8, 0.05, 1e-7)  # only one of them learns anything


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(load_data("digits"), ModelConfig(width=4))


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_the_step_size_that_does_best_on_validation_is_chosen(task: Task, turn: int) -> None:
    config = EvalConfig(networks=2, epochs=20, baseline_lrs=(*LRS[turn:], *LRS[:turn]))
    assert best_lr(task, real_images(task, "random", 5), config, 0) == 0.05


def test_a_set_is_drawn_once_for_all_step_sizes(task: Task) -> None:
    """k-means of CIFAR-10 takes four seconds of a processor, for which a GPU waited 20 times instead of 10."""
    draw_set, seeds = real_images(task, "random", 1), list[int]()

    def count_draws(seed: int) -> tuple[Tensor, Tensor]:
        seeds.append(seed)
        return draw_set(seed)

    config = EvalConfig(networks=2, epochs=1, baseline_lrs=LRS)
    assert best_lr(task, count_draws, config, 0) == best_lr(task, draw_set, config, 0)
    assert len(seeds) == len(set(seeds)) == 2


def test_scores_are_those_of_one_network_after_the_other(task: Task) -> None:
    config, make = EvalConfig(networks=3, epochs=5), real_images(task, "random", 2)
    trials, before = make_trials(make, config.schedule(0.05), 3, seed=1), torch.get_num_threads()
    torch.set_num_threads(2)  # two at a time, whatever the tests were started with
    try:
        together = [score.accuracy for score in run_trials(task, trials, task.validation)]
    finally:
        torch.set_num_threads(before)
    alone = [run_trials(task, [trial], task.validation)[0].accuracy for trial in trials]
    assert together == pytest.approx(alone, abs=0.03)  # threads differ, and so does rounding
    assert max(alone) - min(alone) > 0.06  # else any order would do
    assert evaluate_set(task, make, config.schedule(0.05), 3, task.validation, 1).n == 3


def test_one_network_has_no_deviation() -> None:
    assert Summary.of([Score(0.5, 0.4)]) == (0.5, None, 0.4, None, 1, [0.5])
    assert Summary.of([Score(0.5, 0.4), Score(0.7, 0.4)]).accuracy_std == pytest.approx(0.2 / 2**0.5)


@pytest.mark.parametrize(
    ("own", "model", "expected"),
    [
        ({"name": "convnet", "width": 8, "depth": 2}, None, ModelConfig(width=8, depth=2)),
        ({"name": "convnet", "width": 8, "depth": 2}, ModelConfig(name="same"), ModelConfig(width=8, depth=2)),
        (
            {"name": "convnet", "width": 8, "depth": 2},
            ModelConfig(name="same", width=4, norm="group"),
            ModelConfig(width=4, depth=2, norm="group"),
        ),
        ({"name": "convnet", "width": 8}, ModelConfig(name="mlp"), ModelConfig(name="mlp")),
        ({"name": "convnet", "width": 8}, ModelConfig(norm="none"), ModelConfig(norm="none")),
        ({"name": "mlp"}, ModelConfig(name="same", width=4), ModelConfig(name="mlp", width=4)),
    ],
)
def test_the_network_is_the_sets_own_with_the_options_given(own: Any, model: Any, expected: ModelConfig) -> None:
    assert evaluated_network(own, model) == expected


def test_the_task_says_what_its_figures_depend_on(task: Task) -> None:
    assert task.conditions()["precision"] == "float32"
    assert replace(task, precision="bfloat16").conditions()["precision"] == "bfloat16"
    with pytest.raises(UserError, match="tf32 is of NVIDIA GPUs; with --device cpu use"):
        make_task(task.data, task.model_config, precision="tf32")
