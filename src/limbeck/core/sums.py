"""Sums of long vectors whose bits do not depend on the number of threads.

torch divides a sum of more than 32,768 numbers among its threads, and libraries of linear algebra divide a dot product.
A sum along rows is only divided between rows, and torch's `norm` is not divided.
"""

from __future__ import annotations

from torch import Tensor

ROW = 4096  # one thread adds up to 32,768 rows, so this holds for 134 million numbers


def reproducible_sum(x: Tensor) -> Tensor:
    """The sum of all elements of a tensor of any shape, a scalar with the same bits for any number of threads.

    >>> import torch
    >>> int(reproducible_sum(torch.ones(3, 5000)))
    15000
    """
    flat = x.reshape(-1)
    whole = len(flat) // ROW * ROW
    if not whole:
        return flat.sum()
    return flat[:whole].view(-1, ROW).sum(1).sum() + flat[whole:].sum()


def reproducible_dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors of the same shape, a scalar with the same bits for any number of threads."""
    return reproducible_sum(a * b)
