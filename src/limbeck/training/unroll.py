"""The student: N steps of gradient descent, and how their gradient is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.errors import UserError
from limbeck.core.types import Batch, PureLoss
from limbeck.derivatives.autograd import Loss, NeedsGrad, as_loss


class Adjoint(Protocol):
    """How the gradient of an unroll is computed."""

    def unroll(self, loss: Loss, theta0: Tensor, batches: list[Batch], lr: Tensor) -> Tensor:
        """theta_N (P,) after one step of gradient descent per batch, with step sizes lr (N,); see `unroll`."""
        ...


def select_rows(batch: Batch) -> Batch:
    """The batch as the loss sees it: only the images and labels of its `rows`."""
    if batch.rows is None:
        return batch
    return Batch(batch.images[batch.rows], batch.labels[batch.rows], batch.seed)


@dataclass(frozen=True)
class Backprop:
    """Keeps the whole graph of all steps, as MTT does (Cazenavette et al. 2022): exact; memory grows with every step.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> loss = lambda theta, batch: ((theta - batch.images.mean()) ** 2).sum()
    >>> theta = unroll(loss, torch.zeros(2), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25, adjoint=Backprop())
    >>> theta.sum().backward(); x.grad.item()
    1.75
    """

    def unroll(self, loss: Loss, theta0: Tensor, batches: list[Batch], lr: Tensor) -> Tensor:
        """theta_N (P,), whose graph holds every step; see `unroll`."""
        theta = theta0 if theta0.requires_grad else theta0.detach().requires_grad_()
        with torch.enable_grad():  # the steps need their own gradients, even where nothing asks for that of the result
            for batch, step_size in zip(batches, lr):
                (gradient,) = torch.autograd.grad(loss(theta, select_rows(batch)), theta, create_graph=True)
                theta = theta - step_size * gradient
        return theta


@dataclass(frozen=True)
class Replay:
    """Keeps only the parameters of each step, and recomputes the steps backwards: one step's graph at a time.

    With theta_{i+1} = theta_i - lr_i g_i, the adjoint lambda starts at dL/dtheta_N and goes back by
    lambda_i = lambda_{i+1} - lr_i H_i lambda_{i+1}; every gradient of a step is -lr_i times the derivative of
    lambda . g_i, and that of lr_i is -lambda . g_i. This equals full back-propagation to rounding.

    curvature:  False leaves lambda as it is (H = 0), which is TESLA's gradient (Cui et al. 2023): an approximation.
    image_gain: Factor on the image gradient; the released TESLA and MCT code computes one half of what it derives.

    Raises UserError in the backward pass where a step's gradient differs from that of the forward pass, so that the
    loss is no pure function.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> loss = lambda theta, batch: ((theta - batch.images.mean()) ** 2).sum()
    >>> theta = unroll(loss, torch.zeros(2), [Batch(x, torch.zeros(1, 1))] * 3, lr=0.25, adjoint=Replay(False))
    >>> theta.sum().backward(); x.grad.item()
    3.0
    """

    curvature: bool = True
    image_gain: float = 1.0

    def unroll(self, loss: Loss, theta0: Tensor, batches: list[Batch], lr: Tensor) -> Tensor:
        """theta_N (P,), differentiable in theta0, lr and the images and labels of the batches; see `unroll`."""
        leaves: dict[int, Tensor] = {}
        for batch in batches:
            for tensor in (batch.images, batch.labels):
                leaves.setdefault(id(tensor), tensor)
        index = {key: position for position, key in enumerate(leaves)}
        steps = [(index[id(b.images)], index[id(b.labels)], b.seed, b.rows) for b in batches]
        theta: Tensor = _Replayed.apply(self, loss, steps, theta0, lr, *leaves.values())  # type: ignore[no-untyped-call]
        return theta


class _Replayed(torch.autograd.Function):
    """The autograd node of a replayed unroll: inputs theta0, lr (N,), and each distinct image and label tensor once.

    steps: Per step the indices of its image and label tensors among the leaves, its seed and its rows.
    """

    @staticmethod
    def forward(
        ctx: Any, replay: Replay, loss: Loss, steps: list[Any], theta0: Tensor, lr: Tensor, *leaves: Tensor
    ) -> Tensor:
        states = [theta0.detach().clone()]
        for (images, labels, seed, rows), step_size in zip(steps, lr):
            batch = select_rows(Batch(leaves[images].detach(), leaves[labels].detach(), seed, rows))
            last_gradient = loss.gradient(states[-1], batch)
            states.append(states[-1] - step_size * last_gradient)
        ctx.replay, ctx.loss, ctx.steps, ctx.states = replay, loss, steps, states[:-1]
        ctx.last_gradient = last_gradient if steps and loss.must_verify_repeats else None
        ctx.save_for_backward(lr, *leaves)
        return states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Tensor) -> tuple[Any, ...]:
        lr, *leaves = ctx.saved_tensors
        _, _, _, needs_theta0, needs_lr, *needs_leaf = ctx.needs_input_grad
        totals = [torch.zeros_like(leaf) if is_needed else None for leaf, is_needed in zip(leaves, needs_leaf)]
        lr_total, factors = torch.zeros_like(lr), [-size for size in lr.tolist()]  # one transfer from a GPU
        for i in reversed(range(len(ctx.steps))):
            images, labels, seed, rows = ctx.steps[i]
            batch = select_rows(Batch(leaves[images].detach(), leaves[labels].detach(), seed, rows))
            needs_theta = ctx.replay.curvature and (i > 0 or needs_theta0)
            needs = NeedsGrad(needs_theta, needs_leaf[images], needs_leaf[labels])
            second = ctx.loss.hvp(ctx.states[i], batch, adjoint, needs)
            if i == len(ctx.steps) - 1 and ctx.last_gradient is not None:
                _verify_repeat(second.directional, adjoint, ctx.last_gradient)
            lr_total[i] = -second.directional
            _accumulate(totals[images], rows, second.images, factors[i] * ctx.replay.image_gain)
            _accumulate(totals[labels], rows, second.labels, factors[i])
            if second.theta is not None:
                adjoint = adjoint - lr[i] * second.theta
        return (None, None, None, adjoint if needs_theta0 else None, lr_total if needs_lr else None, *totals)


REPEAT_TOLERANCE = 1e-3
"""Rounding gives up to 1e-8 in float32; dropout of 0.1 before the last layer 1e-3 to 5e-3."""


def _verify_repeat(directional: Tensor, adjoint: Tensor, gradient: Tensor) -> None:
    """Raise UserError where adjoint . (gradient computed again) = `directional` is not adjoint . gradient.

    It costs one scalar product. Weak randomness, such as dropout of 0.01, can pass; `FlatModel` refuses that exactly.
    """
    if (directional - torch.dot(adjoint, gradient)).abs() > REPEAT_TOLERANCE * adjoint.norm() * gradient.norm():
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
    loss: Loss | PureLoss,
    theta0: Tensor,
    batches: Sequence[Batch],
    lr: Tensor | float | Sequence[float],
    adjoint: Adjoint | None = None,
) -> Tensor:
    """Train from theta0 by plain gradient descent, one step per batch, and return theta_N (P,).

    loss:    Any pure function (theta (P,), batch) -> scalar, such as `limbeck.CrossEntropy`, whose derivatives are then
             computed by autograd; or a `Loss`, which computes them itself. Running statistics are not updated.
    theta0:  The start (P,). The result is differentiable in it.
    batches: N batches. The result is differentiable in their images and (floating-point) labels.
    lr:      The step size, one number or one per step (N,). The result is differentiable in it.
    adjoint: How that gradient is computed: `Replay()` (exact, the default), `Backprop()`, `Replay(curvature=False)`.
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
    return (adjoint or Replay()).unroll(as_loss(loss).pure, theta0, steps, sizes)
