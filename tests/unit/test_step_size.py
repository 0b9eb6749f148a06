"""The student's step size: it changes by bounded steps, can return from anywhere, and is watched."""

from __future__ import annotations

import copy
import json
import re
from math import exp, inf, log
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck import EvalConfig, ExpertConfig, ImageData, ModelConfig, UserError
from limbeck.core.rng import make_generator
from limbeck.data import Split
from limbeck.experts import Expert, WholeEpochs
from limbeck.methods.trajectory_matching import MAX_LOG_CHANGE, RecordedConfig, StepSizeSGD, make_optimisers
from limbeck.objectives import MatchTrajectory
from limbeck.objectives.combine import Average
from limbeck.select import select_per_class
from limbeck.synthetic.hooks import StudentMonitor
from limbeck.synthetic.loop import DivergenceError, outer_loop
from limbeck.synthetic.set import LOG_LR_RANGE, SyntheticSet
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generators")
LOW, HIGH = LOG_LR_RANGE


def toy(log_lr: float = -3.0) -> SyntheticSet:
    synthetic = SyntheticSet.from_images(torch.zeros(1, 1, 2, 2), torch.tensor([0]), 0.1)
    synthetic.log_lr.data.fill_(log_lr)
    return synthetic


# --- the range


@pytest.mark.parametrize("log_lr", [-845.0, LOW - 1, LOW, -3.0, HIGH, HIGH + 1, 300.0])
def test_a_step_size_is_in_its_range_and_has_its_derivative_everywhere(log_lr: float) -> None:
    synthetic = toy(log_lr)
    synthetic.lr.backward()
    assert float(synthetic.lr.detach()) == pytest.approx(exp(min(max(log_lr, LOW), HIGH)))
    assert synthetic.log_lr.grad == synthetic.lr.detach()


@pytest.mark.parametrize(("log_lr", "sign", "bound"), [(-845.0, -1.0, LOW), (300.0, 1.0, HIGH)])
def test_one_step_leads_back_into_the_range(log_lr: float, sign: float, bound: float) -> None:
    synthetic = toy(log_lr)
    optimiser = StepSizeSGD([synthetic.log_lr], 1.0)
    for _ in range(2):
        optimiser.zero_grad()
        (sign * synthetic.lr / synthetic.lr.detach()).backward()
        optimiser.step()
    assert float(synthetic.log_lr.detach()) == pytest.approx(bound - sign * MAX_LOG_CHANGE)


# --- the change in one step


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rate", [0.001, 0.1, 10.0])
def test_no_step_changes_it_by_more_than_the_bound(rate: float, momentum: float) -> None:
    parameter = torch.tensor(-4.0, requires_grad=True)
    optimiser = StepSizeSGD([parameter], rate, momentum=momentum)
    gradients = 10.0 ** (8 * torch.rand(200, generator=make_generator(0, "gradients")) - 3)
    for gradient in gradients * torch.randn(200, generator=make_generator(0, "signs")).sign():
        before = parameter.item()
        parameter.grad = gradient.clone()
        optimiser.step()
        assert abs(parameter.item() - before) <= MAX_LOG_CHANGE + 1e-5
        assert LOW <= parameter.item() <= HIGH


def test_within_the_bound_it_is_sgd_bit_for_bit() -> None:
    ours, theirs = (torch.tensor(-4.0, requires_grad=True) for _ in range(2))
    optimisers = StepSizeSGD([ours], 0.1, momentum=0.5), torch.optim.SGD([theirs], 0.1, momentum=0.5)
    for gradient in torch.randn(50, generator=make_generator(0, "gradients")):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
        assert torch.equal(ours, theirs)
    assert json.dumps(optimisers[0].state_dict(), default=str) == json.dumps(optimisers[1].state_dict(), default=str)


def test_a_fixed_step_size_stays() -> None:
    synthetic = toy()
    _, optimiser = make_optimisers(RecordedConfig(lr_lr=0.0, lr_teacher=0.1), synthetic)
    synthetic.log_lr.grad = torch.tensor(1e30)
    optimiser.step()
    assert float(synthetic.log_lr.detach()) == -3.0


