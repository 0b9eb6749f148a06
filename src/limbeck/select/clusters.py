"""k-means of features, and the samples nearest to its centres."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from limbeck.core.rng import make_generator


def nearest_to_centres(features: Tensor, clusters: int, per_cluster: int, iterations: int, seed: int) -> list[int]:
    """Rows of the `per_cluster` samples nearest to each k-means centre, cluster by cluster, the nearest first.

    features: (m, d), clustered in float64 so that the order of sums decides nothing.
    The nearest samples are searched within a centre's own cluster, so that none comes twice; a cluster that has fewer
    samples gives fewer rows. Centres start at random samples and not by k-means++, which took 80 times as long at 128
    clusters and was no better. seed: the random state of k-means, of which 32 bits are used.
    """
    from sklearn.cluster import KMeans  # takes a second to import, and most commands never need it
    from sklearn.exceptions import ConvergenceWarning

    points = features.detach().cpu().double().numpy()
    means = KMeans(clusters, init="random", n_init=1, max_iter=iterations, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct samples than clusters
        member = means.fit_predict(points)
    distance = np.square(points - means.cluster_centers_[member]).sum(1)
    order = np.lexsort((distance, member))  # cluster by cluster, the nearest first
    first = np.searchsorted(member[order], member[order])
    rows: list[int] = order[np.arange(len(order)) - first < per_cluster].tolist()
    return rows


def append_random(rows: list[int], size: int, count: int, seed: int) -> Tensor:
    """`rows`, followed by random other rows below `size` until they are `count`: int64 (count,)."""
    present = set(rows)
    others = [row for row in random_order(size, seed).tolist() if row not in present]
    return torch.tensor(rows + others[: count - len(rows)])


def random_order(size: int, seed: int) -> Tensor:
    """A random permutation of 0 to size - 1: the order in which the selector "random" takes samples."""
    return torch.randperm(size, generator=make_generator(seed, "random"))
