"""Selectors: distinct rows, the right number of each class, and k-means against its definition."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import derive_seed
from limbeck.laws import SELECTOR_LAWS, check_laws
from limbeck.select import SELECTORS, herding, kcentre, kmeans, select_per_class, topk

pytestmark = pytest.mark.usefixtures("untouched_generators")


def blobs(count: int, size: int, seed: int = 0) -> Tensor:
    """`count` far-apart groups of `each` points in the plane, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    centres = 100 * torch.stack([torch.arange(count), torch.arange(count) % 2], 1)
    points = (centres[:, None] + torch.randn(count, size, 2, generator=generator)).reshape(-1, 2)
    return points[torch.randperm(len(points), generator=generator)]


def cloud(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_meets_the_laws_of_limbeck_check(name: str) -> None:
    outcomes = list(check_laws(SELECTOR_LAWS, SELECTORS[name]))
    assert [outcome.status for outcome in outcomes] == ["passed"] * len(SELECTOR_LAWS), outcomes


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_rows_are_distinct_and_repeatable(name: str, count: int) -> None:
    features = cloud(40, 5)
    rows = SELECTORS[name](features, count, 3)
    assert rows.dtype == torch.int64
    assert len(rows) == count == len(rows.unique())
    assert rows.min() >= 0
    assert rows.max() < 40
    assert torch.equal(rows, SELECTORS[name](features, count, 3))
    if 1 < count < 40 and name != "herding":  # which has nothing random in it
        assert any(set(SELECTORS[name](features, count, seed).tolist()) != set(rows.tolist()) for seed in range(4, 12))


@pytest.mark.parametrize("count", [2, 5, 12])
def test_kmeans_takes_the_nearest_of_each_cluster(count: int) -> None:
    """One row of every cluster, and of its cluster the point that is nearest to the centre."""
    features = cloud(200, 3)
    rows = kmeans(features, count, 0)
    points = features.double().numpy()
    state = derive_seed(0, "kmeans") % 2**32
    centres = KMeans(count, init="random", n_init=1, max_iter=100, random_state=state).fit(points).cluster_centers_
    labels = pairwise_distances_argmin(points, centres)
    assert sorted(labels[rows]) == list(range(count))
    for row, cluster in zip(rows.tolist(), labels[rows]):
        members = points[labels == cluster]
        distances = np.linalg.norm(members - centres[cluster], axis=1)
        assert np.linalg.norm(points[row] - centres[cluster]) == pytest.approx(distances.min(), rel=1e-12)


def test_kmeans_takes_one_of_each_clear_group() -> None:
    features = blobs(2, 30)
    for seed in range(5):
        groups = (features[kmeans(features, 2, seed), 0] / 100).round().int().tolist()
        assert sorted(groups) == [0, 1]


@pytest.mark.parametrize("name", SELECTORS)
def test_duplicates_do_not_come_twice_as_rows(name: str) -> None:
    features = torch.cat([torch.zeros(10, 2), torch.ones(10, 2)])
    for count in (2, 5, 20):
        rows = SELECTORS[name](features, count, 0)
        assert len(rows) == count == len(rows.unique())
    assert len(features[kmeans(features, 2, 0)].unique(dim=0)) == 2


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("ipc", [1, 3, 10])
def test_every_class_gets_its_rows_in_order(name: str, ipc: int) -> None:
    labels = torch.arange(40) % 4
    images = cloud(40, 12).reshape(40, 3, 2, 2)
    rows = select_per_class(name, images, labels, 4, ipc, seed=1)
    assert labels[rows].tolist() == [label for label in range(4) for _ in range(ipc)]
    assert len(rows.unique()) == 4 * ipc


@pytest.mark.parametrize("name", SELECTORS)
def test_too_few_images_are_refused(name: str) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    with pytest.raises(UserError, match="class 1 has 2 training images, fewer than 3; ask"):
        select_per_class(name, cloud(5, 2), labels, 2, 3, seed=0)


def test_an_unknown_selector_is_refused() -> None:
    with pytest.raises(UserError, match="random, kmeans"):
        select_per_class("best", cloud(5, 2), torch.zeros(5).long(), 1, 1, seed=0)


def test_herding_is_greedy_on_the_mean() -> None:
    """Each step takes the row that brings the mean of those taken nearest to the mean of all, tried one by one."""
    features = cloud(30, 4)
    mean = features.double().mean(0)
    expected: list[int] = []
    for _ in range(8):
        remaining = [row for row in range(30) if row not in expected]
        away = [float((features.double()[[*expected, row]].mean(0) - mean).norm()) for row in remaining]
        expected.append(remaining[int(np.argmin(away))])
    assert herding(features, 8, 0).tolist() == expected


def test_kcentre_takes_the_farthest_and_covers_within_twice_the_best() -> None:
    features = cloud(12, 2)
    rows = kcentre(features, 4, 0).tolist()
    distance = torch.cdist(features.double(), features.double())
    for k in range(1, 4):
        reach = distance[:, rows[:k]].min(1).values
        assert reach[rows[k]] == reach.max()
    best = min(float(distance[:, list(subset)].min(1).values.max()) for subset in combinations(range(12), 4))
    assert float(distance[:, rows].min(1).values.max()) <= 2 * best


def test_highest_takes_the_largest_and_breaks_ties_at_random() -> None:
    scores = torch.tensor([[0.0], [3.0], [1.0], [3.0], [3.0], [2.0]])
    assert set(topk(scores, 3, 0).tolist()) == {1, 3, 4}
    assert topk(scores, 4, 0).tolist()[3] == 5
    assert len({int(topk(scores, 1, seed)) for seed in range(20)}) == 3