# --- a student that goes far past its target


def matched(
    task: Task, expert: Expert, lr: float, learned: tuple[str, ...] = ("images", "log_lr"), overshoot: float = 2.0
) -> tuple[SyntheticSet, MatchTrajectory]:
    assert expert.recorded is not None
    images, labels = task.train
    rows = select_per_class("random", images, labels, 10, 1, seed=0)
    synthetic = SyntheticSet.from_images(images[rows], labels[rows], lr, learned)
    return synthetic, MatchTrajectory([expert.recorded], WholeEpochs(2, 1), task.loss, 5, overshoot=overshoot)


def test_it_teaches_its_step_size_alone(task: Task, expert: Expert) -> None:
    (synthetic, gated), (other, free) = (matched(task, expert, 5.0, overshoot=limit) for limit in (2.0, inf))
    loss, expected = gated(synthetic, 0, 0), free(other, 0, 0)
    loss.backward()
    expected.backward()
    assert loss.item() == expected.item() > 2
    assert synthetic.images.grad is None
    assert torch.equal(synthetic.log_lr.grad, other.log_lr.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize(("lr", "learned"), [(0.01, ("images", "log_lr")), (5.0, ("images",))])
def test_others_teach_the_images(task: Task, expert: Expert, lr: float, learned: tuple[str, ...]) -> None:
    """Those that do not go so far, and those whose step size is not learned: nothing else could come of these."""
    synthetic, objective = matched(task, expert, lr, learned)
    loss = objective(synthetic, 0, 0)
    loss.backward()
    assert (loss.item() > 2) == (lr > 1)
    assert synthetic.images.grad is not None
    assert synthetic.images.grad.norm() > 0


def test_without_gradients_its_loss_is_the_same(task: Task, expert: Expert) -> None:
    synthetic, objective = matched(task, expert, 5.0)
    with torch.no_grad():
        assert objective(synthetic, 0, 0).item() == objective(synthetic, 0, 0).item() > 2


def test_an_average_of_draws_can_hold_one(task: Task, expert: Expert) -> None:
    synthetic, objective = matched(task, expert, 5.0)
    Average(objective, 2)(synthetic, 0, 0).backward()
    assert synthetic.images.grad is None
    assert synthetic.log_lr.grad is not None


def test_the_step_size_comes_down_and_the_images_learn(task: Task, expert: Expert) -> None:
    """A start 200 times too large: by plain SGD it was at the least step size after one step, for good."""
    synthetic, objective = matched(task, expert, 5.0)
    start = synthetic.images.detach().clone()
    optimisers = [torch.optim.SGD([synthetic.images], 5.0), StepSizeSGD([synthetic.log_lr], 0.1, momentum=0.5)]
    losses: list[float] = []
    outer_loop(
        objective, synthetic, optimisers, range(40), 0, hooks=[lambda synthetic, step, loss: losses.append(loss)]
    )
    assert losses[0] > 100
    assert max(losses[-10:]) < 0.95
    assert 1e-3 < float(synthetic.lr.detach()) < 1
    assert not torch.equal(synthetic.images, start)


# --- what is said of it


def monitored(losses: list[float], log_lr: float = -3.0, *, moves: bool = True) -> tuple[StudentMonitor, list[str]]:
    synthetic, heard = toy(log_lr), list[str]()
    monitor = StudentMonitor(heard.append, patience=3)
    for step, loss in enumerate(losses):
        synthetic.images.data += float(moves)
        monitor(synthetic, step + 1, loss)
    return monitor, heard


def test_a_healthy_student_is_not_mentioned() -> None:
    assert monitored([0.9, 1.0, 1.0, 0.998, 1.0, 1.0, 1.3, 0.5])[1] == []


@pytest.mark.parametrize(
    ("losses", "log_lr", "words"),
    [
        ([16900.0] * 9, log(0.02), "16,900.0.*--lr-teacher 0.0002"),
        ([3.8e27] * 9, HIGH - 1, "loss is 4e[+]27, where"),
        ([1.0005] * 9, -9.0, "within 0.001 of 1 for 3 steps"),
        ([0.9] * 9, LOW, "at its bound, 1.1e-07"),
        ([0.9] * 9, HIGH, r"at its bound, 1.5e\+02"),
    ],
    ids=["far", "very far", "still", "low", "high"],
)
def test_what_goes_wrong_is_said_once(losses: list[float], log_lr: float, words: str) -> None:
    (text,) = monitored(losses, log_lr)[1]
    assert re.search(words, text)


def test_what_cannot_end_well_ends() -> None:
    with pytest.raises(DivergenceError, match="step 3: the student stands still, and its step size 1e-07 is the least"):
        monitored([1.0] * 3, LOW)
    with pytest.raises(DivergenceError, match=r"step 4: .*nothing moved"):  # the first step has nothing to compare with
        monitored([5.0] * 4, moves=False)
    monitored([5.0] * 9)  # the step size or the images still move


def test_the_monitor_is_taken_up() -> None:
    losses = [5.0, 1.0, 1.0]
    monitor, _ = monitored(losses, moves=False)
    again = StudentMonitor(monitor.warn, patience=3)
    again.restore(copy.deepcopy(monitor.state()), 3)
    assert again == monitor
    assert again.warnings == {"far"}


# --- the whole job


def small_data(digits: ImageData) -> ImageData:
    """60 images of two classes."""

    def two(split: Split) -> Split:
        rows = (split.labels < 2).nonzero().squeeze(1)[:60]
        return Split(split.images[rows], split.labels[rows])

    parts = (two(split) for split in (digits.train, digits.validation, digits.test))
    return ImageData("two", *parts, digits.classes[:2], digits.notes, "two-digits")


OPTIONS: dict[str, Any] = {
    "num_experts": 1,
    "model": ModelConfig(width=4),
    "expert": ExpertConfig(epochs=1),
    "eval": EvalConfig(networks=1, epochs=2, baseline_lrs=(0.01,), full_networks=0),
    "iterations": 30,
    "validate_networks": 1,
    "validate_epochs": 2,
    "validate_every": 30,
}


def log_lines(run: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if line["event"] == event]


def test_weak_experts_of_little_data_still_teach(digits: ImageData, tmp_path: Path) -> None:
    run = limbeck.distill(small_data(digits), out=tmp_path / "run", **OPTIONS)
    steps = log_lines(run, "step")
    assert steps[0]["loss"] > 100
    assert steps[-1]["loss"] < 0.9
    assert steps[-1]["lr"] > 1e-6
    assert len([line for line in log_lines(run, "warning") if "goes far past" in str(line["text"])]) == 1


def test_an_interrupted_run_ends_alike_and_warns_once(digits: ImageData, tmp_path: Path) -> None:
    options = {**OPTIONS, "iterations": 12, "validate_every": 3}
    data, advanced = small_data(digits), 0

    def stop(event: dict[str, Any]) -> None:
        nonlocal advanced
        advanced += event["event"] == "advance" and "loss" in event["text"]
        if advanced == 7:
            raise KeyboardInterrupt

    whole = limbeck.distill(data, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(data, out=tmp_path / "parts", listen=stop, **options)
    parts = limbeck.distill(data, out=tmp_path / "parts", **options)
    ends = [load_file(run / "state.safetensors") for run in (whole, parts)]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert any(name.startswith("extra.1.") for name in ends[0])  # the monitor, after the average of the images
    for run in (whole, parts):
        assert len([line for line in log_lines(run, "warning") if "goes far past" in line["text"]]) == 1


def test_a_fixed_step_size_that_is_far_too_large_is_refused(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing moved.*--lr-teacher"):
        limbeck.distill(small_data(digits), out=tmp_path / "run", lr_lr=0.0, **OPTIONS)
