"""The networks of the field: the ConvNet that every paper distils with, and an MLP."""

from __future__ import annotations

from collections.abc import Callable
from math import log2, prod

import torch
from torch import Tensor, nn

from limbeck.core.errors import UserError

NORMS = ("instance", "layer", "group", "none")
POOLINGS = ("avg", "max", "none")
GROUPS = 4  # of group norm
SHARPNESS = 60  # of softplus, as in RCIG: a ReLU with a second derivative. Its threshold stays torch's 20: a larger one
# overflows float32, and forward-mode derivatives become NaN.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(SHARPNESS),
}


def default_depth(side: int) -> int:
    """How many blocks reduce a square image to 4 x 4 (2 x 2 for 8-pixel images): 3 at 28 and 32, 4 at 64.

    >>> [default_depth(side) for side in (8, 28, 32, 64, 128)]
    [2, 3, 3, 4, 5]
    """
    return max(2, round(log2(max(side, 8))) - 2)


def _norm(kind: str, channels: int, size: tuple[int, int]) -> nn.Module:
    if kind == "instance":  # the field's "instancenorm": affine, and without running statistics
        return nn.GroupNorm(channels, channels)
    if kind == "group":
        return nn.GroupNorm(GROUPS, channels)
    if kind == "layer":
        return nn.LayerNorm([channels, *size])
    return nn.Identity()


class ConvNet(nn.Module):
    """depth x [3x3 convolution, norm, activation, 2x2 pooling], then one linear layer (Gidaris & Komodakis 2018).

    channels, size: Of the images.
    classes:        The number of logits.
    depth:          The number of blocks; by default `default_depth`.
    width:          Channels of every block, of the first block where `widen`.
    norm:           instance, layer, group or none.
    activation:     relu, leaky-relu, sigmoid or softplus.
    pooling:        avg, max or none.
    widen:          Whether channels double from block to block, as in FRePo's and RCIG's network.

    Parameter names and order are those of the field's code (`features.0.weight`, ..., `classifier.bias`). A 28-pixel
    image is padded by 3 in the first convolution, as in the field's code, so that it halves three times.
    Raises UserError for an unknown option and for images that are too small for `depth`.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        depth: int | None = None,
        width: int = 128,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
        widen: bool = False,
    ):
        super().__init__()
        for value, choices, option in (
            (norm, NORMS, "norm"),
            (pooling, POOLINGS, "pooling"),
            (activation, ACTIVATIONS, "activation"),
        ):
            if value not in choices:
                raise UserError(f"unknown {option} '{value}' for a ConvNet; choose one of {', '.join(choices)}.")
        if norm == "group" and width % GROUPS:
            raise UserError(f"group norm has {GROUPS} groups, and a width of {width} cannot be divided by them.")
        depth = default_depth(min(size)) if depth is None else depth
        layers: list[nn.Module] = []
        for block in range(depth):
            padding = 3 if block == 0 and min(size) == 28 else 1
            layers.append(nn.Conv2d(channels, width, 3, padding=padding))
            size = (size[0] + 2 * padding - 2, size[1] + 2 * padding - 2)
            layers += [_norm(norm, width, size), ACTIVATIONS[activation]()]
            channels = width
            width = 2 * width if widen else width
            if pooling != "none":
                layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
                size = (size[0] // 2, size[1] // 2)
            if min(size) < 1:
                raise UserError(f"the images are too small for a ConvNet of depth {depth}; use depth {block} or less.")
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * prod(size), classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def widening(
    channels: int,
    size: tuple[int, int],
    classes: int,
    depth: int | None = None,
    width: int = 128,
    norm: str = "none",
    activation: str = "relu",
    pooling: str = "avg",
) -> ConvNet:
    """FRePo's and RCIG's ConvNet: its blocks have width, 2 width, 4 width ... channels and no normalisation.

    Raises UserError as `ConvNet` does.
    """
    return ConvNet(channels, size, classes, depth, width, norm, activation, pooling, widen=True)


class MLP(nn.Module):
    """Two hidden layers of `width` (128) with ReLU, as in the field's cross-architecture tables."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 128):
        super().__init__()
        self.fc1 = nn.Linear(channels * prod(size), width)
        self.fc2 = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(images.flatten(1)))))
        logits: Tensor = self.classifier(hidden)
        return logits
