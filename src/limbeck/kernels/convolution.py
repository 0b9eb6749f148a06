"""3 x 3 convolutions in channels-last memory with both their transposes; each takes the sum of one or two at once.

All have the same three functions of terms: `forward` of (x, prepared weight) to z, `backward` of (dz, prepared weight)
to dx, `weigh` of (x, dz) to dweight (out, in, 3, 3). The tangent of each is the same function of two terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.kernels import Kernels, arithmetic

Terms = Sequence[tuple[Tensor, Tensor]]


class Convolution(Protocol):
    """A convolution of one block, `channels` to `out`."""

    def prepare(self, weight: Tensor) -> Tensor: ...

    def forward(self, terms: Terms) -> Tensor: ...

    def backward(self, terms: Terms, shape: torch.Size) -> Tensor: ...

    def weigh(self, terms: Terms) -> Tensor: ...


@dataclass(frozen=True)
class Direct:
    """torch's own, which is fastest with channels last; for any type of activations."""

    padding: int
    dtype: torch.dtype

    def prepare(self, weight: Tensor) -> Tensor:
        return channels_last(weight, self.dtype)

    def forward(self, terms: Terms) -> Tensor:
        return _sum(F.conv2d(x, weight, padding=self.padding) for x, weight in terms)

    def backward(self, terms: Terms, shape: torch.Size) -> Tensor:
        return _sum(self._both(dz, dz.new_empty(()).expand(shape), weight, [True, False])[0] for dz, weight in terms)

    def weigh(self, terms: Terms) -> Tensor:
        x, dz = terms[0]
        like = x.new_empty(()).expand(dz.shape[1], x.shape[1], 3, 3)
        return _sum(self._both(dz, x, like, [False, True])[1] for x, dz in terms)

    def _both(self, dz: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
        pad = [self.padding] * 2
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], 1, [*wanted, False]
        )
        return dx, dweight


@dataclass(frozen=True)
class FromImages:
    """The first block's: towards 1 or 3 channels one product of matrices is faster than a convolution."""

    direct: Direct
    kernels: Kernels

    def prepare(self, weight: Tensor) -> Tensor:
        return self.direct.prepare(weight)

    def forward(self, terms: Terms) -> Tensor:
        return self.direct.forward(terms)

    def backward(self, terms: Terms, shape: torch.Size) -> Tensor:
        columns = _sum(_rows(dz) @ _patches(weight) for dz, weight in terms)
        return self.kernels.fold(columns.to(arithmetic(columns.dtype)), shape, self.direct.padding)

    def weigh(self, terms: Terms) -> Tensor:
        return self.direct.weigh(terms)


def convolution(kernels: Kernels | None, padding: int, first: bool, dtype: torch.dtype) -> Convolution:
    """The fastest for this block."""
    direct = Direct(padding, dtype)
    return direct if kernels is None or not first else FromImages(direct, kernels)


def channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: of one channel, `contiguous` would leave strides by which a convolution guesses the other layout."""
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last).copy_(x)


def _sum(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total = total.add_(part)
    return total


def _rows(z: Tensor) -> Tensor:
    """(n, c, h, w) channels last -> (n h w, c), a view."""
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def _patches(weight: Tensor) -> Tensor:
    """(out, in, 3, 3) channels last -> (out, 9 in), a view."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
