"""ResNet-18 (He et al. 2016) for small images, and the form with average pooling of the dataset distillation papers."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.networks.layers import BLOCK_NORMS, first_stride, make_norm, map_size, require_choice, require_maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms, and a shortcut, which has a convolution and a norm where the shape changes.

    size:   Of the maps that come in.
    stride: 1, or 2 for half as large maps.
    pooled: Whether maps are halved by average pooling instead of a stride (ResNet-18 AP): on the main path after the
            first ReLU, on the shortcut after its convolution.
    """

    def __init__(self, channels: int, out: int, size: tuple[int, int], stride: int, norm: str, pooled: bool):
        super().__init__()
        self.pool = 2 if pooled and stride == 2 else 1
        step = 1 if pooled else stride
        first = map_size(size, 3, step, 1)
        self.size = map_size(first, self.pool, self.pool)
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, step, 1, bias=False), make_norm(norm, out, first)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), make_norm(norm, out, self.size)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            pooling = [nn.AvgPool2d(2)] if self.pool == 2 else []
            convolution = nn.Conv2d(channels, out, 1, step, bias=False)
            self.shortcut = nn.Sequential(convolution, *pooling, make_norm(norm, out, self.size))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, channels, h, w) -> (n, out, h', w')."""
        hidden = torch.relu(self.bn1(self.conv1(maps)))
        if self.pool == 2:
            hidden = F.avg_pool2d(hidden, 2)
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(maps))


class ResNet18(nn.Module):
    """A 3x3 convolution of 64 channels and four stages of two basic blocks, of 64, 128, 256 and 512 channels.

    channels, size: Of the images. There is no pooling after the first convolution, whose stride is 2 from 64 pixels on,
                    and 4 from 128 on; the mean over pixels is before the last layer. With 10 classes it has 11,172,810
                    parameters for one channel, and 11,173,962 for three.
    classes:        The number of logits.
    width:          Channels of the first stage; the others have 2, 4 and 8 times as many.
    norm:           instance, batch (the field's ResNet18BN), group or none.
    pooled:         Whether average pooling halves the maps, and the last layer sees all pixels, as in `resnet18ap`.

    Parameter names are those of the field's code. Raises UserError for an unknown option and for images that are too
    small: instance norm needs 9 pixels.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        width: int = 64,
        norm: str = "instance",
        pooled: bool = False,
    ):
        super().__init__()
        require_choice("ResNet-18", norm=(norm, BLOCK_NORMS))
        stride = first_stride(size)
        maps = map_size(size, 3, stride, 1)
        self.pooled = pooled
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), make_norm(norm, width, maps)
        channels, stages = width, []
        for stage in range(4):
            blocks = []
            for block in range(2):
                stride = 2 if stage and not block else 1
                require_maps("ResNet-18", map_size(maps, stride, stride) if pooled else maps, size)
                blocks.append(BasicBlock(channels, width << stage, maps, stride, norm, pooled))
                channels, maps = width << stage, blocks[-1].size
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.classifier = nn.Linear(channels * (prod(maps) if pooled else 1), classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        maps = torch.relu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        logits: Tensor = self.classifier(maps.flatten(1) if self.pooled else maps.mean((2, 3)))
        return logits


def resnet18ap(channels: int, size: tuple[int, int], classes: int, width: int = 64, norm: str = "instance") -> ResNet18:
    """ResNet-18 AP: average pooling in place of strides, and no pooling before the last layer.

    With 10 classes it has 11,213,770 parameters at 1 x 28 pixels, and 11,250,762 at 3 x 32, 64 or 128.
    Raises UserError as `ResNet18` does.
    """
    return ResNet18(channels, size, classes, width, norm, pooled=True)
