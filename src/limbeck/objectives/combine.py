"""Objectives that are composed of others: a weighted sum, the mean over several draws, and one always finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.distributed import SINGLE, Ranks
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
    ranks: The processes that share the draws: rank r takes the draws r, r + size, and so on. The sum is taken in the
           order of the draws whatever their number, so that its bits do not depend on it.
    Raises ValueError for draws that the ranks cannot share evenly.
    """

    objective: Objective
    draws: int
    ranks: Ranks = SINGLE

    def __post_init__(self) -> None:
        if self.draws % self.ranks.size:
            raise ValueError(f"{self.draws} draws cannot be shared evenly by {self.ranks.size} ranks")

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The mean at this outer step: a scalar."""
        parameters = list(synthetic.parameters().values())
        total = torch.zeros((), dtype=synthetic.images.dtype, device=synthetic.images.device)
        sums: list[Tensor | None] = [None] * len(parameters)  # of this rank's slices
        for draw in self.ranks.share(range(self.draws)):
            value, gradients = value_and_grad(self.objective, synthetic, step, derive_seed(seed, "draw", draw))
            for term in self.ranks.gather(value):
                total = total + term / self.draws
            exist = self.ranks.gather_json([gradient is not None for gradient in gradients])
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients)):
                sums[i] = self._add(sums[i], gradient, parameter, [flags[i] for flags in exist])
        joined = [None if part is None else self.ranks.join(part, like) for part, like in zip(sums, parameters)]
        return attach_gradients(total, parameters, joined)

    def _add(
        self, total: Tensor | None, gradient: Tensor | None, parameter: Tensor, exist: Sequence[bool]
    ) -> Tensor | None:
        """Add the gradient of one draw of every rank to the sum; one that does not exist is left out, and is not 0."""
        if any(exist):
            parts = self.ranks.exchange(torch.zeros_like(parameter) if gradient is None else gradient)
            for part in (part / self.draws for part, exists in zip(parts, exist) if exists):
                total = part if total is None else total + part
        return total


def average_draws(objective: Objective, draws: int, ranks: Ranks = SINGLE) -> Objective:
    """The mean of an objective over `draws` seeds; for one draw the objective itself."""
    return objective if draws == 1 else Average(objective, draws, ranks)


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
