"""A curved path beside MCT's straight ones, to compare against: a quadratic Bezier curve fitted to the recorded one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import floor

import torch
from torch import Tensor

from limbeck.experts.convexified import arc_length
from limbeck.networks.flat import Layout


@dataclass(frozen=True, eq=False)
class Bezier:
    """theta(t) = (1 - s)^2 A + 2 s (1 - s) C + s^2 B, with s(t) per tensor by arc length (cf. arXiv 2510.05805).

    waypoints: (3, P), the first point A, the control point C, the last point B; three models to store.
    beta:      (K, L), s at the end of each epoch; linear between, 0 at the start.
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
            raise ValueError(f"a Bezier trajectory answers from epoch 0 to {self.end}, not at {t}")
        k = min(floor(t), self.end - 1)
        before = torch.zeros_like(self.beta[0]) if k == 0 else self.beta[k - 1]
        s = self.layout.per_tensor(torch.lerp(before, self.beta[k], t - k))
        start, control, stop = self.waypoints.float().unbind()
        return (1 - s).square() * start + 2 * s * (1 - s) * control + s.square() * stop


def fit_bezier(points: Tensor, layout: Layout, dtype: torch.dtype = torch.float32) -> Bezier:
    """The curve through both ends of recorded points (K + 1, P) that is nearest to them in least squares, per tensor.

    With s fixed by arc length the control point has a closed form: regress what the ends leave over on 2 s (1 - s).
    A trajectory of one epoch has nothing between its ends; its control point is their mean, a straight line.
    """
    epochs = len(points) - 1
    moved = [torch.stack([part.norm() for part in layout.split(b - a)]) for a, b in pairwise(points)]
    beta = arc_length(torch.stack(moved).double(), (0, epochs))
    start, stop = points[0].double(), points[-1].double()
    above, below = torch.zeros_like(start), torch.zeros_like(start)
    for k in range(1, epochs):
        s = layout.per_tensor(beta[k - 1]).double()
        weight = 2 * s * (1 - s)
        above += weight * (points[k].double() - (1 - s).square() * start - s.square() * stop)
        below += weight.square()
    control = torch.where(below > 0, above / below.clamp_min(torch.finfo(torch.double).tiny), (start + stop) / 2)
    waypoints = torch.stack([points[0], control.to(points.dtype), points[-1]]).to(dtype).cpu()
    return Bezier(layout, (0, epochs), waypoints, beta)
