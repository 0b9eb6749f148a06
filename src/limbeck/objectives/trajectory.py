"""Trajectory matching: one objective, whose fields are the axes of every method of the family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.core.types import Batch, Distance, PureLoss, Sampler, Segment, Trajectory
from limbeck.derivatives.autograd import Loss
from limbeck.objectives.combine import of_step_size
from limbeck.objectives.distance import displacement
from limbeck.synthetic.hooks import OVERSHOOT
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.unroll import Adjoint, Replay, unroll

EXACT = Replay()
Labeller = Callable[[Tensor, Segment], Tensor]
"""(images, segment) -> label probabilities (n, classes), made anew at every outer step."""


@dataclass(frozen=True)
class MatchTrajectory:
    """Start a student where an expert was, train it on the synthetic set, ask that it ends where the expert went.

    trajectories: of the experts; sampler: which stretch of one to match; loss: the student's, pure.
    steps:        N, student steps per outer step; batch_size: synthetic images per student step (None: all).
    adjoint:      how the gradient through the student is taken; distance: MTT's normalised displacement.
    perturb:      changes the start (MCT's start noise), before the distance is normalised.
    labels:       None keeps the set's own labels; else they come from here (TESLA's and MCT's teacher labels).
    overshoot:    a loss above it has the gradient of the step size alone (where that is learned): a student that
                  goes far past its target says how much too large its steps are, and nothing of the images.

    Raises UserError where the sampler finds no segment on one of the trajectories.
    """

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

    def __post_init__(self) -> None:
        for end in sorted({path.end for path in self.trajectories}):
            self.sampler(0, end, make_generator(0, "segment"))

    def segment(self, step: int, seed: int, device: torch.device) -> Segment:
        """The stretch that outer step `step` matches."""
        generator = make_generator(seed, "segment", step)
        expert = self.trajectories[int(torch.randint(len(self.trajectories), (), generator=generator))]
        t0, t1 = self.sampler(step, expert.end, generator)
        start = expert.at(t0).to(device)
        if self.perturb is not None:
            start = self.perturb(start, generator)
        return Segment(start, expert.at(t1).to(device), t0, t1, expert)

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        segment = self.segment(step, seed, synthetic.images.device)
        batches = synthetic.batches(self.steps, self.batch_size, make_generator(seed, "batches", step))
        if self.labels is not None:
            labels = self.labels(batches[0].images.detach(), segment)
            batches = [Batch(batch.images, labels, batch.seed, batch.rows) for batch in batches]
        theta = unroll(self.loss, segment.start, batches, synthetic.lr, self.adjoint)
        loss = self.distance(theta, segment.start, segment.target)
        learned = synthetic.log_lr.requires_grad and loss.requires_grad
        return of_step_size(loss, synthetic) if learned and float(loss.detach()) > self.overshoot else loss
