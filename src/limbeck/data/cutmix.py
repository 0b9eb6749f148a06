"""CutMix (Yun et al., ICCV 2019) as a pure function of images, labels and a generator."""

from __future__ import annotations

import torch
from torch import Tensor


def cutmix(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A box of every image (n, c, h, w) comes from another one of the batch; labels (n, classes) mix by its area.

    One box for the batch: its centre is uniform, its sides are sqrt(1 - lambda) of the image's with lambda uniform
    (Beta(1, 1)), and what lies outside is cut off. The cross-entropy of the mixed label is the mixture of both
    cross-entropies, as the paper has it. Nothing is written to the arguments.
    """
    n, _, h, w = images.shape
    keep, *centre = torch.rand(3, generator=generator).tolist()
    order = torch.randperm(n, generator=generator).to(images.device)
    part = (1 - keep) ** 0.5
    inside, area = [], 1.0
    for side, place in ((h, centre[0]), (w, centre[1])):
        half, middle = int(side * part) // 2, min(int(place * side), side - 1)
        first, end = max(middle - half, 0), min(middle + half, side)
        position = torch.arange(side, device=images.device)
        inside.append((position >= first) & (position < end))
        area *= end - first
    box = inside[0][:, None] & inside[1]
    kept = 1 - area / (h * w)  # counted here: the mean of `box` would make the processor wait for a GPU
    mixed = torch.where(box, images[order], images)
    return mixed, kept * labels + (1 - kept) * labels[order]
