"""MCT's trajectory (Zhong et al. 2025): convex combinations of a few points of the recorded one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import floor

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.networks.flat import Layout


@dataclass(frozen=True, eq=False)
class Convexified:
    """theta(t) = (1 - beta(t)) W_a + beta(t) W_b between neighbouring waypoints, beta per parameter tensor.

    layout:     where the L parameter tensors lie in the P elements.
    epochs:     the whole epochs of the W waypoints, from 0 to K, increasing.
    waypoints:  (W, P), float32 or float16.
    beta:       (K, L): row k holds beta at the end of epoch k + 1, within its own segment, so that the row that
                ends a segment is 1. Between whole epochs beta is linear.
    beta0:      beta at epoch 0; 0 but for the authors' decreasing schedule, which does not start at the start.
    """

    layout: Layout
    epochs: tuple[int, ...]
    waypoints: Tensor
    beta: Tensor
    beta0: float = 0.0

    @property
    def end(self) -> int:
        return self.epochs[-1]

    def at(self, t: float) -> Tensor:
        """Parameters (P,) at any real epoch `t` of the closed interval [0, end]; ValueError outside it."""
        if not 0 <= t <= self.end:
            raise ValueError(f"a convexified trajectory answers from epoch 0 to {self.end}, not at {t}")
        segment = max(i for i, epoch in enumerate(self.epochs[:-1]) if epoch <= t)
        k = min(floor(t), self.end - 1)
        before = self.beta[k - 1] if k > self.epochs[segment] else torch.full_like(self.beta[0], self.beta0 * (k == 0))
        beta = torch.lerp(before, self.beta[k], t - k)
        # lerp, not a + beta (b - a): only that is exact at both ends
        start, stop = self.waypoints[segment].float(), self.waypoints[segment + 1].float()
        return torch.lerp(start, stop, self.layout.per_tensor(beta))


@dataclass(frozen=True)
class Smoothing:
    """What replaces a stored point: a weighted mean of the epochs around it, {offset: weight}.

    Applied to interior waypoints and to the last one, never to the first, and only where there are interior ones.
    before_beta: path lengths are those of the smoothed path (the waypoints replaced in it), not of the raw one.
    """

    interior: dict[int, float]
    last: dict[int, float]
    before_beta: bool = False

    def weights(self, index: int, count: int) -> dict[int, float]:
        """The rule for waypoint `index` of `count`."""
        if count == 2 or index == 0:
            return {0: 1.0}
        return self.last if index == count - 1 else self.interior


SMOOTHING = {
    "none": Smoothing({0: 1.0}, {0: 1.0}),
    "mct": Smoothing({-1: 0.5, 1: 0.5}, {-1: 0.5, 0: 0.5}),  # the authors' training script
    "mct-older": Smoothing(  # the authors' parallel script, which made their best-known setting
        {-1: 0.25, 0: 0.5, 1: 0.25}, {-2: 0.25, -1: 0.25, 0: 0.5}, before_beta=True
    ),
}

Schedule = Callable[[Tensor, tuple[int, ...]], Tensor]
"""(path lengths (K, L), waypoint epochs) -> beta (K, L)."""


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

    def __init__(
        self,
        layout: Layout,
        epochs: tuple[int, ...],
        smoothing: Smoothing,
        dtype: torch.dtype,
        schedule: str = "arc",
    ):
        self.layout, self.epochs, self.dtype, self.schedule = layout, epochs, dtype, schedule
        self.smoothing = smoothing
        self.weights = [smoothing.weights(i, len(epochs)) for i in range(len(epochs))]
        self.waypoints: list[Tensor | None] = [None] * len(epochs)
        self.lengths: list[Tensor] = []
        self.raw: Tensor | None = None  # the epoch before
        self.settled: Tensor | None = None  # the one whose length was measured last, as the path has it
        self.seen = 0

    def add(self, theta: Tensor) -> None:
        """The parameters (P,) of the next epoch."""
        theta = theta.detach()
        for index, epoch in enumerate(self.epochs):
            weight = self.weights[index].get(self.seen - epoch)
            if weight is not None:
                held = self.waypoints[index]
                self.waypoints[index] = weight * theta if held is None else held + weight * theta
        if self.smoothing.before_beta:
            if self.raw is not None:  # a smoothed waypoint is complete one epoch later
                self._settle(self._smoothed(self.seen - 1, self.raw))
        else:
            self._settle(theta)
        self.raw = theta.clone()
        self.seen += 1

    def _smoothed(self, epoch: int, raw: Tensor) -> Tensor:
        if epoch not in self.epochs:
            return raw
        point = self.waypoints[self.epochs.index(epoch)]
        assert point is not None
        return point

    def _settle(self, point: Tensor) -> None:
        if self.settled is not None:
            moved = self.layout.split(point - self.settled)
            # on the processor: a GPU adds a cumulative sum up in no fixed order
            self.lengths.append(torch.stack([part.norm() for part in moved]).double().cpu())
        self.settled = point.clone()

    def finish(self) -> Convexified:
        """The convexified trajectory; ValueError unless exactly K + 1 epochs were added."""
        if self.seen != self.epochs[-1] + 1:
            raise ValueError(f"{self.seen} epochs were added; the last waypoint is at epoch {self.epochs[-1]}")
        if self.smoothing.before_beta and self.raw is not None:
            self._settle(self._smoothed(self.seen - 1, self.raw))
        waypoints = torch.stack([point for point in self.waypoints if point is not None]).to(self.dtype).cpu()
        beta = SCHEDULES[self.schedule](torch.stack(self.lengths), self.epochs)
        beta0 = decreasing_start(self.epochs[-1]) if self.schedule == "decreasing-authors" else 0.0
        return Convexified(self.layout, self.epochs, waypoints, beta, beta0)


def arc_length(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """beta (K, L) from path lengths (K, L): the fraction of its segment's path that each tensor has gone (MCT).

    A tensor that does not move in a segment goes uniformly, which changes nothing and keeps its last row 1.
    """
    parts = []
    for first, last in pairwise(epochs):
        gone = lengths[first:last].cumsum(0)
        even = _even(torch.ones(last - first, 1, dtype=gone.dtype, device=gone.device))
        parts.append(torch.where(gone[-1] > 0, gone / gone[-1].clamp_min(torch.finfo(gone.dtype).tiny), even))
    return torch.cat(parts).float().cpu()


def _even(increments: Tensor) -> Tensor:
    """Cumulated and scaled so that the last row is 1."""
    gone = increments.cumsum(0)
    return gone / gone[-1]


def uniform(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """The same share of its segment in every epoch, for all tensors (MCT's ablation)."""
    parts = [_even(torch.ones(last - first, 1, dtype=torch.double)) for first, last in pairwise(epochs)]
    return torch.cat(parts).float().expand(len(lengths), lengths.shape[1]).contiguous()


def decreasing(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """Shares that fall linearly to the segment's end (MCT's ablation), from beta = 0 at its start."""
    parts = [_even(torch.arange(last - first, 0, -1, dtype=torch.double)[:, None]) for first, last in pairwise(epochs)]
    return torch.cat(parts).float().expand(len(lengths), lengths.shape[1]).contiguous()


def decreasing_authors(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """The ablation as the authors' code has it: increments 51, 50, ..., 1 over 1326, so that beta(0) is 51/1326."""
    if len(epochs) != 2:
        raise UserError("the authors' decreasing schedule exists for two waypoints only; use 'decreasing'.")
    count = epochs[-1]
    gone = torch.arange(count + 1, 0, -1, dtype=torch.double).cumsum(0)
    return (gone[1:] / gone[-1])[:, None].float().expand(count, lengths.shape[1]).contiguous()


def decreasing_start(epochs: int) -> float:
    """beta(0) of the authors' decreasing schedule."""
    return 2 / (epochs + 2)


SCHEDULES: dict[str, Schedule] = {
    "arc": arc_length,
    "uniform": uniform,
    "decreasing": decreasing,
    "decreasing-authors": decreasing_authors,
}


def projected(points: Tensor, epochs: tuple[int, ...], tensors: int) -> Tensor:
    """One beta for all tensors: how far along the straight line between waypoints the epoch projects (MCT's ablation).

    points (K + 1, P) -> (K, tensors), not forced to be monotone. It needs the end before the middle, hence a recorded
    trajectory.
    """
    parts = []
    for first, last in pairwise(epochs):
        line = (points[last] - points[first]).double()
        along = (points[first + 1 : last + 1] - points[first]).double() @ line / line.square().sum()
        along[-1] = 1.0
        parts.append(along)
    return torch.cat(parts).float()[:, None].expand(epochs[-1], tensors).contiguous()


def convexify(
    points: Iterable[Tensor],
    layout: Layout,
    epochs: tuple[int, ...],
    smoothing: Smoothing = SMOOTHING["none"],
    dtype: torch.dtype = torch.float32,
    schedule: str = "arc",
) -> Convexified:
    """Convexify recorded parameters, given one epoch at a time; schedule: a name in SCHEDULES, or projected."""
    if schedule == "projected":
        held = torch.stack([theta.detach() for theta in points])
        straight = convexify(held, layout, epochs, smoothing, dtype, "uniform")
        return replace(straight, beta=projected(held, epochs, len(layout.shapes)))
    convexifier = Convexifier(layout, epochs, smoothing, dtype, schedule)
    for theta in points:
        convexifier.add(theta)
    return convexifier.finish()
