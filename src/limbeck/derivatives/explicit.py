"""A cross-entropy whose derivatives come from explicit formulas of its network instead of autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.core.short_repr import short_repr
from limbeck.core.types import Batch
from limbeck.derivatives.autograd import Hvp, Loss, NeedsGrad
from limbeck.derivatives.torch_block import parameter_dtype
from limbeck.networks.losses import CrossEntropy, cross_entropy


class ExplicitDerivatives(Protocol):
    """Derivatives of the mean cross-entropy of one network over images that are augmented already.

    theta and direction are (P,), images (n, channels, height, width), labels int64 classes (n,) or probabilities
    (n, classes). No result has a graph of autograd.
    """

    @property
    def dtype(self) -> torch.dtype:
        """The type in which activations are stored."""
        ...

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,)."""
        ...

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient."""
        ...

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The network's outputs (n, classes)."""
        ...


@dataclass(frozen=True)
class FusedCrossEntropy(Loss):
    """A cross-entropy with explicit derivatives; calling it still works under autograd.

    function:    The same cross-entropy by autograd. It serves calls, and tensors that `derivatives` does not support:
                 those of another type or device. Calls are in float32 whatever the precision of the derivatives.
    derivatives: The explicit derivatives of `function`'s network.
    device:      The type of device on which they compute.
    """

    __repr__ = short_repr

    function: CrossEntropy
    derivatives: ExplicitDerivatives
    device: str = "cpu"

    def value(self, theta: Tensor, batch: Batch) -> Tensor:
        """The loss as a scalar that can be differentiated once, in theta (P,) alone, by the explicit derivatives."""
        if not self.supports(theta, batch):
            return self.function(theta, batch)
        value: Tensor = _Value.apply(self, batch, theta)  # type: ignore[no-untyped-call]
        return value

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) at theta (P,)."""
        if not self.supports(theta, batch):
            return super().gradient(theta, batch)
        with torch.no_grad():
            return self.derivatives.gradient(theta.detach(), self.function.augmented(batch), batch.labels)

    def hvp(self, theta: Tensor, batch: Batch, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient; autograd takes that in the images back through the augmentation."""
        if not self.supports(theta, batch):
            return super().hvp(theta, batch, direction, needs)
        images = batch.images.detach().requires_grad_(needs.images)
        with torch.enable_grad():
            augmented = self.function.augmented(Batch(images, batch.labels, batch.seed))
        with torch.no_grad():
            result = self.derivatives.hvp(theta.detach(), augmented.detach(), batch.labels, direction, needs)
        if result.images is None or augmented is images:
            return result
        (image_gradient,) = torch.autograd.grad(augmented, images, result.images)
        return result._replace(images=image_gradient)

    def supports(self, theta: Tensor, batch: Batch) -> bool:
        """Whether the explicit derivatives can compute with tensors of these types on this device."""
        dtype = parameter_dtype(self.derivatives.dtype)
        return theta.dtype is dtype and batch.images.dtype is dtype and theta.device.type == self.device

    @property
    def must_verify_repeats(self) -> bool:
        """False: explicit derivatives give the same bits again."""
        return False


class _Value(torch.autograd.Function):
    """The autograd node of a loss; its input is theta."""

    @staticmethod
    def forward(ctx: Any, loss: FusedCrossEntropy, batch: Batch, theta: Tensor) -> Tensor:
        batch = Batch(batch.images.detach(), batch.labels.detach(), batch.seed)
        ctx.loss, ctx.batch = loss, batch
        ctx.save_for_backward(theta)
        return cross_entropy(loss.derivatives.logits(theta.detach(), loss.function.augmented(batch)), batch.labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, derivative: Tensor) -> tuple[Any, ...]:
        (theta,) = ctx.saved_tensors
        return None, None, derivative * ctx.loss.gradient(theta, ctx.batch)
