"""Policies: which real images of a class a matcher compares with, from their features under the present network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.core.rng import derive_seed
from limbeck.select.clusters import append_random, nearest_to_centres
from limbeck.select.coresets import Selector, random

__all__ = ["POLICIES", "Dream", "boundary", "centre", "random"]


@dataclass(frozen=True)
class Dream:
    """DREAM (Liu et al., ICCV 2023): k-means, and the samples of every cluster that are nearest to its centre.

    per_cluster: samples of a cluster, s, so that there are count / s clusters (query_match in DREAM+).
    iterations:  of Lloyd's algorithm, which starts from random samples.

    The nearest samples are searched within the cluster: over all samples the same one comes twice where two centres
    are close (127 of 128 were distinct on Fashion-MNIST). Random samples fill up where clusters are small or empty.
    """

    per_cluster: int = 1
    iterations: int = 20

    def __call__(self, features: Tensor, count: int, seed: int) -> Tensor:
        """features (m, d) -> distinct rows (min(count, m),)."""
        if count >= len(features):
            return torch.arange(len(features))
        clusters = max(1, count // self.per_cluster)
        rows = nearest_to_centres(features, clusters, self.per_cluster, self.iterations, derive_seed(seed, "dream"))
        return append_random(rows, len(features), count, seed)


def _distance_from_mean(features: Tensor) -> Tensor:
    points = features.detach().cpu().double()
    return (points - points.mean(0)).square().sum(1)


def centre(features: Tensor, count: int, seed: int) -> Tensor:
    """The `count` samples nearest to the mean of the class, the nearest first. It does not use `seed`."""
    return _distance_from_mean(features).argsort(stable=True)[:count]


def boundary(features: Tensor, count: int, seed: int) -> Tensor:
    """The `count` samples farthest from the mean of the class, the farthest first. It does not use `seed`."""
    return _distance_from_mean(features).argsort(stable=True, descending=True)[:count]


POLICIES: dict[str, Selector] = {"random": random, "dream": Dream(), "centre": centre, "boundary": boundary}
