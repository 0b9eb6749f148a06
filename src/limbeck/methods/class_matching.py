"""What recipes share that compare real with synthetic images class by class: start, query, step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import derive_seed, make_generator
from limbeck.data import Preprocess
from limbeck.methods.coreset import Init, choose_real
from limbeck.methods.plan import MethodConfig, MethodInputs
from limbeck.objectives.classes import Rows
from limbeck.objectives.pool import Ageing
from limbeck.objectives.query import Query, RandomRows, rows_by_class
from limbeck.select.coresets import Selector
from limbeck.select.policy import POLICIES, Dream
from limbeck.select.scores import extract_features
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import Decode, SyntheticSet
from limbeck.synthetic.tiles import Partition, make_mosaic, pad_value

LR_NET = 0.01  # the papers' step size of networks, and what a set of these methods starts with as its own


class MatchingConfig(MethodConfig):
    """Options of every method that compares real with synthetic images class by class."""

    iterations: int = Field(default=300, ge=1)
    """outer steps; each is one step of the papers' inner loop, for all classes together"""
    batch_real: int = Field(default=64, ge=1)
    """real images of a class to compare with"""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """of SGD on the images"""
    init: Init | Literal["dream", "noise"] = "random"
    """where images start: a coreset's name; dream: real ones by clusters of an untrained network's features; noise"""
    policy: Literal["random", "dream", "centre", "boundary"] = "random"
    """which real images: random ones at every step; by clusters of features; nearest or farthest from the class mean"""
    interval: int = Field(default=10, ge=1)
    """steps until a policy that looks at features chooses anew; it does for every new network too"""
    pool: int = Field(default=1000, ge=1)
    """random real images of a class that a policy chooses from, new for every choice"""
    per_cluster: int = Field(default=1, ge=1)
    """s, images of a cluster that the dream policy takes (DREAM+); there are batch-real / s clusters"""


def represent(inputs: MethodInputs, network: Ageing) -> Callable[[Tensor], Tensor]:
    """Features of images under the present network, (m, c, h, w) -> (m, d)."""
    return lambda images: extract_features(inputs.task.model, network.network(), images)


def members(inputs: MethodInputs) -> tuple[Tensor, ...]:
    """Rows of every class's training images."""
    return rows_by_class(inputs.task.train[1], inputs.task.data.num_classes)


def real_rows(config: MatchingConfig, inputs: MethodInputs, network: Ageing) -> tuple[Rows, list[Hook]]:
    """Which real images to compare with, and the hooks that keep the network and the choice up to date, in order."""
    if config.policy == "random":  # needs no features, and nothing is remembered
        return RandomRows(members(inputs), config.batch_real), [network]
    policies: dict[str, Selector] = {**POLICIES, "dream": Dream(config.per_cluster)}
    query = Query(
        inputs.task.train[0],
        members(inputs),
        policies[config.policy],
        config.batch_real,
        represent(inputs, network),
        inputs.seed,
        network.every,
        config.interval,
        config.pool,
    )
    return query.rows, [network, query]


def start(config: MatchingConfig, inputs: MethodInputs, network: Ageing, decode: Decode | None = None) -> SyntheticSet:
    """Images to learn, `ipc` of every class; with tiles, every tile starts as a shrunk real image.

    Raises UserError for a class with too few images, and for tiles of whitened images.
    """
    factor = decode.factor if isinstance(decode, Partition) else 1
    task, classes, count = inputs.task, inputs.task.data.num_classes, inputs.ipc * factor**2
    images, labels = task.train[0], torch.arange(classes, device=task.device).repeat_interleave(inputs.ipc)
    if config.init == "noise":
        begun = torch.randn(len(labels), *task.data.shape, generator=make_generator(inputs.seed, "noise")).to(images)
        return SyntheticSet.from_images(begun, labels, LR_NET, ("images",), decode=decode)
    if config.init == "dream":
        seed, look = derive_seed(inputs.seed, "start"), represent(inputs, network)
        chosen = Query(images, members(inputs), Dream(), count, look, seed, pool=config.pool).chosen
        if any(len(rows) < count for rows in chosen):
            raise UserError(
                f"a class has fewer than {count} training images; ask for fewer images or a lower --factor."
            )
    else:
        chosen = list(choose_real(config.init, inputs, count).view(classes, count))
    begun = torch.cat([make_mosaic(images[rows], factor) for rows in chosen])
    return SyntheticSet.from_images(begun, labels, LR_NET, ("images",), decode=decode)


def partition(factor: int, how: Any, inputs: MethodInputs) -> Decode | None:
    """Tiles, padded with the grey of the released code; None for factor 1."""
    return None if factor == 1 else Partition(factor, how, pad_value(inputs.task.preprocess))


def pixel_variance(preprocess: Preprocess) -> float:
    """How much a squared pixel changes with a squared change of 1 in network input space, on average.

    With x = std * z + mean, a step of lr against the gradient in x is one of lr / std^2 against that in z: the same
    pixels result. One number for all channels: their mean std^2 (exact where they agree; CIFAR-10's are within 8 %),
    and the mean squared gain of ZCA's inverse.
    """
    if preprocess.std is not None:
        return float(preprocess.std.double().square().mean())
    assert preprocess.colour is not None
    return float(preprocess.colour.double().square().sum(1).mean())


def image_sgd(synthetic: SyntheticSet, lr: float, momentum: float) -> torch.optim.Optimizer:
    """SGD of the images with the step size in network input space."""
    return torch.optim.SGD([synthetic.images], lr, momentum=momentum)
