"""MCT's trajectory (Zhong et al., CVPR 2025): convex combinations of a few points of the recorded one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import floor
from pathlib import Path

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.short_repr import short_repr
from limbeck.core.tensors import LazyRows
from limbeck.networks.flat import Layout


@dataclass(frozen=True, eq=False)
class Convexified:
    """An expert's trajectory as straight lines between waypoints.

    Between neighbouring waypoints, theta(t) = (1 - beta(t)) W_a + beta(t) W_b with one beta per parameter tensor.

    layout:     where the L parameter tensors lie in the P elements of theta.
    epochs:     the whole epochs of the W waypoints, from 0 to K, increasing.
    waypoints:  (W, P), float32 or float16. They may stay in their file (`LazyRows`).
    beta:       (K, L): row k holds beta at the end of epoch k + 1, within its own segment, so that the row that
                ends a segment is 1. Between whole epochs beta is linear; at the start of a segment it is 0.

    >>> import limbeck, torch
    >>> layout = limbeck.FlatModel(lambda: torch.nn.Linear(1, 1)).layout  # 2 parameters in 2 tensors
    >>> theta = torch.tensor([[0.0, 0.0], [3.0, 1.0], [4.0, 2.0]])  # at epochs 0, 1 and 2
    >>> path = limbeck.convexify(theta, layout, (0, 2))
    >>> path.end, path.beta.tolist(), path.at(0.5).tolist()
    (2, [[0.75, 0.5], [1.0, 1.0]], [1.5, 0.5])
    """

    __repr__ = short_repr

    layout: Layout
    epochs: tuple[int, ...]
    waypoints: Tensor | LazyRows
    beta: Tensor

    @property
    def end(self) -> int:
        """The last epoch, K."""
        return self.epochs[-1]

    def tensor(self) -> Tensor:
        """Return all waypoints (W, P) in memory."""
        return self.waypoints if isinstance(self.waypoints, Tensor) else torch.stack(list(self.waypoints))

    def with_waypoints_in(self, path: Path) -> Convexified:
        """The same path, whose waypoints are read from this safetensors file when they are needed, if they are its."""
        rows = LazyRows(path, "waypoints", tuple(self.waypoints.shape), self.waypoints.dtype)
        is_same = isinstance(self.waypoints, LazyRows) or torch.equal(rows[0], self.waypoints[0])
        return replace(self, waypoints=rows) if is_same else self  # the first one of the oldest files is moved

    def at(self, t: float) -> Tensor:
        """Return the parameters (P,) at any real epoch `t` of the closed interval [0, end]; ValueError outside it."""
        if not 0 <= t <= self.end:
            raise ValueError(f"a convexified trajectory answers from epoch 0 to {self.end}, not at {t}")
        segment = max(i for i, epoch in enumerate(self.epochs[:-1]) if epoch <= t)
        k = min(floor(t), self.end - 1)
        before = self.beta[k - 1] if k > self.epochs[segment] else torch.zeros_like(self.beta[0])
        beta = torch.lerp(before, self.beta[k], t - k)
        # lerp, not a + beta (b - a): only that is exact at both ends
        start, stop = self.waypoints[segment].float(), self.waypoints[segment + 1].float()
        return torch.lerp(start, stop, self.layout.per_tensor(beta))


def start_at_zero(waypoints: Tensor, beta: Tensor, first: float) -> tuple[Tensor, Tensor]:
    """Return waypoints (2, P) and beta (K, L) of the same path with beta = 0 at epoch 0, where it is `first` now.

    MCT's code for its ablation 'decreasing' starts at 51/1326 of the way. Files of that kind can be read; the first
    waypoint moves to where their path starts.
    """
    start, stop = waypoints.float()
    return torch.stack([torch.lerp(start, stop, first), stop]), (beta - first) / (1 - first)


@dataclass(frozen=True)
class Smoothing:
    """A rule that replaces a waypoint by a weighted mean of the epochs around it, {offset: weight}.

    It applies to interior waypoints and to the last one, never to the first, and only where there are interior ones.

    before_beta: path lengths are those of the smoothed path (with the waypoints replaced), not of the recorded one.
    """

    interior: dict[int, float]
    last: dict[int, float]
    before_beta: bool = False

    def weights(self, index: int, count: int) -> dict[int, float]:
        """Return the weights for waypoint `index` of `count`."""
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

BetaSchedule = Callable[[Tensor, tuple[int, ...]], Tensor]
"""(path lengths (K, L), waypoint epochs) -> beta (K, L)."""


def waypoint_epochs(count: int, epochs: int) -> tuple[int, ...]:
    """Return `count` whole epochs from 0 to `epochs`, as equally spaced as whole numbers allow.

    Raises UserError unless 2 <= count <= epochs + 1.

    >>> waypoint_epochs(4, 50)
    (0, 17, 33, 50)
    """
    if not 2 <= count <= epochs + 1:
        raise UserError(f"an expert of {epochs} epochs can keep 2 to {epochs + 1} waypoints, not {count}.")
    return tuple(round(i * epochs / (count - 1)) for i in range(count))


FIRST_WAYPOINT = 5.0
"""Steps times step size of an expert until its first waypoint after the start: 2.5 times what a student is to cover by
default. Waypoints before that cost accuracy on few images, whose students walk along most of the expert."""


def growing_epochs(epochs: int, distance: float) -> tuple[int, ...]:
    """Return epoch 0, `epochs`, a third of it, a ninth, and so on down to `FIRST_WAYPOINT`: each three times as late.

    distance: steps per epoch times the step size. Students start in the first epochs, where an expert turns most. The
    authors' best known setting, (0, 6, 25, 50), is alike.

    >>> growing_epochs(50, 196 * 0.01), growing_epochs(30, 16 * 0.01)
    ((0, 6, 17, 50), (0, 30))
    """
    later, part = [epochs], epochs / 3
    while round(part) >= 1 and part * distance >= FIRST_WAYPOINT:
        later.append(round(part))
        part /= 3
    return (0, *reversed(later))


class Convexifier:
    """Convexifies a trajectory while it is trained: `add` the parameters of epochs 0, 1, ..., K, then `finish`.

    It stores the waypoints and one path length per tensor and epoch, never the trajectory.
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
        self.last_theta: Tensor | None = None
        self.last_point: Tensor | None = None  # the end of the last length, on the path that is measured
        self.num_points = 0

    def add(self, theta: Tensor) -> None:
        """Add the parameters (P,) of the next epoch."""
        theta = theta.detach()
        for index, epoch in enumerate(self.epochs):
            weight = self.weights[index].get(self.num_points - epoch)
            if weight is not None:
                partial_sum = self.waypoints[index]
                self.waypoints[index] = weight * theta if partial_sum is None else partial_sum + weight * theta
        if self.smoothing.before_beta:
            if self.last_theta is not None:  # a smoothed waypoint is complete one epoch later
                self._measure_length(self._smoothed_point(self.num_points - 1, self.last_theta))
        else:
            self._measure_length(theta)
        self.last_theta = theta.clone()
        self.num_points += 1

    def _smoothed_point(self, epoch: int, theta: Tensor) -> Tensor:
        if epoch not in self.epochs:
            return theta
        waypoint = self.waypoints[self.epochs.index(epoch)]
        assert waypoint is not None
        return waypoint

    def _measure_length(self, point: Tensor) -> None:
        if self.last_point is not None:
            parts = self.layout.split(point - self.last_point)
            # on the processor: a GPU adds a cumulative sum up in no fixed order
            self.lengths.append(torch.stack([part.norm() for part in parts]).double().cpu())
        self.last_point = point.clone()

    def finish(self) -> Convexified:
        """Return the convexified trajectory; ValueError unless exactly K + 1 epochs were added."""
        if self.num_points != self.epochs[-1] + 1:
            raise ValueError(f"{self.num_points} epochs were added; the last waypoint is at epoch {self.epochs[-1]}")
        if self.smoothing.before_beta and self.last_theta is not None:
            self._measure_length(self._smoothed_point(self.num_points - 1, self.last_theta))
        waypoints = torch.stack([point for point in self.waypoints if point is not None]).to(self.dtype).cpu()
        beta = SCHEDULES[self.schedule](torch.stack(self.lengths), self.epochs)
        return Convexified(self.layout, self.epochs, waypoints, beta)


