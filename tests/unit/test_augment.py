"""DSA against kornia, and against the field's definition written out one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from kornia.geometry.transform import warp_affine
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.linear import _Linear
from limbeck.core.rng import fork_rng, make_generator
from limbeck.data import augment
from limbeck.data.augment import DSA, FAMILIES, ComposedDSA, Draw, default_strategy, toroidal_crop
from limbeck.synthetic import tiles
from limbeck.synthetic.tiles import enlarge_tiles

pytestmark = pytest.mark.usefixtures("untouched_generators")

SHAPES = [(4, 1, 8, 8), (5, 3, 8, 8), (4, 3, 7, 10), (3, 1, 12, 9), (2, 3, 32, 32)]
SEEDS = range(6)


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def make_draw(family: str, count: int, seed: int) -> Draw:
    return DSA(family).draw(torch.Generator().manual_seed(seed), count)


def color(x: Tensor, u: Tensor) -> Tensor:
    out = []
    for image, (a, b, c) in zip(x.numpy(), u.double().numpy()):
        image = image + (a - 0.5)
        grey = image.mean(0)
        image = grey + (image - grey) * (2 * b)
        out.append(image.mean() + (image - image.mean()) * (c + 0.5))
    return torch.from_numpy(np.stack(out))


def crop(x: Tensor, u: Tensor) -> Tensor:
    """A shift by whole pixels, each of -k ... k equally likely, zeros where nothing comes from."""
    out = torch.zeros_like(x)
    h, w = x.shape[2:]
    for i in range(len(x)):
        k = [int(0.125 * side + 0.5) for side in (h, w)]
        down, right = (int(float(u[i, axis]) * (2 * k[axis] + 1)) - k[axis] for axis in (0, 1))
        for row in range(h):
            for column in range(w):
                if 0 <= row + down < h and 0 <= column + right < w:
                    out[i, :, row, column] = x[i, :, row + down, column + right]
    return out


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """A hole of half the side; its centre is anywhere from 0 to the side (to the last pixel for odd holes)."""
    out = x.clone()
    for i in range(len(x)):
        edges = []
        for axis, side in enumerate(x.shape[2:]):
            hole = int(0.5 * side + 0.5)
            first = int(float(u[i, axis]) * (side + 1 - hole % 2)) - hole // 2
            edges.append(slice(max(first, 0), first + hole))
        out[i, :, edges[0], edges[1]] = 0
    return out


def flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.stack([image.flip(-1) if value < 0.5 else image for image, value in zip(x, u[:, 0])])


def warped(x: Tensor, grids: Tensor) -> Tensor:
    """kornia's warp of a grid (n, 2, 2) that takes output to input coordinates in [-1, 1]."""
    h, w = x.shape[2:]
    unit = torch.tensor([[2 / (w - 1), 0, -1], [0, 2 / (h - 1), -1], [0, 0, 1]], dtype=x.dtype)
    full = torch.eye(3, dtype=x.dtype).repeat(len(x), 1, 1)
    full[:, :2, :2] = grids
    pixels = torch.linalg.inv(unit) @ torch.linalg.inv(full) @ unit  # kornia's matrices take input to output pixels
    return warp_affine(x, pixels[:, :2], (h, w), mode="bilinear", padding_mode="zeros", align_corners=True)


def scale(x: Tensor, u: Tensor) -> Tensor:
    factors = 1 / 1.2 + u[:, :2].double() * (1.2 - 1 / 1.2)
    return warped(x, torch.diag_embed(factors))


def rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = torch.deg2rad(-15 + 30 * u[:, 0].double())
    rows = [torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)]
    return warped(x, torch.stack(rows, 1))


DEFINITIONS = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def test_every_family_has_a_definition_here() -> None:
    assert DEFINITIONS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_what_the_field_defines(family: str, shape: tuple[int, ...]) -> None:
    changed = False
    for seed in SEEDS:
        x, draw = normal(shape, seed), make_draw(family, shape[0], seed)
        result = DSA(family).apply(x, draw)
        assert result.shape == x.shape
        torch.testing.assert_close(result, DEFINITIONS[family](x, draw.uniform), rtol=1e-6, atol=1e-6)
        changed = changed or not torch.equal(result, x)
    assert changed


@pytest.mark.parametrize("family", ["crop", "cutout"])
@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
def test_the_ends_of_a_draw_stay_in_reach(family: str, value: float) -> None:
    x = torch.ones(1, 1, 8, 8)
    draw = Draw(family, torch.full((1, 3), value))
    result = DSA(family).apply(x, draw)
    torch.testing.assert_close(result.double(), DEFINITIONS[family](x.double(), draw.uniform))
    area = {"crop": 7 * 7, "cutout": 64 - 2 * 2}[family]
    assert int(result.sum()) == area


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_drawn_per_image_and_from_the_seed_alone(family: str) -> None:
    x = normal((1, 3, 8, 8)).expand(16, -1, -1, -1)
    result = DSA(family)(x, seed=5)
    assert torch.equal(result, DSA(family)(x, seed=5))
    assert len({image.numpy().tobytes() for image in result}) >= (2 if family == "flip" else 5)
    assert any(not torch.equal(result, DSA(family)(x, seed)) for seed in range(6, 12))


