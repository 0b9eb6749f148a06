"""The student: N steps of gradient descent, and the ways to take the gradient through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.errors import UserError
from limbeck.core.types import Adjoint, Batch, PureLoss
from limbeck.derivatives.autograd import NeedsGrad, WrittenOut, gradient, hvp
from limbeck.networks.losses import CrossEntropy


def select(batch: Batch) -> Batch:
    """The batch with its `rows` taken, as the loss sees it."""
    if batch.rows is None:
        return batch
    return Batch(batch.images[batch.rows], batch.labels[batch.rows], batch.seed)


@dataclass(frozen=True)
class Backprop:
    """Keep the whole graph, as MTT does (Cazenavette et al. 2022): exact, memory grows with every step."""

    def unroll(self, loss: PureLoss, theta0: Tensor, batches: list[Batch], lr: Tensor) -> Tensor:
        theta = theta0 if theta0.requires_grad else theta0.detach().requires_grad_()
        with torch.enable_grad():  # the steps need their own gradients, also where nobody asks for that of the result
            for batch, step_size in zip(batches, lr):
                (gradient,) = torch.autograd.grad(loss(theta, select(batch)), theta, create_graph=True)
                theta = theta - step_size * gradient
        return theta


@dataclass(frozen=True)
class Replay:
    """Keep only the parameters of each step, and recompute the steps backwards: one step's graph at a time.

    With theta_{i+1} = theta_i - lr_i g_i, the adjoint lambda starts at dL/dtheta_N and goes back by
    lambda_i = lambda_{i+1} - lr_i H_i lambda_{i+1}; every gradient of a step is -lr_i times the derivative of
    lambda . g_i, and that of lr_i is -lambda . g_i. This equals full back-propagation to rounding.

    curvature:   False leaves lambda as it is (H = 0), which is TESLA's gradient (Cui et al. 2023): an approximation.
    image_gain:  factor on the image gradient; the released TESLA and MCT code computes one half of what it derives.
    """

    curvature: bool = True
    image_gain: float = 1.0

    def unroll(self, loss: PureLoss, theta0: Tensor, batches: list[Batch], lr: Tensor) -> Tensor:
        leaves: dict[int, Tensor] = {}
        for batch in batches:
            for tensor in (batch.images, batch.labels):
                leaves.setdefault(id(tensor), tensor)
        place = {key: position for position, key in enumerate(leaves)}
        plan = [(place[id(b.images)], place[id(b.labels)], b.seed, b.rows) for b in batches]
        theta: Tensor = _Replayed.apply(self, loss, plan, theta0, lr, *leaves.values())  # type: ignore[no-untyped-call]
        return theta


class _Replayed(torch.autograd.Function):
    """The autograd node of a replayed unroll: inputs theta0, lr (N,), and each distinct image and label tensor once."""

    @staticmethod
    def forward(
        ctx: Any, how: Replay, loss: PureLoss, plan: list[Any], theta0: Tensor, lr: Tensor, *leaves: Tensor
    ) -> Tensor:
        states = [theta0.detach().clone()]
        for (images, labels, seed, rows), step_size in zip(plan, lr):
            batch = select(Batch(leaves[images].detach(), leaves[labels].detach(), seed, rows))
            last_gradient = gradient(loss, states[-1], batch)
            states.append(states[-1] - step_size * last_gradient)
        ctx.how, ctx.loss, ctx.plan, ctx.states = how, loss, plan, states[:-1]
        lower = isinstance(loss, CrossEntropy) and loss.lower is not None  # whose rounding is as large as randomness
        ctx.last_gradient = None if isinstance(loss, WrittenOut) or lower or not plan else last_gradient
        ctx.save_for_backward(lr, *leaves)
        return states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Any, ...]:
        lr, *leaves = ctx.saved_tensors
        _, _, _, needs_theta0, needs_lr, *needs = ctx.needs_input_grad
        totals = [torch.zeros_like(leaf) if need else None for leaf, need in zip(leaves, needs)]
        lr_total, factors = torch.zeros_like(lr), [-size for size in lr.tolist()]  # read from a GPU once
        for i in reversed(range(len(ctx.plan))):
            images, labels, seed, rows = ctx.plan[i]
            batch = select(Batch(leaves[images].detach(), leaves[labels].detach(), seed, rows))
            wanted = NeedsGrad(ctx.how.curvature and (i > 0 or needs_theta0), needs[images], needs[labels])
            second = hvp(ctx.loss, ctx.states[i], batch, adjoint, wanted)
            if i == len(ctx.plan) - 1 and ctx.last_gradient is not None:
                _check_repeats(second.directional, adjoint, ctx.last_gradient)
            lr_total[i] = -second.directional
            _accumulate(totals[images], rows, second.images, factors[i] * ctx.how.image_gain)
            _accumulate(totals[labels], rows, second.labels, factors[i])
            if second.theta is not None:
                adjoint = adjoint - lr[i] * second.theta
        return (None, None, None, adjoint if needs_theta0 else None, lr_total if needs_lr else None, *totals)


REPEATS = 1e-3
"""Rounding gives up to 1e-8 in float32; dropout of 0.1 before the last layer 1e-3 to 5e-3."""


def _check_repeats(directional: Tensor, adjoint: Tensor, gradient: Tensor) -> None:
    """UserError where `directional`, the product with the gradient computed again, is not adjoint . gradient.

    It costs one scalar product. Weak randomness, such as dropout of 0.01, can pass; `FlatModel` refuses that exactly.
    """
    if (directional - torch.dot(adjoint, gradient)).abs() > REPEATS * adjoint.norm() * gradient.norm():
        raise UserError(
            "the loss gave another gradient when a student step was computed again, so it is no pure function of "
            "(theta, batch): take out dropout and state, and draw random numbers from batch.seed alone, or use "
            "adjoint=Backprop(), which computes nothing again."
        )


def _accumulate(total: Tensor | None, rows: Tensor | None, derivative: Tensor | None, factor: float) -> None:
    """total[rows] += factor * derivative, in place; a loss that does not depend on the leaf adds nothing."""
    if total is None or derivative is None:
        return
    if rows is None:
        total.add_(derivative, alpha=factor)
    else:
        total.index_add_(0, rows, derivative, alpha=factor)


def unroll(
    loss: PureLoss,
    theta0: Tensor,
    batches: Sequence[Batch],
    lr: Tensor | float | Sequence[float],
    adjoint: Adjoint | None = None,
) -> Tensor:
    """Train from theta0 by plain gradient descent, one step per batch; returns theta_N (P,).

    loss:     pure scalar function of (theta (P,), Batch); see `limbeck.CrossEntropy`.
    batches:  N batches; the result is differentiable in their images and (floating-point) labels,
    lr:       in the step size, one number or one per step (N,), and in theta0.
    adjoint:  how that gradient is taken: `Replay()` (exact, the default), `Backprop()`, `Replay(curvature=False)`.
    Raises ValueError where `lr` has neither one element nor one per step.

    >>> quadratic = lambda theta, batch: ((theta - batch.images.mean()) ** 2).sum()
    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> theta = unroll(quadratic, torch.zeros(2), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25)
    >>> theta.sum().backward(); theta.tolist(), x.grad.item()
    ([0.875, 0.875], 1.75)
    """
    steps = list(batches)
    sizes = torch.as_tensor(lr, dtype=theta0.dtype, device=theta0.device)
    if sizes.ndim == 0 or sizes.numel() == 1:
        sizes = sizes.reshape(1).expand(len(steps))
    elif sizes.shape != (len(steps),):
        raise ValueError(f"lr has shape {tuple(sizes.shape)}; expected one number or one per step, ({len(steps)},)")
    return (adjoint or Replay()).unroll(loss, theta0, steps, sizes)
