"""Real images that a network already classifies correctly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.select.coresets import class_rows

Classify = Callable[[Tensor], Tensor]
"""images (n, ...) -> classes (n,)."""


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
