"""A ConvNet block in torch's operations, for any device: convolution; and norm, ReLU and pooling as one function.

The formulas and names are those of kernels/block.hpp and kernels/network.cpp. `forward` is instance norm, ReLU and
2 x 2 average pooling of z (n, c, h, w); `backward` is its derivative, and two more functions are the tangents of both.

gamma, beta: (c,).
stats:       (n, 2, c): mean and 1/deviation of each image and channel.
sums:        (n, 2, c): each image's terms of dbeta and dgamma.

All of these are of `parameter_dtype(dtype)`. A name with a 1 behind it is the tangent of the one without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Terms = Sequence[tuple[Tensor, Tensor]]
"""One or two pairs of factors; a function of terms returns the sum of its values at each pair."""


def parameter_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of parameters, statistics and sums where activations are stored as `dtype`."""
    return torch.float32 if dtype is torch.bfloat16 else dtype


@dataclass(frozen=True)
class Convolution:
    """A 3 x 3 convolution with its two transposes, as sums over terms.

    A convolution is linear in both factors, so that the tangent of each function is the same function of two terms.
    """

    padding: int

    def forward(self, terms: Terms) -> Tensor:
        """z (n, out, h, w) of terms (x, weight)."""
        return _sum(F.conv2d(x, weight, padding=self.padding) for x, weight in terms)

    def backward(self, terms: Terms, shape: torch.Size) -> Tensor:
        """dx, of this shape, of terms (dz, weight)."""
        like = terms[0][0].new_empty(()).expand(shape)
        return _sum(self._transposes(dz, like, weight, [True, False])[0] for dz, weight in terms)

    def weight_gradient(self, terms: Terms) -> Tensor:
        """dweight (out, in, 3, 3) of terms (x, dz)."""
        x, dz = terms[0]
        like = x.new_empty(()).expand(dz.shape[1], x.shape[1], 3, 3)
        return _sum(self._transposes(dz, x, like, [False, True])[1] for x, dz in terms)

    def _transposes(self, dz: Tensor, x: Tensor, weight: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor]:
        pad = [self.padding] * 2
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], 1, [*needs, False]
        )
        return dx, dweight


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total.add_(term)
    return total


class Normalised(NamedTuple):
    """The normalised z, where ReLU passes, 1/deviation, and gamma as a factor; each broadcasts over (n, c, h, w)."""

    n: Tensor
    active: Tensor
    r: Tensor
    factor: Tensor


def forward(z: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns y (n, c, h // 2, w // 2) and stats."""
    wide = z.to(parameter_dtype(z.dtype))
    variance, m = torch.var_mean(wide, (2, 3), correction=0)
    r = (variance + eps).rsqrt()
    a = (wide - _per_image(m)) * _per_image(r) * _per_channel(gamma) + _per_channel(beta)
    return F.avg_pool2d(a.clamp_min(0), 2).to(z.dtype), torch.stack([m, r], 1)


def backward(z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Returns dz and sums."""
    n, active, r, factor = _normalised(z, gamma, beta, stats)
    da = _unpooled(dy, n, active)
    sums = torch.stack([da.sum((2, 3)), (da * n).sum((2, 3))], 1)
    dz = r * factor * (da - _mean(sums[:, 0], z) - n * _mean(sums[:, 1], z))
    return dz.to(z.dtype), sums


def forward_tangent(
    z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor, z1: Tensor, gamma1: Tensor, beta1: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns y1, and stats1 (n, 2, c): the means of z1 and of n z1."""
    n, active, r, factor = _normalised(z, gamma, beta, stats)
    wide1 = z1.to(n.dtype)
    stats1 = torch.stack([wide1.mean((2, 3)), (n * wide1).mean((2, 3))], 1)
    n1 = _normal_tangent(n, r, wide1, stats1)
    a1 = _per_channel(gamma1) * n + factor * n1 + _per_channel(beta1)
    return F.avg_pool2d(torch.where(active, a1, 0), 2).to(z.dtype), stats1


def backward_tangent(
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
    """Returns dz1 and sums1."""
    n, active, r, factor = _normalised(z, gamma, beta, stats)
    n1 = _normal_tangent(n, r, z1.to(n.dtype), stats1)
    da, da1 = _unpooled(dy, n, active), _unpooled(dy1, n, active)
    sums1 = torch.stack([da1.sum((2, 3)), (da1 * n + da * n1).sum((2, 3))], 1)
    b = da - _mean(sums[:, 0], z) - n * _mean(sums[:, 1], z)
    b1 = da1 - _mean(sums1[:, 0], z) - n1 * _mean(sums[:, 1], z) - n * _mean(sums1[:, 1], z)
    r1 = -r.square() * _per_image(stats1[:, 1])
    dz1 = (_per_channel(gamma1) * r + factor * r1) * b + r * factor * b1
    return dz1.to(z.dtype), sums1


def _normalised(z: Tensor, gamma: Tensor, beta: Tensor, stats: Tensor) -> Normalised:
    m, r = _per_image(stats[:, 0]), _per_image(stats[:, 1])
    n = (z.to(stats.dtype) - m) * r
    return Normalised(n, ~(n * _per_channel(gamma) + _per_channel(beta) <= 0), r, _per_channel(gamma))  # a NaN passes


def _normal_tangent(n: Tensor, r: Tensor, z1: Tensor, stats1: Tensor) -> Tensor:
    return r * (z1 - _per_image(stats1[:, 0]) - n * _per_image(stats1[:, 1]))


def _unpooled(dy: Tensor, n: Tensor, active: Tensor) -> Tensor:
    """da of dy: a quarter for each of the four pixels pooled together, 0 for an odd last row or column."""
    wide = F.interpolate(dy.to(n.dtype), scale_factor=2.0) / 4
    padding = [n.shape[3] - wide.shape[3], n.shape[2] - wide.shape[2]]
    return torch.where(active, F.pad(wide, [0, padding[0], 0, padding[1]]), 0)


def _mean(total: Tensor, z: Tensor) -> Tensor:
    return _per_image(total / (z.shape[2] * z.shape[3]))


def _per_image(x: Tensor) -> Tensor:
    """(n, c) -> (n, c, 1, 1)."""
    return x[:, :, None, None]


def _per_channel(x: Tensor) -> Tensor:
    """(c,) -> (1, c, 1, 1)."""
    return x[None, :, None, None]
