"""RCIG's own evaluation: fresh networks fitted to the set's targets by least squares, as its papers' figures are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import cos, pi

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, CountOrZero, Size, StepSize, Width
from limbeck.core.records import ResultRow
from limbeck.core.rng import derive_seed, make_generator
from limbeck.data.augment import DSA, append_mirror_images
from limbeck.evaluation.baselines import real_images
from limbeck.evaluation.trials import Summary, result_row
from limbeck.networks.flat import FlatModel, lecun_normal
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.select import FillName
from limbeck.synthetic.distilled import DistilledSet
from limbeck.task import Task
from limbeck.training.plain import score


class RegressionConfig(BaseModel):
    """The protocol of FRePo and RCIG, with the released code's values but for the width and what follows from it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    networks: Size = 5
    """fresh networks, each from its own seed"""
    width: Width = 16
    """channels of the first block, doubled from block to block; ReLU, no normalisation (the authors: 128)"""
    steps: Count = 1000
    """of Adam (the authors: 1000 for a set of 10 images, else 2000)"""
    lr: StepSize = 1e-3
    """largest step size (the authors: 1e-4 at width 128)"""
    warmup: CountOrZero = 500
    """steps in which it rises to that from 0; then it falls to a hundredth along a cosine"""
    batch_size: Count = 256
    """images per step, where the set has more"""
    flip: bool = False
    """fit mirror images too"""
    augment: bool = False
    """augment each step (one family a batch, as the common protocol; the authors: one of six an image)"""

    def rate(self, step: int) -> float:
        """Step size of a step.

        >>> [round(RegressionConfig(steps=100, warmup=50, lr=1).rate(step), 3) for step in (0, 24, 49, 75, 100)]
        [0.02, 0.5, 1.0, 0.505, 0.01]
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        part = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (0.01 + 0.99 * (1 + cos(pi * min(part, 1.0))) / 2)


def fit_targets(
    model: FlatModel,
    theta0: Tensor,
    images: Tensor,
    targets: Tensor,
    config: RegressionConfig,
    seed: int,
    augment: DSA | None = None,
) -> Tensor:
    """Parameters (P,) after least squares of the logits of `images` (n, ...) to `targets` (n, classes), by Adam.

    Random in batches and augmentation, from (seed, step) alone; theta0 is not changed.
    """
    theta = theta0.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], config.lr)
    for step in range(config.steps):
        x, y = images, targets
        if len(images) > config.batch_size:
            rows = torch.randperm(len(images), generator=make_generator(seed, "rows", step))[: config.batch_size]
            x, y = images[rows.to(images.device)], targets[rows.to(targets.device)]
        if augment is not None:
            x = augment(x, derive_seed(seed, "augment", step))
        for group in optimiser.param_groups:
            group["lr"] = config.rate(step)
        (theta.grad,) = torch.autograd.grad((model(theta, x) - y).square().mean(), theta)
        optimiser.step()
    return theta.detach()


def evaluate_targets(
    task: Task,
    images: Tensor,
    targets: Tensor,
    config: RegressionConfig,
    split: tuple[Tensor, Tensor],
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Summary:
    """Fit fresh networks to images (n, ...) and real-valued targets (n, classes), and score each once on `split`.

    advance: called after every network. Raises UserError for targets that are none of the task's classes.
    """
    classes = task.data.num_classes
    if targets.shape != (len(images), classes):
        raise UserError(f"targets are (images, classes), here ({len(images)}, {classes}), not {tuple(targets.shape)}.")
    options = ModelConfig(name="widening", width=config.width).resolved(task.data.size)
    model = flat_model(options, task.data.shape, classes)
    if config.flip:
        images, targets = append_mirror_images(images, targets)
    fit = partial(fit_targets, model, augment=task.augment if config.augment else None)
    scores = []
    for network in range(config.networks):
        child = derive_seed(seed, "network", network)
        theta0 = lecun_normal(model.layout, make_generator(child, "start")).to(images)
        scores.append(score(model, fit(theta0, images, targets, config, child), *split))
        advance()
    return Summary.of(scores)


WORDS = "regression: fresh widening networks without norm, fitted to the targets by least squares with Adam"


def random_targets(task: Task, ipc: int, fill: FillName, seed: int) -> tuple[Tensor, Tensor]:
    """Random real images, `ipc` a class, and their targets (n, classes): one-hot classes less 1 / classes."""
    images, labels = real_images(task, "random", ipc, fill)(derive_seed(seed, "regression", "random"))
    classes = task.data.num_classes
    return images, torch.eye(classes, device=labels.device)[labels] - 1 / classes


def regression_rows(
    task: Task,
    distilled: DistilledSet,
    config: RegressionConfig,
    seed: int,
    which: str | None,
    advance: Callable[[], None] = lambda: None,
) -> list[ResultRow]:
    """Rows of results.json on test, with a `protocol` of their own: without and with augmentation.

    Mirror images are fitted too where the set was distilled with them. There are none for a set without targets.
    """
    if distilled.targets is None:
        return []
    images, targets = distilled.images.to(task.device), distilled.targets.to(task.device)
    flip = config.flip or bool(distilled.provenance.get("config", {}).get("flip"))
    rows = []
    for augment in (False, True):
        chosen = config.model_copy(update={"augment": augment, "flip": flip})
        summary = evaluate_targets(task, images, targets, chosen, task.test, derive_seed(seed, "regression"), advance)
        row = result_row("distilled", task, summary, which=which, lr=config.lr, step=distilled.provenance.get("step"))
        protocol = "regression, augmented" if augment else "regression"
        rows.append(row.model_copy(update={"model": "widening", "protocol": protocol}))
    return rows
