"""The derivatives that training and the adjoint ask of a loss: as it has them written out, else by autograd."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.types import Batch, PureLoss


class NeedsGrad(NamedTuple):
    """Which derivatives of direction . gradient are asked for."""

    theta: bool
    images: bool
    labels: bool


class Hvp(NamedTuple):
    """With g = grad loss and v the direction: v . g, and its derivatives H v (P,), in images and in labels.

    None stands for one that was not asked for, and for one that is zero because nothing depends on it.
    """

    directional: Tensor
    theta: Tensor | None
    images: Tensor | None
    labels: Tensor | None


@runtime_checkable
class WrittenOut(Protocol):
    """A loss that knows its derivatives; None where it does not, for these tensors, and autograd has to."""

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor | None: ...

    def hvp(self, theta: Tensor, batch: Batch, direction: Tensor, wanted: NeedsGrad) -> Hvp | None: ...


class Derivatives(Protocol):
    """Of cross-entropy on images that are augmented already, at theta (P,); see `convnet.TorchDerivatives`."""

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor: ...

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, wanted: NeedsGrad) -> Hvp: ...

    def logits(self, theta: Tensor, images: Tensor) -> Tensor: ...

    @property
    def dtype(self) -> torch.dtype: ...


def gradient(loss: PureLoss, theta: Tensor, batch: Batch) -> Tensor:
    """grad loss (P,) at theta (P,).

    >>> gradient(lambda theta, batch: (theta**2).sum(), torch.tensor([1.0, 2.0]), Batch(None, None)).tolist()
    [2.0, 4.0]
    """
    if isinstance(loss, WrittenOut) and (known := loss.gradient(theta, batch)) is not None:
        return known
    leaf = theta.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(loss(leaf, batch), leaf)
    return found


def hvp(loss: PureLoss, theta: Tensor, batch: Batch, direction: Tensor, wanted: NeedsGrad) -> Hvp:
    """direction . grad loss at theta, and its derivatives, one step's graph at a time."""
    if isinstance(loss, WrittenOut) and (known := loss.hvp(theta, batch, direction, wanted)) is not None:
        return known
    return _autograd_hvp(loss, theta, batch, direction, wanted)


def _autograd_hvp(loss: PureLoss, theta: Tensor, batch: Batch, direction: Tensor, wanted: NeedsGrad) -> Hvp:
    """By autograd, twice backwards: forward mode was slower for every network measured (docs/LOG.md, 2026-11-26)."""
    leaf = theta.detach().requires_grad_()
    x, y = batch.images.detach().requires_grad_(wanted.images), batch.labels.detach().requires_grad_(wanted.labels)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(loss(leaf, Batch(x, y, batch.seed)), leaf, create_graph=True)
    inputs = [tensor for tensor, want in zip((leaf, x, y), wanted) if want]
    directional = torch.dot(direction, slope.detach())
    if not inputs or not slope.requires_grad:  # the second: a loss that is linear in theta
        return Hvp(directional, None, None, None)
    derivatives = iter(torch.autograd.grad(slope, inputs, direction, allow_unused=True))
    return Hvp(directional, *(next(derivatives) if want else None for want in wanted))


def differentiable_gradient(loss: PureLoss, theta: Tensor, batch: Batch) -> Tensor:
    """grad loss (P,) at a fixed theta, as a function of the batch's images and labels that can be differentiated once.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> cubic = lambda theta, batch: batch.images.sum() * (theta**3).sum()
    >>> g = differentiable_gradient(cubic, torch.tensor([2.0]), Batch(x, torch.zeros(1)))
    >>> g.backward(); g.item(), x.grad.item()
    (12.0, 12.0)
    """
    made: Tensor = _Gradient.apply(loss, theta.detach(), batch.seed, batch.images, batch.labels)  # type: ignore[no-untyped-call]
    return made


class _Gradient(torch.autograd.Function):
    """Its derivative in a direction is that of direction . gradient, taken when it is asked for."""

    @staticmethod
    def forward(ctx: Any, loss: PureLoss, theta: Tensor, seed: int | None, images: Tensor, labels: Tensor) -> Tensor:
        ctx.loss, ctx.seed = loss, seed
        ctx.save_for_backward(theta, images, labels)
        return gradient(loss, theta, Batch(images.detach(), labels.detach(), seed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[Any, ...]:
        theta, images, labels = ctx.saved_tensors
        _, _, _, *needs = ctx.needs_input_grad
        batch = Batch(images.detach(), labels.detach(), ctx.seed)
        made = hvp(ctx.loss, theta, batch, direction, NeedsGrad(False, *needs))
        return None, None, None, made.images, made.labels
