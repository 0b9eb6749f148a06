"""Losses of trajectory matching that look at more of the student's path than its end (ATT, HoP-TM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.sums import reproducible_dot, reproducible_sum
from limbeck.core.types import Segment
from limbeck.objectives.distance import displacement

Stop = Callable[[Sequence[Tensor], Tensor], Sequence[int]]
"""(the student's parameters (P,) at steps 0 to N, target (P,)) -> the steps that a loss looks at."""

PathDistance = Callable[[Tensor, Segment, int], Tensor]
"""(the student's parameters (k, P) at the steps of a `Stop`, segment, outer step) -> scalar."""

TINY = 1e-30  # in a root, whose derivative is then finite at 0


@dataclass(frozen=True)
class Nearest:
    """ATT's `Stop`: the step from 1 to N after which the student is nearest to the target; of equals the last.

    power: 1 for the sum of absolute differences, as the authors choose, 2 for that of squares.

    >>> Nearest()([torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([4.0])], torch.tensor([1.5]))
    [1]
    """

    power: int = 1

    def __call__(self, path: Sequence[Tensor], target: Tensor) -> list[int]:
        """One step; the last one where no distance is a number."""
        distances = [reproducible_sum((theta - target).abs() ** self.power) for theta in path[1:]]
        step, least = len(path) - 1, inf
        for index, distance in enumerate(torch.stack(distances).tolist(), 1):
            if distance <= least:
                step, least = index, distance
        return [step]


def halfway_and_last(path: Sequence[Tensor], target: Tensor) -> list[int]:
    """HoP-TM's `Stop`: steps N // 2 and N."""
    return [(len(path) - 1) // 2, len(path) - 1]


def masked_displacement(theta: Tensor, start: Tensor, target: Tensor, share: float) -> Tensor:
    """`displacement` over the parameters that are nearest to their target, a `share` of all; at 1 over all.

    >>> theta, start = torch.tensor([3.0, 9.0]), torch.zeros(2)
    >>> float(masked_displacement(theta, start, torch.tensor([4.0, 4.0]), 0.5))
    0.0625
    """
    if share >= 1:
        return displacement(theta, start, target)
    errors = (theta - target).detach().square()
    bound = errors.kthvalue(max(1, round(share * len(errors)))).values
    mask = (errors <= bound).to(theta)
    return reproducible_dot(mask, (theta - target).square()) / reproducible_dot(mask, (start - target).square())


def shape_distance(path: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """How much the triangles of two paths of three points (P,) differ in shape: a scalar of HoP-TM.

    It is the mean over 27 entries of the smooth L1 difference of two 3 x 3 x 3 tensors: the inner products, at each of
    the three points, of the unit vectors from there to all three. Only the angle at each point counts, twice, so that
    it is 2 / 27 of the sum over points of the smooth L1 difference of their cosines.

    >>> right, other = [torch.tensor(p) for p in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))], torch.tensor([3.0, 4.0])
    >>> float(shape_distance(right, [2 * point + other for point in right])) < 1e-12
    True
    """
    differences = _cosines(path) - _cosines(other)
    return F.smooth_l1_loss(differences, torch.zeros_like(differences), reduction="sum") * (2 / 27)


def _cosines(points: Sequence[Tensor]) -> Tensor:
    """The cosines (3,) of the angles of a triangle."""
    cosines = []
    for vertex in range(3):
        one, other = (points[(vertex + i) % 3] - points[vertex] for i in (1, 2))
        norms = (reproducible_sum(one.square()) + TINY).sqrt() * (reproducible_sum(other.square()) + TINY).sqrt()
        cosines.append(reproducible_dot(one, other) / norms)
    return torch.stack(cosines)


@dataclass(frozen=True)
class PositionAndShape:
    """HoP-TM's `PathDistance`, for `halfway_and_last`: a masked displacement, and how paths differ in shape.

    share:  Part of the parameters that the displacement is of at the first outer step: those nearest to their target.
            It grows linearly to all of them in the first `steps` outer steps.
    weight: Of the difference in shape between the student's start, middle and end and the expert's.

    The released mask is of errors below a bound that grows, in units of squared parameters, and never loses a
    parameter; it is empty, and the loss 0 / 0, where the bound is below the smallest error.
    """

    share: float
    steps: int
    weight: float

    def __call__(self, states: Tensor, segment: Segment, step: int) -> Tensor:
        """The distance at outer step `step`: a scalar."""
        middle, end = states
        share = self.share + (1 - self.share) * min(step / self.steps, 1.0)
        position = masked_displacement(end, segment.start, segment.target, share)
        if not self.weight:
            return position
        halfway = segment.expert.at((segment.t0 + segment.t1) / 2).to(end)
        shape = shape_distance((segment.start, middle, end), (segment.start, halfway, segment.target))
        return position + self.weight * shape
