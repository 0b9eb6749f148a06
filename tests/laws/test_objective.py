"""Laws of the objective and of the loop that lowers it: gradients in their place, progress, bit-exact resume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from math import inf, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.core.records import LoopProgress, RunRecord
from limbeck.core.rng import make_generator
from limbeck.core.types import Segment
from limbeck.experts import Continuous, Expert, WholeEpochs
from limbeck.jobs.record import RunFolder
from limbeck.methods.trajectory_matching import GRADIENTS
from limbeck.objectives import MatchTrajectory, displacement
from limbeck.select import select_per_class
from limbeck.synthetic.loop import DivergenceError, outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training import Momentum, Plain, unroll
from limbeck.training.unroll import Adjoint

pytestmark = pytest.mark.usefixtures("untouched_generators")

LEARNED = [("images", "log_lr"), ("images",), ("images", "labels", "log_lr")]
OPTIMISERS: dict[str, Callable[[SyntheticSet], list[torch.optim.Optimizer]]] = {
    "sgd": lambda synthetic: [
        torch.optim.SGD([synthetic.images], 5.0, momentum=0.5),
        torch.optim.SGD([synthetic.log_lr], 0.05, momentum=0.5),
    ],
    "plain sgd": lambda synthetic: [
        torch.optim.SGD([synthetic.images], 5.0),
        torch.optim.SGD([synthetic.log_lr], 0.05),
    ],
    "adam": lambda synthetic: [torch.optim.Adam([synthetic.images], 0.02), torch.optim.Adam([synthetic.log_lr], 0.01)],
}


def real_set(task: Task, learned: tuple[str, ...] = ("images", "log_lr"), lr: float = 0.05) -> SyntheticSet:
    """Two real images a class; label logits where labels are learned."""
    images, labels = task.train
    rows = select_per_class("random", images, labels, 10, 2, seed=0)
    start = labels[rows]
    if "labels" in learned:
        start = 3.0 * torch.nn.functional.one_hot(start, 10).float()
    return SyntheticSet.from_images(images[rows], start, lr, learned)


def match(
    task: Task, expert: Expert, adjoint: Adjoint = GRADIENTS["exact"], batch: int | None = None
) -> MatchTrajectory:
    assert expert.convex is not None
    return MatchTrajectory([expert.convex], Continuous(1.5, 1.0), task.loss, 6, batch, adjoint)


@pytest.mark.parametrize("batch", [None, 7])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("learned", LEARNED, ids="-".join)
def test_the_gradient_is_finite_and_nowhere_else(
    task: Task, expert: Expert, learned: tuple[str, ...], gradient: str, batch: int | None
) -> None:
    assert expert.convex is not None
    experts = [expert.convex.waypoints.clone(), expert.convex.beta.clone()]
    data = [tensor.clone() for tensor in task.train]
    synthetic = real_set(task, learned)
    snapshot = synthetic.snapshot()
    objective = match(task, expert, GRADIENTS[gradient], batch)
    loss = objective(synthetic, 3, 0)
    assert loss.ndim == 0
    assert loss > 0
    loss.backward()
    for name, tensor in synthetic.state().items():
        assert (tensor.grad is not None) == (name in learned), name
        if tensor.grad is not None:
            assert torch.isfinite(tensor.grad).all(), name
            assert tensor.grad.norm() > 0, name
        assert torch.equal(tensor, snapshot.state()[name])
    assert torch.equal(expert.convex.waypoints, experts[0])
    assert torch.equal(expert.convex.beta, experts[1])
    assert expert.convex.waypoints.grad is None
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(task.train, data))
    assert all(parameter.grad is None for parameter in task.model.module.parameters())


def test_it_is_random_only_through_seed_and_step(task: Task, expert: Expert) -> None:
    objective, synthetic = match(task, expert, batch=7), real_set(task)
    value = objective(synthetic, 3, 0)
    assert torch.equal(value, objective(synthetic, 3, 0))
    assert not torch.equal(value, objective(synthetic, 4, 0))
    assert not torch.equal(value, objective(synthetic, 3, 1))


def test_every_step_has_its_own_batches(task: Task, expert: Expert) -> None:
    """Augmentation and order differ between steps that match the same segment."""
    assert expert.convex is not None

    def constant_segment(step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        return 0.5, 1.5

    objective = MatchTrajectory([expert.convex], constant_segment, task.loss, 3)
    assert not torch.equal(objective(real_set(task), 3, 0), objective(real_set(task), 4, 0))


def test_batches_pass_over_the_set_again_and_again(task: Task) -> None:
    synthetic = real_set(task)
    batches = synthetic.batches(7, 6, torch.Generator().manual_seed(0))
    rows = [batch.rows.tolist() for batch in batches if batch.rows is not None]
    assert [len(part) for part in rows] == [6, 6, 6, 2, 6, 6, 6]
    assert sorted(row for part in rows[:4] for row in part) == list(range(20))
    assert rows[0] != rows[4]
    assert len({batch.seed for batch in batches}) == 7
    assert all(batch.images is batches[0].images for batch in batches)
    batches = synthetic.batches(2, None, torch.Generator().manual_seed(0))
    assert [batch.rows for batch in batches] == [None, None]


def test_learned_labels_are_probabilities(task: Task) -> None:
    soft = real_set(task, LEARNED[2])
    torch.testing.assert_close(soft.training_pair()[1], soft.labels.softmax(1))
    hard = real_set(task)
    assert torch.equal(hard.training_pair()[1], hard.labels)


def test_it_matches_the_segment_it_says(task: Task, expert: Expert) -> None:
    """The loss is the displacement of an unroll written out here, over MTT's whole epochs."""
    assert expert.recorded is not None
    objective = MatchTrajectory([expert.recorded], WholeEpochs(2, 1), task.loss, steps=3)
    synthetic = real_set(task)
    segment = objective.segment(5, 0, torch.device("cpu"))
    assert torch.equal(segment.start, expert.recorded.at(segment.t0))
    assert torch.equal(segment.target, expert.recorded.at(segment.t0 + 1))
    vectors: list[Tensor] = []

    def distance(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
        vectors.extend([theta, start, target])
        return objective.distance(theta, start, target)

    watched = MatchTrajectory([expert.recorded], WholeEpochs(2, 1), task.loss, 3, distance=distance)
    loss = watched(synthetic, 5, 0)
    theta, start, target = vectors
    assert torch.equal(start, segment.start)
    assert torch.equal(target, segment.target)
    expected = ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()
    torch.testing.assert_close(loss, expected)


def test_the_student_has_the_rule_it_is_given(task: Task, expert: Expert) -> None:
    """Momentum of 0 is plain descent bit for bit, and another one is the displacement of that unroll."""
    assert expert.recorded is not None
    values = []
    for rule in (Plain(), Momentum(0.0), Momentum(0.9)):
        objective = MatchTrajectory([expert.recorded], WholeEpochs(2, 1), task.loss, steps=3, descent=rule)
        synthetic = real_set(task)
        value = objective(synthetic, 5, 0)
        value.backward()
        values.append((value.detach(), synthetic.images.grad))
    assert all(torch.equal(a, b) for a, b in zip(*values[:2]) if a is not None and b is not None)
    segment, synthetic = objective.segment(5, 0, torch.device("cpu")), real_set(task)
    batches = synthetic.batches(3, None, make_generator(0, "batches", 5))
    theta = unroll(task.loss, segment.start, batches, synthetic.lr, descent=Momentum(0.9))
    torch.testing.assert_close(values[2][0], displacement(theta, segment.start, segment.target).detach())
    assert values[2][0] != values[0][0]


def test_labels_can_come_from_the_segment(task: Task, expert: Expert) -> None:
    assert expert.convex is not None
    segments: list[Segment] = []

    def teacher(images: Tensor, segment: Segment) -> Tensor:
        segments.append(segment)
        return task.model(segment.target, images).softmax(1)

    synthetic = real_set(task)
    with_labels = MatchTrajectory([expert.convex], Continuous(1.5, 1.0), task.loss, 3, labels=teacher)
    without_labels = MatchTrajectory([expert.convex], Continuous(1.5, 1.0), task.loss, 3)
    assert not torch.equal(with_labels(synthetic, 0, 0), without_labels(synthetic, 0, 0))
    expected = without_labels.segment(0, 0, torch.device("cpu"))
    assert torch.equal(segments[0].target, expected.target)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_thirty_steps_lower_the_loss(task: Task, expert: Expert, gradient: str) -> None:
    objective, synthetic = match(task, expert, GRADIENTS[gradient]), real_set(task)

    def mean() -> float:
        return sum(float(objective(synthetic, step, 99).detach()) for step in range(8)) / 8

    initial = mean()
    outer_loop(objective, synthetic, OPTIMISERS["adam"](synthetic), range(30), seed=0)
    assert mean() < 0.95 * initial


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_loss_is_the_same_where_no_gradient_is_kept(task: Task, expert: Expert, gradient: str) -> None:
    objective, synthetic = match(task, expert, GRADIENTS[gradient]), real_set(task)
    with torch.no_grad():
        value = objective(synthetic, 0, 0)
    torch.testing.assert_close(value, objective(synthetic, 0, 0).detach())


@pytest.mark.parametrize("learned", [LEARNED[0], LEARNED[2]], ids="-".join)
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_run_is_taken_up_bit_for_bit(
    task: Task, expert: Expert, tmp_path: Path, kind: str, learned: tuple[str, ...]
) -> None:
    objective = match(task, expert, batch=7)

    def make_set_and_optimisers() -> tuple[SyntheticSet, list[torch.optim.Optimizer]]:
        synthetic = real_set(task, learned)
        label_optimisers = [torch.optim.SGD([synthetic.labels], 0.1, momentum=0.9)] if "labels" in learned else []
        return synthetic, OPTIMISERS[kind](synthetic) + label_optimisers

    uninterrupted, optimisers = make_set_and_optimisers()
    outer_loop(objective, uninterrupted, optimisers, range(10), seed=3)

    first, optimisers = make_set_and_optimisers()
    outer_loop(objective, first, optimisers, range(6), seed=3)
    run = RunFolder.begin(tmp_path / "run", RunRecord(format="limbeck-run", version=1, config={"seed": 3}))
    average = torch.randn(3, generator=torch.Generator().manual_seed(0))
    progress = LoopProgress(best=0.25, best_step=4, seconds=1.5)
    run.save_state(first, optimisers, 6, progress, {"average": average})

    resumed_run = RunFolder.begin(tmp_path / "run", RunRecord(format="limbeck-run", version=1, config={"seed": 3}))
    second, optimisers = make_set_and_optimisers()
    header, extra = resumed_run.load_state(second, optimisers)
    assert header is not None
    assert (header.step, header.more) == (6, progress)
    assert torch.equal(extra["average"], average)
    assert all(torch.equal(second.state()[name], tensor) for name, tensor in first.state().items())
    outer_loop(objective, second, optimisers, range(header.step, 10), seed=3)
    assert not torch.equal(second.images, first.images)
    assert all(torch.equal(second.state()[name], tensor) for name, tensor in uninterrupted.state().items())


def test_a_fresh_run_has_no_state(task: Task, tmp_path: Path) -> None:
    synthetic = real_set(task)
    run = RunFolder.begin(tmp_path / "run", RunRecord(format="limbeck-run", version=1, config={}))
    assert run.load_state(synthetic, OPTIMISERS["sgd"](synthetic)) == (None, {})


# --- the loop


def toy() -> tuple[SyntheticSet, list[torch.optim.Optimizer]]:
    synthetic = SyntheticSet.from_images(torch.ones(1, 1, 2, 2), torch.tensor([0]), 0.1)
    return synthetic, [torch.optim.SGD([synthetic.images], 0.1), torch.optim.SGD([synthetic.log_lr], 0.1)]


BROKEN: dict[str, Callable[[SyntheticSet], Tensor]] = {
    "loss nan": lambda synthetic: synthetic.images.sum() * synthetic.lr * nan,
    "loss infinite": lambda synthetic: synthetic.images.sum() * synthetic.lr + inf,
    "gradient nan": lambda synthetic: (synthetic.images * 0).sum().sqrt() * 0 + synthetic.lr,
    "gradient infinite": lambda synthetic: (synthetic.images * 0).sqrt().sum() + synthetic.lr,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_loop_stops_before_a_step_that_is_not_finite(kind: str) -> None:
    synthetic, optimisers = toy()
    snapshots: list[SyntheticSet] = []

    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        return BROKEN[kind](synthetic) if step == 3 else synthetic.images.square().sum() + synthetic.lr

    with pytest.raises(DivergenceError, match="step 3"):
        outer_loop(objective, synthetic, optimisers, range(9), 0, hooks=[lambda s, *_: snapshots.append(s.snapshot())])
    assert len(snapshots) == 3
    assert all(torch.equal(tensor, snapshots[-1].state()[name]) for name, tensor in synthetic.state().items())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in synthetic.state().values())


def test_a_refused_step_changes_nothing_and_is_still_told() -> None:
    synthetic, optimisers = toy()
    initial, losses = synthetic.snapshot(), list[tuple[int, float]]()

    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        return synthetic.images.sum() * (step + 1)

    def hook(synthetic: SyntheticSet, step: int, loss: float) -> None:
        losses.append((step, loss))

    outer_loop(objective, synthetic, optimisers, range(3), 0, accept=lambda loss: loss < 4, hooks=[hook])
    assert [step for step, _ in losses] == [1, 2, 3]
    assert losses[0][1] == 4
    assert torch.equal(initial.images, synthetic.images)


def test_steps_and_seed_are_handed_on() -> None:
    synthetic, optimisers = toy()
    calls: list[Sequence[int]] = []

    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        calls.append((step, seed))
        return synthetic.images.sum() + synthetic.lr

    outer_loop(objective, synthetic, optimisers, range(4, 7), 11)
    assert calls == [(4, 11), (5, 11), (6, 11)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("lr_log_lr", [0.1, 1.0, 1e3, 1e6])
def test_the_step_size_stays_positive(lr_log_lr: float, sign: float) -> None:
    """However hard it is pushed: the run may end as diverged, and then the set still holds a usable step size."""
    synthetic, _ = toy()
    optimisers = [torch.optim.SGD([synthetic.log_lr], lr_log_lr)]

    def objective(synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        return sign * synthetic.lr + synthetic.images.sum()

    with contextlib.suppress(DivergenceError):
        outer_loop(objective, synthetic, optimisers, range(20), 0)
    lr = float(synthetic.lr.detach())
    assert 0 < lr < inf
