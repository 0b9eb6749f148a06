"""Cross-entropy as a pure function of (theta, batch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.short_repr import short_repr
from limbeck.core.types import Batch
from limbeck.networks.flat import FlatModel
from limbeck.networks.statistics import RunningStatistics


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of logits (n, classes); labels are int64 classes (n,) or probabilities (n, classes).

    It is differentiable in logits and probabilities.
    """
    if labels.dtype.is_floating_point:
        return -(labels * F.log_softmax(logits, 1)).sum(1).mean()
    return F.cross_entropy(logits, labels)


Augment = Callable[[Tensor, int], Tensor]
"""(images (n, c, h, w), seed) -> images of the same shape, pure: the same seed gives the same bits."""


def channels_last(images: Tensor) -> Tensor:
    """The same images (n, c, h, w) with the channels of a pixel side by side in memory; works under `torch.func.vmap`.

    `contiguous(memory_format=...)` is not used: it leaves the strides of one channel ambiguous, and vmap refuses it.

    >>> channels_last(torch.zeros(2, 1, 4, 5)).stride()
    (20, 1, 5, 1)
    """
    n, c, h, w = images.shape
    return images.permute(0, 2, 3, 1).reshape(-1).view(n, h, w, c).permute(0, 3, 1, 2)


def prefers_channels_last(module: nn.Module) -> bool:
    """Whether a processor differentiates this network faster with channels last: one with convolutions and no norm.

    Pooling is up to 15 times as fast in that order, group norm up to 20 times as slow (docs/LOG.md, 2026-11-26).
    """
    layers = list(module.modules())
    norms = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
    return any(isinstance(layer, nn.Conv2d) for layer in layers) and not any(
        isinstance(layer, norms) for layer in layers
    )


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy of a network on a batch: a pure function (theta (P,), batch) -> scalar.

    model:          The network.
    augment:        Augments the images with the batch's seed, inside the step; not used where the batch has no seed.
    autocast_dtype: The type of products and convolutions (torch's autocast); None stands for that of the tensors.
    statistics:     Running statistics of batch norm that every call updates; None, as in a student, updates nothing.

    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> loss = CrossEntropy(flat_model(ModelConfig(width=8), (1, 8, 8), 2))
    >>> loss(torch.zeros(loss.model.layout.count), Batch(torch.ones(2, 1, 8, 8), torch.tensor([0, 1])))
    tensor(0.6931)
    """

    __repr__ = short_repr

    model: FlatModel
    augment: Augment | None = None
    autocast_dtype: torch.dtype | None = None
    statistics: RunningStatistics | None = None

    def __call__(self, theta: Tensor, batch: Batch) -> Tensor:
        """The loss at theta (P,): a scalar."""
        images = self.augmented(batch)
        if self._channels_last and images.ndim == 4 and images.device.type == "cpu":
            images = channels_last(images)
        network = self.model if self.statistics is None else self.statistics.record
        if self.autocast_dtype is None:
            return cross_entropy(network(theta, images), batch.labels)
        with torch.autocast(images.device.type, self.autocast_dtype):
            logits = network(theta, images)
        return cross_entropy(logits.float(), batch.labels)

    def augmented(self, batch: Batch) -> Tensor:
        """The images as the network sees them; the batch's own tensor where nothing is to be augmented."""
        if self.augment is None or batch.seed is None:
            return batch.images
        return self.augment(batch.images, batch.seed)

    @cached_property
    def _channels_last(self) -> bool:
        return prefers_channels_last(self.model.module)
