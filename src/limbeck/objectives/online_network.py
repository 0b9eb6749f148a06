"""The network that real and synthetic images are compared under: new every few steps, ageing in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.types import Batch
from limbeck.data.cutmix import cutmix
from limbeck.derivatives.autograd import Loss
from limbeck.networks.flat import FlatModel
from limbeck.objectives.classes import Augment, Pair, unchanged
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.plain import Schedule, final_parameters, train

Begin = Callable[[int], Tensor]
"""Number of the network -> its first parameters (P,)."""

TrainingBatches = Callable[[SyntheticSet, int], Iterable[Pair]]
"""(the set, steps done) -> the batches that the network is trained on before the next step, as it sees them."""


class Sgd(NamedTuple):
    """How the network is trained."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def step(self, theta: Tensor, velocity: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """New parameters and new velocity, each (P,); as torch.optim.SGD without dampening."""
        velocity = self.momentum * velocity + gradient + self.weight_decay * theta
        return theta - self.lr * velocity, velocity


@dataclass(frozen=True)
class RandomInit:
    """A new random network for every number, trained by `warm_up` on real images first where that is given."""

    model: FlatModel
    seed: int
    device: torch.device
    warm_up: Callable[[Tensor, int], Tensor] | None = None

    def __call__(self, number: int) -> Tensor:
        theta = self.model.init(self.seed, "pool", number).to(self.device)
        return theta if self.warm_up is None else self.warm_up(theta, derive_seed(self.seed, "warm-up", number))


@dataclass(frozen=True)
class WarmUp:
    """Some epochs of plain training on all real images: DREAM+ gives every new network one."""

    loss: Loss
    real: Pair
    schedule: Schedule

    def __call__(self, theta: Tensor, seed: int) -> Tensor:
        return final_parameters(train(self.loss, theta, *self.real, self.schedule, seed))


def none(synthetic: SyntheticSet, step: int) -> list[Pair]:
    """The network does not learn."""
    return []


@dataclass(frozen=True)
class RealBatches:
    """`steps` batches of real images, augmented each for itself, a part `cutmix` of them by CutMix (IDC, DREAM)."""

    real: Pair
    classes: int
    steps: int
    batch: int
    seed: int
    augment: Augment = unchanged
    cutmix: float = 0.5

    def __call__(self, synthetic: SyntheticSet, step: int) -> Iterable[Pair]:
        images, labels = self.real
        for lesson in range(self.steps):
            generator = make_generator(self.seed, "lesson", step, lesson)
            rows = torch.randperm(len(images), generator=generator)[: self.batch].to(images.device)
            batch = self.augment(images[rows], derive_seed(self.seed, "lesson", step, lesson))
            target = F.one_hot(labels[rows], self.classes).to(batch.dtype)
            mixed = float(torch.rand((), generator=generator)) < self.cutmix
            yield cutmix(batch, target, generator) if mixed else (batch, target)


@dataclass(frozen=True)
class SyntheticBatches:
    """`passes` over the synthetic set in batches of `batch`, each image augmented for itself (DC, DSA)."""

    passes: int
    batch: int
    seed: int
    augment: Augment = unchanged

    def __call__(self, synthetic: SyntheticSet, step: int) -> Iterable[Pair]:
        held = synthetic.snapshot()
        count = len(held.training_pair()[0])
        batches = held.batches(
            self.passes * -(-count // self.batch), self.batch, make_generator(self.seed, "lesson", step)
        )
        for images, labels, seed, rows in batches:
            batch = (images, labels) if rows is None else (images[rows], labels[rows])
            yield (batch[0] if seed is None else self.augment(batch[0], seed)), batch[1]


class OnlineNetwork:
    """One network at a time, as explicit state: new every `every` steps, trained on `lessons` between the others.

    loss: what it is trained by, of images as the lessons have them. A hook: after a step it makes the network of the
    next one. Parameters and velocity are all it remembers; what it draws is a function of (seed, step).
    """

    def __init__(self, loss: Loss, begin: Begin, every: int, lessons: TrainingBatches = none, sgd: Sgd | None = None):
        self.loss, self.begin, self.every, self.lessons = loss, begin, every, lessons
        self.sgd = sgd or Sgd(0.01)
        self.theta = begin(0)
        self.velocity = torch.zeros_like(self.theta)

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        if step % self.every == 0:
            self.theta = self.begin(step // self.every)
            self.velocity = torch.zeros_like(self.theta)
            return
        for images, labels in self.lessons(synthetic, step):
            gradient = self.loss.gradient(self.theta, Batch(images, labels))
            self.theta, self.velocity = self.sgd.step(self.theta, self.velocity, gradient)

    def network(self) -> Tensor:
        """The present parameters (P,)."""
        return self.theta.detach()

    def state(self) -> dict[str, Tensor]:
        """Parameters and velocity."""
        return {"theta": self.theta, "velocity": self.velocity}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Take them up again."""
        self.theta, self.velocity = state["theta"].to(self.theta), state["velocity"].to(self.velocity)
