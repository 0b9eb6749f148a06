"""The one outer loop: draw, loss, backward, accept, step, hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.synthetic.set import SyntheticSet


class Objective(Protocol):
    """What a method minimises: a differentiable scalar of the synthetic set, random only through (seed, step)."""

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor: ...


class Hook(Protocol):
    """Called after every outer step, with the updated set and that step's loss."""

    def __call__(self, synthetic: SyntheticSet, step: int, loss: float) -> None: ...


class DivergenceError(UserError):
    """The loss or a gradient stopped being finite; the set still holds its last good values."""


def outer_loop(
    objective: Objective,
    synthetic: SyntheticSet,
    optimisers: Sequence[torch.optim.Optimizer],
    steps: range,
    seed: int,
    accept: Callable[[float], bool] | None = None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Lower `objective` over `steps`, updating the learned parameters of `synthetic` in place.

    Each step is random only through (seed, step), so that a run can be taken up again at any of them.
    Hooks see the number of steps done. Raises DivergenceError before a step that is not finite is taken.
    """
    for step in steps:
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss = objective(synthetic, step, seed)
        loss.backward()
        value = float(loss.detach())
        _check(value, synthetic, step)
        if accept is None or accept(value):
            for optimiser in optimisers:
                optimiser.step()
        for hook in hooks:
            hook(synthetic, step + 1, value)


def _check(loss: float, synthetic: SyntheticSet, step: int) -> None:
    grads = {name: parameter.grad for name, parameter in synthetic.parameters().items()}
    broken = [name for name, grad in grads.items() if grad is not None and not bool(torch.isfinite(grad).all())]
    if not isfinite(loss) or broken:
        what = f"the gradient of {', '.join(broken)}" if broken else "the loss"
        lr = float(synthetic.lr.detach())
        raise DivergenceError(
            f"step {step}: {what} is not finite (loss {loss:.4g}, student step size {lr:.4g}); the last good state "
            "is kept. Lower --lr-img, --lr-lr or --syn-steps and run again in a new folder."
        )
