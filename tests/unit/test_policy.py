"""Which real images a policy takes: against scikit-learn on the same features, no duplicates, small classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from limbeck.core.rng import derive_seed
from limbeck.objectives.query import Query, RandomRows
from limbeck.select.coresets import rows_by_class
from limbeck.select.policy import POLICIES, Dream, boundary, centre
from limbeck.synthetic.set import SyntheticSet

pytestmark = pytest.mark.usefixtures("untouched_generators")


def cloud(count: int = 120, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 7, 64, 119])
def test_rows_are_distinct_and_repeat(name: str, count: int) -> None:
    features = cloud()
    rows = POLICIES[name](features, count, 3)
    assert rows.dtype == torch.int64
    assert len(rows) == count
    assert len(set(rows.tolist())) == count
    assert torch.equal(rows, POLICIES[name](features.clone(), count, 3))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [5, 6, 50])
def test_a_class_with_no_more_images_gives_all(name: str, count: int) -> None:
    rows = POLICIES[name](cloud(5), count, 0)
    assert sorted(rows.tolist()) == list(range(5))


@pytest.mark.parametrize("name", POLICIES)
def test_images_that_are_all_the_same_still_come_once_each(name: str) -> None:
    rows = POLICIES[name](torch.ones(9, 4), 5, 0)
    assert len(set(rows.tolist())) == 5


def test_dream_is_scikit_learns_clusters_and_their_nearest() -> None:
    features, count, seed = cloud(), 10, 4
    points = features.double().numpy()
    means = KMeans(count, init="random", n_init=1, max_iter=20, random_state=derive_seed(seed, "dream") % 2**32).fit(
        points
    )
    expected = set()
    for cluster in range(count):
        cluster_rows = np.flatnonzero(means.labels_ == cluster)
        away = [((points[i] - means.cluster_centers_[cluster]) ** 2).sum() for i in cluster_rows]
        expected.add(int(cluster_rows[int(np.argmin(away))]))
    assert set(Dream()(features, count, seed).tolist()) == expected
    # nearest of all samples, as scikit-learn has it, where that is in the cluster itself
    nearest = means.transform(points).argmin(0)
    own_rows = [int(row) for cluster, row in enumerate(nearest) if means.labels_[row] == cluster]
    assert set(own_rows) <= expected


def test_several_of_a_cluster() -> None:
    """DREAM+: count / s clusters, the s nearest of each."""
    features, seed = cloud(), 1
    points = features.double().numpy()
    means = KMeans(4, init="random", n_init=1, max_iter=20, random_state=derive_seed(seed, "dream") % 2**32).fit(points)
    expected = set()
    for cluster in range(4):
        cluster_rows = np.flatnonzero(means.labels_ == cluster)
        away = ((points[cluster_rows] - means.cluster_centers_[cluster]) ** 2).sum(1)
        expected |= set(cluster_rows[np.argsort(away)[:3]].tolist())
    assert len(expected) == 12
    assert set(Dream(per_cluster=3)(features, 12, seed).tolist()) == expected
    assert len(set(Dream(per_cluster=3)(features, 14, seed).tolist())) == 14  # 4 clusters, and 2 to fill up


def test_every_cluster_is_represented_once() -> None:
    """Ten far clusters of unequal size: one of each, where random rows miss the small ones."""
    centres = torch.arange(10.0)[:, None] * 100
    features = torch.cat([centres[k] + cloud(1 + 5 * k, 1, k) for k in range(10)])
    owner = torch.cat([torch.full((1 + 5 * k,), k) for k in range(10)])
    best = max(len(set(owner[Dream()(features, 10, seed)].tolist())) for seed in range(5))
    plain = max(len(set(owner[POLICIES["random"](features, 10, seed)].tolist())) for seed in range(5))
    assert best > plain


def test_centre_and_boundary_are_nearest_and_farthest_from_the_mean() -> None:
    features = cloud()
    away = (features.double() - features.double().mean(0)).norm(dim=1)
    assert away[centre(features, 20, 0)].max() <= away.sort().values[19]
    assert away[boundary(features, 20, 0)].min() >= away.sort().values[-20]
    assert not set(centre(features, 20, 0).tolist()) & set(boundary(features, 20, 0).tolist())


# --- queries


def members() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    labels = torch.arange(90) % 3
    labels[:60] = 0  # 70, 10 and 10 images
    images = cloud(90, 16, 2).view(90, 1, 4, 4)
    return images, labels, rows_by_class(labels, 3)


def query(**options: int) -> tuple[Query, list[int]]:
    images, _, class_members = members()
    sizes: list[int] = []

    def represent(batch: Tensor, step: int) -> Tensor:
        sizes.append(len(batch))
        return batch * 2

    return Query(images, class_members, Dream(), 12, represent, 5, **options), sizes


def test_a_query_gives_rows_of_the_class_or_all_of_a_small_one() -> None:
    query_hook, _ = query()
    _, labels, class_members = members()
    assert [len(query_hook.sample(0, label, 0)) for label in range(3)] == [12, 10, 10]
    for label in range(3):
        rows = query_hook.sample(0, label, 0)
        assert bool((labels[rows] == label).all())
        assert len(rows.unique()) == len(rows)
    assert torch.equal(query_hook.sample(0, 1, 0).sort().values, class_members[1])


def test_a_query_looks_at_a_pool_of_a_class() -> None:
    query_hook, sizes = query(pool=30)
    assert sizes == [30, 10, 10]
    small, sizes = query(pool=3)  # never fewer than are asked for
    assert sizes == [12, 10, 10]
    assert len(small.sample(0, 0, 0)) == 12
    second, _ = query(pool=30)
    assert torch.equal(query_hook.sample(0, 0, 0), second.sample(0, 0, 0))


def test_a_query_chooses_anew_for_every_network_and_every_interval() -> None:
    query_hook, sizes = query(pool=30, every=10, interval=4)
    synthetic = SyntheticSet.from_images(torch.zeros(1, 1, 4, 4), torch.tensor([0]), 0.1)
    chosen_at = []
    for step in range(1, 22):
        before = len(sizes)
        query_hook(synthetic, step, 0.0)
        chosen_at += [step] if len(sizes) > before else []
    assert chosen_at == [4, 8, 10, 14, 18, 20]


def test_a_query_is_taken_up_where_it_was() -> None:
    query_hook, _ = query(pool=30, every=10, interval=5)
    synthetic = SyntheticSet.from_images(torch.zeros(1, 1, 4, 4), torch.tensor([0]), 0.1)
    query_hook(synthetic, 5, 0.0)
    second_query, _ = query(pool=30, every=10, interval=5)
    assert not torch.equal(second_query.sample(0, 0, 0), query_hook.sample(0, 0, 0))
    second_query.restore({name: tensor.clone() for name, tensor in query_hook.state().items()}, 5)
    assert all(torch.equal(second_query.sample(0, label, 0), query_hook.sample(0, label, 0)) for label in range(3))


def test_random_rows_are_new_at_every_step() -> None:
    _, labels, class_members = members()
    rows = RandomRows(class_members, 12)
    first, second = rows(0, 0, 0), rows(1, 0, 0)
    assert torch.equal(first, rows(0, 0, 0))
    assert not torch.equal(first, second)
    assert not torch.equal(first, rows(0, 0, 1))
    assert bool((labels[first] == 0).all())
    assert sorted(rows(0, 2, 0).tolist()) == class_members[2].tolist()
