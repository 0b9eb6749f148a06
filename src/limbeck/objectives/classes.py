"""Matching class by class: real against synthetic images under one network, with one class's graph alive at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.objectives.combine import with_gradients
from limbeck.synthetic.set import SyntheticSet

Pair = tuple[Tensor, Tensor]
"""Images (n, c, h, w) and their labels: classes (n,) or probabilities (n, classes)."""

Discrepancy = Callable[[Tensor, Pair, Pair], Tensor]
"""(theta (P,), real pair, synthetic pair) of one class -> scalar, differentiable in the synthetic pair."""

Rows = Callable[[int, int, int], Tensor]
"""(outer step, class, seed) -> rows of the real images to compare with (m,)."""

Augment = Callable[[Tensor, int], Tensor]
"""(images, seed) -> images of the same shape; pure."""


def unchanged(images: Tensor, seed: int) -> Tensor:
    """No augmentation."""
    return images


def hard(labels: Tensor) -> Tensor:
    """Classes (n,) of labels that are classes, or scores (n, classes)."""
    return labels.argmax(1) if labels.dtype.is_floating_point else labels


@dataclass(frozen=True)
class Sum:
    """The sum of weighted discrepancies."""

    terms: tuple[tuple[float, Discrepancy], ...]

    def __call__(self, theta: Tensor, real: Pair, synthetic: Pair) -> Tensor:
        return torch.stack([weight * each(theta, real, synthetic) for weight, each in self.terms]).sum()


@dataclass(frozen=True)
class MatchClasses:
    """The sum over classes of a discrepancy between real and synthetic images, under the network of this step.

    real:        all training images in network input space, and their classes.
    rows:        which of them to compare with (see objectives/query.py).
    network:     gives the parameters (P,) of the present network (see objectives/online_network.py).
    discrepancy: of gradients (objectives/gradient.py), of features (objectives/features.py), or both.
    augment:     siamese: real and synthetic images of a class are given the same seed.
    most:        at most so many synthetic images of a class, drawn at every step.

    One outer step is one step of the papers' inner loop over all classes. Their losses are summed and the set is
    stepped once; the released code of IDC and DREAM steps after every class, so that with momentum each class goes
    on drifting in the steps of the others. Gradients are taken class by class, at once, in the rows of that class.
    """

    real: Pair
    rows: Rows
    network: Callable[[], Tensor]
    discrepancy: Discrepancy
    augment: Augment = unchanged
    most: int | None = None

    @torch.enable_grad()
    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        theta, classes = self.network(), hard(synthetic.labels).cpu()  # read from a GPU once, not class by class
        parameters = synthetic.parameters()
        total = torch.zeros((), dtype=synthetic.images.dtype, device=synthetic.images.device)
        sums: dict[str, Tensor] = {}
        for label in classes.unique().tolist():
            members = (classes == label).nonzero().squeeze(1).to(synthetic.images.device)
            part = part_of(synthetic, members)
            value = self._one(part, theta, label, step, seed)
            leaves = part.parameters()
            found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            total = total + value.detach()
            for name, gradient in zip(leaves, found):
                if gradient is not None:
                    held = sums.setdefault(name, torch.zeros_like(parameters[name]))
                    held[members if name in BY_ROW else ...] += gradient
        return with_gradients(total, [parameters[name] for name in sums], list(sums.values()))

    def _one(self, part: SyntheticSet, theta: Tensor, label: int, step: int, seed: int) -> Tensor:
        rows = self.rows(step, label, seed)
        images, labels = part.training_pair()
        if self.most is not None and len(images) > self.most:
            order = torch.randperm(len(images), generator=make_generator(seed, "most", step, label))[: self.most]
            images, labels = images[order.to(images.device)], labels[order.to(images.device)]
        draw = derive_seed(seed, "siamese", step, label)
        real = self.augment(self.real[0][rows], draw), self.real[1][rows]
        return self.discrepancy(theta, real, (self.augment(images, draw), labels))


BY_ROW = ("images", "labels")


def part_of(synthetic: SyntheticSet, rows: Tensor) -> SyntheticSet:
    """The images and labels of these rows as a set of its own; what is learned are new leaves that ask for gradients.

    >>> whole = SyntheticSet.from_images(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]), 0.1)
    >>> part_of(whole, torch.tensor([2])).labels.tolist()
    [1]
    """
    held = {
        name: (tensor[rows] if name in BY_ROW else tensor).detach().requires_grad_(name in synthetic.learned)
        for name, tensor in synthetic.state().items()
    }
    images, labels, log_lr = (held.pop(name) for name in ("images", "labels", "log_lr"))
    return replace(synthetic, images=images, labels=labels, log_lr=log_lr, extra=held)
