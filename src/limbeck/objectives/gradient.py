"""Gradient matching (Zhao et al., DC, ICLR 2021): how far apart two batches' gradients of one network's weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.flat import FlatModel, Layout
from limbeck.objectives.classes import Pair
from limbeck.student.losses import cross_entropy

TensorDistance = Callable[[Tensor, Tensor], Tensor]
"""Between two gradients of one tensor, both (out, ...) -> scalar; a row is what leads to one output."""


def mse(ours: Tensor, target: Tensor) -> Tensor:
    """The sum (not the mean) of squared differences; the name is the papers'."""
    return (ours - target).square().sum()


def l1(ours: Tensor, target: Tensor) -> Tensor:
    """The sum of absolute differences."""
    return (ours - target).abs().sum()


def l1_mean(ours: Tensor, target: Tensor) -> Tensor:
    """The mean absolute difference of every row, summed over rows."""
    return (ours - target).abs().flatten(1).mean(1).sum()


def cosine(ours: Tensor, target: Tensor) -> Tensor:
    """1 - cosine of every row, summed over rows (DC, equation 10, with its released guard of 1e-6)."""
    a, b = ours.flatten(1), target.flatten(1)
    sizes = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    total: Tensor = (1 - (a * b).sum(1) / (sizes + 1e-6)).sum()
    return total


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

    which: places in the network's layout. The parameters are new leaves in every call, so that no `.grad` of theirs
    is touched, and no gradient is taken of tensors that are not matched.
    """

    model: FlatModel
    which: tuple[int, ...]
    distance: TensorDistance

    def gradients(self, theta: Tensor, pair: Pair, graph: bool) -> tuple[Tensor, ...]:
        """Of the mean cross-entropy, one for each of `which`; with their own graph, or detached."""
        parts = [part.detach() for part in self.model.layout.split(theta)]
        wanted = [parts[i].requires_grad_() for i in self.which]
        named = dict(zip(self.model.layout.names, parts))
        logits: Tensor = torch.func.functional_call(self.model.module, named, (pair[0],))
        return torch.autograd.grad(cross_entropy(logits, pair[1]), wanted, create_graph=graph)

    def __call__(self, theta: Tensor, real: Pair, synthetic: Pair) -> Tensor:
        target = self.gradients(theta, real, graph=False)
        ours = self.gradients(theta, synthetic, graph=True)
        return torch.stack([self.distance(a, b) for a, b in zip(ours, target)]).sum()
