"""Losses of a student's path: the nearest step, masks, shapes; against plain unrolls, brute force and closed forms."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.types import Batch
from limbeck.experts import ExpertConfig, Recorded, WholeEpochs, convexify
from limbeck.methods import METHODS, DataFacts, MethodInputs
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.objectives import MatchTrajectory, displacement
from limbeck.objectives.path import (
    Nearest,
    PositionAndShape,
    halfway_and_last,
    masked_displacement,
    shape_distance,
)
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training.unroll import Backprop, Replay, unroll

pytestmark = pytest.mark.usefixtures("untouched_generators")

MODEL = flat_model(ModelConfig(name="mlp", width=6), (1, 4, 4), 3)
LOSS = CrossEntropy(MODEL)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


START = MODEL.init(1).double()


def make_set() -> SyntheticSet:
    return SyntheticSet.from_images(draw(6, 1, 4, 4, seed=3), torch.arange(6) // 2, 0.3)


class Line:
    """A trajectory in float64 from START by 0.2 an epoch along a direction, and by t^2 along another."""

    end = 4

    def __init__(self, direction: Tensor, bend: Tensor | None = None):
        self.direction, self.bend = direction, torch.zeros_like(direction) if bend is None else bend

    def at(self, t: float) -> Tensor:
        return START + 0.2 * t * self.direction + 0.05 * t**2 * self.bend


def student_direction(steps: int) -> Tensor:
    """Where a student goes in `steps` steps, so that a target on that line is passed."""
    synthetic = make_set()
    pair = synthetic.training_pair()
    with torch.no_grad():
        return unroll(LOSS, START, [Batch(*pair)] * steps, 0.3).detach() - START


def objective(steps: int, **options: Any) -> MatchTrajectory:
    return MatchTrajectory([Line(student_direction(3))], WholeEpochs(1, 4), LOSS, steps, overshoot=inf, **options)


def value_and_gradients(match: MatchTrajectory, step: int = 0) -> list[Tensor]:
    synthetic = make_set()
    loss = match(synthetic, step, 0)
    return [loss.detach(), *torch.autograd.grad(loss, [synthetic.images, synthetic.log_lr])]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# --- the nearest step


def test_the_loss_of_the_nearest_step_is_that_of_a_student_of_so_many_steps() -> None:
    """Value and gradients; the target lies near step 3 of 8, by brute force over whole students."""
    nearest = value_and_gradients(objective(8, stop=Nearest()))
    fixed = [value_and_gradients(objective(steps)) for steps in range(1, 9)]
    segment = objective(8).segment(0, 0, torch.device("cpu"))
    pair = make_set().training_pair()
    with torch.no_grad():
        ends = [unroll(LOSS, segment.start, [Batch(*pair)] * steps, 0.3) for steps in range(1, 9)]
    distances = [float((end - segment.target).abs().sum()) for end in ends]
    best = int(np.argmin(distances))
    assert 0 < best < 7
    assert_equal(nearest, fixed[best])
    assert not torch.allclose(nearest[1], fixed[7][1])
    for adjoint in (Backprop(), Replay()):
        assert_equal(value_and_gradients(objective(8, stop=Nearest(), adjoint=adjoint)), fixed[best])


def test_a_student_that_is_nearest_at_its_end_is_matched_as_ever() -> None:
    assert_equal(value_and_gradients(objective(2, stop=Nearest())), value_and_gradients(objective(2)))


@pytest.mark.parametrize("power", [1, 2])
def test_the_nearest_step_is_the_last_of_equals_and_never_the_start(power: int) -> None:
    path = [draw(5, seed=seed) for seed in range(6)]
    path[3] = path[2]
    for target in (path[2], path[0], draw(5, seed=9)):
        distances = [float(((theta - target).abs() ** power).sum()) for theta in path]
        least = min(distances[1:])
        expected = max(step for step in range(1, 6) if distances[step] == least)
        assert Nearest(power)(path, target) == [expected]
    assert Nearest()([torch.tensor([float("nan")])] * 4, torch.zeros(1)) == [3]


# --- the mask


def test_a_share_of_all_is_the_displacement_and_a_smaller_one_sees_no_other_parameter() -> None:
    theta, start, target = (draw(40, seed=seed) for seed in range(3))
    torch.testing.assert_close(masked_displacement(theta, start, target, 1.0), displacement(theta, start, target))
    errors = (theta - target).square()
    for share, count in ((0.25, 10), (0.26, 10), (0.001, 1)):
        rows = errors.argsort()[:count]
        expected = errors[rows].sum() / (start - target)[rows].square().sum()
        torch.testing.assert_close(masked_displacement(theta, start, target, share), expected)
        leaf = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(masked_displacement(leaf, start, target, share), leaf)
        assert sorted(gradient.nonzero().flatten().tolist()) == sorted(rows.tolist())


# --- the shape


def relational_angles(points: list[Tensor]) -> Tensor:
    """The 27 inner products of unit vectors, as relational knowledge distillation has them (Park et al. 2019)."""
    stacked = torch.stack(points)
    units = F.normalize(stacked[None] - stacked[:, None], dim=2)
    return torch.bmm(units, units.transpose(1, 2)).flatten()


def test_the_shape_is_the_mean_over_27_inner_products() -> None:
    for seed in range(5):
        student, teacher = ([draw(7, seed=10 * seed + i + shift) for i in range(3)] for shift in (0, 5))
        expected = F.smooth_l1_loss(relational_angles(student), relational_angles(teacher))
        torch.testing.assert_close(shape_distance(student, teacher), expected)
    sharp = [torch.tensor(p, dtype=torch.float64) for p in ((0.0, 0.0), (1.0, 0.0), (2.0, 0.0))]
    folded = [sharp[0], sharp[1], sharp[0] - sharp[1]]  # cosines differ by 2, beyond the knee
    expected = F.smooth_l1_loss(relational_angles(sharp), relational_angles(folded))
    torch.testing.assert_close(shape_distance(sharp, folded), expected)


def test_the_shape_is_unchanged_by_similarities() -> None:
    student, teacher = ([draw(7, seed=i + shift) for i in range(3)] for shift in (0, 5))
    rotation, _ = torch.linalg.qr(draw(7, 7, seed=20))
    moved = [3.0 * rotation @ point + draw(7, seed=21) for point in student]
    assert float(shape_distance(student, moved)) < 1e-20
    torch.testing.assert_close(shape_distance(moved, teacher), shape_distance(student, teacher))
    assert float(shape_distance(student, student)) == 0


def test_the_gradient_of_the_shape() -> None:
    teacher = [draw(5, seed=i) for i in range(3)]
    student = [draw(5, seed=i + 5).requires_grad_() for i in range(3)]
    assert torch.autograd.gradcheck(lambda *points: shape_distance(points, teacher), student)
    still = [teacher[0].clone().requires_grad_()] * 3  # a student that does not move
    (gradient,) = torch.autograd.grad(shape_distance(still, teacher), still[0])
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_position_and_shape_are_those_of_two_students(weight: float) -> None:
    """Of N // 2 and of N steps, with gradients through both; the share grows to all parameters."""
    expert = Line(draw(len(START), seed=1), draw(len(START), seed=2))
    sampler, distance = WholeEpochs(2, 3), PositionAndShape(0.2, steps=10, weight=weight)
    match = MatchTrajectory([expert], sampler, LOSS, 5, stop=halfway_and_last, path_distance=distance, overshoot=inf)
    for step, share in ((0, 0.2), (5, 0.6), (10, 1.0), (99, 1.0)):
        synthetic = make_set()
        segment = match.segment(step, 0, torch.device("cpu"))
        loss = match(synthetic, step, 0)
        pair = synthetic.training_pair()
        middle, end = (
            unroll(LOSS, segment.start, [Batch(*pair)] * steps, synthetic.lr, Backprop()) for steps in (2, 5)
        )
        expected = masked_displacement(end, segment.start, segment.target, share)
        teacher = (segment.start, expert.at(segment.t0 + 1.5), segment.target)
        expected = expected + weight * shape_distance((segment.start, middle, end), teacher)
        torch.testing.assert_close(loss, expected)
        ours, theirs = (torch.autograd.grad(value, synthetic.images)[0] for value in (loss, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# --- methods


def test_hop_tm_of_all_parameters_without_shape_is_mtt(task: Task) -> None:
    points = torch.stack([task.model.init(index) for index in range(5)])
    values = []
    for name, expert, own in (
        ("mtt", Recorded(points), {}),
        ("hop-tm", convexify(points, task.model.layout, tuple(range(5))), {"share": 1.0, "shape": 0.0}),
    ):
        method = METHODS[name]
        config = method.config(syn_steps=3, expert_epochs=2, max_start_epoch=2, lr_teacher=0.02, **own)
        options = method.resolve_options(config, DataFacts(len(task.data.train), 1, ExpertConfig(epochs=4)))
        plan = method.plan(options, MethodInputs(task, [expert], 1, 0))
        values.append([float(plan.objective(plan.synthetic, step, 0).detach()) for step in range(3)])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_hop_tm_needs_a_student_with_a_middle(task: Task) -> None:
    expert = convexify(torch.stack([task.model.init(index) for index in range(3)]), task.model.layout, (0, 1, 2))
    method = METHODS["hop-tm"]
    options = method.resolve_options(method.config(syn_steps=1), DataFacts(300, 1, ExpertConfig(epochs=2)))
    with pytest.raises(UserError, match="raise --syn-steps"):
        method.plan(options, MethodInputs(task, [expert], 1, 0))
