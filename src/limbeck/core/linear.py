"""Linear maps of tensors with an explicit adjoint, so that their gradients have the same bits on a GPU at every run.

There the backward passes of gather, grid_sample and bilinear interpolation in torch add with atomic operations, in no
fixed order. An adjoint that gathers adds in a fixed order. On the CPU torch's own backward passes are deterministic,
and faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.core.threads import number_of_threads

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """A linear map of x as an autograd function. The derivative of its adjoint is the map again, to any order."""

    @staticmethod
    def forward(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
        return forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Map, Map], output: Tensor) -> None:
        _, ctx.map, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return linear_call(gradient, ctx.adjoint, ctx.map), None, None


def linear_call(x: Tensor, forward: Map, adjoint: Map) -> Tensor:
    """forward(x), with `adjoint` as its backward pass: <adjoint(g), x> = <g, forward(x)> for all g and x.

    On the CPU autograd differentiates `forward` itself, which therefore has to be differentiable.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> y = linear_call(x, lambda x: 3 * x.flip(0), lambda g: 3 * g.flip(0))
    >>> y.backward(torch.tensor([1.0, 0.0])); y.tolist(), x.grad.tolist()
    ([6.0, 3.0], [0.0, 3.0])
    """
    if x.device.type == "cpu":
        return forward(x)
    result: Tensor = _Linear.apply(x, forward, adjoint)  # type: ignore[no-untyped-call]
    return result


FEW_ROWS = 512  # products of more had the same bits with 1 to 16 threads, and gain from them


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    if len(x) > FEW_ROWS or x.device.type != "cpu":
        return x @ matrix
    with number_of_threads(1):  # ten rows are shared out by the number of threads, and rounded accordingly
        return x @ matrix


def multiply_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """x (n, d) @ matrix (d, m), with the same bits for any number of threads, and so its gradient by x.

    The matrix is a constant.

    >>> multiply_rows(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[4.0, 6.0]]
    """
    result: Tensor = _Linear.apply(x, lambda x: _product(x, matrix), lambda g: _product(g, matrix.T))  # type: ignore[no-untyped-call]
    return result
