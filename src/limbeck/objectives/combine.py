"""Objectives made of an objective: the mean over several draws, and one that stays finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed
from limbeck.synthetic.loop import Objective
from limbeck.synthetic.set import SyntheticSet

Gradients = Sequence[Tensor | None]


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Gradients) -> Tensor:
    """A scalar of this value whose gradients are these; exact, since what is added is 0.

    >>> x = torch.ones(2, requires_grad=True)
    >>> y = with_gradients(torch.tensor(5.0), [x], [torch.tensor([1.0, 2.0])])
    >>> y.backward(); y.item(), x.grad.tolist()
    (5.0, [1.0, 2.0])
    """
    for parameter, gradient in zip(parameters, gradients):
        if gradient is not None:
            value = value + ((parameter - parameter.detach()) * gradient).sum()
    return value


def of_step_size(loss: Tensor, synthetic: SyntheticSet) -> Tensor:
    """The same value with the gradient of the step size alone: optimisers leave everything else where it is."""
    gradients = torch.autograd.grad(loss, synthetic.log_lr)
    return with_gradients(loss.detach(), [synthetic.log_lr], gradients)


@torch.enable_grad()
def evaluated(objective: Objective, synthetic: SyntheticSet, step: int, seed: int) -> tuple[Tensor, Gradients]:
    """The value and its gradients in the learned parameters, taken now, so that the graph can go."""
    loss = objective(synthetic, step, seed)
    gradients = torch.autograd.grad(loss, list(synthetic.parameters().values()), allow_unused=True)
    return loss.detach(), gradients


@dataclass(frozen=True)
class Average:
    """The mean of an objective over `draws` seeds: a gradient of less variance, with one draw's graph at a time.

    This is gradient accumulation, as a value: any recipe's objective can be wrapped.
    """

    objective: Objective
    draws: int

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        parameters = list(synthetic.parameters().values())
        total = torch.zeros((), dtype=synthetic.images.dtype, device=synthetic.images.device)
        sums: list[Tensor | None] = [None] * len(parameters)
        for draw in range(self.draws):
            value, gradients = evaluated(self.objective, synthetic, step, derive_seed(seed, "draw", draw))
            total = total + value / self.draws
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    held = sums[i]
                    sums[i] = gradient / self.draws if held is None else held + gradient / self.draws
        return with_gradients(total, parameters, sums)


def averaged(objective: Objective, draws: int) -> Objective:
    """The objective itself for one draw."""
    return objective if draws == 1 else Average(objective, draws)


@dataclass(frozen=True)
class Finite:
    """Where the value or a gradient is not finite: `instead`, with no gradient, for a gate of the loop to refuse."""

    objective: Objective
    instead: float

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        parameters = list(synthetic.parameters().values())
        value, gradients = evaluated(self.objective, synthetic, step, seed)
        finite = [torch.isfinite(tensor).all() for tensor in (value, *gradients) if tensor is not None]
        if bool(torch.stack(finite).all()):
            return with_gradients(value, parameters, gradients)
        return with_gradients(
            torch.full_like(value, self.instead), parameters, [torch.zeros_like(p) for p in parameters]
        )
