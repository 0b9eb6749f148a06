"""Selectors: rows of one class to keep, from that class's features. To add one: a function, and a line in SELECTORS."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import derive_seed, make_generator

Selector = Callable[[Tensor, int, int], Tensor]
"""(features of one class (m, d), how many, seed) -> distinct rows (k,)."""

Classify = Callable[[Tensor], Tensor]
"""images (n, ...) -> classes (n,)."""


def random(features: Tensor, count: int, seed: int) -> Tensor:
    """Uniform without replacement."""
    return torch.randperm(len(features), generator=make_generator(seed, "random"))[:count]


def kmeans(features: Tensor, count: int, seed: int) -> Tensor:
    """The sample nearest to each of `count` k-means centres, within its own cluster, so that none comes twice.

    Centres start at random samples, not by k-means++: at 128 clusters that was 80 times cheaper and as good.
    """
    from sklearn.cluster import KMeans  # takes a second to import, and most commands never need it
    from sklearn.exceptions import ConvergenceWarning

    points = features.cpu().double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters: filled up below
        found = KMeans(
            count, init="random", n_init=1, max_iter=100, random_state=derive_seed(seed, "kmeans") % 2**32
        ).fit(points)
    distance = np.square(points - found.cluster_centers_[found.labels_]).sum(1)
    rows = [
        int(members[distance[members].argmin()])
        for members in (np.flatnonzero(found.labels_ == cluster) for cluster in range(count))
        if len(members)
    ]
    rest = [row for row in random(features, len(features), seed).tolist() if row not in set(rows)]
    return torch.tensor(rows + rest[: count - len(rows)])


def herding(features: Tensor, count: int, seed: int) -> Tensor:
    """One by one, the sample that brings the mean of those taken nearest to the mean of all (Welling 2009).

    As Rebuffi et al. 2017 (iCaRL, algorithm 4), without replacement; nothing in it is random.
    """
    points = features.cpu().double()  # one by one: a GPU would wait for every choice
    mean, total = points.mean(0), torch.zeros_like(points[0])
    taken: list[int] = []
    for k in range(1, count + 1):
        # |mean - (total + x) / k|^2 up to what is the same for all x; one product with (m, d) a step
        wish = k * mean - total
        distance = points.square().sum(1) - 2 * points @ wish
        distance[taken] = torch.inf
        taken.append(int(distance.argmin()))
        total = total + points[taken[-1]]
    return torch.tensor(taken)


def kcentre(features: Tensor, count: int, seed: int) -> Tensor:
    """From a random sample on, the one farthest from all taken (Sener & Savarese 2018, algorithm 1)."""
    points = features.cpu().double()
    taken = [int(torch.randint(len(points), (), generator=make_generator(seed, "kcentre")))]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.double)
    while len(taken) < count:
        nearest = torch.minimum(nearest, (points - points[taken[-1]]).square().sum(1))
        nearest[taken] = -1.0
        taken.append(int(nearest.argmax()))
    return torch.tensor(taken[:count])


def topk(features: Tensor, count: int, seed: int) -> Tensor:
    """The samples with the largest score, features (m, 1); equal ones in random order."""
    order = random(features, len(features), seed).to(features.device)
    ranked = features[order].flatten().argsort(descending=True, stable=True)
    return order[ranked][:count].cpu()


SELECTORS: dict[str, Selector] = {
    "random": random,
    "kmeans": kmeans,
    "herding": herding,
    "kcentre": kcentre,
}


def select_per_class(
    selector: str | Selector, features: Tensor, labels: Tensor, classes: int, ipc: int, seed: int
) -> Tensor:
    """Rows of `ipc` images of every class, class by class: int64 (classes * ipc,) on the CPU.

    selector: a name in `SELECTORS`, or a function like those.
    features: (n, ...), one row per image; labels: int64 (n,).
    Raises UserError for an unknown selector and for a class with fewer than `ipc` images.
    """
    if isinstance(selector, str):
        if selector not in SELECTORS:
            raise UserError(f"there is no selector called '{selector}'; choose one of {', '.join(SELECTORS)}.")
        selector = SELECTORS[selector]
    rows = []
    for label, members in enumerate(class_rows(labels, classes, ipc)):
        members = members.cpu()
        class_features = features[members.to(features.device)].flatten(1)
        rows.append(members[selector(class_features, ipc, derive_seed(seed, "select", label))])
    return torch.cat(rows)


def class_rows(labels: Tensor, classes: int, ipc: int) -> list[Tensor]:
    """The rows of each class, in order; UserError for a class with fewer than `ipc` of them."""
    rows = [(labels == label).nonzero().squeeze(1) for label in range(classes)]
    for label, members in enumerate(rows):
        if len(members) < ipc:
            raise UserError(
                f"class {label} has {len(members)} training images, fewer than the {ipc} per class asked for."
            )
    return rows


def select_correct(
    images: Tensor, labels: Tensor, classes: int, ipc: int, experts: Sequence[Classify], seed: int
) -> Tensor:
    """`ipc` random rows of every class that an expert classifies correctly, class-sorted (classes * ipc,).

    The first expert is asked; where it is not right often enough, the next one is, and so on. What is still missing
    when all were asked is filled up with random images of the class, so that a hard class does not stop the run.
    Raises UserError for a class with fewer than `ipc` images.
    """
    chosen = []
    for label, rows in enumerate(class_rows(labels, classes, ipc)):
        order = torch.randperm(len(rows), generator=make_generator(seed, "correct", label)).to(rows.device)
        rest = rows[order]
        found = rest[:0]
        for expert in experts:
            for part in rest.split(256):
                if len(found) < ipc:
                    found = torch.cat([found, part[expert(images[part]) == label]])
            rest = rest[~torch.isin(rest, found)]
        chosen.append(torch.cat([found, rest])[:ipc])
    return torch.cat(chosen)
