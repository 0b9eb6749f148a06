"""A block in torch's own operations, for any device: convolution; and norm, ReLU and pooling as one function.

The formulas and names are those of block.hpp and network.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Terms = Sequence[tuple[Tensor, Tensor]]


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of parameters, statistics and sums where activations are stored as `dtype`."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


@dataclass(frozen=True)
class Convolution:
    """A 3 x 3 convolution in channels-last memory with both its transposes; each takes the sum of one or two terms.

    The tangent of each function is the same function of two terms.
    """

    padding: int
    dtype: torch.dtype

    def prepare(self, weight: Tensor) -> Tensor:
        """weight (out, in, 3, 3), as the other functions take it."""
        return channels_last(weight, self.dtype)

    def forward(self, terms: Terms) -> Tensor:
        """z of terms (x, weight)."""
        return _sum(F.conv2d(x, weight, padding=self.padding) for x, weight in terms)

    def backward(self, terms: Terms, shape: torch.Size) -> Tensor:
        """dx, of this shape, of terms (dz, weight)."""
        return _sum(self._both(dz, dz.new_empty(()).expand(shape), weight, [True, False])[0] for dz, weight in terms)

    def weight_gradient(self, terms: Terms) -> Tensor:
        """dweight (out, in, 3, 3) of terms (x, dz)."""
        x, dz = terms[0]
        like = x.new_empty(()).expand(dz.shape[1], x.shape[1], 3, 3)
        return _sum(self._both(dz, x, like, [False, True])[1] for x, dz in terms)

    def _both(self, dz: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
        pad = [self.padding] * 2
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], 1, [*needs, False]
        )
        return dx, dweight


def channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: of one channel, `contiguous` would leave strides by which a convolution guesses the other layout."""
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=torch.channels_last).copy_(x)


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total.add_(term)
    return total


class Normalised(NamedTuple):
    """n, where ReLU is open, and the two factors and the shift of a block, each to spread over (n, c, h, w)."""

    n: Tensor
    on: Tensor
    r: Tensor
    gamma: Tensor


class NormReluPool:
    """Instance norm, ReLU and 2 x 2 average pooling of z (n, c, h, w), with the derivative and both their tangents.

    gamma, beta are (c,); stats and sums (n, 2, c), of `parameter_dtype(dtype)`.
    """

    def forward(self, z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """y, stats."""
        wide = z.to(parameter_dtype(z.dtype))
        variance, m = torch.var_mean(wide, (2, 3), correction=0)
        r = (variance + eps).rsqrt()
        a = (wide - _spread(m)) * _spread(r) * _row(gamma) + _row(beta)
        return F.avg_pool2d(a.clamp_min(0), 2).to(z.dtype), torch.stack([m, r], 1)

    def backward(self, z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """dz, sums."""
        n, on, r, factor = _normalised(z, gamma, beta, stats)
        da = _unpooled(dy, n, on)
        sums = torch.stack([da.sum((2, 3)), (da * n).sum((2, 3))], 1)
        dz = r * factor * (da - _mean(sums[:, 0], z) - n * _mean(sums[:, 1], z))
        return dz.to(z.dtype), sums

    def forward_tangent(
        self, z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor, z1: Tensor, gamma1: Tensor, beta1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """y1, stats1."""
        n, on, r, factor = _normalised(z, gamma, beta, stats)
        wide1 = z1.to(n.dtype)
        stats1 = torch.stack([wide1.mean((2, 3)), (n * wide1).mean((2, 3))], 1)
        n1 = _normal_tangent(n, r, wide1, stats1)
        a1 = _row(gamma1) * n + factor * n1 + _row(beta1)
        return F.avg_pool2d(torch.where(on, a1, 0), 2).to(z.dtype), stats1

    def backward_tangent(
        self,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        stats: Tensor,
        dy: Tensor,
        sums: Tensor,
        z1: Tensor,
        gamma1: Tensor,
        stats1: Tensor,
        dy1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """dz1, sums1."""
        n, on, r, factor = _normalised(z, gamma, beta, stats)
        n1 = _normal_tangent(n, r, z1.to(n.dtype), stats1)
        da, da1 = _unpooled(dy, n, on), _unpooled(dy1, n, on)
        sums1 = torch.stack([da1.sum((2, 3)), (da1 * n + da * n1).sum((2, 3))], 1)
        b = da - _mean(sums[:, 0], z) - n * _mean(sums[:, 1], z)
        b1 = da1 - _mean(sums1[:, 0], z) - n1 * _mean(sums[:, 1], z) - n * _mean(sums1[:, 1], z)
        r1 = -r.square() * _spread(stats1[:, 1])
        dz1 = (_row(gamma1) * r + factor * r1) * b + r * factor * b1
        return dz1.to(z.dtype), sums1


def _normalised(z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor) -> Normalised:
    m, r = _spread(stats[:, 0]), _spread(stats[:, 1])
    n = (z.to(stats.dtype) - m) * r
    return Normalised(n, ~(n * _row(gamma) + _row(beta) <= 0), r, _row(gamma))  # a NaN is open


def _normal_tangent(n: Tensor, r: Tensor, z1: Tensor, stats1: Tensor) -> Tensor:
    return r * (z1 - _spread(stats1[:, 0]) - n * _spread(stats1[:, 1]))


def _unpooled(dy: Tensor, n: Tensor, on: Tensor) -> Tensor:
    """da of dy: a quarter to each of the four pixels, none to an odd last row or column."""
    wide = F.interpolate(dy.to(n.dtype), scale_factor=2.0) / 4
    missing = [n.shape[3] - wide.shape[3], n.shape[2] - wide.shape[2]]
    return torch.where(on, F.pad(wide, [0, missing[0], 0, missing[1]]), 0)


def _mean(total: Tensor, z: Tensor) -> Tensor:
    return _spread(total / (z.shape[2] * z.shape[3]))


def _spread(per_image: Tensor) -> Tensor:
    """(n, c) -> (n, c, 1, 1)."""
    return per_image[:, :, None, None]


def _row(per_channel: Tensor) -> Tensor:
    """(c,) -> (1, c, 1, 1)."""
    return per_channel[None, :, None, None]
