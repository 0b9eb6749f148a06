"""Matching class by class: real against synthetic images under one network, with one class's graph alive at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

NetworkSource = Callable[[int, int], Tensor]
"""(outer step, seed) -> the parameters (P,) of the network under which images are compared at this step."""

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
class ClassPairs:
    """Draws the images of a class that an outer step compares, real and synthetic ones augmented by the same draw.

    real:       All training images in network input space, and their classes.
    rows:       Which of them to compare with; see objectives/query.py.
    augment:    Siamese augmentation: real and synthetic images of a class get the same seed. None augments nothing.
    max_images: At most this many synthetic images of a class are compared, drawn at every step; None for all.
    """

    real: Pair
    rows: RowSampler
    augment: Augment | None = None
    max_images: int | None = None

    def real_pair(self, label: int, step: int, seed: int) -> Pair:
        """Real images of the class `label`, and their classes."""
        rows = self.rows(step, label, seed)
        return self._augmented(self.real[0][rows], label, step, seed), self.real[1][rows]

    def synthetic_pair(self, part: SyntheticSet, label: int, step: int, seed: int) -> Pair:
        """Training images of the class `label`, whose stored images are `part`, and their labels."""
        images, labels = part.training_pair()
        if self.max_images is not None and len(images) > self.max_images:
            generator = make_generator(seed, "most", step, label)
            order = torch.randperm(len(images), generator=generator)[: self.max_images].to(images.device)
            images, labels = images[order], labels[order]
        return self._augmented(images, label, step, seed), labels

    def _augmented(self, images: Tensor, label: int, step: int, seed: int) -> Tensor:
        return images if self.augment is None else self.augment(images, derive_seed(seed, "siamese", step, label))


@dataclass(frozen=True)
class MatchClasses:
    """An objective: the sum over classes of a discrepancy between real and synthetic images, under one network.

    real, rows, augment, max_images: as in `ClassPairs`.
    network:     The parameters of the network at an outer step; see objectives/online_network.py.
    discrepancy: Of gradients (objectives/gradient.py), of features (objectives/features.py), or both.

    One outer step is one step of the papers' inner loop over all classes. Their losses are summed and the set is
    updated once; the released code of IDC and DREAM updates it after every class, so that with momentum each class
    keeps moving during the steps of the others. Gradients are computed class by class, in the rows of that class.
    """

    real: Pair
    rows: RowSampler
    network: NetworkSource
    discrepancy: Discrepancy
    augment: Augment | None = None
    max_images: int | None = None

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The sum at this outer step: a scalar whose gradients are those of the learned parameters."""
        theta = self.network(step, seed)
        pairs = ClassPairs(self.real, self.rows, self.augment, self.max_images)

        def class_value(parts: Mapping[int, SyntheticSet]) -> Tensor:
            ((label, part),) = parts.items()
            synthetic_pair = pairs.synthetic_pair(part, label, step, seed)
            return self.discrepancy(theta, pairs.real_pair(label, step, seed), synthetic_pair)

        return sum_over_groups(synthetic, class_value, max_images=1)


@torch.enable_grad()
def sum_over_groups(
    synthetic: SyntheticSet, value: Callable[[Mapping[int, SyntheticSet]], Tensor], max_images: int
) -> Tensor:
    """The sum of a value over groups of classes, with the graph of one group alive at a time.

    value:      {class: its stored images as a set} -> scalar.
    max_images: Stored images of a group, at most; a group holds at least one class.
    Returns a scalar whose gradients are those of the set's learned parameters.
    """
    classes = hard_labels(synthetic.labels).cpu()  # one transfer from a GPU instead of one per class
    rows = {label: (classes == label).nonzero().squeeze(1) for label in classes.unique().tolist()}
    parameters = synthetic.parameters()
    total = torch.zeros((), dtype=synthetic.images.dtype, device=synthetic.images.device)
    sums: dict[str, Tensor] = {}
    for group in _groups(rows, max_images):
        places = {label: rows[label].to(synthetic.images.device) for label in group}
        parts = {label: select_images(synthetic, place) for label, place in places.items()}
        leaves = [(name, label, leaf) for label in group for name, leaf in parts[label].parameters().items()]
        group_value = value(parts)
        gradients = torch.autograd.grad(group_value, [leaf for _, _, leaf in leaves], allow_unused=True)
        total = total + group_value.detach()
        for (name, label, _), gradient in zip(leaves, gradients):
            if gradient is not None:
                gradient_sum = sums.setdefault(name, torch.zeros_like(parameters[name]))
                gradient_sum[places[label] if name in BY_ROW else ...] += gradient
    return attach_gradients(total, [parameters[name] for name in sums], list(sums.values()))


def _groups(rows: Mapping[int, Tensor], max_images: int) -> list[list[int]]:
    """The classes in order, in groups of at most `max_images` stored images or of one class."""
    groups: list[list[int]] = []
    count = 0
    for label, class_rows in rows.items():
        count += len(class_rows)
        if not groups or count > max_images:
            groups.append([])
            count = len(class_rows)
        groups[-1].append(label)
    return groups


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
