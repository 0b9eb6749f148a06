"""Gradient matching (Zhao et al., DC, ICLR 2021): the distance between two batches' gradients of one network."""

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
"""(gradient, gradient) of one tensor, both (out, ...) -> scalar. A row holds the weights of one output."""


def mse(gradient: Tensor, target: Tensor) -> Tensor:
    """The sum, not the mean, of squared differences; the name is that of the papers."""
    return reproducible_sum((gradient - target).square())


def l1(gradient: Tensor, target: Tensor) -> Tensor:
    """The sum of absolute differences."""
    return reproducible_sum((gradient - target).abs())


def l1_mean(gradient: Tensor, target: Tensor) -> Tensor:
    """The mean absolute difference of every row, summed over rows."""
    return (gradient - target).abs().flatten(1).mean(1).sum()


def cosine(gradient: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of every row, summed over rows (DC, equation 10, with its released guard of 1e-6)."""
    a, b = gradient.flatten(1), target.flatten(1)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    distance: Tensor = (1 - (a * b).sum(1) / (norms + 1e-6)).sum()
    return distance


DISTANCES: dict[str, TensorDistance] = {"mse": mse, "l1": l1, "l1_mean": l1_mean, "cosine": cosine}


def weight_indices(layout: Layout) -> tuple[int, ...]:
    """Indices of all tensors of two or more dimensions, which DC and DSA match: not biases, and not gains of norms."""
    return tuple(i for i, shape in enumerate(layout.shapes) if len(shape) > 1)


def convolution_indices(layout: Layout) -> tuple[int, ...]:
    """Indices of the convolutions' weights, which IDC and DREAM match: without the last layer.

    Raises UserError for a network without convolutions.
    """
    indices = tuple(i for i, shape in enumerate(layout.shapes) if len(shape) == 4)
    if not indices:
        raise UserError("this method matches gradients of convolutions, and the network has none; use dc or dsa.")
    return indices


@dataclass(frozen=True)
class GradientDistance:
    """A `Discrepancy`: the sum over parameter tensors of the distance between both pairs' gradients of a loss.

    loss:     The network's cross-entropy, without augmentation.
    layout:   Of the network's parameters.
    indices:  Of the tensors that are compared, in the layout's order.
    distance: Between two gradients of one tensor; see `DISTANCES`.

    The `.grad` of parameters is not changed.
    """

    loss: Loss
    layout: Layout
    indices: tuple[int, ...]
    distance: TensorDistance

    def select_tensors(self, gradient: Tensor) -> list[Tensor]:
        """The tensors of a gradient (P,) that are compared, each in its own shape."""
        parts = self.layout.split(gradient)
        return [parts[i] for i in self.indices]

    def __call__(self, theta: Tensor, real: Pair, synthetic: Pair) -> Tensor:
        """The distance under the network theta (P,): a scalar."""
        target = self.select_tensors(self.loss.gradient(theta, Batch(*real)))
        gradients = self.select_tensors(differentiable_gradient(self.loss, theta, Batch(*synthetic)))
        return torch.stack([self.distance(a, b) for a, b in zip(gradients, target)]).sum()
