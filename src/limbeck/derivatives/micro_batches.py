"""A mean loss whose derivatives are computed for a few images at a time, and summed: the memory of a few images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.types import Batch
from limbeck.derivatives.autograd import Hvp, Loss, NeedsGrad
from limbeck.networks.losses import CrossEntropy


@dataclass(frozen=True)
class MicroBatches(Loss):
    """A cross-entropy over a batch, of which `size` images at a time go through the network.

    The loss is a mean over images, so that its gradient and its Hessian-vector products are the sums of those of the
    parts, each times its share of the images: the same numbers to rounding, for a network that looks at one image at a
    time. Batch norm does not, see `Task.loss_in_parts`. The whole batch is augmented at once, since an augmentation
    draws for all images together.

    function: The loss with its augmentation. Calling it computes the whole batch at once.
    part:     The loss of images that are augmented already, with its derivatives.
    size:     Images at a time.

    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> function = CrossEntropy(flat_model(ModelConfig(width=4), (1, 8, 8), 2))
    >>> loss = MicroBatches(function, Loss(function), size=2)
    >>> batch = Batch(torch.linspace(0, 1, 192).view(3, 1, 8, 8), torch.tensor([0, 1, 1]))
    >>> theta = function.model.init(0)
    >>> bool((loss.gradient(theta, batch) - Loss(function).gradient(theta, batch)).abs().max() < 1e-6)
    True
    """

    function: CrossEntropy
    part: Loss
    size: int

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) at theta (P,)."""
        with torch.no_grad():
            images = self.function.augmented(batch)
        total = torch.zeros_like(theta)
        for share, part in self._parts(images, batch.labels):
            total = total.add(self.part.gradient(theta, part), alpha=share)
        return total

    def hvp(self, theta: Tensor, batch: Batch, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient; autograd takes that in the images back through the augmentation."""
        images = batch.images.detach().requires_grad_(needs.images)
        with torch.enable_grad():
            augmented = self.function.augmented(Batch(images, batch.labels, batch.seed))
        shares, parts = zip(*self._parts(augmented.detach(), batch.labels))
        terms = [self.part.hvp(theta, part, direction, needs) for part in parts]
        scaled = [[None if term is None else share * term for term in hvp] for share, hvp in zip(shares, terms)]
        directional, product, image_gradients, labels = zip(*scaled)
        result = Hvp(torch.stack(directional).sum(), _sum(product), _join(image_gradients), _join(labels))
        if result.images is None or augmented is images:
            return result
        (image_gradient,) = torch.autograd.grad(augmented, images, result.images)
        return result._replace(images=image_gradient)

    @property
    def must_verify_repeats(self) -> bool:
        """Whether `Replay` must verify that a gradient computed again is the same."""
        return self.part.must_verify_repeats

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[float, Batch]]:
        """The share of each part in the batch, and the part; its images are not augmented again."""
        for pair in zip(images.split(self.size), labels.split(self.size)):
            yield len(pair[0]) / len(images), Batch(*pair)


def _sum(terms: tuple[Tensor | None, ...]) -> Tensor | None:
    """The sum in the order of the parts; None where there are no such derivatives."""
    tensors = [term for term in terms if term is not None]
    return None if not tensors else torch.stack(tensors).sum(0)


def _join(terms: tuple[Tensor | None, ...]) -> Tensor | None:
    """The rows of all parts; None where there are no such derivatives."""
    tensors = [term for term in terms if term is not None]
    return None if not tensors else torch.cat(tensors)
