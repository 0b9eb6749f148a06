"""Train one expert, and store only what its trajectory needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.types import PureLoss
from limbeck.experts.config import DTYPES, ExpertConfig
from limbeck.experts.convexified import SMOOTHING, Convexifier
from limbeck.experts.recorded import Recorded
from limbeck.experts.store import Expert
from limbeck.networks.flat import Layout
from limbeck.training.plain import GradientRule, Gsam, Schedule, train

Validate = Callable[[int, Tensor], float]
"""(epoch, theta (P,)) -> accuracy on the validation part, called after every epoch from 0 on."""


def make_schedule(config: ExpertConfig) -> Schedule:
    """Return how an expert is trained, as a schedule of SGD."""
    plain = Schedule(config.epochs, config.lr, config.batch_size, config.momentum, config.weight_decay)
    return plain._replace(balanced=config.balanced)


def make_rule(config: ExpertConfig) -> GradientRule | None:
    """Return GSAM where the config has a radius; None for plain gradients."""
    return Gsam(config.sam_rho, config.sam_alpha, config.sam_adaptive) if config.sam_rho else None


def train_expert(
    loss: PureLoss,
    theta0: Tensor,
    images: Tensor,
    labels: Tensor,
    config: ExpertConfig,
    layout: Layout,
    seed: int,
    validate: Validate,
    test: Callable[[Tensor], float],
    check: Callable[[], None] | None = None,
) -> Expert:
    """Train an expert by SGD from theta0 (P,), convexifying its trajectory on the way.

    images:   (n, c, h, w) in network input space; labels: int64 (n,).
    validate: measures the expert after every epoch; test: theta (P,) -> accuracy after the last.
    check:    called before every step; what it raises ends the training.
    Raises UserError if the parameters stop being finite.
    """
    convexifier = None
    if config.keep != "recorded":
        smoothing, dtype = SMOOTHING[config.smoothing], DTYPES[config.dtype]
        convexifier = Convexifier(layout, config.waypoint_epochs(), smoothing, dtype, config.schedule)
    points, validation = [], []
    theta = theta0
    path = train(loss, theta0, images, labels, make_schedule(config), seed, make_rule(config), check=check)
    for epoch, theta in enumerate(path):
        if convexifier is not None:
            convexifier.add(theta)
        if config.keep != "convex":
            points.append(theta.to("cpu", copy=True))
        if not bool(torch.isfinite(theta).all()):
            raise UserError(
                f"the expert diverged in epoch {epoch}: its parameters are not finite; give a smaller step size, as "
                f"{config.lr / 10:g} (now {config.lr:g})."
            )
        validation.append(validate(epoch, theta))
    return Expert(
        None if convexifier is None else convexifier.finish(),
        Recorded(torch.stack(points).to(DTYPES[config.dtype])) if config.keep != "convex" else None,
        tuple(validation),
        test(theta),
    )
