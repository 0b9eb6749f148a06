"""Common corruptions of images at severities 1 to 5, with the parameters of CIFAR-10-C (Hendrycks and Dietterich 2019).

They are for images of about 32 pixels a side. Of CIFAR-10-C's corruptions these need no pictures or libraries beside
torch and pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from limbeck.core.rng import make_generator

SEVERITIES = range(1, 6)


def gaussian_noise(pixels: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add normal noise to every value; std: of pixels in [0, 1]."""
    return pixels + std * torch.randn(pixels.shape, generator=generator)


def shot_noise(pixels: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Count photons: a Poisson number of them for every value; photons: their mean where a pixel is 1."""
    return torch.poisson(pixels * photons, generator) / photons


def impulse_noise(pixels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Set this fraction of the values to 0 or to 1, as often to one as to the other."""
    draw = torch.rand(pixels.shape, generator=generator)
    return pixels.masked_fill(draw < fraction / 2, 0.0).masked_fill(draw >= 1 - fraction / 2, 1.0)


def gaussian_blur(pixels: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian, cut off at four sigma; pixels at the border go on beyond it. sigma: in pixels."""
    radius = int(4 * sigma + 0.5)
    kernel = torch.arange(-radius, radius + 1).div(sigma).square().div(-2).exp()
    kernel /= kernel.sum()
    rows = pixels.flatten(0, 1)[:, None]  # every channel of every image by itself
    rows = F.conv2d(F.pad(rows, (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    rows = F.conv2d(F.pad(rows, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))
    return rows.view(pixels.shape)


def brightness(pixels: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Add an amount to the largest channel of every pixel, as to V in HSV; hue and saturation stay."""
    value = pixels.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, pixels * (brighter / value), brighter.expand_as(pixels))


def contrast(pixels: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Multiply differences from the mean of a channel of an image by a factor below 1."""
    mean = pixels.mean((2, 3), keepdim=True)
    return (pixels - mean) * factor + mean


def pixelate(pixels: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Shrink each side by a factor, and enlarge it again, by pillow's box filter: blocks of one value."""
    height, width = pixels.shape[2:]
    small = max(1, int(width * factor)), max(1, int(height * factor))
    planes = [Image.fromarray(plane) for plane in pixels.flatten(0, 1).numpy()]
    blocks = [
        plane.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX) for plane in planes
    ]
    return torch.from_numpy(np.stack([np.asarray(block) for block in blocks])).view(pixels.shape)


def jpeg_compression(pixels: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Write and read as JPEG of this quality: images of three channels in colour, others channel by channel."""
    n, channels, height, width = pixels.shape
    levels = (pixels * 255).round().byte()
    arrays = levels.permute(0, 2, 3, 1) if channels == 3 else levels.view(-1, height, width)
    decoded = torch.from_numpy(np.stack([_compress(array, int(quality)) for array in arrays.numpy()]))
    decoded = decoded.permute(0, 3, 1, 2) if channels == 3 else decoded.view(n, channels, height, width)
    return decoded.float() / 255


def _compress(array: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


class Corruption(NamedTuple):
    """A corruption: its function, and the parameter of that at severities 1 to 5."""

    corrupt: Callable[[Tensor, float, torch.Generator], Tensor]
    parameters: tuple[float, float, float, float, float]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40)),
}


def corrupt(name: str, pixels: Tensor, severity: int, seed: int) -> Tensor:
    """Corrupt images (n, c, h, w) of float32 pixels in [0, 1], on the CPU; severity 0 returns them as they are.

    Random numbers come from (seed, name, severity) alone, so that every network sees the same images.

    >>> pixels = torch.full((1, 1, 2, 2), 0.5)
    >>> corrupt("brightness", pixels, 5, seed=0).flatten().tolist()[:1]
    [0.800000011920929]
    >>> torch.equal(corrupt("shot_noise", pixels, 1, seed=0), corrupt("shot_noise", pixels, 1, seed=0))
    True
    """
    if severity == 0:
        return pixels
    corruption = CORRUPTIONS[name]
    generator = make_generator(seed, "corruption", name, severity)
    return corruption.corrupt(pixels, corruption.parameters[severity - 1], generator).clamp(0, 1)
