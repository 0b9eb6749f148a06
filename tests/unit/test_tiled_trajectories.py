"""Trajectory matching of a set made of tiles: what it starts from, its gradient, and what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck import ModelConfig
from limbeck.core.errors import UserError
from limbeck.data import ImageData
from limbeck.evaluation.run import run_evaluations
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.experts import ExpertConfig
from limbeck.jobs.rehearsal import stand_in
from limbeck.methods import METHODS, DataFacts, MethodInputs, Plan
from limbeck.methods.trajectory_matching import StartConfig
from limbeck.synthetic.set import SyntheticSet
from limbeck.synthetic.tiles import cut_tiles
from limbeck.task import Task, make_task
from tests.small_runs import MINIMAL, distill_minimal

TILED = [name for name, method in METHODS.items() if issubclass(method.config, StartConfig)]


def make_plan(task: Task, name: str, **options: Any) -> Plan:
    method = METHODS[name]
    facts = DataFacts(len(task.data.train), 2, ExpertConfig(epochs=3))
    resolved = method.resolve_options(method.config(**options), facts)
    return method.plan(resolved, MethodInputs(task, [stand_in(task, 3, 0)], 2, 5))


@pytest.mark.parametrize("name", TILED)
def test_the_start_is_mosaics_of_each_class(name: str, task: Task) -> None:
    plan = make_plan(task, name, factor=2)
    synthetic = plan.synthetic
    assert synthetic.images.shape == (20, 1, 8, 8)
    images, labels = synthetic.training_pair()
    assert len(images) == 80
    assert labels.bincount().tolist() == [8] * 10
    assert torch.equal(images, cut_tiles(synthetic.images, 2))
    kmeans = make_plan(task, name, factor=2, init="kmeans").synthetic
    assert not torch.equal(kmeans.images, synthetic.images)
    noise = make_plan(task, name, factor=2, init="noise").synthetic
    assert noise.images.shape == (20, 1, 8, 8)
    assert len(noise.training_pair()[0]) == 80


@pytest.mark.parametrize("preprocess", ["normalise", "zca"])
@pytest.mark.parametrize("name", TILED)
def test_the_exact_gradient_reaches_the_mosaics(name: str, preprocess: str, digits: ImageData) -> None:
    """Against the full graph of autograd, of a network without kinks."""
    task = make_task(digits, ModelConfig(width=4, activation="softplus"), preprocess)
    gradients = []
    for gradient in ("exact", "backprop"):
        plan = make_plan(task, name, factor=2, gradient=gradient, syn_steps=3)
        plan.objective(plan.synthetic, 1, 0).backward()
        assert plan.synthetic.images.grad is not None
        gradients.append((plan.synthetic.images.grad, plan.synthetic.log_lr.grad))
    for exact, full in zip(*gradients):
        assert exact is not None
        assert exact.abs().max() > 0
        torch.testing.assert_close(exact, full, rtol=2e-3, atol=1e-6)


def test_a_step_costs_what_it_costs_without_tiles(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for options in ({}, {"factor": 2}, {"factor": 2, "batch_syn": 7}, {"factor": 2, "batch_syn": 80}):
        plan = make_plan(task, "mct", **options)
        objective: Any = plan.objective
        size = objective.batch_size
        batch = plan.synthetic.batches(1, size, torch.Generator())[0]
        sizes.append(len(batch.images) if batch.rows is None else len(batch.rows))
    assert sizes == [20, 20, 7, 80]


def test_what_does_not_go_together_is_refused(task: Task) -> None:
    with pytest.raises(UserError, match="--canvas and --factor"):
        make_plan(task, "mtt", factor=2, canvas=2)
    with pytest.raises(UserError, match="--teacher-labels and --factor"):
        make_plan(task, "mct", factor=2, teacher_labels=True)
    with pytest.raises(UserError, match="lower one"):
        make_plan(task, "mct", factor=5)


@pytest.mark.parametrize("preprocess", ["normalise", "zca"])
def test_a_run_leaves_mosaics_and_trains_on_tiles(preprocess: str, tmp_path: Path) -> None:
    run = distill_minimal(tmp_path / "run", ipc=1, factor=2, preprocess=preprocess)
    small = limbeck.load(run)
    assert small.images.shape == (40, 1, 8, 8)
    assert small.stored_pair[0].shape == (10, 1, 8, 8)
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["factor"] == 2
    row = run_evaluations(prepare_evaluation(run, changes={"networks": 1, "epochs": 2}))[0]
    assert (row.n, row.image_bytes) == (1, 10 * 64 * 4)


def test_mosaics_are_stored_where_another_device_rounds_their_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file holds mosaics, though the tiles cut on a GPU may differ from `load`'s in their last bits."""

    def round_elsewhere(synthetic: SyntheticSet) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = synthetic.decoded_pair()
        return images * (1 + 1e-6), labels

    monkeypatch.setattr(SyntheticSet, "training_pair", round_elsewhere)
    assert limbeck.load(distill_minimal(tmp_path / "run", ipc=1, factor=2)).stored_pair[0].shape == (10, 1, 8, 8)


def test_without_tiles_a_run_is_recorded_as_before(tmp_path: Path) -> None:
    """So that folders of runs made before there was the option go on and answer."""
    job = limbeck.prepare("digits", out=tmp_path / "run", **MINIMAL)
    assert "factor" not in job.resolved
    assert "factor" in limbeck.prepare("digits", out=tmp_path / "tiled", factor=2, **MINIMAL).resolved
