"""The network under which real and synthetic images are compared: re-initialised now and then, trained in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.sampling import balanced_rows
from limbeck.core.types import Batch
from limbeck.data.cutmix import cutmix
from limbeck.derivatives.autograd import Loss
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import Augment
from limbeck.objectives.classes import Pair
from limbeck.synthetic.loop import StatefulHook
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.plain import Schedule, final_parameters, train

Init = Callable[[int], Tensor]
"""Index of a network -> its first parameters (P,)."""

TrainingBatches = Callable[[SyntheticSet, int], Iterable[Pair]]
"""(synthetic set, outer steps done) -> the batches that the network is trained on before the next outer step."""


class Sgd(NamedTuple):
    """Hyperparameters of SGD, as torch.optim.SGD has them without dampening."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def step(self, theta: Tensor, velocity: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The new parameters and the new velocity, each (P,)."""
        velocity = self.momentum * velocity + gradient + self.weight_decay * theta
        return theta - self.lr * velocity, velocity


@dataclass(frozen=True)
class RandomInit:
    """An `Init`: a random network for every index, which `warm_up` trains on real images first if it is given."""

    model: FlatModel
    seed: int
    device: torch.device
    warm_up: Callable[[Tensor, int], Tensor] | None = None

    def __call__(self, index: int) -> Tensor:
        """The first parameters (P,) of network `index`."""
        theta = self.model.init(self.seed, "pool", index).to(self.device)
        return theta if self.warm_up is None else self.warm_up(theta, derive_seed(self.seed, "warm-up", index))


@dataclass(frozen=True)
class WarmUp:
    """A few epochs of training on all real images, which DREAM+ gives every new network."""

    loss: Loss
    real: Pair
    schedule: Schedule

    def __call__(self, theta: Tensor, seed: int) -> Tensor:
        """The parameters (P,) after training from theta (P,)."""
        return final_parameters(train(self.loss, theta, *self.real, self.schedule, seed))


@dataclass(frozen=True)
class RealBatches:
    """`TrainingBatches` of real images for IDC and DREAM.

    real:    All training images in network input space, and their int64 classes.
    classes: The number of classes.
    steps:   Batches per outer step; batch: images per batch.
    augment: Augments every image by itself; None augments nothing.
    cutmix:  The probability that a batch is mixed by CutMix.
    class_rows: The rows of every class, where a batch is to have as many images of every class.
    """

    real: Pair
    classes: int
    steps: int
    batch: int
    seed: int
    augment: Augment | None = None
    cutmix: float = 0.5
    class_rows: Sequence[Tensor] | None = None

    def __call__(self, synthetic: SyntheticSet, step: int) -> Iterable[Pair]:
        """Yield images and probabilities (batch, classes)."""
        images, labels = self.real
        for index in range(self.steps):
            generator = make_generator(self.seed, "lesson", step, index)
            if self.class_rows is None:
                rows = torch.randperm(len(images), generator=generator)[: self.batch].to(images.device)
            else:
                rows = balanced_rows(self.class_rows, self.batch, generator).to(images.device)
            batch = images[rows]
            if self.augment is not None:
                batch = self.augment(batch, derive_seed(self.seed, "lesson", step, index))
            target = F.one_hot(labels[rows], self.classes).to(batch.dtype)
            is_mixed = float(torch.rand((), generator=generator)) < self.cutmix
            yield cutmix(batch, target, generator) if is_mixed else (batch, target)


@dataclass(frozen=True)
class SyntheticBatches:
    """`TrainingBatches` of the synthetic set for DC and DSA.

    passes:  Over the whole set, per outer step; batch: images per batch.
    augment: Augments every image by itself; None augments nothing.
    """

    passes: int
    batch: int
    seed: int
    augment: Augment | None = None

    def __call__(self, synthetic: SyntheticSet, step: int) -> Iterable[Pair]:
        """Yield images and their labels."""
        snapshot = synthetic.snapshot()
        steps = self.passes * -(-len(snapshot.training_pair()[0]) // self.batch)
        batches = snapshot.batches(steps, self.batch, make_generator(self.seed, "lesson", step))
        for images, labels, seed, rows in batches:
            if rows is not None:
                images, labels = images[rows], labels[rows]
            if self.augment is not None and seed is not None:
                images = self.augment(images, seed)
            yield images, labels


class OnlineNetwork(StatefulHook):
    """One network at a time: new after every `every` outer steps, and trained after the others. It is a hook.

    loss:    What the network is trained by; it gets images as `batches` yields them, without a seed.
    init:    The first parameters of each network.
    every:   Outer steps for which a network lives.
    batches: What it is trained on after an outer step; None trains nothing.
    sgd:     How it is trained; by default a step size of 0.01.

    Its state is parameters and velocity. What it draws is a function of the seed and the outer step.
    """

    def __init__(
        self, loss: Loss, init: Init, every: int, batches: TrainingBatches | None = None, sgd: Sgd | None = None
    ):
        self.loss, self.init, self.every, self.batches = loss, init, every, batches
        self.sgd = sgd or Sgd(0.01)
        self.theta = init(0)
        self.velocity = torch.zeros_like(self.theta)

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Renew the network, or train it, after `step` outer steps."""
        if step % self.every == 0:
            self.theta = self.init(step // self.every)
            self.velocity = torch.zeros_like(self.theta)
        elif self.batches is not None:
            for images, labels in self.batches(synthetic, step):
                gradient = self.loss.gradient(self.theta, Batch(images, labels))
                self.theta, self.velocity = self.sgd.step(self.theta, self.velocity, gradient)

    @property
    def cycle(self) -> int:
        """Outer steps for which a network lives."""
        return self.every

    def parameters(self, step: int = 0, seed: int = 0) -> Tensor:
        """The parameters (P,) of the present network, at whichever step: a `NetworkSource`."""
        return self.theta.detach()

    def state(self) -> dict[str, Tensor]:
        """Parameters and velocity."""
        return {"theta": self.theta, "velocity": self.velocity}

    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Restore parameters and velocity from a state."""
        self.theta, self.velocity = state["theta"].to(self.theta), state["velocity"].to(self.velocity)
