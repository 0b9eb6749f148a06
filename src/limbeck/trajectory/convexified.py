"""MCT's trajectory (Zhong et al. 2025): convex combinations of a few points of the recorded one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import floor

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.flat import Layout


@dataclass(frozen=True, eq=False)
class Convexified:
    """theta(t) = (1 - beta(t)) W_a + beta(t) W_b between neighbouring waypoints, beta per parameter tensor.

    layout:     where the L parameter tensors lie in the P elements.
    epochs:     the whole epochs of the W waypoints, from 0 to K, increasing.
    waypoints:  (W, P), float32 or float16.
    beta:       (K, L): row k holds beta at the end of epoch k + 1, within its own segment, so that the row that
                ends a segment is 1. Between whole epochs beta is linear.
    """

    layout: Layout
    epochs: tuple[int, ...]
    waypoints: Tensor
    beta: Tensor

    @property
    def end(self) -> int:
        return self.epochs[-1]

    def at(self, t: float) -> Tensor:
        """Parameters (P,) at any real epoch `t` of the closed interval [0, end]; ValueError outside it."""
        if not 0 <= t <= self.end:
            raise ValueError(f"a convexified trajectory answers from epoch 0 to {self.end}, not at {t}")
        segment = max(i for i, epoch in enumerate(self.epochs[:-1]) if epoch <= t)
        k = min(floor(t), self.end - 1)
        before = torch.zeros_like(self.beta[0]) if k == self.epochs[segment] else self.beta[k - 1]
        beta = torch.lerp(before, self.beta[k], t - k)
        # lerp, not a + beta (b - a): only that is exact at both ends
        start, stop = self.waypoints[segment].float(), self.waypoints[segment + 1].float()
        return torch.lerp(start, stop, self.layout.per_tensor(beta))


@dataclass(frozen=True)
class Smoothing:
    """What replaces a stored point: a weighted mean of the epochs around it, {offset: weight}.

    Applied to interior waypoints and to the last one, never to the first, and only where there are interior ones.
    """

    interior: dict[int, float]
    last: dict[int, float]

    def weights(self, index: int, count: int) -> dict[int, float]:
        """The rule for waypoint `index` of `count`."""
        if count == 2 or index == 0:
            return {0: 1.0}
        return self.last if index == count - 1 else self.interior


SMOOTHING = {
    "none": Smoothing({0: 1.0}, {0: 1.0}),
    "mct": Smoothing({-1: 0.5, 1: 0.5}, {-1: 0.5, 0: 0.5}),  # the authors' training script
}


def waypoint_epochs(count: int, epochs: int) -> tuple[int, ...]:
    """`count` whole epochs from 0 to `epochs`, as equally spaced as whole numbers allow.

    Raises UserError unless 2 <= count <= epochs + 1.

    >>> waypoint_epochs(4, 50)
    (0, 17, 33, 50)
    """
    if not 2 <= count <= epochs + 1:
        raise UserError(f"an expert of {epochs} epochs can keep 2 to {epochs + 1} waypoints, not {count}.")
    return tuple(round(i * epochs / (count - 1)) for i in range(count))


class Convexifier:
    """Convexify a trajectory while it passes by: `add` the parameters of epochs 0, 1, ..., K, then `finish`.

    It holds the waypoints and one path length per tensor and epoch, never the trajectory.
    """

    def __init__(self, layout: Layout, epochs: tuple[int, ...], smoothing: Smoothing, dtype: torch.dtype):
        self.layout, self.epochs, self.dtype = layout, epochs, dtype
        self.weights = [smoothing.weights(i, len(epochs)) for i in range(len(epochs))]
        self.waypoints: list[Tensor | None] = [None] * len(epochs)
        self.lengths: list[Tensor] = []
        self.previous: Tensor | None = None
        self.seen = 0

    def add(self, theta: Tensor) -> None:
        """The parameters (P,) of the next epoch."""
        theta = theta.detach()
        if self.previous is not None:
            moved = self.layout.split(theta - self.previous)
            self.lengths.append(torch.stack([part.norm() for part in moved]).double())
        for index, epoch in enumerate(self.epochs):
            weight = self.weights[index].get(self.seen - epoch)
            if weight is not None:
                held = self.waypoints[index]
                self.waypoints[index] = weight * theta if held is None else held + weight * theta
        self.previous = theta.clone()
        self.seen += 1

    def finish(self) -> Convexified:
        """The convexified trajectory; ValueError unless exactly K + 1 epochs were added."""
        if self.seen != self.epochs[-1] + 1:
            raise ValueError(f"{self.seen} epochs were added; the last waypoint is at epoch {self.epochs[-1]}")
        waypoints = torch.stack([point for point in self.waypoints if point is not None]).to(self.dtype).cpu()
        return Convexified(self.layout, self.epochs, waypoints, arc_length(torch.stack(self.lengths), self.epochs))


def arc_length(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """beta (K, L) from path lengths (K, L): the fraction of its segment's path that each tensor has gone.

    A tensor that does not move in a segment goes uniformly, which changes nothing and keeps its last row 1.
    """
    parts = []
    for first, last in pairwise(epochs):
        gone = lengths[first:last].cumsum(0)
        uniform = torch.arange(1, last - first + 1, dtype=gone.dtype, device=gone.device)[:, None] / (last - first)
        parts.append(torch.where(gone[-1] > 0, gone / gone[-1].clamp_min(torch.finfo(gone.dtype).tiny), uniform))
    return torch.cat(parts).float().cpu()


def convexify(
    points: Iterable[Tensor],
    layout: Layout,
    epochs: tuple[int, ...],
    smoothing: Smoothing = SMOOTHING["none"],
    dtype: torch.dtype = torch.float32,
) -> Convexified:
    """Convexify recorded parameters, given one epoch at a time."""
    convexifier = Convexifier(layout, epochs, smoothing, dtype)
    for theta in points:
        convexifier.add(theta)
    return convexifier.finish()
