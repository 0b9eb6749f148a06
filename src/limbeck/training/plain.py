"""Training of one network by SGD, for experts and evaluation, and its accuracy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.sampling import balanced_rows, split_by_class
from limbeck.core.sums import reproducible_dot, reproducible_sum
from limbeck.core.types import Batch, PureLoss
from limbeck.derivatives.autograd import Loss, as_loss


class Schedule(NamedTuple):
    """`epochs` passes over shuffled batches; from epoch `drop` on with 0.1 lr and a new optimiser, without momentum.

    optimiser: sgd or adamw (torch's, with its default betas).
    cosine:    Whether the step size falls from lr to 0 along half a cosine, step by step.
    ema:       Decay of an average of the parameters over steps, which takes the place of the parameters; 0 for none.
               Its decay is at most (1 + t) / (10 + t) after t steps, as in TensorFlow's ExponentialMovingAverage.
    balanced:  whether an epoch, of as many steps, has as many images of every class; see `balanced_rows`.
    """

    epochs: int
    lr: float
    batch_size: int = 256
    momentum: float = 0.0
    weight_decay: float = 0.0
    drop: int | None = None
    optimiser: Literal["sgd", "adamw"] = "sgd"
    cosine: bool = False
    ema: float = 0.0
    balanced: bool = False


def make_schedule(
    epochs: int,
    lr: float,
    batch_size: int = 256,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    optimiser: Literal["sgd", "adamw"] = "sgd",
    decay: Literal["step", "cosine"] = "step",
    ema: float = 0.0,
) -> Schedule:
    """The schedule of the field's evaluation: the step size drops to a tenth after half of the epochs.

    decay: "cosine" lets it fall along half a cosine to 0 instead.

    >>> make_schedule(1000, 0.01).drop
    501
    """
    drop = epochs // 2 + 1 if decay == "step" else None
    return Schedule(epochs, lr, batch_size, momentum, weight_decay, drop, optimiser, decay == "cosine", ema)


GradientRule = Callable[[Loss, Tensor, Batch], Tensor]
"""(loss, theta (P,), batch) -> the direction (P,) that a step of SGD subtracts."""


@dataclass(frozen=True)
class Gsam:
    """A `GradientRule`: GSAM (Zhuang et al. 2022), with which FTD trains its experts.

    With the gradients g at theta and p at theta + e, both of one augmented batch, where e = rho g / |g|, the direction
    is p - alpha (g's component orthogonal to p). Norms are over all parameters together. Running statistics of batch
    norm are updated once a step, at theta, as in the authors' code.

    rho:      The radius; constant, as in FTD's code, whose step size is constant too.
    alpha:    0 gives SAM (Foret et al. 2021).
    adaptive: e = rho theta^2 g / |theta g|, as in ASAM (Kwon et al. 2021).
    """

    rho: float
    alpha: float = 0.0
    adaptive: bool = False

    def __call__(self, loss: Loss, theta: Tensor, batch: Batch) -> Tensor:
        """The direction (P,) of a step at theta (P,)."""
        gradient = loss.gradient(theta, batch)
        size = theta.detach().abs() if self.adaptive else torch.ones_like(gradient)
        scaled = size * gradient
        sharpest = theta.detach() + self.rho * size * scaled / (scaled.norm() + 1e-12)
        perturbed = loss.pure.gradient(sharpest, batch)
        projection = reproducible_dot(gradient, perturbed) / (reproducible_sum(perturbed.square()) + 1e-12)
        return perturbed - self.alpha * (gradient - projection * perturbed)


def train(
    loss: Loss | PureLoss,
    theta0: Tensor,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    seed: int,
    rule: GradientRule | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> Iterator[Tensor]:
    """Yield a copy of the parameters (P,) before training and after every epoch: epochs + 1 of them.

    loss:  A `Loss`, or any pure function of (theta, batch), as in `unroll`.
    rule:  The direction of a step; the default is the gradient.
    check: Called before every step; what it raises ends the training.
    Batch order and augmentation come from (seed, epoch, step) alone. theta0 is not changed.
    """
    loss = as_loss(loss)
    theta = theta0.detach().clone().requires_grad_()
    yield theta.detach().clone()
    lr = schedule.lr
    optimiser = make_optimiser([theta], lr, schedule)
    average, steps = theta.detach().clone() if schedule.ema else theta.detach(), 0
    total = schedule.epochs * -(-len(images) // schedule.batch_size)
    class_rows = split_by_class(labels) if schedule.balanced else None
    for epoch in range(schedule.epochs):
        if epoch == schedule.drop:
            optimiser = make_optimiser([theta], lr * 0.1, schedule)
        generator, count = make_generator(seed, "order", epoch), len(images)
        if class_rows is None:
            order = torch.randperm(count, generator=generator)
        else:
            order = balanced_rows(class_rows, count, generator)
        order = order.to(images.device)
        for step, rows in enumerate(order.split(schedule.batch_size)):
            if check is not None:
                check()
            batch = Batch(images[rows], labels[rows], derive_seed(seed, "augment", epoch, step))
            if schedule.cosine:
                optimiser.param_groups[0]["lr"] = lr * (1 + cos(pi * steps / total)) / 2
            theta.grad = loss.gradient(theta, batch) if rule is None else rule(loss, theta, batch)
            optimiser.step()
            steps += 1
            if schedule.ema:
                average.lerp_(theta.detach(), 1 - average_decay(schedule.ema, steps))
        yield average.clone()


def make_optimiser(parameters: Sequence[Tensor], lr: float, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimiser of these parameters, with the step size `lr`."""
    if schedule.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(parameters, lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay)


def average_decay(decay: float, steps: int) -> float:
    """The decay of a `Schedule`'s average of the parameters after so many steps."""
    return min(decay, (1 + steps) / (10 + steps))


def final_parameters(path: Iterable[Tensor]) -> Tensor:
    """The final parameters (P,) of a training run, without storing the others."""
    return deque(path, maxlen=1).pop()


class Score(NamedTuple):
    """The fraction of all images that are classified correctly, and the mean over classes of that fraction."""

    accuracy: float
    balanced: float


Network = Callable[[Tensor, Tensor], Tensor]
"""(theta (P,), images (n, c, h, w)) -> logits (n, classes)."""


@torch.no_grad()
def predict_logits(model: Network, theta: Tensor, images: Tensor, chunk: int = 500) -> Tensor:
    """The logits (n, classes) of images (n, c, h, w) without augmentation, `chunk` of them at a time."""
    return torch.cat([model(theta, part) for part in images.split(chunk)])


def predict(model: Network, theta: Tensor, images: Tensor) -> Tensor:
    """The most likely class (n,) of each image (n, c, h, w)."""
    return predict_logits(model, theta, images).argmax(1)


def score(model: Network, theta: Tensor, images: Tensor, labels: Tensor) -> Score:
    """Accuracy and balanced accuracy on images without augmentation; parameters that are not finite score 0."""
    if not bool(torch.isfinite(theta).all()):
        return Score(0.0, 0.0)
    return score_classes(predict(model, theta, images), labels)


def score_classes(predictions: Tensor, labels: Tensor) -> Score:
    """Accuracy and balanced accuracy of predicted classes (n,)."""
    is_correct = (predictions == labels).double()
    present, index = labels.unique(return_inverse=True)
    count = torch.zeros(len(present), dtype=torch.double, device=labels.device).index_add_(
        0, index, torch.ones_like(is_correct)
    )
    hits = torch.zeros_like(count).index_add_(0, index, is_correct)
    return Score(float(is_correct.mean()), float((hits / count).mean()))
