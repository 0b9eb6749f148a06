"""Fills up classes that have fewer images than a set needs: repeats their images, and may vary the repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator

FillName = Literal["none", "repeat", "augment", "noise"]
"""What to do about a class with too few images: refuse it (none), or repeat its images, as they are (repeat), each
augmented (augment), or each with Gaussian noise (noise)."""

NOISE = 0.1  # its standard deviation in network input space, where that of the pixels is 1


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """The first `count` of the rows (m,), in their order again and again: (count,). m must not be 0.

    >>> repeat_rows(torch.tensor([4, 7, 2]), 5).tolist()
    [4, 7, 2, 4, 7]
    """
    return rows.repeat(-(-count // len(rows)))[:count]


def find_repeats(rows: Tensor) -> Tensor:
    """The positions in `rows` (n,) of values that stand further ahead already, int64 (k,) on the CPU.

    >>> find_repeats(torch.tensor([4, 7, 4, 2, 4])).tolist()
    [2, 4]
    """
    is_repeat = torch.ones(len(rows), dtype=torch.bool)
    is_repeat[torch.from_numpy(np.unique(rows.cpu().numpy(), return_index=True)[1])] = False
    return is_repeat.nonzero()[:, 0]


def take_images(
    images: Tensor, rows: Tensor, fill: FillName, augment: Callable[[Tensor, int], Tensor], seed: int
) -> Tensor:
    """The images (n, c, h, w) of rows (n,); of an image that comes again, the repeats are varied as `fill` says.

    images: all of them, in network input space.
    augment: (images, seed) -> images; every repeat is augmented with a seed of its own.
    """
    chosen = images[rows]
    positions = find_repeats(rows)
    if fill == "noise" and len(positions):
        noise = torch.randn(len(positions), *images.shape[1:], generator=make_generator(seed, "fill"))
        chosen[positions.to(images.device)] += NOISE * noise.to(images)
    if fill == "augment":
        for position in positions.tolist():
            chosen[position] = augment(images[rows[position]][None], derive_seed(seed, "fill", position))[0]
    return chosen