def arc_length(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """Return MCT's beta (K, L): the fraction of its path in the segment that each tensor has covered.

    lengths: (K, L) path lengths per epoch. A tensor that does not move in a segment gets a uniform beta, which changes
    nothing and keeps its last row 1.
    """
    parts = []
    for first, last in pairwise(epochs):
        covered = lengths[first:last].cumsum(0)
        uniform_part = _fractions(torch.ones(last - first, 1, dtype=covered.dtype, device=covered.device))
        tiny = torch.finfo(covered.dtype).tiny
        parts.append(torch.where(covered[-1] > 0, covered / covered[-1].clamp_min(tiny), uniform_part))
    return torch.cat(parts).float().cpu()


def _fractions(increments: Tensor) -> Tensor:
    """Cumulative sums, scaled so that the last row is 1."""
    sums = increments.cumsum(0)
    return sums / sums[-1]


def uniform(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """Return a beta (K, L) that grows by the same amount in every epoch of a segment (an ablation of MCT)."""
    parts = [_fractions(torch.ones(last - first, 1, dtype=torch.double)) for first, last in pairwise(epochs)]
    return torch.cat(parts).float().expand(len(lengths), lengths.shape[1]).contiguous()


def decreasing(lengths: Tensor, epochs: tuple[int, ...]) -> Tensor:
    """Return a beta (K, L) whose increments fall linearly to the end of a segment (an ablation of MCT)."""
    parts = [
        _fractions(torch.arange(last - first, 0, -1, dtype=torch.double)[:, None]) for first, last in pairwise(epochs)
    ]
    return torch.cat(parts).float().expand(len(lengths), lengths.shape[1]).contiguous()


SCHEDULES: dict[str, BetaSchedule] = {"arc": arc_length, "uniform": uniform, "decreasing": decreasing}


def convexify(
    points: Iterable[Tensor],
    layout: Layout,
    epochs: tuple[int, ...],
    smoothing: Smoothing = SMOOTHING["none"],
    dtype: torch.dtype = torch.float32,
    schedule: str = "arc",
) -> Convexified:
    """Convexify recorded parameters.

    points:    (K + 1, P), or one (P,) per epoch: only one is in memory at a time.
    epochs:    of the waypoints, from 0 to K.
    dtype:     storage type of the waypoints, float32 or float16.
    schedule:  a name in `SCHEDULES`: how beta follows from path lengths.
    Raises ValueError unless there are exactly K + 1 points.

    >>> import limbeck, torch
    >>> layout = limbeck.FlatModel(lambda: torch.nn.Linear(1, 1)).layout
    >>> path = limbeck.convexify(torch.tensor([[0.0, 0.0], [3.0, 1.0], [4.0, 2.0]]), layout, (0, 1, 2))
    >>> path.at(1.5).tolist()
    [3.5, 1.5]
    """
    convexifier = Convexifier(layout, epochs, smoothing, dtype, schedule)
    for theta in points:
        convexifier.add(theta)
    return convexifier.finish()
