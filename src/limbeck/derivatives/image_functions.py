"""A network's features and logits as functions that are differentiable in the images, explicitly where it has that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.networks.flat import FlatModel


@dataclass(frozen=True)
class ImageFunctions:
    """The features and logits of images under fixed parameters, differentiable once in the images.

    model:       The network.
    derivatives: Its compiled network; None stands for autograd, which also serves tensors of another type or device.

    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> model = flat_model(ModelConfig(width=8), (1, 8, 8), 2)
    >>> functions = ImageFunctions(model)
    >>> functions.features(model.init(0), torch.ones(3, 1, 8, 8)).shape
    torch.Size([3, 32])
    """

    model: FlatModel
    derivatives: CompiledDerivatives | None = None

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """theta (P,), images (n, c, h, w) -> the inputs of the last layer (n, d)."""
        if self.derivatives is None or not self.derivatives.supports(theta, images):
            return self.model.features(theta, images)
        features: Tensor = _Features.apply(self.derivatives, theta.detach(), images)  # type: ignore[no-untyped-call]
        return features

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """theta (P,), images (n, c, h, w) -> the outputs (n, classes)."""
        if self.derivatives is None or not self.derivatives.supports(theta, images):
            return self.model(theta, images)
        weight, bias = self.model.layout.split(theta.detach())[-2:]
        return F.linear(self.features(theta, images), weight, bias)


class _Features(torch.autograd.Function):
    """The autograd node of compiled features; its backward pass computes the forward pass again, from the images."""

    @staticmethod
    def forward(ctx: Any, derivatives: CompiledDerivatives, theta: Tensor, images: Tensor) -> Tensor:
        ctx.derivatives = derivatives
        ctx.save_for_backward(theta, images)
        return derivatives.features(theta, images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direction: Tensor) -> tuple[None, None, Tensor]:
        theta, images = ctx.saved_tensors
        return None, None, ctx.derivatives.features_adjoint(theta, images, direction)
