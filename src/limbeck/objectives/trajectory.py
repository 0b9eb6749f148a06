"""Trajectory matching: one objective, whose fields are the axes of all methods of the family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.core.short_repr import short_repr
from limbeck.core.types import Batch, Distance, PureLoss, Sampler, Segment, Trajectory
from limbeck.derivatives.autograd import Loss
from limbeck.objectives.combine import keep_lr_gradient
from limbeck.objectives.distance import displacement
from limbeck.objectives.path import PathDistance, Stop
from limbeck.synthetic.hooks import OVERSHOOT
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.descent import Descent
from limbeck.training.unroll import PLAIN, Adjoint, Replay, unroll

EXACT = Replay()
Labeller = Callable[[Tensor, Segment], Tensor]
"""(images (n, c, h, w), segment) -> label probabilities (n, classes), computed at every outer step."""


@dataclass(frozen=True)
class MatchTrajectory:
    """An objective: the distance between a student trained on the synthetic set and an expert, from a common start.

    trajectories: Of the experts.
    sampler:      Chooses the segment of a trajectory that an outer step matches.
    loss:         The student's training loss: `task.loss`, or any pure function of (theta, batch).
    steps:        N, student steps per outer step.
    batch_size:   Synthetic images per student step; None for all.
    adjoint:      How the gradient through the student is computed.
    descent:      The rule of a student step; every segment begins with empty slots.
    distance:     Of the student from the segment's target; MTT's normalised `displacement` by default.
    stop:         Which steps of the student the loss looks at, and its gradient goes back from: ATT's `Nearest`, say;
                  None for the last.
    path_distance: Takes the place of `distance`, where the loss depends on more than the end of the student's path.
    labels:       The labels of the images at this segment (TESLA's and MCT's teacher labels); None keeps the set's own.
    perturb:      Changes the start before the student and the distance see it (MCT's start noise).
    overshoot:    A loss above it has the gradient of the step size alone, where that is learned: a student that ends
                  far beyond its target shows that its steps are too large, and nothing about the images.

    Raises UserError where the sampler finds no segment on one of the trajectories.

    >>> from limbeck.experts.recorded import Recorded
    >>> from limbeck.experts.segments import WholeEpochs
    >>> from limbeck.networks.losses import CrossEntropy
    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> model = flat_model(ModelConfig(name="mlp", width=4), (1, 8, 8), 2)
    >>> expert = Recorded(torch.stack([model.init(0), model.init(1)]))
    >>> objective = MatchTrajectory([expert], WholeEpochs(1, 1), CrossEntropy(model), steps=2)
    >>> synthetic = SyntheticSet.from_images(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]), lr=0.1)
    >>> objective(synthetic, step=0, seed=0).backward()
    >>> synthetic.images.grad.shape, synthetic.log_lr.grad.shape
    (torch.Size([2, 1, 8, 8]), torch.Size([]))
    """

    __repr__ = short_repr

    trajectories: Sequence[Trajectory]
    sampler: Sampler
    loss: Loss | PureLoss
    steps: int
    batch_size: int | None = None
    adjoint: Adjoint = EXACT
    distance: Distance = displacement
    labels: Labeller | None = None
    perturb: Callable[[Tensor, torch.Generator], Tensor] | None = None
    overshoot: float = OVERSHOOT
    stop: Stop | None = None
    path_distance: PathDistance | None = None
    descent: Descent = PLAIN

    def __post_init__(self) -> None:
        for end in sorted({trajectory.end for trajectory in self.trajectories}):
            self.sampler(0, end, make_generator(0, "segment"))

    def segment(self, step: int, seed: int, device: torch.device) -> Segment:
        """The segment that outer step `step` matches, on this device."""
        generator = make_generator(seed, "segment", step)
        expert = self.trajectories[int(torch.randint(len(self.trajectories), (), generator=generator))]
        t0, t1 = self.sampler(step, expert.end, generator)
        start = expert.at(t0).to(device)
        if self.perturb is not None:
            start = self.perturb(start, generator)
        return Segment(start, expert.at(t1).to(device), t0, t1, expert)

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The distance at this outer step: a scalar, differentiable in the set's learned parameters."""
        segment = self.segment(step, seed, synthetic.images.device)
        batches = synthetic.batches(self.steps, self.batch_size, make_generator(seed, "batches", step))
        if self.labels is not None:
            labels = self.labels(batches[0].images.detach(), segment)
            batches = [Batch(batch.images, labels, batch.seed, batch.rows) for batch in batches]
        stop, target = self.stop, segment.target
        choice = None if stop is None else (lambda path: stop(path, target))
        theta = unroll(self.loss, segment.start, batches, synthetic.lr, self.adjoint, self.descent, choice)
        if self.path_distance is not None:
            loss = self.path_distance(theta, segment, step)
        else:
            loss = self.distance(theta if stop is None else theta[0], segment.start, target)
        has_lr_gradient = synthetic.log_lr.requires_grad and loss.requires_grad
        if has_lr_gradient and float(loss.detach()) > self.overshoot:
            return keep_lr_gradient(loss, synthetic)
        return loss
