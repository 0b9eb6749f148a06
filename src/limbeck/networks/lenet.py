"""LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as in the field's cross-architecture tables."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from limbeck.networks.layers import first_padding, first_stride, map_size, require_maps


class LeNet(nn.Module):
    """Two 5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 max pooling, then layers of 120 and 84.

    channels, size: Of the images. At 28 pixels the first convolution is padded by 2; its stride is 2 from 64 pixels on,
                    and 4 from 128 on, so that the linear layers have their 61,706 parameters (1 x 28 pixels, 10
                    classes; 62,006 for 3 x 32).
    classes:        The number of logits.

    Parameter names are those of the field's code (`features.0.weight`, ..., `fc_2.bias`), but for the last layer.
    Raises UserError for images that are too small.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int):
        super().__init__()
        padding, stride = first_padding(0, size), first_stride(size)
        maps = map_size(map_size(map_size(map_size(size, 5, stride, padding), 2, 2), 5), 2, 2)
        require_maps("LeNet", maps, size)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, stride, padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.fc_1 = nn.Linear(16 * prod(maps), 120)
        self.fc_2 = nn.Linear(120, 84)
        self.classifier = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        hidden = torch.relu(self.fc_1(self.features(images).flatten(1)))
        logits: Tensor = self.classifier(torch.relu(self.fc_2(hidden)))
        return logits
