"""DSA, differentiable Siamese augmentation (Zhao & Bilen 2021), as a pure function of images and a draw."""

from __future__ import annotations

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

Family = Callable[["DSA", Tensor, Tensor], Tensor]


class Draw(NamedTuple):
    """One draw: the family of this batch, and its uniform numbers (n, 3), one row per image."""

    family: str
    uniform: Tensor


@dataclass(frozen=True)
class DSA:
    """One of the families in `strategy` for a whole batch, with parameters drawn per image (the field's mode "S").

    Strengths are those of every trajectory-matching code base; crop and cutout are fractions of the side,
    rotate is in degrees. Same draw, same bits: that is what lets the student replay a step.
    siamese: one draw for all images, so that two batches given the same seed change in the same way.
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
                    f"unknown augmentation '{family}' in '{self.strategy}'; join any of {', '.join(FAMILIES)} with '_'."
                )

    @property
    def families(self) -> tuple[str, ...]:
        """The families this strategy chooses from; none for the empty string or "none"."""
        return () if self.strategy in ("", "none") else tuple(self.strategy.split("_"))

    def draw(self, generator: torch.Generator, count: int) -> Draw:
        """Choose a family and the parameters of `count` images."""
        families = self.families
        if not families:
            return Draw("none", torch.empty(count, 0))
        family = families[int(torch.randint(len(families), (), generator=generator))]
        return Draw(family, self.uniform(generator, count))

    def uniform(self, generator: torch.Generator, count: int) -> Tensor:
        """The uniform numbers (count, 3) of one family."""
        drawn = torch.rand(1 if self.siamese else count, 3, generator=generator)
        return drawn.expand(count, 3)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """images (n, c, h, w) in network input space -> the same shape; differentiable in the images."""
        if draw.family == "none":
            return images
        return FAMILIES[draw.family](self, images, draw.uniform.to(images))

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Draw from `seed` and apply."""
        return self.apply(images, self.draw(make_generator(seed, "augment"), len(images)))


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _color(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    x = x + _column(u[:, 0] - 0.5) * dsa.brightness
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _column(u[:, 1] * dsa.saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _column(u[:, 2] + dsa.contrast)


def _below(u: Tensor, count: int) -> Tensor:
    """Whole numbers 0 ... count - 1 from uniform ones; in half precision a draw can round up to 1."""
    return (u * count).long().clamp_max(count - 1)


def _pick(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """From each image (n, c, H, W) the pixels at rows (n, h) and columns (n, w), the nearest for those outside."""
    n, c = x.shape[:2]
    for axis, source in ((2, rows), (3, columns)):
        shape = [n, 1, 1, 1]
        shape[axis] = source.shape[1]
        index = source.clamp(0, x.shape[axis] - 1).view(shape)
        x = x.gather(axis, index.expand(n, c, *(source.shape[1] if a == axis else x.shape[a] for a in (2, 3))))
    return x


def _pick_inside(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same with zeros for those outside."""
    inside = [(source >= 0) & (source < side) for source, side in zip((rows, columns), x.shape[2:])]
    return _pick(x, rows, columns) * (inside[0][:, None, :, None] & inside[1][:, None, None, :])


def _crop(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    sources, backwards = [], []
    for axis, side in enumerate(x.shape[2:]):
        reach = int(side * dsa.crop + 0.5)
        offset = _below(u[:, axis], 2 * reach + 1)[:, None] - reach
        position = torch.arange(side, device=x.device)
        sources.append(position + offset)
        backwards.append(position - offset)
    return linear_call(x, lambda x: _pick_inside(x, *sources), lambda g: _pick_inside(g, *backwards))


def _cutout(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    h, w = x.shape[2:]
    inside = []
    for position, side in ((u[:, 0], h), (u[:, 1], w)):
        hole = int(side * dsa.cutout + 0.5)
        centre = _below(position, side + 1 - hole % 2)
        offset = torch.arange(side, device=x.device) - centre[:, None] + hole // 2
        inside.append((offset >= 0) & (offset < hole))
    return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


def _flip(dsa: DSA, x: Tensor, u: Tensor) -> Tensor:
    return torch.where(_column(u[:, 0] < dsa.flip), x.flip(3), x)


def _grid(a: Tensor, b: Tensor, c: Tensor, d: Tensor, shape: torch.Size) -> Tensor:
    """The grid (n, h, w, 2) of [[a, b], [c, d]], output to input coordinates in [-1, 1]."""
    zero = torch.zeros_like(a)
    matrix = torch.stack([torch.stack([a, b, zero], 1), torch.stack([c, d, zero], 1)], 1)
    return F.affine_grid(matrix, list(shape), align_corners=True)


def _affine(x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, reach: float) -> Tensor:
    """Sample each image on the grid [[a, b], [c, d]] (output to input coordinates), bilinear, zeros outside.

    reach: pixels are sampled from less than so many output pixels around where they come out, in each direction.
    """
    grid = _grid(a, b, c, d, x.shape)

    def sample(x: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    def adjoint(g: Tensor) -> Tensor:
        size = a * d - b * c
        inverse = _grid(d / size, -b / size, -c / size, a / size, x.shape)
        return sample_adjoint(g, grid, inverse, reach)

    return linear_call(x, sample, adjoint)


def sample_adjoint(g: Tensor, grid: Tensor, inverse: Tensor, reach: float) -> Tensor:
    """The adjoint of bilinear sampling on `grid` (n, h, w, 2): g (n, c, h, w) of what was sampled -> of the images.

    A pixel gathers from the output pixels near its place on the inverse grid, each weighted by what it took of the
    pixel: no two threads of a GPU add to the same place.
    """
    n, c, h, w = g.shape
    last = torch.tensor([w - 1, h - 1]).to(g)
    taken, centre = (((places + 1) / 2 * last).view(n, h * w, 2) for places in (grid, inverse))
    steps = torch.arange(-ceil(reach - 0.5), ceil(reach - 0.5) + 1, device=g.device)
    around = torch.cartesian_prod(steps, steps)
    near = centre.round().long()[:, :, None] + around  # (n, hw, k, 2)
    inside = ((near >= 0) & (near <= last)).all(3)
    near = near.clamp_min(0).minimum(last.long())
    index = (near[..., 1] * w + near[..., 0]).view(n, -1)
    came = taken.gather(1, index[:, :, None].expand(-1, -1, 2)).view(n, h * w, -1, 2)
    pixel = torch.cartesian_prod(torch.arange(h, device=g.device), torch.arange(w, device=g.device)).flip(1)
    weight = (1 - (came - pixel[:, None]).abs()).clamp_min(0).prod(3) * inside
    picked = g.flatten(2).gather(2, index[:, None].expand(-1, c, -1)).view(n, c, h * w, -1)
    return (picked * weight[:, None]).sum(3).view(n, c, h, w)


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


ALWAYS = ("flip", "color", "cutout")


@dataclass(frozen=True)
class ComposedDSA:
    """IDC's augmentation: flip, colour and cutout whenever `dsa` lists them, and one of its other families.

    In the order flip, colour, the one, cutout; each with numbers of its own.
    """

    dsa: DSA

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """images (n, c, h, w) in network input space -> the same shape; differentiable in the images."""
        generator, families = make_generator(seed, "augment"), self.dsa.families
        others = [family for family in families if family not in ALWAYS]
        one = [others[int(torch.randint(len(others), (), generator=generator))]] if others else []
        for family in ("flip", "color", *one, "cutout"):
            if family in families:
                images = self.dsa.apply(images, Draw(family, self.dsa.uniform(generator, len(images))))
        return images


@dataclass(frozen=True)
class CanvasCrop:
    """A random toroidal crop of images larger than `size` (height, width), canvases (MTT's textures), then `dsa`.

    Images of that size go to `dsa` as they are.
    """

    size: tuple[int, int]
    dsa: DSA

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """(n, c, H, W) -> (n, c, height, width); differentiable in the images."""
        if tuple(images.shape[2:]) != self.size:
            images = toroidal_crop(images, self.size, make_generator(seed, "crop"))
        return self.dsa(images, seed)


def toroidal_crop(images: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A window of `size` from each image (n, c, H, W), anywhere, going on at the other side past an edge."""
    sources, backwards = [], []
    for whole, side in zip(images.shape[2:], size):
        first = torch.randint(whole, (len(images), 1), generator=generator).to(images.device)
        sources.append((first + torch.arange(side, device=images.device)) % whole)
        backwards.append((torch.arange(whole, device=images.device) - first) % whole)  # past the window: zeros
    return linear_call(images, lambda x: _pick(x, *sources), lambda g: _pick_inside(g, *backwards))


MIRRORED_IS_WRONG = ("digits", "mnist", "emnist", "svhn")


def default_strategy(data_name: str) -> str:
    """The families for a data set: all six, without mirror images where those change what is shown.

    >>> default_strategy("digits")
    'color_crop_cutout_scale_rotate'
    """
    return "color_crop_cutout_scale_rotate" if data_name in MIRRORED_IS_WRONG else DSA.strategy


def append_mirror_images(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images and their mirror images with the same labels: twice as many (RCIG's flip trick)."""
    return torch.cat([images, images.flip(3)]), torch.cat([labels, labels])
