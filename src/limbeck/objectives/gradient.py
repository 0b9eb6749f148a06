"""Gradient matching (Zhao et al., DC, ICLR 2021): how far apart two batches' gradients of one network's weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.sums import reproducible_sum
from limbeck.core.types import Batch
from limbeck.derivatives.autograd import Loss, differentiable_gradient
from limbeck.networks.flat import Layout
from limbeck.objectives.classes import Pair

TensorDistance = Callable[[Tensor, Tensor], Tensor]
"""Between two gradients of one tensor, both (out, ...) -> scalar; a row is what leads to one output."""


def mse(ours: Tensor, target: Tensor) -> Tensor:
    """The sum (not the mean) of squared differences; the name is the papers'."""
    return reproducible_sum((ours - target).square())


def l1(ours: Tensor, target: Tensor) -> Tensor:
    """The sum of absolute differences."""
    return reproducible_sum((ours - target).abs())


def l1_mean(ours: Tensor, target: Tensor) -> Tensor:
    """The mean absolute difference of every row, summed over rows."""
    return (ours - target).abs().flatten(1).mean(1).sum()


def cosine(ours: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of every row, summed over rows (DC, equation 10, with its released guard of 1e-6)."""
    a, b = ours.flatten(1), target.flatten(1)
    sizes = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    distance: Tensor = (1 - (a * b).sum(1) / (sizes + 1e-6)).sum()
    return distance


DISTANCES: dict[str, TensorDistance] = {"mse": mse, "l1": l1, "l1_mean": l1_mean, "cosine": cosine}


def weights(layout: Layout) -> tuple[int, ...]:
    """Places of all tensors of two dimensions or more: what DC and DSA match; biases and gains of norms are not."""
    return tuple(i for i, shape in enumerate(layout.shapes) if len(shape) > 1)


def convolutions(layout: Layout) -> tuple[int, ...]:
    """Places of the convolutions' weights alone, without the last layer: what IDC and DREAM match.

    Raises UserError for a network without one.
    """
    found = tuple(i for i, shape in enumerate(layout.shapes) if len(shape) == 4)
    if not found:
        raise UserError("this method matches gradients of convolutions, and the network has none; use dc or dsa.")
    return found


@dataclass(frozen=True)
class GradientDistance:
    """A `Discrepancy`: the sum over these tensors of the distance between both pairs' gradients of the cross-entropy.

    loss: of (theta, batch), pure: cross-entropy of the network. which: places in the network's layout.
    No parameter's `.grad` is touched.
    """

    loss: Loss
    layout: Layout
    which: tuple[int, ...]
    distance: TensorDistance

    def matched(self, gradient: Tensor) -> list[Tensor]:
        """The parts of a gradient (P,) that are compared, each in its own shape."""
        parts = self.layout.split(gradient)
        return [parts[i] for i in self.which]

    def __call__(self, theta: Tensor, real: Pair, synthetic: Pair) -> Tensor:
        target = self.matched(self.loss.gradient(theta, Batch(*real)))
        ours = self.matched(differentiable_gradient(self.loss, theta, Batch(*synthetic)))
        return torch.stack([self.distance(a, b) for a, b in zip(ours, target)]).sum()
