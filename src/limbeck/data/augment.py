"""Differentiable Siamese augmentation, DSA (Zhao & Bilen, ICML 2021), as a pure function of images and a seed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, radians, sin
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.linear import linear_call
from limbeck.core.rng import make_generator
from limbeck.core.text import quote

Family = Callable[["DSA", Tensor, Tensor], Tensor]
"""(strengths, images (n, c, h, w), uniform numbers (n, 3)) -> images."""


class Draw(NamedTuple):
    """The random choices for one batch: a family, and uniform numbers (n, 3), one row an image."""

    family: str
    uniform: Tensor


@dataclass(frozen=True)
class DSA:
    """DSA: one of the families in `strategy` for a whole batch, with parameters drawn per image (mode "S" in the code).

    strategy: families joined by "_", or "none".
    brightness, saturation, contrast, crop, cutout, flip, scale, rotate: strengths of the families, by default those of
        all code for trajectory matching. crop and cutout are fractions of the side, flip is a probability, and rotate
        is in degrees.
    siamese:  draw once for all images, so that two batches with the same seed change in the same way.

    The same seed gives the same bits, so that a student can compute a step again.
    Raises UserError for an unknown family.

    >>> augment = DSA("crop_flip")
    >>> images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> augment(images, seed=1).shape, torch.equal(augment(images, seed=1), augment(images, seed=1))
    (torch.Size([4, 3, 32, 32]), True)
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    siamese: bool = False

    def __post_init__(self) -> None:
        for family in self.families:
            if family not in FAMILIES:
                raise UserError(
                    f"unknown augmentation {quote(family)} in {quote(self.strategy)}; join any of "
                    f"{', '.join(FAMILIES)} with '_'."
                )

    @property
    def families(self) -> tuple[str, ...]:
        """The families of the strategy; an empty tuple for "" and "none"."""
        return () if self.strategy in ("", "none") else tuple(self.strategy.split("_"))

    def draw(self, generator: torch.Generator, count: int) -> Draw:
        """Draw a family, and the parameters of `count` images."""
        families = self.families
        if not families:
            return Draw("none", torch.empty(count, 0))
        family = families[int(torch.randint(len(families), (), generator=generator))]
        return Draw(family, self.uniform(generator, count))

    def uniform(self, generator: torch.Generator, count: int) -> Tensor:
        """Draw the uniform numbers (count, 3) of one family."""
        return torch.rand(1 if self.siamese else count, 3, generator=generator).expand(count, 3)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Augment images (n, c, h, w) in network input space; differentiable in the images."""
        if draw.family == "none":
            return images
        return FAMILIES[draw.family](self, images, draw.uniform.to(images))

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment images (n, c, h, w) in network input space with the draw that follows from `seed`."""
        return self.apply(images, self.draw(make_generator(seed, "augment"), len(images)))


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _color(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    x = x + _column(u[:, 0] - 0.5) * dsa.brightness
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _column(u[:, 1] * dsa.saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _column(u[:, 2] + dsa.contrast)


def _to_integers(u: Tensor, count: int) -> Tensor:
    """Uniform numbers as integers 0 to count - 1; in half precision a number can be rounded up to 1."""
    return (u * count).long().clamp_max(count - 1)


def _mask(rows: Tensor, columns: Tensor) -> Tensor:
    """Masks of rows (n, h) and columns (n, w) as masks of pixels (n, 1, h, w)."""
    return rows[:, None, :, None] & columns[:, None, None, :]


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of each image (n, c, H, W) at rows (n, h) and columns (n, w); outside, the nearest ones."""
    n, c = x.shape[:2]
    for axis, positions in ((2, rows), (3, columns)):
        shape = [n, 1, 1, 1]
        shape[axis] = positions.shape[1]
        index = positions.clamp(0, x.shape[axis] - 1).view(shape)
        x = x.gather(axis, index.expand(n, c, *(positions.shape[1] if a == axis else x.shape[a] for a in (2, 3))))
    return x


def _gather_or_zero(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same, with zeros outside of the image."""
    inside = [(positions >= 0) & (positions < side) for positions, side in zip((rows, columns), x.shape[2:])]
    return _gather(x, rows, columns) * _mask(*inside)


def _crop(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    sources, targets = [], []
    for axis, side in enumerate(x.shape[2:]):
        reach = int(side * dsa.crop + 0.5)
        offset = _to_integers(u[:, axis], 2 * reach + 1)[:, None] - reach
        position = torch.arange(side, device=x.device)
        sources.append(position + offset)
        targets.append(position - offset)
    return linear_call(x, lambda x: _gather_or_zero(x, *sources), lambda g: _gather_or_zero(g, *targets))


def _cutout(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    h, w = x.shape[2:]
    masks = []
    for position, side in ((u[:, 0], h), (u[:, 1], w)):
        hole = int(side * dsa.cutout + 0.5)
        centre = _to_integers(position, side + 1 - hole % 2)
        offset = torch.arange(side, device=x.device) - centre[:, None] + hole // 2
        masks.append((offset >= 0) & (offset < hole))
    return x * ~_mask(*masks)


def _flip(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    return torch.where(_column(u[:, 0] < dsa.flip), x.flip(3), x)


def _grid(a: Tensor, b: Tensor, c: Tensor, d: Tensor, shape: torch.Size) -> Tensor:
    """The sampling grid (n, h, w, 2) of the matrices [[a, b], [c, d]], from output to input coordinates in [-1, 1]."""
    zero = torch.zeros_like(a)
    matrix = torch.stack([torch.stack([a, b, zero], 1), torch.stack([c, d, zero], 1)], 1)
    return F.affine_grid(matrix, list(shape), align_corners=True)


def _affine(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, reach: float) -> Tensor:
    """Transform each image by its matrix [[a, b], [c, d]], from output to input coordinates; bilinear, zeros outside.

    reach: the output pixels that sample a pixel lie less than this far from where it is mapped to, in each direction.
    """
    grid = _grid(a, b, c, d, x.shape)

    def sample(x: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    def adjoint(g: Tensor) -> Tensor:
        det = a * d - b * c
        inverse = _grid(d / det, -b / det, -c / det, a / det, x.shape)
        return sample_adjoint(g, grid, inverse, reach)

    return linear_call(x, sample, adjoint)


def sample_adjoint(g: Tensor, grid: Tensor, inverse: Tensor, reach: float) -> Tensor:
    """The adjoint of bilinear sampling on `grid` (n, h, w, 2), applied to g (n, c, h, w).

    inverse: the grid (n, h, w, 2) of the inverse map. reach: as for `_affine`.
    A pixel gathers from the output pixels near its position on the inverse grid, each weighted by its share of the
    pixel, so that no two threads of a GPU add to the same element.
    """
    n, c, h, w = g.shape
    last = torch.tensor([w - 1, h - 1]).to(g)
    sources, centre = (((points + 1) / 2 * last).view(n, h * w, 2) for points in (grid, inverse))
    steps = torch.arange(-ceil(reach - 0.5), ceil(reach - 0.5) + 1, device=g.device)
    offsets = torch.cartesian_prod(steps, steps)
    neighbours = centre.round().long()[:, :, None] + offsets  # (n, hw, k, 2)
    inside = ((neighbours >= 0) & (neighbours <= last)).all(3)
    neighbours = neighbours.clamp_min(0).minimum(last.long())
    index = (neighbours[..., 1] * w + neighbours[..., 0]).view(n, -1)
    near_sources = sources.gather(1, index[:, :, None].expand(-1, -1, 2)).view(n, h * w, -1, 2)
    pixel = torch.cartesian_prod(torch.arange(h, device=g.device), torch.arange(w, device=g.device)).flip(1)
    weight = (1 - (near_sources - pixel[:, None]).abs()).clamp_min(0).prod(3) * inside
    gathered = g.flatten(2).gather(2, index[:, None].expand(-1, c, -1)).view(n, c, h * w, -1)
    return (gathered * weight[:, None]).sum(3).view(n, c, h, w)


def _scale(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    low = 1 / dsa.scale
    factor = low + u[:, :2] * (dsa.scale - low)
    zero = torch.zeros_like(factor[:, 0])
    return _affine(x, factor[:, 0], zero, zero, factor[:, 1], max(dsa.scale, low))


def _rotate(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    angle = torch.deg2rad((u[:, 0] - 0.5) * 2 * dsa.rotate)
    h, w = (max(side - 1, 1) for side in x.shape[2:])
    reach = 1 + max(h / w, w / h) * sin(radians(min(abs(dsa.rotate), 90)))
    return _affine(x, angle.cos(), -angle.sin(), angle.sin(), angle.cos(), reach)


FAMILIES: dict[str, Family] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


ALWAYS_APPLIED = ("flip", "color", "cutout")


@dataclass(frozen=True)
class ComposedDSA:
    """IDC's augmentation: flip, colour and cutout, where `dsa` has them in its strategy, and one of its other families.

    They are applied in the order flip, colour, the other family, cutout, each with its own random numbers.
    """

    dsa: DSA

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment images (n, c, h, w) in network input space; differentiable in the images."""
        generator, families = make_generator(seed, "augment"), self.dsa.families
        others = [family for family in families if family not in ALWAYS_APPLIED]
        choice = [others[int(torch.randint(len(others), (), generator=generator))]] if others else []
        for family in ("flip", "color", *choice, "cutout"):
            if family in families:
                images = self.dsa.apply(images, Draw(family, self.dsa.uniform(generator, len(images))))
        return images


@dataclass(frozen=True)
class CanvasCrop:
    """A random toroidal crop of canvases (MTT's textures), followed by `dsa`.

    size: (height, width) of the crop. Images of this size are no canvases, and are not cropped.
    """

    size: tuple[int, int]
    dsa: DSA

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Crop and augment images (n, c, H, W): (n, c, height, width), differentiable in the images."""
        if tuple(images.shape[2:]) != self.size:
            images = toroidal_crop(images, self.size, make_generator(seed, "crop"))
        return self.dsa(images, seed)


def toroidal_crop(images: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A window of `size` at a random position of each image (n, c, H, W), which continues at the opposite edge."""
    sources, targets = [], []
    for whole, side in zip(images.shape[2:], size):
        first = torch.randint(whole, (len(images), 1), generator=generator).to(images.device)
        sources.append((first + torch.arange(side, device=images.device)) % whole)
        targets.append((torch.arange(whole, device=images.device) - first) % whole)  # outside of the window: zeros
    return linear_call(images, lambda x: _gather(x, *sources), lambda g: _gather_or_zero(g, *targets))


ORIENTED_DATA = ("digits", "letters", "characters", "handwritten", "emnist", "kmnist", "qmnist", "svhn", "usps")
"""Words in the names of data sets in which a mirror image shows something else."""


def default_strategy(data_name: str) -> str:
    """The default strategy for a data set: all six families, without flip where its name has a word of `ORIENTED_DATA`.

    Of "mnist" it must be the first word, since clothes and medical images have that name behind one of their own.

    >>> default_strategy("my_digits16"), default_strategy("MNIST-M")
    ('color_crop_cutout_scale_rotate', 'color_crop_cutout_scale_rotate')
    >>> default_strategy("fashion-mnist")
    'color_crop_cutout_flip_scale_rotate'
    """
    words = re.split("[^a-z]+", data_name.lower())
    is_oriented = words[0] == "mnist" or not set(ORIENTED_DATA).isdisjoint(words)
    return "color_crop_cutout_scale_rotate" if is_oriented else DSA.strategy


def append_mirror_images(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) followed by their mirror images, and their labels twice (RCIG's flip trick)."""
    return torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
