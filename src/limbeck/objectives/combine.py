"""Objectives that are composed of others: a weighted sum, the mean over several draws, and one always finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed
from limbeck.synthetic.loop import Objective
from limbeck.synthetic.set import SyntheticSet

Gradients = Sequence[Tensor | None]


def attach_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """A scalar of this value whose gradient in each parameter is the given one; exact, because 0 is added.

    >>> x = torch.ones(2, requires_grad=True)
    >>> y = attach_gradients(torch.tensor(5.0), [x], [torch.tensor([1.0, 2.0])])
    >>> y.backward(); y.item(), x.grad.tolist()
    (5.0, [1.0, 2.0])
    """
    for parameter, gradient in zip(parameters, gradients):
        if gradient is not None:
            value = value + ((parameter - parameter.detach()) * gradient).sum()
    return value


def keep_lr_gradient(loss: Tensor, synthetic: SyntheticSet) -> Tensor:
    """The same value with the gradient of the step size alone, so that optimisers change nothing else."""
    gradients = torch.autograd.grad(loss, synthetic.log_lr)
    return attach_gradients(loss.detach(), [synthetic.log_lr], gradients)


@torch.enable_grad()
def value_and_grad(objective: Objective, synthetic: SyntheticSet, step: int, seed: int) -> tuple[Tensor, Gradients]:
    """The value of an objective and its gradients in the learned parameters, without a graph."""
    loss = objective(synthetic, step, seed)
    gradients = torch.autograd.grad(loss, list(synthetic.parameters().values()), allow_unused=True)
    return loss.detach(), gradients


@dataclass(frozen=True)
class Sum:
    """The sum of objectives, each times its weight: ((weight, objective), ...)."""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The sum at this outer step: a scalar."""
        return torch.stack([weight * objective(synthetic, step, seed) for weight, objective in self.terms]).sum()


@dataclass(frozen=True)
class Average:
    """The mean of an objective over `draws` seeds: gradient accumulation, with one draw's graph at a time.

    It reduces the variance of the gradient. Any recipe's objective can be wrapped.
    """

    objective: Objective
    draws: int

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The mean at this outer step: a scalar."""
        parameters = list(synthetic.parameters().values())
        total = torch.zeros((), dtype=synthetic.images.dtype, device=synthetic.images.device)
        sums: list[Tensor | None] = [None] * len(parameters)
        for draw in range(self.draws):
            value, gradients = value_and_grad(self.objective, synthetic, step, derive_seed(seed, "draw", draw))
            total = total + value / self.draws
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    partial = sums[i]
                    sums[i] = gradient / self.draws if partial is None else partial + gradient / self.draws
        return attach_gradients(total, parameters, sums)


def average_draws(objective: Objective, draws: int) -> Objective:
    """The mean of an objective over `draws` seeds; for one draw the objective itself."""
    return objective if draws == 1 else Average(objective, draws)


@dataclass(frozen=True)
class FiniteOr:
    """An objective, or the value `fallback` with zero gradients where its value or a gradient is not finite.

    A gate of the outer loop (`Plan.accept`) can then reject the step.
    """

    objective: Objective
    fallback: float

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The value at this outer step: a finite scalar with finite gradients."""
        parameters = list(synthetic.parameters().values())
        value, gradients = value_and_grad(self.objective, synthetic, step, seed)
        finite = [torch.isfinite(tensor).all() for tensor in (value, *gradients) if tensor is not None]
        if bool(torch.stack(finite).all()):
            return attach_gradients(value, parameters, gradients)
        return attach_gradients(
            torch.full_like(value, self.fallback), parameters, [torch.zeros_like(p) for p in parameters]
        )
