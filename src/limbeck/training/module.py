"""Training of any torch module on a set, as `plain.train` trains a network that is a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import cos, pi

import torch
from torch import Tensor, nn

from limbeck.core.rng import derive_seed, make_generator
from limbeck.networks.losses import cross_entropy
from limbeck.training.plain import Schedule, average_decay, make_optimiser

Prepare = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(images (n, c, h, w), labels, seed) -> a batch as the network sees it: augmented, mixed."""


def train_module(
    module: nn.Module, images: Tensor, labels: Tensor, schedule: Schedule, seed: int, prepare: Prepare
) -> Iterator[float]:
    """Train a module in place, and yield the mean loss of every epoch.

    labels:  int64 (n,) classes, or float32 (n, classes) probabilities.
    prepare: Makes a batch of images and labels; random only through its seed.

    Batch order and the seeds of `prepare` come from (seed, epoch, step) alone, as in `train`, which is this for a
    function of one flat vector. The module is in training mode meanwhile, and in evaluation mode afterwards, so that
    dropout and batch norm work as torch has them. Raises ValueError for a module without parameters to train.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> images, labels = torch.eye(4).view(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    >>> losses = list(train_module(network, images, labels, Schedule(20, 1.0), 0, lambda x, y, seed: (x, y)))
    >>> len(losses), losses[-1] < losses[0], bool((network(images).argmax(1) == labels).all())
    (20, True, True)
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the module has no parameters to train")
    averages = [parameter.detach().clone() for parameter in parameters]
    optimiser = make_optimiser(parameters, schedule.lr, schedule)
    steps, total = 0, schedule.epochs * -(-len(images) // schedule.batch_size)
    module.train()
    for epoch in range(schedule.epochs):
        if epoch == schedule.drop:
            optimiser = make_optimiser(parameters, schedule.lr * 0.1, schedule)
        order = torch.randperm(len(images), generator=make_generator(seed, "order", epoch)).to(images.device)
        losses = []
        for step, rows in enumerate(order.split(schedule.batch_size)):
            if schedule.cosine:
                optimiser.param_groups[0]["lr"] = schedule.lr * (1 + cos(pi * steps / total)) / 2
            x, y = prepare(images[rows], labels[rows], derive_seed(seed, "augment", epoch, step))
            loss = cross_entropy(module(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
            losses.append(loss.detach())
            if schedule.ema:
                weight = 1 - average_decay(schedule.ema, steps)
                torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], weight)
        yield float(torch.stack(losses).mean())
    if schedule.ema:
        with torch.no_grad():
            for parameter, average in zip(parameters, averages):
                parameter.copy_(average)
    module.eval()
