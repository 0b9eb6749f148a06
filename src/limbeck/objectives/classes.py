"""Matching class by class: real against synthetic images under one network, with one class's graph alive at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.networks.losses import Augment
from limbeck.objectives.combine import attach_gradients
from limbeck.synthetic.set import SyntheticSet, hard_labels

Pair = tuple[Tensor, Tensor]
"""Images (n, c, h, w) and their labels: classes (n,) or probabilities (n, classes)."""

Discrepancy = Callable[[Tensor, Pair, Pair], Tensor]
"""(theta (P,), real pair, synthetic pair) of one class -> scalar, differentiable in the synthetic pair."""

RowSampler = Callable[[int, int, int], Tensor]
"""(outer step, class, seed) -> rows of the real images to compare with (m,)."""

BY_ROW = ("images", "labels")
"""The parameters of a synthetic set that have one row per stored image."""


@dataclass(frozen=True)
class WeightedSum:
    """A `Discrepancy`: the sum of several, each times its weight."""

    terms: tuple[tuple[float, Discrepancy], ...]

    def __call__(self, theta: Tensor, real: Pair, synthetic: Pair) -> Tensor:
        """The weighted sum under the network theta (P,): a scalar."""
        return torch.stack([weight * discrepancy(theta, real, synthetic) for weight, discrepancy in self.terms]).sum()


@dataclass(frozen=True)
class MatchClasses:
    """An objective: the sum over classes of a discrepancy between real and synthetic images, under one network.

    real:        All training images in network input space, and their classes.
    rows:        Which of them to compare with; see objectives/query.py.
    network:     Returns the parameters (P,) of the present network; see objectives/online_network.py.
    discrepancy: Of gradients (objectives/gradient.py), of features (objectives/features.py), or both.
    augment:     Siamese augmentation: real and synthetic images of a class get the same seed. None augments nothing.
    max_images:  At most this many synthetic images of a class are compared, drawn at every step; None for all.

    One outer step is one step of the papers' inner loop over all classes. Their losses are summed and the set is
    updated once; the released code of IDC and DREAM updates it after every class, so that with momentum each class
    keeps moving during the steps of the others. Gradients are computed class by class, in the rows of that class.
    """

    real: Pair
    rows: RowSampler
    network: Callable[[], Tensor]
    discrepancy: Discrepancy
    augment: Augment | None = None
    max_images: int | None = None

    @torch.enable_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The sum at this outer step: a scalar whose gradients are those of the learned parameters."""
        theta = self.network()
        classes = hard_labels(synthetic.labels).cpu()  # one transfer from a GPU instead of one per class
        parameters = synthetic.parameters()
        total = torch.zeros((), dtype=synthetic.images.dtype, device=synthetic.images.device)
        sums: dict[str, Tensor] = {}
        for label in classes.unique().tolist():
            rows = (classes == label).nonzero().squeeze(1).to(synthetic.images.device)
            part = select_images(synthetic, rows)
            value = self._class_value(part, theta, label, step, seed)
            leaves = part.parameters()
            gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            total = total + value.detach()
            for name, gradient in zip(leaves, gradients):
                if gradient is not None:
                    gradient_sum = sums.setdefault(name, torch.zeros_like(parameters[name]))
                    gradient_sum[rows if name in BY_ROW else ...] += gradient
        return attach_gradients(total, [parameters[name] for name in sums], list(sums.values()))

    def _class_value(self, part: SyntheticSet, theta: Tensor, label: int, step: int, seed: int) -> Tensor:
        """The discrepancy of one class, whose synthetic images are `part`."""
        rows = self.rows(step, label, seed)
        images, labels = part.training_pair()
        if self.max_images is not None and len(images) > self.max_images:
            generator = make_generator(seed, "most", step, label)
            order = torch.randperm(len(images), generator=generator)[: self.max_images]
            images, labels = images[order.to(images.device)], labels[order.to(images.device)]
        real_images, real_labels = self.real[0][rows], self.real[1][rows]
        if self.augment is not None:
            augment_seed = derive_seed(seed, "siamese", step, label)
            real_images, images = self.augment(real_images, augment_seed), self.augment(images, augment_seed)
        return self.discrepancy(theta, (real_images, real_labels), (images, labels))


def select_images(synthetic: SyntheticSet, rows: Tensor) -> SyntheticSet:
    """The stored images and labels of these rows as a set whose learned parameters are new leaves with gradients.

    >>> whole = SyntheticSet.from_images(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]), 0.1)
    >>> select_images(whole, torch.tensor([2])).labels.tolist()
    [1]
    """
    parts = {
        name: (tensor[rows] if name in BY_ROW else tensor).detach().requires_grad_(name in synthetic.learned)
        for name, tensor in synthetic.state().items()
    }
    images, labels, log_lr = (parts.pop(name) for name in ("images", "labels", "log_lr"))
    return replace(synthetic, images=images, labels=labels, log_lr=log_lr, extra=parts)
