"""Train one expert, and keep only what its trajectory needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.flat import Layout
from limbeck.training import Schedule, train
from limbeck.trajectory.convexified import SMOOTHING, Convexifier
from limbeck.trajectory.recorded import Recorded
from limbeck.trajectory.store import DTYPES, Expert, ExpertConfig
from limbeck.types import PureLoss

Watch = Callable[[int, Tensor], float]
"""(epoch, theta (P,)) -> accuracy on the validation part."""


def train_expert(
    loss: PureLoss,
    theta0: Tensor,
    images: Tensor,
    labels: Tensor,
    config: ExpertConfig,
    layout: Layout,
    seed: int,
    watch: Watch,
    test: Callable[[Tensor], float],
) -> Expert:
    """Plain SGD from theta0 (P,) on preprocessed images (n, c, h, w); its trajectory is convexified as it passes by.

    Raises UserError when training diverges.
    """
    schedule = Schedule(config.epochs, config.lr, config.batch_size, config.momentum, config.weight_decay)
    convexifier = None
    if config.keep != "recorded":
        convexifier = Convexifier(layout, config.waypoint_epochs(), SMOOTHING[config.smoothing], DTYPES[config.dtype])
    points, validation = [], []
    theta = theta0
    for epoch, theta in enumerate(train(loss, theta0, images, labels, schedule, seed)):
        if convexifier is not None:
            convexifier.add(theta)
        if config.keep != "convex":
            points.append(theta.to("cpu", DTYPES[config.dtype], copy=True))
        if not bool(torch.isfinite(theta).all()):
            raise UserError(f"the expert diverged in epoch {epoch}; lower its step size ({config.lr:g}).")
        validation.append(watch(epoch, theta))
    return Expert(
        None if convexifier is None else convexifier.finish(),
        Recorded(torch.stack(points)) if points else None,
        tuple(validation),
        test(theta),
    )
