"""The vocabulary the parts share: tuples and protocols, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Batch(NamedTuple):
    """What one student step trains on.

    images: float (n, channels, height, width), in network input space.
    labels: int64 (n,) classes, or float (n, classes) probabilities.
    seed:   seed of the step's augmentation; None means none is applied.
    rows:   int64 (m,), use only these rows. The student selects them inside the step, so that the N batches of
            one set share one tensor and neither they nor their gradients are stored N times.
    """

    images: Tensor
    labels: Tensor
    seed: int | None = None
    rows: Tensor | None = None


class Segment(NamedTuple):
    """A stretch of one expert's trajectory: parameters `start` at epoch `t0`, `target` at epoch `t1`; each (P,)."""

    start: Tensor
    target: Tensor
    t0: float
    t1: float
    expert: Trajectory


PureLoss = Callable[[Tensor, Batch], Tensor]
"""(theta (P,), batch) -> scalar; the same arguments always give the same bits."""

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta, start, target), each (P,) -> scalar."""


Listener = Callable[[dict[str, Any]], None]
"""Hears of what happens, one dict each, by its "event": "begin" (a job: "work", "path"), "estimate" ("text", numbers),
"stage" ("name", "total", "unit"), "advance" ("text") after each unit of it, "note" and "warning" ("text"); there may be
others."""


class Trajectory(Protocol):
    """An expert's path through parameter space, from epoch 0 to epoch `end`."""

    @property
    def end(self) -> int: ...

    def at(self, t: float) -> Tensor:
        """Parameters (P,) at epoch `t`; ValueError where this trajectory has no answer."""
        ...


class Sampler(Protocol):
    """Which segment of a trajectory of length `end` to match at an outer step: 0 <= t0 < t1 <= end."""

    def __call__(self, step: int, end: int, generator: torch.Generator) -> tuple[float, float]: ...


class Adjoint(Protocol):
    """How the gradient of an unroll is taken."""

    def unroll(self, loss: PureLoss, theta0: Tensor, batches: list[Batch], lr: Tensor) -> Tensor: ...
