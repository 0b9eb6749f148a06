"""VGG-11 (Simonyan and Zisserman 2015) with a norm, as in the field's cross-architecture tables."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.networks.layers import (
    BLOCK_NORMS,
    first_padding,
    first_stride,
    make_norm,
    map_size,
    require_choice,
    require_maps,
)

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the convolutions between two poolings, in units of the width."""


class VGG11(nn.Module):
    """Eight [3x3 convolution, norm, ReLU], 2x2 max pooling after the first, second, fourth, sixth and eighth, then one
    linear layer of the mean over the pixels that remain (one at 28, 32 and 64 pixels).

    channels, size: Of the images. At 28 pixels the first convolution is padded by 3 instead of 1; its stride is 2 from
                    64 pixels on, and 4 from 128 on. With 10 classes it has 9,229,962 parameters at 1 x 28 pixels, and
                    9,231,114 at 3 x 32.
    classes:        The number of logits.
    width:          Channels of the first convolution; the others have 2, 4 and 8 times as many.
    norm:           instance, batch (the field's VGG11BN), group or none.

    Parameter names are those of the field's code. Raises UserError for an unknown option and for images below 28
    pixels.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 64, norm: str = "instance"):
        super().__init__()
        require_choice("VGG-11", norm=(norm, BLOCK_NORMS))
        maps = map_size(size, 3, first_stride(size), first_padding(1, size))
        require_maps("VGG-11", map_size(maps, 2 ** len(STAGES), 2 ** len(STAGES)), size)
        maps, layers = size, list[nn.Module]()
        for stage in STAGES:
            for factor in stage:
                stride, padding = (1, 1) if layers else (first_stride(size), first_padding(1, size))
                maps = map_size(maps, 3, stride, padding)
                layers.append(nn.Conv2d(channels, factor * width, 3, stride, padding))
                layers += [make_norm(norm, factor * width, maps), nn.ReLU()]
                channels = factor * width
            maps = map_size(maps, 2, 2)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits
