"""Selectors: rows of one class to keep, from that class's features. A new one is a function and a line in SELECTORS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.text import quote
from limbeck.core.user_imports import find_object
from limbeck.select.clusters import append_random, nearest_to_centres, random_order
from limbeck.select.fill import repeat_rows

Selector = Callable[[Tensor, int, int], Tensor]
"""(features of one class (m, d), count, seed) -> `count` distinct rows, int64 (count,). Needs count <= m."""

Classifier = Callable[[Tensor], Tensor]
"""images (n, ...) -> predicted classes (n,)."""


def random(features: Tensor, count: int, seed: int) -> Tensor:
    """Rows drawn uniformly without replacement."""
    return random_order(len(features), seed)[:count]


def kmeans(features: Tensor, count: int, seed: int) -> Tensor:
    """The row nearest to each of `count` k-means centres within its cluster, filled up with random rows."""
    rows = nearest_to_centres(features, count, 1, iterations=100, seed=derive_seed(seed, "kmeans"))
    return append_random(rows, len(features), count, seed)


def herding(features: Tensor, count: int, seed: int) -> Tensor:
    """Rows chosen one by one, each bringing the mean of the chosen nearest to the mean of all (Welling 2009).

    This is algorithm 4 of iCaRL (Rebuffi et al. 2017), without replacement. It does not use `seed`.
    """
    points = features.cpu().double()  # on a GPU, every one of these choices would wait for the device
    mean, total = points.mean(0), torch.zeros_like(points[0])
    rows: list[int] = []
    for k in range(1, count + 1):
        # |mean - (total + x) / k|^2 up to terms that are the same for all x; one product with (m, d) a step
        target = k * mean - total
        distance = points.square().sum(1) - 2 * points @ target
        distance[rows] = torch.inf
        rows.append(int(distance.argmin()))
        total = total + points[rows[-1]]
    return torch.tensor(rows)


def kcentre(features: Tensor, count: int, seed: int) -> Tensor:
    """A random row, then always the row farthest from all chosen ones (Sener & Savarese 2018, algorithm 1)."""
    points = features.cpu().double()
    rows = [int(torch.randint(len(points), (), generator=make_generator(seed, "kcentre")))]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.double)
    while len(rows) < count:
        nearest = torch.minimum(nearest, (points - points[rows[-1]]).square().sum(1))
        nearest[rows] = -1.0
        rows.append(int(nearest.argmax()))
    return torch.tensor(rows[:count])


def topk(features: Tensor, count: int, seed: int) -> Tensor:
    """The rows with the largest scores, where features (m, 1) are scores; equal scores come in random order."""
    order = random(features, len(features), seed).to(features.device)
    ranking = features[order].flatten().argsort(descending=True, stable=True)
    return order[ranking][:count].cpu()


SELECTORS: dict[str, Selector] = {
    "random": random,
    "kmeans": kmeans,
    "herding": herding,
    "kcentre": kcentre,
}


def find_selector(name: str) -> Selector:
    """The selector of this name: of `SELECTORS`, of an installed package, or a user's own MODULE:NAME.

    Packages offer selectors by entry points of the group `limbeck.selectors`. Raises UserError for a name that is none
    of these, and for what cannot be imported or called.

    >>> find_selector("herding").__name__
    'herding'
    """
    selector = find_object(name, "selector", SELECTORS)
    if not callable(selector):
        raise UserError(
            f"the selector {quote(name)} is a {type(selector).__name__}; it has to be a function "
            "(features, count, seed) that returns rows."
        )
    return selector  # type: ignore[no-any-return]


def rows_by_class(labels: Tensor, classes: int, ipc: int = 0) -> tuple[Tensor, ...]:
    """The rows of each class (m_c,), in order, of labels (n,). Raises UserError for a class with fewer than `ipc`.

    >>> [rows.tolist() for rows in rows_by_class(torch.tensor([1, 0, 1]), 2)]
    [[1], [0, 2]]
    """
    rows = tuple((labels == label).nonzero().squeeze(1) for label in range(classes))
    for label, members in enumerate(rows):
        if (count := len(members)) < ipc:
            raise UserError(
                f"class {label} has {count} training image{'s' * (count != 1)}, fewer than {ipc}; ask for fewer images "
                "per class, or fill it up with --fill repeat, augment or noise."
            )
    return rows


def select_per_class(
    selector: str | Selector,
    features: Tensor,
    labels: Tensor,
    classes: int,
    ipc: int,
    seed: int,
    *,
    repeat: bool = False,
) -> Tensor:
    """Rows of `ipc` images of every class, class by class: int64 (classes * ipc,) on the CPU.

    selector: a name as `find_selector` takes it, or a function like those in `SELECTORS`.
    features: (n, ...), one row per image; labels: int64 (n,).
    repeat: a class with fewer than `ipc` images gives all of them, in the selector's order, again and again.
    Raises UserError for an unknown selector and, without `repeat`, for a class with fewer than `ipc` images.
    """
    if isinstance(selector, str):
        selector = find_selector(selector)
    rows = []
    for label, members in enumerate(rows_by_class(labels, classes, 1 if repeat else ipc)):
        members = members.cpu()
        class_features = features[members.to(features.device)].flatten(1)
        count = min(ipc, len(members))
        chosen = selector(class_features, count, derive_seed(seed, "select", label))
        if tuple(chosen.shape) != (count,):
            raise UserError(
                f"a selector returned rows of shape {tuple(chosen.shape)} where {count} were asked for; "
                "'limbeck check' says what a selector has to do."
            )
        rows.append(repeat_rows(members[chosen], ipc))
    return torch.cat(rows)


def select_correct(
    images: Tensor,
    labels: Tensor,
    classes: int,
    ipc: int,
    experts: Sequence[Classifier],
    seed: int,
    *,
    repeat: bool = False,
) -> Tensor:
    """Random rows of `ipc` images of every class that an expert classifies correctly, class by class (classes * ipc,).

    A class takes correct images of the first expert, then of the next one where those are too few, and so on. What is
    still missing after the last expert is filled up with random images of the class, so that a hard class does not
    stop the run. repeat, and the UserError for a class with fewer than `ipc` images: as for `select_per_class`.
    """
    rows = []
    for label, members in enumerate(rows_by_class(labels, classes, 1 if repeat else ipc)):
        order = torch.randperm(len(members), generator=make_generator(seed, "correct", label)).to(members.device)
        candidates = members[order]
        correct = candidates[:0]
        for expert in experts:
            for part in candidates.split(256):
                if len(correct) < ipc:
                    correct = torch.cat([correct, part[expert(images[part]) == label]])
            candidates = candidates[~torch.isin(candidates, correct)]
        rows.append(repeat_rows(torch.cat([correct, candidates])[:ipc], ipc))
    return torch.cat(rows)
