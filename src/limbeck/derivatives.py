"""The derivatives that training and the adjoint ask of a loss: as it has them written out, else by autograd."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from limbeck.types import Batch, PureLoss


class Wanted(NamedTuple):
    """Which derivatives of direction . gradient are asked for."""

    theta: bool
    images: bool
    labels: bool


class Products(NamedTuple):
    """With g = grad loss and v the direction: v . g, and its derivatives H v (P,), in images and in labels.

    None stands for one that was not asked for, and for one that is zero because nothing depends on it.
    """

    along: Tensor
    theta: Tensor | None
    images: Tensor | None
    labels: Tensor | None


@runtime_checkable
class WrittenOut(Protocol):
    """A loss that knows its derivatives; None where it does not, for these tensors, and autograd has to."""

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor | None: ...

    def products(self, theta: Tensor, batch: Batch, direction: Tensor, wanted: Wanted) -> Products | None: ...


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


def products(loss: PureLoss, theta: Tensor, batch: Batch, direction: Tensor, wanted: Wanted) -> Products:
    """direction . grad loss at theta, and its derivatives, one step's graph at a time."""
    if isinstance(loss, WrittenOut) and (known := loss.products(theta, batch, direction, wanted)) is not None:
        return known
    leaf = theta.detach().requires_grad_()
    x, y = batch.images.detach().requires_grad_(wanted.images), batch.labels.detach().requires_grad_(wanted.labels)
    with torch.enable_grad():
        (found,) = torch.autograd.grad(loss(leaf, Batch(x, y, batch.seed)), leaf, create_graph=True)
    asked = [tensor for tensor, want in zip((leaf, x, y), wanted) if want]
    if not asked or not found.requires_grad:  # the second: a loss that is linear in theta
        return Products(torch.dot(direction, found.detach()), None, None, None)
    made = iter(torch.autograd.grad(found, asked, direction, allow_unused=True))
    return Products(torch.dot(direction, found.detach()), *(next(made) if want else None for want in wanted))
