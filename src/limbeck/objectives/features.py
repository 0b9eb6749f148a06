"""Distribution matching (Zhao & Bilen, DM, WACV 2023): the distance between two batches' mean features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.networks.flat import FlatModel
from limbeck.objectives.classes import Pair
from limbeck.objectives.gradient import TensorDistance, mse


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
