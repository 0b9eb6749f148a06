"""Policies: which real images of a class a matcher compares with, from their features under the present network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.core.rng import derive_seed
from limbeck.select.coresets import Selector, random

__all__ = ["POLICIES", "Dream", "boundary", "centre", "random"]


@dataclass(frozen=True)
class Dream:
    """DREAM (Liu et al., ICCV 2023): k-means, and of every cluster the samples nearest to its centre.

    per_cluster: samples of a cluster, s; `count` then asks for count / s clusters (query_match of DREAM+).
    iterations:  of Lloyd's algorithm, from random samples.

    The nearest are looked for within the cluster: the nearest of all comes twice where two centres are close (127
    of 128 were distinct on Fashion-MNIST). Where clusters are empty or small, random samples fill up.
    """

    per_cluster: int = 1
    iterations: int = 20

    def __call__(self, features: Tensor, count: int, seed: int) -> Tensor:
        """features (m, d) -> distinct rows (min(count, m),)."""
        from sklearn.cluster import KMeans  # takes a second to import, and most commands never need it
        from sklearn.exceptions import ConvergenceWarning

        if count >= len(features):
            return torch.arange(len(features))
        clusters = max(1, count // self.per_cluster)
        points = features.detach().cpu().double().numpy()  # as double, so that the order of sums decides nothing
        means = KMeans(
            clusters,
            init="random",  # k-means++ took 80 times as long at 128 clusters
            n_init=1,
            max_iter=self.iterations,
            random_state=derive_seed(seed, "dream") % 2**32,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than clusters: filled up below
            member = means.fit_predict(points)
        distance = np.square(points - means.cluster_centers_[member]).sum(1)
        order = np.lexsort((distance, member))  # cluster by cluster, the nearest first
        first = np.searchsorted(member[order], member[order])
        rows = order[np.arange(len(order)) - first < self.per_cluster].tolist()
        held = set(rows)
        rest = [row for row in random(features, len(features), seed).tolist() if row not in held]
        return torch.tensor(rows + rest[: count - len(rows)])


def _from_mean(features: Tensor) -> Tensor:
    points = features.detach().cpu().double()
    return (points - points.mean(0)).square().sum(1)


def centre(features: Tensor, count: int, seed: int) -> Tensor:
    """The `count` samples nearest to the mean of the class, the nearest first."""
    return _from_mean(features).argsort(stable=True)[:count]


def boundary(features: Tensor, count: int, seed: int) -> Tensor:
    """The `count` samples farthest from the mean of the class, the farthest first."""
    return _from_mean(features).argsort(stable=True, descending=True)[:count]


POLICIES: dict[str, Selector] = {"random": random, "dream": Dream(), "centre": centre, "boundary": boundary}
