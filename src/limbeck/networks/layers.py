"""Layers that several networks share, by the names of their options, and how networks fit images of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod

from torch import nn

from limbeck.core.errors import UserError
from limbeck.core.text import quote

NORMS = ("instance", "batch", "layer", "group", "none")
BLOCK_NORMS = ("instance", "batch", "group", "none")  # of AlexNet, VGG and ResNet
POOLINGS = ("avg", "max", "none")
GROUPS = 4  # of group norm
SHARPNESS = 60  # of softplus, as in RCIG: a ReLU with a second derivative. Its threshold stays torch's 20: a larger one
# overflows float32, and forward-mode derivatives become NaN.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(SHARPNESS),
    "swish": nn.SiLU,
}
SIDE = 32
"""The side of the images that the field's networks were written for."""


def require_choice(network: str, **options: tuple[str, Collection[str]]) -> None:
    """Raise UserError for an option whose value is not among its choices; options: name=(value, choices)."""
    for option, (value, choices) in options.items():
        if value not in choices:
            raise UserError(f"unknown {option} {quote(value)} for a {network}; choose one of {', '.join(choices)}.")


def make_norm(kind: str, channels: int, size: tuple[int, int]) -> nn.Module:
    """The normalisation of feature maps of this size: one of `NORMS`.

    instance: The field's "instancenorm": group norm with a group a channel, affine, and without running statistics.
    batch:    Batch statistics in training, running ones (momentum 0.1) in evaluation; see networks/statistics.py.
    group:    4 groups.

    Raises UserError where there is nothing to normalise: an instance of one pixel, channels that 4 does not divide.
    """
    if kind == "instance":
        if prod(size) == 1:
            raise UserError(
                "the images are too small for instance norm: its last maps have one pixel each, of which it leaves "
                "nothing; take larger images, or batch or group norm."
            )
        return nn.GroupNorm(channels, channels)
    if kind == "group":
        if channels % GROUPS:
            raise UserError(f"group norm has {GROUPS} groups, and a width of {channels} cannot be divided by them.")
        return nn.GroupNorm(GROUPS, channels)
    if kind == "layer":
        return nn.LayerNorm([channels, *size])
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def first_stride(size: tuple[int, int]) -> int:
    """The stride of a first convolution after which what follows sees maps as large as at 32 pixels: 1, 2 or 4 ...

    DD-Ranking takes stride 2 at 64 pixels too.

    >>> [first_stride((side, side)) for side in (28, 32, 48, 64, 96, 128)]
    [1, 1, 1, 2, 2, 4]
    """
    stride = 1
    while 2 * stride * SIDE <= min(size):
        stride *= 2
    return stride


def first_padding(padding: int, size: tuple[int, int]) -> int:
    """The padding of a first convolution, 2 more for images of 28 pixels, so that they count as 32 pixels.

    >>> first_padding(2, (28, 28)), first_padding(2, (32, 32))
    (4, 2)
    """
    return padding + (SIDE - 28) // 2 if min(size) == 28 else padding


def map_size(size: tuple[int, int], kernel: int, stride: int = 1, padding: int = 0) -> tuple[int, int]:
    """The height and width of the maps after a convolution or pooling; 0 or less where nothing is left.

    >>> map_size((28, 28), 5, padding=4), map_size((7, 7), 2, 2)
    ((32, 32), (3, 3))
    """
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    return height, width


def require_maps(network: str, size: tuple[int, int], images: tuple[int, int]) -> None:
    """Raise UserError where maps have no pixel left."""
    if min(size) < 1:
        raise UserError(
            f"images of {images[0]} x {images[1]} pixels are too small for {network}; resize them (--resize 32), or "
            "take a convnet."
        )
