"""Types that several packages share: tuples, protocols and function types, without logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from limbeck.core.short_repr import short_repr


class Batch(NamedTuple):
    """The images and labels of one training step.

    images: float (n, channels, height, width), in network input space.
    labels: int64 (n,) classes, or float (n, classes) probabilities.
    seed:   seed of the step's augmentation; None means none is applied.
    rows:   int64 (m,), use only these rows. The student selects them inside the step, so that the N batches of
            one set share one tensor and neither they nor their gradients are stored N times.

    >>> batch = Batch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), seed=7)
    >>> batch.images.shape, batch.rows
    (torch.Size([4, 1, 8, 8]), None)
    """

    images: Tensor
    labels: Tensor
    seed: int | None = None
    rows: Tensor | None = None

    def __repr__(self) -> str:
        return short_repr(self)


class Segment(NamedTuple):
    """A segment of an expert's trajectory, from parameters `start` (P,) at epoch `t0` to `target` (P,) at `t1`."""

    start: Tensor
    target: Tensor
    t0: float
    t1: float
    expert: Trajectory

    def __repr__(self) -> str:
        return short_repr(self)


PureLoss = Callable[[Tensor, Batch], Tensor]
"""(theta (P,), batch) -> scalar. The same arguments always give the same bits."""

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta, start, target), each (P,) -> scalar."""


class Trajectory(Protocol):
    """An expert's path through parameter space, from epoch 0 to epoch `end`."""

    @property
    def end(self) -> int:
        """The last epoch."""
        ...

    def at(self, t: float) -> Tensor:
        """The parameters (P,) at epoch `t`. Raises ValueError for a `t` at which this trajectory is not defined."""
        ...


class Sampler(Protocol):
    """Draws the segment (t0, t1) of a trajectory to match at an outer step, where 0 <= t0 < t1 <= end."""

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]:
        """The segment for outer step `step`. Raises UserError where `end` is too short for one."""
        ...
