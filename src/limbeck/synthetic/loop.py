"""The outer loop, which improves a synthetic set: objective, backward pass, optimisers' steps, hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.synthetic.set import SyntheticSet


class Objective(Protocol):
    """What a method minimises: a differentiable scalar of the synthetic set. It is random only through (seed, step)."""

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The loss at outer step `step`, a scalar."""
        ...


class Hook(Protocol):
    """A function of the updated set, the number of outer steps so far and the last loss, called after every step."""

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Act on the set after its `step`-th step."""
        ...


class StatefulHook(ABC):
    """A hook that remembers something between outer steps: a run saves its state, so that it can be continued.

    Only hooks of this class are saved. A function, or an object of another class, is a hook without a state.
    """

    @property
    def cycle(self) -> int:
        """Outer steps between two calls that do the hook's expensive work; 1 where every call costs the same."""
        return 1

    @abstractmethod
    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None:
        """Act on the set after its `step`-th step."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What the hook remembers, as tensors by name."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from the state after `step` outer steps."""


class DivergenceError(UserError):
    """The loss or a gradient stopped being finite. The set still has its last finite values."""


def outer_loop(
    objective: Objective,
    synthetic: SyntheticSet,
    optimisers: Sequence[torch.optim.Optimizer],
    steps: range,
    seed: int,
    accept: Callable[[float], bool] | None = None,
    hooks: Sequence[Hook] = (),
    admit: Callable[[int, float], bool] | None = None,
) -> None:
    """Minimise `objective` over the outer steps `steps`, updating the learned parameters of `synthetic` in place.

    optimisers: of the learned parameters, each stepped once an outer step.
    accept:     loss -> whether to take this step; None takes every step.
    hooks:      called in order after every step, accepted or not, with the number of steps so far.
    admit:      (step, loss) -> whether the loss and the gradients can be used, see `limbeck.synthetic.guard`; by
                default the loop ends where they are not finite.

    Each step is random only through (seed, step), so that a run can be continued from any step.
    Raises DivergenceError, before the step is taken, where the loss or a gradient is not finite, or as `admit` does.

    >>> images, labels = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
    >>> synthetic = SyntheticSet.from_images(images, labels, lr=0.1, learned=("images",))
    >>> optimiser = torch.optim.SGD([synthetic.images], lr=0.5)
    >>> def objective(synthetic, step, seed):
    ...     return synthetic.images.square().sum()
    >>> outer_loop(objective, synthetic, [optimiser], range(1), seed=0)
    >>> float(synthetic.images.detach().abs().max())
    0.0
    """
    for step in steps:
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss = objective(synthetic, step, seed)
        loss.backward()
        value = float(loss.detach())
        is_admitted = _require_finite(step, value, synthetic) if admit is None else admit(step, value)
        if is_admitted and (accept is None or accept(value)):
            for optimiser in optimisers:
                optimiser.step()
        for hook in hooks:
            hook(synthetic, step + 1, value)


def find_fault(loss: float, synthetic: SyntheticSet) -> str | None:
    """What is not finite: the gradient of a learned parameter, or the loss; None where all are."""
    grads = {name: parameter.grad for name, parameter in synthetic.parameters().items()}
    broken = [name for name, grad in grads.items() if grad is not None and not bool(torch.isfinite(grad).all())]
    if broken:
        return f"the gradient of {', '.join(broken)} is not finite"
    return None if isfinite(loss) else "the loss is not finite"


def _require_finite(step: int, loss: float, synthetic: SyntheticSet) -> bool:
    fault = find_fault(loss, synthetic)
    if fault is not None:
        lr = float(synthetic.lr.detach())
        raise DivergenceError(
            f"step {step}: {fault} (loss {loss:.4g}, student step size {lr:.4g}); the last good state is kept. Lower "
            "--lr-img, --lr-lr or --syn-steps and run again in a new folder."
        )
    return True
