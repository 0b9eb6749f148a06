"""Losses with their gradients and Hessian-vector products, by autograd unless a subclass computes them itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.errors import UserError
from limbeck.core.short_repr import short_repr
from limbeck.core.sums import reproducible_dot
from limbeck.core.text import shorten
from limbeck.core.types import Batch, PureLoss
from limbeck.networks.losses import CrossEntropy


class NeedsGrad(NamedTuple):
    """Which derivatives of `direction . gradient` are needed: in parameters, in images, in labels."""

    theta: bool
    images: bool
    labels: bool


class Hvp(NamedTuple):
    """The derivatives of direction . g, where g (P,) is the gradient of a loss at (theta, batch).

    directional: The scalar direction . g.
    theta:       The Hessian-vector product H direction (P,).
    images:      The derivative in the batch's images (n, channels, height, width).
    labels:      The derivative in the batch's labels (n, classes).
    A derivative is None where `NeedsGrad` does not ask for it, and where g does not depend on that input.
    """

    directional: Tensor
    theta: Tensor | None
    images: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True)
class Loss:
    """A pure function (theta (P,), batch) -> scalar with its gradient and Hessian-vector products, by autograd.

    A subclass that knows faster derivatives overrides `gradient` and `hvp`, and calls those of this class for tensors
    that it does not support: see `FusedCrossEntropy`.

    >>> quadratic = Loss(lambda theta, batch: (theta**2).sum())
    >>> batch, theta = Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1)), torch.tensor([1.0, 2.0])
    >>> quadratic(theta, batch), quadratic.gradient(theta, batch)
    (tensor(5.), tensor([2., 4.]))
    >>> quadratic.hvp(theta, batch, torch.tensor([1.0, 0.0]), NeedsGrad(True, False, False)).theta
    tensor([2., 0.])
    """

    __repr__ = short_repr

    function: PureLoss

    def __call__(self, theta: Tensor, batch: Batch) -> Tensor:
        """The loss: a scalar with autograd's graph."""
        return self.function(theta, batch)

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) at theta (P,), without a graph."""
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.function(leaf, batch), leaf)
        return gradient

    def hvp(self, theta: Tensor, batch: Batch, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient at theta, both (P,), without a graph.

        Reverse mode is used twice: forward mode was slower for every network measured (docs/LOG.md, 2026-11-26).
        """
        leaf = theta.detach().requires_grad_()
        images = batch.images.detach().requires_grad_(needs.images)
        labels = batch.labels.detach().requires_grad_(needs.labels)
        with torch.enable_grad():
            value = self.function(leaf, Batch(images, labels, batch.seed))
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        inputs = [tensor for tensor, is_needed in zip((leaf, images, labels), needs) if is_needed]
        directional = torch.dot(direction, gradient.detach())
        if not inputs or not gradient.requires_grad:  # the second: a loss that is linear in theta
            return Hvp(directional, None, None, None)
        try:
            derivatives = iter(torch.autograd.grad(gradient, inputs, direction, allow_unused=True))
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise UserError(
                f"the network has no second derivative ({shorten(error)}), which distilling needs; "
                "it can be evaluated on a set (limbeck evaluate RUN --model.name NAME)."
            ) from error
        return Hvp(directional, *(next(derivatives) if is_needed else None for is_needed in needs))

    @property
    def pure(self) -> Loss:
        """The same loss without side effects: itself, unless calls update running statistics."""
        if isinstance(self.function, CrossEntropy) and self.function.statistics is not None:
            return Loss(replace(self.function, statistics=None))
        return self

    @property
    def must_verify_repeats(self) -> bool:
        """Whether `Replay` must verify that a gradient computed again is the same: the function may be impure.

        It cannot where products are rounded to a lower type: that differs as much as weak randomness does.
        """
        return not (isinstance(self.function, CrossEntropy) and self.function.autocast_dtype is not None)


@dataclass(frozen=True)
class WithDecay(Loss):
    """A loss plus decay / 2 |theta|^2, whose gradient is that of the loss plus decay times theta.

    >>> loss = WithDecay(Loss(lambda theta, batch: theta.sum()), 0.5)
    >>> loss.gradient(torch.tensor([2.0]), Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1)))
    tensor([2.])
    """

    function: Loss
    decay: float

    def __call__(self, theta: Tensor, batch: Batch) -> Tensor:
        """The loss: a scalar with autograd's graph."""
        return self.function(theta, batch) + self.decay / 2 * theta.square().sum()

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) at theta (P,), without a graph."""
        return self.function.gradient(theta, batch) + self.decay * theta.detach()

    def hvp(self, theta: Tensor, batch: Batch, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient at theta, both (P,), without a graph."""
        hvp = self.function.hvp(theta, batch, direction, needs)
        directional = hvp.directional + self.decay * reproducible_dot(direction, theta.detach())
        if not needs.theta:
            return hvp._replace(directional=directional)
        product = self.decay * direction
        return hvp._replace(directional=directional, theta=product if hvp.theta is None else hvp.theta + product)

    @property
    def pure(self) -> Loss:
        """The same loss without side effects."""
        return replace(self, function=self.function.pure)

    @property
    def must_verify_repeats(self) -> bool:
        """Whether `Replay` must verify that a gradient computed again is the same."""
        return self.function.must_verify_repeats


def as_loss(function: Loss | PureLoss) -> Loss:
    """The loss itself, or a plain function with its derivatives by autograd."""
    return function if isinstance(function, Loss) else Loss(function)


def differentiable_gradient(loss: Loss, theta: Tensor, batch: Batch) -> Tensor:
    """The gradient (P,) at a fixed theta, as a function of the batch's images and labels that is differentiable once.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> cubic = Loss(lambda theta, batch: batch.images.sum() * (theta**3).sum())
    >>> g = differentiable_gradient(cubic, torch.tensor([2.0]), Batch(x, torch.zeros(1)))
    >>> g.backward(); g.item(), x.grad.item()
    (12.0, 12.0)
    """
    gradient: Tensor = _Gradient.apply(loss, theta.detach(), batch.seed, batch.images, batch.labels)  # type: ignore[no-untyped-call]
    return gradient


class _Gradient(torch.autograd.Function):
    """The autograd node of a gradient; its inputs are images and labels, its backward pass is `Loss.hvp`."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, theta: Tensor, seed: int | None, images: Tensor, labels: Tensor) -> Tensor:
        ctx.loss, ctx.seed = loss, seed
        ctx.save_for_backward(theta, images, labels)
        return loss.gradient(theta, Batch(images.detach(), labels.detach(), seed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Any, ...]:
        theta, images, labels = ctx.saved_tensors
        needs = NeedsGrad(False, *ctx.needs_input_grad[3:])
        batch = Batch(images.detach(), labels.detach(), ctx.seed)
        derivatives = ctx.loss.hvp(theta, batch, direction, needs)
        return None, None, None, derivatives.images, derivatives.labels
