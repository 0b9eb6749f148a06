"""Pure losses of (theta, batch) for the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.types import Batch
from limbeck.networks.flat import FlatModel


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch; labels are int64 classes (n,) or probabilities (n, classes), differentiable in both."""
    if labels.dtype.is_floating_point:
        return -(labels * F.log_softmax(logits, 1)).sum(1).mean()
    return F.cross_entropy(logits, labels)


Augment = Callable[[Tensor, int], Tensor]
"""(images, seed) -> images, pure: the same seed gives the same bits."""


def channels_last(images: Tensor) -> Tensor:
    """The same images (n, c, h, w), with the channels of a pixel side by side in memory, also under `torch.func.vmap`.

    `contiguous(memory_format=...)` is not used: it leaves the strides of one channel ambiguous, and vmap refuses it.

    >>> channels_last(torch.zeros(2, 1, 4, 5)).stride()
    (20, 1, 5, 1)
    """
    n, c, h, w = images.shape
    return images.permute(0, 2, 3, 1).reshape(-1).view(n, h, w, c).permute(0, 3, 1, 2)


def prefers_channels_last(module: nn.Module) -> bool:
    """Whether a processor differentiates this network faster with channels last: convolutions, and no normalisation.

    Pooling is up to 15 times as fast in that order, group norm up to 20 times as slow (docs/LOG.md, 2026-11-26).
    """
    layers = list(module.modules())
    norms = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
    return any(isinstance(layer, nn.Conv2d) for layer in layers) and not any(
        isinstance(layer, norms) for layer in layers
    )


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of a network on a batch, augmented inside the step where the batch carries a seed.

    autocast_dtype: type that products and convolutions are taken in (torch's autocast); None: that of the tensors.
    """

    model: FlatModel
    augment: Augment | None = None
    autocast_dtype: torch.dtype | None = None

    def __call__(self, theta: Tensor, batch: Batch) -> Tensor:
        images = self.augmented(batch)
        if self._channels_last and images.ndim == 4 and images.device.type == "cpu":
            images = channels_last(images)
        if self.autocast_dtype is None:
            return cross_entropy(self.model(theta, images), batch.labels)
        with torch.autocast(images.device.type, self.autocast_dtype):
            logits = self.model(theta, images)
        return cross_entropy(logits.float(), batch.labels)

    def augmented(self, batch: Batch) -> Tensor:
        """The images as the network sees them; the batch's own tensor where nothing is to be augmented."""
        if self.augment is None or batch.seed is None:
            return batch.images
        return self.augment(batch.images, batch.seed)

    @cached_property
    def _channels_last(self) -> bool:
        return prefers_channels_last(self.model.module)
