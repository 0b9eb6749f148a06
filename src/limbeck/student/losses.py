"""Pure losses of (theta, batch) for the student."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.flat import FlatModel
from limbeck.types import Batch


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch; labels are int64 classes (n,) or probabilities (n, classes), differentiable in both."""
    if labels.dtype.is_floating_point:
        return -(labels * F.log_softmax(logits, 1)).sum(1).mean()
    return F.cross_entropy(logits, labels)


Augment = Callable[[Tensor, int], Tensor]
"""(images, seed) -> images, pure: the same seed gives the same bits."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of a network on a batch, augmented inside the step where the batch carries a seed.

    lower: type that products and convolutions are taken in (torch's autocast); None: that of the tensors.
    """

    model: FlatModel
    augment: Augment | None = None
    lower: torch.dtype | None = None

    def __call__(self, theta: Tensor, batch: Batch) -> Tensor:
        images = batch.images
        if self.augment is not None and batch.seed is not None:
            images = self.augment(images, batch.seed)
        if self.lower is None:
            return cross_entropy(self.model(theta, images), batch.labels)
        with torch.autocast(images.device.type, self.lower):
            logits = self.model(theta, images)
        return cross_entropy(logits.float(), batch.labels)
