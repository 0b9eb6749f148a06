"""Multi-formation (Kim et al., IDC, ICML 2022): every stored image is a mosaic of f x f tiles.

Each tile, enlarged, is a training image. `cut_tiles` maps stored to training images, `make_mosaic` real images to
stored ones, and `Partition` is the `decode` of a synthetic set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.linear import linear_call
from limbeck.synthetic.set import hard_labels

if TYPE_CHECKING:
    from limbeck.data import Preprocess

Mode = Literal["single", "multi", "bound"]


def tile_sides(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Height and width of a tile: ceil(side / factor). `factor` tiles cover a side, the last one perhaps in part.

    Raises UserError for a factor below 1, and for one at which the last tile would contain nothing of the image.

    >>> tile_sides((28, 28), 3), tile_sides((8, 8), 3)
    ((10, 10), (3, 3))
    """
    sides = (-(-size[0] // max(factor, 1)), -(-size[1] // max(factor, 1)))
    if factor < 1 or any(tile * (factor - 1) >= side for tile, side in zip(sides, size)):
        raise UserError(
            f"images of {size[0]} x {size[1]} pixels cannot be cut by a factor of {factor}; use a lower one."
        )
    return sides


def _canvas(images: Tensor, sides: tuple[int, int], factor: int, pad: tuple[float, ...]) -> Tensor:
    """images (n, c, h, w) -> (n, c, factor * tile height, factor * tile width), padded on the right and below."""
    n, c, h, w = images.shape
    if (sides[0] * factor, sides[1] * factor) == (h, w):
        return images
    values = images.new_tensor(pad).view(1, -1, 1, 1)
    canvas = values.expand(n, c, sides[0] * factor, sides[1] * factor).clone()
    canvas[:, :, :h, :w] = images
    return canvas


def cut_tiles(images: Tensor, factor: int, pad: tuple[float, ...] = (0.0,)) -> Tensor:
    """Cut images (n, c, h, w) into enlarged tiles (factor^2 n, c, h, w): tile 0 of all images, then tile 1 of all.

    Tiles are counted row by row and enlarged bilinearly (Kim et al., IDC, section 4.1). Images whose sides are no
    multiple of `factor` are padded on the right and below with `pad`, one value a channel or one for all, in the space
    of the images. Raises UserError as `tile_sides` does.
    """
    if factor == 1:
        return images
    n, c, h, w = images.shape
    sides = tile_sides((h, w), factor)
    canvas = _canvas(images, sides, factor, pad).view(n, c, factor, sides[0], factor, sides[1])
    tiles = canvas.permute(2, 4, 0, 1, 3, 5).reshape(factor * factor * n, c, *sides)
    return enlarge_tiles(tiles, (h, w))


def enlarge_tiles(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge tiles (n, c, h, w) bilinearly to (n, c, *size)."""

    def forward(x: Tensor) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def adjoint(g: Tensor) -> Tensor:
        rows, columns = (
            F.interpolate(torch.eye(side, dtype=g.dtype, device=g.device)[None], size=target, mode="linear")[0]
            for side, target in zip(sides, size)
        )
        return rows @ g @ columns.T

    sides = tiles.shape[2:]
    return linear_call(tiles, forward, adjoint)


def make_mosaic(images: Tensor, factor: int) -> Tensor:
    """Put images (factor^2 n, c, h, w), in the order of `cut_tiles`, into mosaics (n, c, h, w): the start of a set.

    Every image is shrunk by averaging to the size of its tile. Its place is exactly that from which `cut_tiles` cuts
    the tile; the released code divides 28 pixels by 3 into 10 + 9 + 9 here and into 10 + 10 + 10 there, so that its
    tiles overlap their neighbours. Parts of the last tiles outside of the image are lost.
    Raises UserError where the number of images is no multiple of factor^2, and as `tile_sides` does.
    """
    if factor == 1:
        return images
    count, c, h, w = images.shape
    sides = tile_sides((h, w), factor)
    if count % factor**2:
        raise UserError(f"{count} images make no whole mosaics of {factor} x {factor}.")
    tiles = F.interpolate(images, size=sides, mode="area").view(factor, factor, -1, c, *sides)
    canvas = tiles.permute(2, 3, 0, 4, 1, 5).reshape(-1, c, factor * sides[0], factor * sides[1])
    return canvas[:, :, :h, :w].contiguous()


def bound_factors(labels: Tensor, factor: int, max_per_class: int) -> Tensor:
    """The factor by which each stored image is cut, int64 (n,) on the CPU: at most `max_per_class` tiles a class.

    The first images of a class get `factor`, as many as fit while all later ones still get 1, and the next image gets
    the largest factor that then fits. A class of more than `max_per_class` stored images is not cut at all.
    labels: int64 classes (n,) or logits (n, classes), on any device.

    >>> bound_factors(torch.tensor([0, 0, 0, 1]), 2, 7).tolist()
    [2, 1, 1, 2]
    """
    classes = hard_labels(labels).cpu()
    factors = torch.ones(len(labels), dtype=torch.int64)
    for label in classes.unique().tolist():
        rows = (classes == label).nonzero().squeeze(1).tolist()
        spare, current = max_per_class - len(rows), factor
        for row in rows:
            while current > 1 and current * current - 1 > spare:
                current -= 1
            factors[row] = current
            spare -= current * current - 1
    return factors


@dataclass(frozen=True)
class Partition:
    """The `decode` of a multi-formation set: (stored images, labels) -> (training images, labels).

    factor: tiles along each side of a stored image; 1 returns images and labels as they are.
    mode:   single: every image is cut by `factor`. multi: by 1, 2, ..., `factor`, all together. bound: into as many
            tiles as `max_per_class` training images a class allow (see `bound_factors`).
    pad:    pads sides that are no multiple of `factor`, per channel, in network input space (see `make_partition`).
    max_per_class: training images of a class, in mode bound.
    whitening: of whitened images: they are cut as pixels, and the tiles are whitened; `pad` is of pixels then.
    Labels are classes (n,) or logits (n, classes), repeated in the order of the images.
    """

    factor: int
    mode: Mode = "single"
    pad: tuple[float, ...] = (0.0,)
    max_per_class: int = 128
    whitening: Preprocess | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cut stored images (n, c, h, w) into training images (m, c, h, w), with the labels of their images."""
        if self.factor == 1:
            return images, labels
        if self.mode == "single":
            return self._cut(images, labels, self.factor)
        if self.mode == "multi":
            parts = [self._cut(images, labels, factor) for factor in range(1, self.factor + 1)]
        else:
            factors = bound_factors(labels, self.factor, self.max_per_class)
            rows_by_factor = {k: (factors == k).nonzero().squeeze(1) for k in range(self.factor, 0, -1)}
            groups = [(factor, rows.to(images.device)) for factor, rows in rows_by_factor.items() if len(rows)]
            parts = [self._cut(images[rows], labels[rows], factor) for factor, rows in groups]
        return torch.cat([tiles for tiles, _ in parts]), torch.cat([tile_labels for _, tile_labels in parts])

    def join(self, images: Tensor) -> Tensor:
        """Shrink images (factor^2 n, c, h, w) and put them into stored ones (n, c, h, w), as `make_mosaic` does."""
        if self.factor == 1:
            return images
        return self._as_pixels(images, lambda pixels: make_mosaic(pixels, self.factor))

    def _cut(self, images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
        if factor == 1:
            return images, labels
        repeats = (factor**2, *[1] * (labels.ndim - 1))
        return self._as_pixels(images, lambda pixels: cut_tiles(pixels, factor, self.pad)), labels.repeat(repeats)

    def _as_pixels(self, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`change` of images, where they are whitened of their pixels: whitening maps whole images, no parts."""
        if self.whitening is None:
            return change(images)
        return self.whitening.apply(change(self.whitening.invert(images)))


def make_partition(preprocess: Preprocess, factor: int, mode: Mode = "single") -> Partition:
    """The `Partition` of images in the network input space of `preprocess`.

    Images are padded with grey, 0.5 between black and white, as in the released code of IDC.
    """
    pad = preprocess.input_value(0.5)
    if pad is None:
        return Partition(factor, mode, (0.5,), whitening=preprocess)
    return Partition(factor, mode, tuple(pad.tolist()))
