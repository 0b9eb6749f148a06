"""The loss on real images of a student that is made from the set: by training (BPTT) or by solving (RCIG)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.core.types import Batch, PureLoss
from limbeck.data.augment import append_mirror_images
from limbeck.derivatives.autograd import Loss
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import cross_entropy
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.implicit import Implicit, linearised, solve
from limbeck.training.unroll import Adjoint, Replay, unroll

EXACT, IMPLICIT = Replay(), Implicit()
Predictor = Callable[[Tensor], Tensor]
"""images (n, ...) -> logits (n, classes), differentiable in the set that the student was made from."""

Student = Callable[[SyntheticSet, int, int], Predictor]
"""(set, step, seed) -> a student made from the set, random only through (seed, step)."""

OuterLoss = Callable[[Tensor, Tensor, SyntheticSet], Tensor]
"""(logits (n, classes), int64 classes (n,), set) -> scalar."""


def classified(logits: Tensor, labels: Tensor, synthetic: SyntheticSet) -> Tensor:
    """Cross-entropy, whatever the set is."""
    return cross_entropy(logits, labels)


@dataclass(frozen=True)
class Fit:
    """How well a student that knows only the set does on real images.

    student:    how it is made, which says how it is differentiated.
    real:       images in network input space and int64 classes; batch_size: of them per outer step (None: all).
    loss:       of its logits.

    Back-propagation through training and implicit gradients differ in the student alone:

    >>> from limbeck.data import load_data
    >>> from limbeck.networks.registry import ModelConfig
    >>> from limbeck.task import make_task
    >>> task = make_task(load_data("digits"), ModelConfig(width=32))
    >>> bptt = Fit(Trained(task.model, task.loss, steps=3, adjoint=Replay()), task.train, 64)
    >>> rcig = Fit(Solved(task.model, lambda step: task.model.init(step), ridge=0.01), task.train, 64)
    >>> images, hot = task.train[0][:5], torch.eye(10)[task.train[1][:5]]
    >>> for objective in (bptt, rcig):
    ...     made = SyntheticSet.from_images(images, hot, lr=0.01, learned=("images", "labels"))
    ...     objective(made, 0, 0).backward()
    ...     print(made.images.grad.norm() > 0, made.labels.grad.norm() > 0)
    tensor(True) tensor(True)
    tensor(True) tensor(True)
    """

    student: Student
    real: tuple[Tensor, Tensor]
    batch_size: int | None = None
    loss: OuterLoss = classified

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        images, labels = self.real
        if self.batch_size is not None and self.batch_size < len(images):
            rows = torch.randperm(len(images), generator=make_generator(seed, "real", step))[: self.batch_size]
            images, labels = images[rows.to(images.device)], labels[rows.to(labels.device)]
        predict = self.student(synthetic, step, seed)
        return self.loss(predict(images), labels, synthetic)


@dataclass(frozen=True)
class Trained:
    """A network trained on the set from a random start, with the set's step size: back-propagation through training.

    model:      The network, whose logits are the prediction.
    loss:       Its training loss: `task.loss`, or any pure function of (theta, batch).
    steps:      Steps of training.
    batch_size: Synthetic images per step; None stands for all.
    adjoint:    How the gradient through the training is computed.
    """

    model: FlatModel
    loss: Loss | PureLoss
    steps: int
    batch_size: int | None = None
    adjoint: Adjoint = EXACT

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Predictor:
        theta0 = self.model.init(seed, "student", step).to(synthetic.images)
        batches = synthetic.batches(self.steps, self.batch_size, make_generator(seed, "batches", step))
        return partial(self.model, unroll(self.loss, theta0, batches, synthetic.lr, self.adjoint))


@dataclass(frozen=True)
class Solved:
    """A network linearised at start(step), its ridge regression on the set solved; labels are the targets as they are.

    flip:    the regression is on the images and their mirror images.
    through: stored images per outer step whose gradient is computed (None: all), chosen at random and scaled up.
             The released code leaves the scale out, and computes the system on a part of the set as well.
    """

    model: FlatModel
    start: Callable[[int], Tensor]
    ridge: float
    adjoint: Implicit = IMPLICIT
    flip: bool = False
    through: int | None = None

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Predictor:
        theta0 = self.start(step).to(synthetic.images)
        images, labels = synthetic.decoded_pair()
        count = len(images)
        rows = None
        if self.through is not None and self.through < count:
            order = torch.randperm(count, generator=make_generator(seed, "through", step))
            rows = order[: self.through].to(images.device)
        if self.flip:
            images, labels = append_mirror_images(images, labels)
            rows = None if rows is None else torch.cat([rows, rows + count])
        v = solve(self.model, theta0, Batch(images, labels), self.ridge, self.adjoint, rows)
        return partial(linearised, self.model, theta0, v)
