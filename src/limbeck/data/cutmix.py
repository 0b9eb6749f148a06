"""CutMix (Yun et al., ICCV 2019) and MixUp (Zhang et al., ICLR 2018): pure functions of images, labels, a generator."""

from __future__ import annotations

import torch
from torch import Tensor


def cutmix(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace a box of every image (n, c, h, w) by that of another image, and mix labels (n, classes) by its area.

    The box is the same for the whole batch. Its centre is uniform, its sides are sqrt(1 - lambda) of the image's, with
    lambda uniform (Beta(1, 1)), and it is clipped at the border. The cross-entropy of a mixed label is the mixture of
    both cross-entropies, as in the paper (algorithm 1). Returns new images and labels.
    """
    n, _, h, w = images.shape
    lam, *centre = torch.rand(3, generator=generator).tolist()
    order = torch.randperm(n, generator=generator).to(images.device)
    scale = (1 - lam) ** 0.5
    masks, area = [], 1.0
    for side, position in ((h, centre[0]), (w, centre[1])):
        half, middle = int(side * scale) // 2, min(int(position * side), side - 1)
        first, end = max(middle - half, 0), min(middle + half, side)
        index = torch.arange(side, device=images.device)
        masks.append((index >= first) & (index < end))
        area *= end - first
    box = masks[0][:, None] & masks[1]
    weight = 1 - area / (h * w)  # not the mean of `box`, for which the CPU would wait for a GPU
    mixed = torch.where(box, images[order], images)
    return mixed, weight * labels + (1 - weight) * labels[order]


def mixup(images: Tensor, labels: Tensor, generator: torch.Generator, alpha: float = 0.8) -> tuple[Tensor, Tensor]:
    """Mix every image (n, ...) and label (n, classes) with those of another image: lambda times its own.

    lambda is one number of Beta(alpha, alpha) for the whole batch; the default alpha is DD-Ranking's.
    Returns new images and labels.
    """
    from scipy.special import betaincinv  # here, because parsing a command line loads this module

    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    lam = float(betaincinv(alpha, alpha, uniform))  # the quantile function of Beta(alpha, alpha)
    order = torch.randperm(len(images), generator=generator).to(images.device)
    return lam * images + (1 - lam) * images[order], lam * labels + (1 - lam) * labels[order]


MIXES = {"cutmix": cutmix, "mixup": mixup}
"""Functions of (images, probabilities, generator) that mix a batch, by name."""
