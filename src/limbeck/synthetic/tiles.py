"""Multi-formation: every stored image is a mosaic of f x f tiles, and each tile, enlarged, is a training image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.linear import linear_call

if TYPE_CHECKING:
    from limbeck.data import Preprocess

Mode = Literal["single", "multi", "bound"]


def tile_sides(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Height and width of a tile: ceil(side / factor), so that factor tiles cover a side, the last one perhaps in part.

    Raises UserError for a factor below 1, or one that would leave the last tile nothing of the image.

    >>> tile_sides((28, 28), 3), tile_sides((8, 8), 3)
    ((10, 10), (3, 3))
    """
    sides = (-(-size[0] // max(factor, 1)), -(-size[1] // max(factor, 1)))
    if factor < 1 or any(tile * (factor - 1) >= side for tile, side in zip(sides, size)):
        raise UserError(f"images of {size[0]} x {size[1]} pixels cannot be cut by a factor of {factor}.")
    return sides


def _canvas(images: Tensor, sides: tuple[int, int], factor: int, pad: tuple[float, ...]) -> Tensor:
    """images (n, c, h, w) -> (n, c, factor * tile height, factor * tile width), filled up right and below."""
    n, c, h, w = images.shape
    if (sides[0] * factor, sides[1] * factor) == (h, w):
        return images
    fill = images.new_tensor(pad).view(1, -1, 1, 1)
    canvas = fill.expand(n, c, sides[0] * factor, sides[1] * factor).clone()
    canvas[:, :, :h, :w] = images
    return canvas


def cut_tiles(images: Tensor, factor: int, pad: tuple[float, ...] = (0.0,)) -> Tensor:
    """images (n, c, h, w) -> (factor^2 n, c, h, w): tile 0 of all images, then tile 1 of all; tiles row by row.

    Where a side does not divide, it is filled up right and below with `pad`, one value a channel or one for all, in
    the images' own space. Tiles are enlarged bilinearly (Kim et al., IDC, ICML 2022, section 4.1).
    """
    if factor == 1:
        return images
    n, c, h, w = images.shape
    sides = tile_sides((h, w), factor)
    canvas = _canvas(images, sides, factor, pad).view(n, c, factor, sides[0], factor, sides[1])
    tiles = canvas.permute(2, 4, 0, 1, 3, 5).reshape(factor * factor * n, c, *sides)
    return enlarge_tiles(tiles, (h, w))


def enlarge_tiles(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, c, h, w) -> (n, c, *size), bilinearly."""

    def forward(x: Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def adjoint(g: Tensor) -> Tensor:
        rows, columns = (
            F.interpolate(torch.eye(few, dtype=g.dtype, device=g.device)[None], size=many, mode="linear")[0]
            for few, many in zip(sides, size)
        )
        return rows @ g @ columns.T

    sides = tiles.shape[2:]
    return linear_call(tiles, forward, adjoint)


def make_mosaic(images: Tensor, factor: int) -> Tensor:
    """The start of a multi-formation set: images (factor^2 n, c, h, w), ordered as `cut` gives tiles -> (n, c, h, w).

    Every image is shrunk by averaging to the tile that `cut` will take from the very place it is put: the reference
    divides 28 pixels by 3 into 10 + 9 + 9 here and 10 + 10 + 10 there, so that its tiles bleed. What of the last
    tiles lies outside the image is cut off. Raises UserError where the number of images is no multiple of factor^2.
    """
    if factor == 1:
        return images
    count, c, h, w = images.shape
    sides = tile_sides((h, w), factor)
    if count % factor**2:
        raise UserError(f"{count} images make no whole mosaics of {factor} x {factor}.")
    small = F.interpolate(images, size=sides, mode="area").view(factor, factor, -1, c, *sides)
    whole = small.permute(2, 3, 0, 4, 1, 5).reshape(-1, c, factor * sides[0], factor * sides[1])
    return whole[:, :, :h, :w].contiguous()


def bound_factors(labels: Tensor, factor: int, max_per_class: int) -> Tensor:
    """How finely each stored image is cut, (n,), so that no class gets more than `max_per_class` training images.

    On the processor, whatever device the labels are on.
    The first images of a class get `factor`, as many as fit while every later one still gets 1; the next ones the
    greatest that fits then. A class of more than `max_per_class` stored images is not cut at all.

    >>> bound_factors(torch.tensor([0, 0, 0, 1]), 2, 7).tolist()
    [2, 1, 1, 2]
    """
    classes = (labels.argmax(1) if labels.dtype.is_floating_point else labels).cpu()
    factors = torch.ones(len(labels), dtype=torch.int64)
    for label in classes.unique().tolist():
        rows = (classes == label).nonzero().squeeze(1).tolist()
        spare, now = max_per_class - len(rows), factor
        for row in rows:
            while now > 1 and now * now - 1 > spare:
                now -= 1
            factors[row] = now
            spare -= now * now - 1
    return factors


@dataclass(frozen=True)
class Partition:
    """The `decode` of a multi-formation set: (stored images, labels) -> (training images, labels).

    mode: single: every image is cut by `factor`. multi: by 1, 2, ..., `factor`, all together. bound: as finely as
          `max_per_class` training images a class allow (see `bound_factors`).
    pad:  what fills a side that does not divide: per channel, in network input space (see `grey`).
    Labels are classes (n,) or logits (n, classes), repeated in the order of the images. Factor 1 is the identity.
    """

    factor: int
    mode: Mode = "single"
    pad: tuple[float, ...] = (0.0,)
    max_per_class: int = 128

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.factor == 1:
            return images, labels
        if self.mode == "single":
            return self._cut(images, labels, self.factor)
        if self.mode == "multi":
            parts = [self._cut(images, labels, factor) for factor in range(1, self.factor + 1)]
        else:
            factors = bound_factors(labels, self.factor, self.max_per_class)
            chosen = [(factor, (factors == factor).nonzero().squeeze(1)) for factor in range(self.factor, 0, -1)]
            places = [(factor, rows.to(images.device)) for factor, rows in chosen if len(rows)]
            parts = [self._cut(images[rows], labels[rows], factor) for factor, rows in places]
        return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])

    def _cut(self, images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
        repeats = (factor**2, *[1] * (labels.ndim - 1))
        return cut_tiles(images, factor, self.pad), labels.repeat(repeats) if factor > 1 else labels


def pad_value(preprocess: Preprocess, pixel: float = 0.5) -> tuple[float, ...]:
    """A pixel value per channel in network input space: the reference pads with 0.5 in pixel space.

    Raises UserError for whitening, which is of whole images and knows no value of one pixel.
    """
    if preprocess.std is None:
        raise UserError("cutting images into tiles needs --preprocess normalise: whitening is of whole images.")
    return tuple(((pixel - preprocess.mean) / preprocess.std).tolist())