def test_one_family_is_drawn_for_a_batch_each_equally_often() -> None:
    result = [DSA().draw(torch.Generator().manual_seed(seed), 1).family for seed in range(1200)]
    assert set(result) == set(FAMILIES)
    assert all(abs(result.count(family) - 200) < 65 for family in FAMILIES)
    assert {make_draw("crop_flip", 1, seed).family for seed in range(30)} == {"crop", "flip"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_equals_finite_differences(family: str) -> None:
    x = normal((2, 3, 5, 6)).requires_grad_()
    draw = make_draw(family, 2, seed=1)
    assert torch.autograd.gradcheck(lambda images: DSA(family).apply(images, draw), (x,))


@pytest.mark.parametrize("strategy", ["none", ""])
def test_no_families_is_the_identity(strategy: str) -> None:
    x = normal((3, 3, 8, 8))
    assert torch.equal(DSA(strategy)(x, seed=1), x)


@pytest.mark.parametrize("strategy", ["colour", "color_swirl", "color__flip", "none_flip"])
def test_an_unknown_family_is_refused(strategy: str) -> None:
    with pytest.raises(UserError, match="join any of color, crop"):
        DSA(strategy)


def test_the_images_are_not_written_to() -> None:
    x = normal((3, 3, 8, 8))
    before = x.clone()
    for family in FAMILIES:
        DSA(family)(x, seed=1)
    assert torch.equal(x, before)


def test_digits_are_not_mirrored() -> None:
    assert "flip" not in DSA(default_strategy("digits")).families
    assert DSA(default_strategy("cifar10")).families == tuple(FAMILIES)


# --- adjoints for a GPU, where torch's own add in no fixed order; see limbeck/linear.py

STRONG = DSA("rotate", crop=0.4, scale=1.9, rotate=50.0)
MAPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    **{f: lambda x, seed, f=f: replace(DSA(), strategy=f)(x, seed) for f in ("crop", "scale", "rotate")},
    **{f"{f}, strong": lambda x, seed, f=f: replace(STRONG, strategy=f)(x, seed) for f in ("crop", "scale", "rotate")},
    "toroidal crop": lambda x, seed: toroidal_crop(x, (5, 4), torch.Generator().manual_seed(seed)),
    "tiles": lambda x, seed: enlarge_tiles(x, (x.shape[2] * 2 - 1, x.shape[3] * 3)),
}


def by_adjoint(patch: pytest.MonkeyPatch) -> None:
    """Gradients by the adjoints, on a processor too."""
    for module in (augment, tiles):
        patch.setattr(module, "linear_call", _Linear.apply)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_adjoint_is_torchs_own_gradient(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in SEEDS:
        x = normal(shape, seed).requires_grad_()
        y = MAPS[name](x, seed)
        weight = normal(tuple(y.shape), seed + 100)
        (exact,) = torch.autograd.grad(y, x, weight)
        with monkeypatch.context() as patch:
            by_adjoint(patch)
            output = MAPS[name](x, seed)
        assert torch.equal(output, y)
        assert "_Linear" in type(output.grad_fn).__name__
        (result,) = torch.autograd.grad(output, x, weight)
        torch.testing.assert_close(result, exact, rtol=1e-6, atol=1e-6)  # places are in float32, as the draw


@pytest.mark.parametrize("name", MAPS)
def test_the_adjoint_can_be_differentiated_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its derivative is the map again; and torch.func takes it."""
    by_adjoint(monkeypatch)
    x = normal((2, 1, 5, 6)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: MAPS[name](x, 1), (x,))
    with fork_rng(0, "gradgradcheck"):
        assert torch.autograd.gradgradcheck(lambda x: MAPS[name](x, 1), (x,))
    (expected,) = torch.autograd.grad(MAPS[name](x, 1).square().sum(), x)
    assert torch.equal(torch.func.grad(lambda x: MAPS[name](x, 1).square().sum())(x.detach()), expected)


def test_siamese_draws_are_equal() -> None:
    """Two batches of different size with the same seed are changed alike, and each image as every other."""
    image = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for augmentation in (DSA(siamese=True), ComposedDSA(DSA(siamese=True))):
        changed = set()
        for seed in range(20):
            five, two = augmentation(image.expand(5, -1, -1, -1), seed), augmentation(image.expand(2, -1, -1, -1), seed)
            assert torch.equal(five[:2], two)
            assert all(torch.equal(image, five[0]) for image in five)
            changed.add(not torch.equal(five[:1], image))
        assert True in changed


def test_images_are_augmented_independently_otherwise() -> None:
    real_images = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1, -1)
    augmented = ComposedDSA(DSA("color"))(real_images, 0)
    assert not torch.equal(augmented[0], augmented[1])
    assert torch.equal(ComposedDSA(DSA("none"))(real_images, 0), real_images)


def test_composed_dsa_is_flip_colour_one_geometry_and_cutout() -> None:
    """The draws again, one after the other, from the same stream."""
    picture = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    dsa = DSA("crop_color_scale_cutout_rotate_flip")
    families = set()
    for seed in range(12):
        generator = make_generator(seed, "augment")
        geometry = ("crop", "scale", "rotate")[int(torch.randint(3, (), generator=generator))]
        families.add(geometry)
        expected = picture
        for family in ("flip", "color", geometry, "cutout"):
            expected = dsa.apply(expected, Draw(family, torch.rand(3, 3, generator=generator)))
        assert torch.equal(ComposedDSA(dsa)(picture, seed), expected)
    assert families == {"crop", "scale", "rotate"}
    mirrored = ComposedDSA(DSA("flip", flip=1.0))(picture, 0)
    assert torch.equal(mirrored, picture.flip(3))
