"""Matching of features: mean features of DM, and what the newer methods that see no gradients add to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import cross_entropy
from limbeck.objectives.classes import ClassPairs, NetworkSource, Pair, sum_over_groups
from limbeck.objectives.gradient import TensorDistance, mse
from limbeck.synthetic.set import SyntheticSet

ImageFunction = Callable[[Tensor, Tensor], Tensor]
"""(theta (P,), images (n, c, h, w)) -> features (n, d) or logits (n, classes), differentiable in the images."""

IMAGES = 500
"""Stored images whose graph is alive at a time."""


@dataclass(frozen=True)
class FeatureDistance:
    """A `Discrepancy`: the distance between the mean features (1, d) of both pairs; labels are not used.

    With `mse` this is DM (equation 4, for one class and one network), and the second term of DREAM+.
    """

    model: FlatModel
    distance: TensorDistance = mse

    def __call__(self, theta: Tensor, real: Pair, synthetic: Pair) -> Tensor:
        """The distance under the network theta (P,): a scalar."""
        with torch.no_grad():
            target = self.model.features(theta, real[0]).mean(0, keepdim=True)
        return self.distance(self.model.features(theta, synthetic[0]).mean(0, keepdim=True), target)


class ClassFeatures(NamedTuple):
    """Features (n, d) of images that lie class by class, and the number of images of each of k classes."""

    features: Tensor
    counts: list[int]

    def means(self, values: Tensor) -> Tensor:
        """The mean over the images of each class of values (n, m): (k, m)."""
        return torch.stack([part.mean(0) for part in values.split(self.counts)])


ClassDistance = Callable[[ClassFeatures, ClassFeatures, int, int], Tensor]
"""(real features, synthetic features, outer step, seed) -> the sum over their classes of a distance, a scalar."""


def mean_distance(real: ClassFeatures, synthetic: ClassFeatures, step: int = 0, seed: int = 0) -> Tensor:
    """A `ClassDistance`: the squared distance of mean features, as `FeatureDistance` with `mse`; nothing is random."""
    return mse(synthetic.means(synthetic.features), real.means(real.features))


@dataclass(frozen=True)
class MatchFeatures:
    """An objective: the sum over classes of a distance between features of real and of synthetic images.

    It is `MatchClasses` for distances of features, which no class needs a graph of its own for: images of many classes
    go through the network together, and the result is the same up to rounding.

    pairs:    Draws the images of each class.
    network:  The parameters of the network at an outer step.
    features: Of images under these parameters: `task.image_functions.features`, or `FlatModel.features`.
    distance: Of the features of all classes.
    together: Stored images that go through the network together, at most; where a network has statistics of its batch,
              as batch norm has, 1 keeps classes apart.
    """

    pairs: ClassPairs
    network: NetworkSource
    features: ImageFunction
    distance: ClassDistance = mean_distance
    together: int = IMAGES

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The sum at this outer step: a scalar whose gradients are those of the learned parameters."""
        theta = self.network(step, seed)

        def distance(parts: Mapping[int, SyntheticSet]) -> Tensor:
            with torch.no_grad():
                images = [self.pairs.real_pair(label, step, seed)[0] for label in parts]
                real = ClassFeatures(self.features(theta, torch.cat(images)), [len(part) for part in images])
            images = [self.pairs.synthetic_pair(part, label, step, seed)[0] for label, part in parts.items()]
            features = self.features(theta, torch.cat(images))
            return self.distance(real, ClassFeatures(features, [len(part) for part in images]), step, seed)

        return sum_over_groups(synthetic, distance, self.together)


@dataclass(frozen=True)
class ClassCrossEntropy:
    """An objective: the sum over classes of the mean cross-entropy of their synthetic images under a trained network.

    TGDD and NCFM add it to a distance of features, which sees no labels.

    pairs:    Draws and augments the synthetic images, as for the distance.
    network:  The parameters of the network at an outer step.
    logits:   Of images under these parameters: `task.image_functions.logits`, or a `FlatModel`.
    together: As in `MatchFeatures`.
    """

    pairs: ClassPairs
    network: NetworkSource
    logits: ImageFunction
    together: int = IMAGES

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The sum at this outer step: a scalar whose gradients are those of the learned parameters."""
        theta = self.network(step, seed)

        def loss(parts: Mapping[int, SyntheticSet]) -> Tensor:
            drawn = [self.pairs.synthetic_pair(part, label, step, seed) for label, part in parts.items()]
            logits = self.logits(theta, torch.cat([images for images, _ in drawn]))
            parts_of_logits = logits.split([len(images) for images, _ in drawn])
            terms = [cross_entropy(part, labels) for part, (_, labels) in zip(parts_of_logits, drawn)]
            return torch.stack(terms).sum()

        return sum_over_groups(synthetic, loss, self.together)
