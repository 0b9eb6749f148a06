"""The distance of trajectory matching."""

from __future__ import annotations

from torch import Tensor

from limbeck.core.sums import reproducible_sum


def displacement(theta: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """MTT's loss |theta - target|^2 / |start - target|^2 of three (P,) vectors (Cazenavette et al. 2022, equation 2).

    >>> import torch
    >>> float(displacement(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([4.0])))
    0.0625
    """
    return reproducible_sum((theta - target).square()) / reproducible_sum((start - target).square())
