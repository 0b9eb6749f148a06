"""Multi-formation: where tiles are cut, what fills a side that does not divide, and mosaics that decode cuts again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.data import fit_preprocess
from limbeck.synthetic.set import SyntheticSet
from limbeck.synthetic.tiles import Mode, Partition, bound_factors, cut_tiles, make_mosaic, make_partition, tile_sides

pytestmark = pytest.mark.usefixtures("untouched_generators")

SIZES = [(28, 2), (28, 3), (8, 3), (8, 2), (7, 2), (32, 4)]


def random_images(count: int, side: int, channels: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, channels, side, side, dtype=dtype, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(("side", "factor"), SIZES)
def test_every_tile_is_the_enlarged_crop_of_its_image(side: int, factor: int) -> None:
    """Written out tile by tile, with a filled canvas of its own."""
    images, pad, tile = random_images(3, side), (0.5, -1.0), -(-side // factor)
    tiles = cut_tiles(images, factor, pad)
    assert tiles.shape == (3 * factor**2, 2, side, side)
    for row in range(factor):
        for column in range(factor):
            for i in range(3):
                crop = torch.empty(1, 2, tile, tile, dtype=torch.float64)
                for y in range(tile):
                    for x in range(tile):
                        at = (row * tile + y, column * tile + x)
                        inside = max(at) < side
                        crop[0, :, y, x] = images[i, :, at[0], at[1]] if inside else torch.tensor(pad).double()
                expected = F.interpolate(crop, size=(side, side), mode="bilinear", align_corners=False)
                torch.testing.assert_close(tiles[(row * factor + column) * 3 + i], expected[0])


@pytest.mark.parametrize("mode", ["single", "multi", "bound"])
def test_factor_1_is_the_identity(mode: Mode) -> None:
    images, labels = random_images(4, 8), torch.arange(4)
    tiles = Partition(1, mode)(images, labels)
    assert tiles[0] is images
    assert tiles[1] is labels
    assert make_mosaic(images, 1) is images
    assert cut_tiles(images, 1) is images


@pytest.mark.parametrize(("side", "factor"), SIZES)
def test_a_mosaic_is_cut_where_it_was_put(side: int, factor: int) -> None:
    """Every tile comes back as its own image, shrunk and enlarged, but for what lies outside; nothing bleeds."""
    images = random_images(2 * factor**2, side)
    tile = -(-side // factor)
    mosaic = make_mosaic(images, factor)
    assert mosaic.shape == (2, 2, side, side)
    small = F.adaptive_avg_pool2d(images, tile)
    enlarged = F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False)
    tiles = cut_tiles(mosaic, factor, (9.0,))
    last = side - tile * (factor - 1)  # pixels of the last tile that are there
    for q in range(factor**2):
        rows = last if q // factor == factor - 1 else tile
        columns = last if q % factor == factor - 1 else tile
        inner = [(side * k // tile) - (side // tile if k < tile else 0) for k in (rows, columns)]
        result, reference = tiles[2 * q : 2 * q + 2], enlarged[2 * q : 2 * q + 2]
        torch.testing.assert_close(result[:, :, : inner[0], : inner[1]], reference[:, :, : inner[0], : inner[1]])
    if side % factor == 0:
        torch.testing.assert_close(tiles, enlarged)


def test_constant_images_come_back_whole() -> None:
    """28 by 3: each of nine grey levels fills its own tile to the last pixel that is stored."""
    levels = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 1, 28, 28)
    tiles = cut_tiles(make_mosaic(levels, 3), 3, (99.0,))
    for q in range(9):
        row, column = divmod(q, 3)
        rows, columns = (
            28 if index < 2 else 20 for index in (row, column)
        )  # 8 of 10 pixels of the last tile are stored
        torch.testing.assert_close(tiles[q, 0, :rows, :columns], torch.full((rows, columns), float(q)))


@pytest.mark.parametrize("mode", ["single", "multi", "bound"])
@pytest.mark.parametrize("factor", [2, 3])
def test_labels_follow_their_images(mode: Mode, factor: int) -> None:
    """Images that carry their own class as their only value, with classes and with logits."""
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    images = labels.double().view(-1, 1, 1, 1).expand(-1, 1, 12, 12)
    decode = Partition(factor, mode, max_per_class=12)
    tiles, classes = decode(images, labels)
    assert tiles.shape[1:] == (1, 12, 12)
    torch.testing.assert_close(tiles.mean((1, 2, 3)), classes.double())
    logits = F.one_hot(labels, 3).double() * 2
    soft_tiles, soft = decode(images, logits)
    assert torch.equal(soft_tiles, tiles)
    assert soft.shape == (len(tiles), 3)
    assert torch.equal(soft.argmax(1), classes)
    index = {"single": factor**2, "multi": sum(k * k for k in range(1, factor + 1))}
    if mode in index:
        assert classes.bincount().tolist() == [2 * index[mode], 3 * index[mode], index[mode]]


@pytest.mark.parametrize(
    ("count", "factor", "max_per_class"), [(1, 3, 128), (10, 3, 128), (50, 3, 128), (130, 2, 128), (5, 4, 9)]
)
def test_bound_uses_what_it_may_and_no_more(count: int, factor: int, max_per_class: int) -> None:
    factors = bound_factors(torch.zeros(count, dtype=torch.int64), factor, max_per_class)
    total = int(factors.square().sum())
    assert total <= max(max_per_class, count)
    assert factors.tolist() == sorted(factors.tolist(), reverse=True)
    if total < max_per_class and count <= max_per_class and int(factors.min()) < factor:
        first = int((factors < factor).nonzero()[0])
        assert total + (int(factors[first]) + 1) ** 2 - int(factors[first]) ** 2 > max_per_class


def test_of_a_whole_set_a_class_gets_what_it_gets_alone() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    images = random_images(5, 8)
    decode = Partition(2, "bound", max_per_class=7)
    tiles, classes = decode(images, labels)
    for label in (0, 1):
        alone, _ = decode(images[labels == label], labels[labels == label])
        torch.testing.assert_close(tiles[classes == label].sort(0).values, alone.sort(0).values)


def test_a_set_decodes_with_gradients() -> None:
    synthetic = SyntheticSet.from_images(
        random_images(2, 8), torch.tensor([0, 1]), 0.01, ("images",), decode=Partition(3)
    )
    images, labels = synthetic.training_pair()
    assert labels.tolist() == [0, 1] * 9
    (gradient,) = torch.autograd.grad(images.square().sum(), synthetic.images)
    assert bool((gradient != 0).all())
    assert torch.autograd.gradcheck(lambda x: cut_tiles(x, 3), (random_images(1, 5, 1).requires_grad_(),))


def test_grey_is_a_pixel_of_one_half() -> None:
    pixels = (torch.rand(20, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    preprocess = fit_preprocess("normalise", pixels)
    half = torch.tensor(make_partition(preprocess, 2).pad).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    torch.testing.assert_close(preprocess.invert(half), torch.full((1, 3, 6, 6), 0.5))


@pytest.mark.parametrize("mode", ["single", "multi", "bound"])
@pytest.mark.parametrize("size", [6, 7])  # 7 needs padding
def test_whitened_images_are_cut_as_pixels(mode: Mode, size: int) -> None:
    """By hand in float64, images and gradient: the matrices of whitening around a cut of pixels, padded with grey."""
    pixels = (torch.rand(90, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    preprocess = fit_preprocess("zca", pixels)
    matrices = {name: tensor.double() for name, tensor in preprocess.state().items()}
    labels = torch.tensor([0, 0, 1, 1])
    stored = preprocess.apply(pixels[:4]).requires_grad_()
    tiles, classes = replace(make_partition(preprocess, 2, mode), max_per_class=5)(stored, labels)
    slope = torch.randn(tiles.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((tiles * slope).sum(), stored)

    leaf = stored.detach().double().requires_grad_()
    picture = (leaf.flatten(1) @ matrices["colour"] + matrices["mean"]).view(leaf.shape)
    parts, expected_classes = Partition(2, mode, (0.5,), max_per_class=5)(picture, labels)
    expected = ((parts.flatten(1) - matrices["mean"]) @ matrices["whiten"]).view(parts.shape)
    (expected_gradient,) = torch.autograd.grad((expected * slope).sum(), leaf)
    torch.testing.assert_close(tiles, expected, rtol=1e-4, atol=1e-4, check_dtype=False)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4, check_dtype=False)
    assert torch.equal(classes, expected_classes)
    assert not torch.allclose(tiles.detach(), Partition(2, mode, max_per_class=5)(stored.detach(), labels)[0], atol=0.1)


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_joined_images_are_what_a_picture_shows(kind: str) -> None:
    """Images of one colour each come back whole, whatever the space."""
    generator = torch.Generator().manual_seed(0)
    preprocess = fit_preprocess(kind, (torch.rand(90, 3, 6, 6, generator=generator) * 255).to(torch.uint8))
    pixels = torch.rand(8, 3, 1, 1, generator=generator).expand(8, 3, 6, 6)
    partition = make_partition(preprocess, 2)
    stored = partition.join(preprocess.apply(pixels))
    torch.testing.assert_close(preprocess.invert(stored), make_mosaic(pixels, 2), rtol=1e-4, atol=1e-5)
    assert stored.shape == (2, 3, 6, 6)
    tiles, _ = partition(stored, torch.tensor([0, 1]))
    torch.testing.assert_close(preprocess.invert(tiles), pixels, rtol=1e-4, atol=1e-5)
    assert torch.equal(make_partition(preprocess, 1).join(pixels), pixels)


def test_what_cannot_be_cut_is_refused() -> None:
    assert tile_sides((28, 28), 3) == (10, 10)
    for factor in (0, 5, 9):  # 8 pixels by 5: tiles of 2, the last of which lies outside
        with pytest.raises(UserError, match="cannot be cut"):
            cut_tiles(random_images(1, 8), factor)
    with pytest.raises(UserError, match="no whole mosaics"):
        make_mosaic(random_images(3, 8), 2)
