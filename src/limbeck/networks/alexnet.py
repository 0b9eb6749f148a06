"""AlexNet (Krizhevsky et al. 2012) in the small form of the field's cross-architecture tables."""

from __future__ import annotations

from math import prod

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


class AlexNet(nn.Module):
    """Convolutions of 128, 192, 256, 192, 192 channels with ReLU, three times 2x2 max pooling, one linear layer.

    channels, size: Of the images. At 28 pixels the first convolution is padded by 4 instead of 2; its stride is 2 from
                    64 pixels on, and 4 from 128 on. With 10 classes it has 1,865,802 parameters at 1 x 28 pixels, and
                    1,872,202 at 3 x 32.
    classes:        The number of logits.
    width:          Channels of the first convolution; those of the others follow in proportion.
    norm:           After every convolution: none, instance, batch (the field's AlexNetBN) or group.

    Parameter names are those of the field's code, but for the last layer; a norm shifts the numbers of what follows.
    Raises UserError for an unknown option and for images that are too small.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int = 128, norm: str = "none"):
        super().__init__()
        require_choice("AlexNet", norm=(norm, BLOCK_NORMS))
        wide = 3 * width // 2
        maps, layers = size, list[nn.Module]()
        for block, (out, kernel, is_pooled) in enumerate(
            ((width, 5, True), (wide, 5, True), (2 * width, 3, False), (wide, 3, False), (wide, 3, True))
        ):
            stride, padding = (first_stride(size), first_padding(2, size)) if block == 0 else (1, kernel // 2)
            maps = map_size(maps, kernel, stride, padding)
            require_maps("AlexNet", maps, size)
            layers.append(nn.Conv2d(channels, out, kernel, stride, padding))
            layers += [] if norm == "none" else [make_norm(norm, out, maps)]
            layers.append(nn.ReLU())
            if is_pooled:
                layers.append(nn.MaxPool2d(2))
                maps = map_size(maps, 2, 2)
            channels = out
        require_maps("AlexNet", maps, size)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * prod(maps), classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
