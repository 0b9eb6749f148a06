"""A linear map of tensors whose derivative is its adjoint, given as a function: for the same bits on a GPU.

torch's own backward passes of gather, grid_sample and bilinear interpolation add with atomic operations there, in no
fixed order. An adjoint that gathers as well has one result. On a processor torch's own have one, and are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class _Linear(torch.autograd.Function):
    """Inputs: x, the map and its adjoint. The derivative of the adjoint is the map, so that both go on."""

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
    """forward(x), whose gradient is taken by `adjoint`: <adjoint(g), x> = <g, forward(x)> for all g and x.

    On a processor the gradient is torch's own, so that `forward` has to be differentiable.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> y = linear_call(x, lambda x: 3 * x.flip(0), lambda g: 3 * g.flip(0))
    >>> y.backward(torch.tensor([1.0, 0.0])); y.tolist(), x.grad.tolist()
    ([6.0, 3.0], [0.0, 3.0])
    """
    if x.device.type == "cpu":
        return forward(x)
    result: Tensor = _Linear.apply(x, forward, adjoint)  # type: ignore[no-untyped-call]
    return result
