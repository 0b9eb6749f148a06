"""Rows of images drawn at random with as many of every class, however often the classes come."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_by_class(labels: Tensor) -> tuple[Tensor, ...]:
    """Return the rows (m_c,) of every class that occurs in int64 labels (n,), on the processor.

    >>> [rows.tolist() for rows in split_by_class(torch.tensor([3, 0, 3]))]
    [[1], [0, 2]]
    """
    counts: list[int] = labels.cpu().unique(return_counts=True)[1].tolist()
    return tuple(torch.split(labels.cpu().argsort(stable=True), counts))


def balanced_rows(class_rows: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows in random order, as many of every class, but for one where `count` cannot be divided.

    class_rows: the rows (m_c,) of every class on the processor, none empty, as `split_by_class` returns them.
    A row of a class comes again only after all others of its class have come as often.

    >>> rows = balanced_rows([torch.tensor([0]), torch.arange(1, 9)], 6, torch.Generator().manual_seed(0))
    >>> len(rows), int((rows == 0).sum()), len(rows.unique())
    (6, 3, 4)
    """
    classes = len(class_rows)
    sizes = torch.full((classes,), count // classes)
    sizes[torch.randperm(classes, generator=generator)[: count % classes]] += 1
    parts = []
    for rows, size in zip(class_rows, sizes.tolist()):
        passes = max(1, -(-size // len(rows)))
        order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(passes)])
        parts.append(rows[order[:size]])
    return torch.cat(parts)[torch.randperm(count, generator=generator)]
