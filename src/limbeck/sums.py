"""Sums of long vectors whose bits do not depend on the number of threads.

torch splits the sum of more than 32,768 numbers to one among its threads, and so do libraries of linear algebra a dot
product. Sums of rows are split between rows.
"""

from __future__ import annotations

from torch import Tensor

ROW = 4096  # at most 32,768 rows are one thread's work in the second sum: up to 134 million numbers


def total(x: Tensor) -> Tensor:
    """The sum of all elements of a tensor of any shape: a scalar.

    >>> import torch
    >>> int(total(torch.ones(3, 5000)))
    15000
    """
    flat = x.reshape(-1)
    whole = len(flat) // ROW * ROW
    if not whole:
        return flat.sum()
    return flat[:whole].view(-1, ROW).sum(1).sum() + flat[whole:].sum()


def length(x: Tensor) -> Tensor:
    """The Euclidean norm of all elements of a tensor: a scalar."""
    return total(x.square()).sqrt()


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors of one shape: a scalar."""
    return total(a * b)
