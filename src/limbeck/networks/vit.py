"""A small vision transformer (Dosovitskiy et al. 2021), as wide as DeiT-tiny (Touvron et al. 2021), with 6 blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.networks.layers import first_stride

PATCH = 4  # pixels at up to 48 pixels; 8 at 64, 16 at 128


class ViT(nn.Module):
    """Patches as tokens behind a class token, `depth` blocks of attention with the norm first, one linear layer.

    channels, size: Of the images. Patches have 4 x 4 pixels, 8 x 8 from 64 pixels on, and 16 x 16 from 128 on: 49 at 28
                    pixels, 64 at 32, 64 and 128 pixels.
    classes:        The number of logits.
    depth:          The number of blocks.
    width:          Numbers a token; a head of attention for every 64, and four times as many in the hidden layer.

    It has no dropout, learned positions, GELU, and 2.7 million parameters. Transformers are usually trained by AdamW
    with a step size of 1e-3, weight decay of 0.05 and a cosine schedule.
    Raises UserError for images whose sides are no multiple of a patch, and a width that its heads do not divide.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int, depth: int = 6, width: int = 192):
        super().__init__()
        patch = PATCH * first_stride(size)
        if size[0] % patch or size[1] % patch:
            raise UserError(
                f"vit cuts images into patches of {patch} x {patch} pixels, which do not fit {size[0]} x {size[1]} "
                "pixels; resize the images (--resize 32), or take a convnet."
            )
        heads = max(1, width // 64)
        if width % heads:
            raise UserError(
                f"vit has {heads} heads at a width of {width}, which they do not divide; take {64 * heads}."
            )
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (size[0] // patch) * (size[1] // patch), width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.token, std=0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, channels, height, width)."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens))[:, 0])
        return logits
