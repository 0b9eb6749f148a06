"""The ConvNet that every paper distils with, the one whose channels double, and an MLP."""

from __future__ import annotations

from math import log2, prod

import torch
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.networks.layers import ACTIVATIONS, NORMS, POOLINGS, first_padding, make_norm, map_size, require_choice


def default_depth(side: int) -> int:
    """How many blocks reduce a square image to 4 x 4 (2 x 2 for 8-pixel images): 3 at 28 and 32, 4 at 64.

    >>> [default_depth(side) for side in (8, 28, 32, 64, 128)]
    [2, 3, 3, 4, 5]
    """
    return max(2, round(log2(max(side, 8))) - 2)


class ConvNet(nn.Module):
    """depth x [3x3 convolution, norm, activation, 2x2 pooling], then one linear layer (Gidaris & Komodakis 2018).

    channels, size: Of the images.
    classes:        The number of logits.
    depth:          The number of blocks; by default `default_depth`.
    width:          Channels of every block, of the first block where `widen`.
    norm:           instance, batch, layer, group or none.
    activation:     relu, leaky-relu, sigmoid, softplus or swish.
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
        require_choice("ConvNet", norm=(norm, NORMS), activation=(activation, ACTIVATIONS), pooling=(pooling, POOLINGS))
        depth = default_depth(min(size)) if depth is None else depth
        layers: list[nn.Module] = []
        for block in range(depth):
            padding = first_padding(1, size) if block == 0 else 1
            size = map_size(size, 3, padding=padding)
            maps = size if pooling == "none" else map_size(size, 2, 2)
            if min(maps) < 1:
                raise UserError(f"the images are too small for a ConvNet of depth {depth}; use depth {block} or less.")
            layers += [nn.Conv2d(channels, width, 3, padding=padding), make_norm(norm, width, size)]
            layers.append(ACTIVATIONS[activation]())
            if pooling != "none":
                layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
            channels, size = width, maps
            width = 2 * width if widen else width
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
