"""Preprocessing: exact statistics, an inverse that undoes, agreement with kornia, and a state that survives storing."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.linear import FEW_ROWS, multiply_rows
from limbeck.core.rng import make_generator
from limbeck.data import Preprocess, fit_preprocess, load_data, preprocess

KINDS = ["normalise", "zca"]


def pixels(n: int = 300, c: int = 3, h: int = 5, w: int = 4, seed: int = 0) -> Tensor:
    """Correlated uint8 images (n, c, h, w), one of whose pixels is constant."""
    noise = torch.randn(n, c, h, w, generator=make_generator(seed, "pixels"))
    images = (110 + 40 * noise.cumsum(3) / w**0.5 + 30 * noise[:, :1]).clamp(0, 255).to(torch.uint8)
    images[:, 0, 0, 0] = 7
    return images


def test_normalise_holds_the_mean_and_std_of_every_channel() -> None:
    images = pixels()
    wide = images.double() / 255
    fitted = fit_preprocess("normalise", images)
    assert fitted.std is not None
    torch.testing.assert_close(fitted.mean, wide.mean((0, 2, 3)).float(), rtol=0, atol=1e-7)
    torch.testing.assert_close(fitted.std, wide.std((0, 2, 3), correction=0).float(), rtol=0, atol=1e-7)
    out = fitted.apply(images)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double().mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.double().std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar", [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        ("cifar100", [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
        ("svhn", [0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("mnist", [0.1307], [0.3081]),
        ("fashion", [0.2861], [0.3530]),
    ],
)
def test_constants_are_those_of_the_authors_code(name: str, mean: list[float], std: list[float]) -> None:
    images = pixels(5, c=len(mean))
    columns = [(images[:, c].double() / 255 - mean[c]) / std[c] for c in range(len(mean))]
    torch.testing.assert_close(
        fit_preprocess(name, images).apply(images).double(), torch.stack(columns, 1), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(UserError, match=f"the constants '{name}' are for {len(mean)}"):
        fit_preprocess(name, pixels(5, c=4 - len(mean)))


def test_a_constant_channel_is_left_finite_and_comes_back() -> None:
    images = pixels()
    images[:, 1] = 93
    fitted = fit_preprocess("normalise", images)
    out = fitted.apply(images)
    assert torch.equal(out[:, 1], torch.zeros_like(out[:, 1]))
    torch.testing.assert_close(fitted.invert(out)[:, 1], torch.full_like(out[:, 1], 93 / 255))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(300, 3, 5, 4), (10, 1, 6, 6)])  # the second has fewer images than pixels
def test_invert_undoes_apply(kind: str, shape: tuple[int, int, int, int]) -> None:
    images = pixels(*shape)
    fitted = fit_preprocess(kind, images)
    torch.testing.assert_close(fitted.invert(fitted.apply(images)), images / 255, rtol=0, atol=1e-5)
    outside = torch.full((1, *shape[1:]), 1.5)
    torch.testing.assert_close(fitted.invert(fitted.apply(outside)), outside, rtol=0, atol=1e-5)  # nothing is clipped


@pytest.mark.parametrize("kind", KINDS)
def test_float_pixels_give_what_uint8_ones_give(kind: str) -> None:
    images = pixels()
    fitted = fit_preprocess(kind, images)
    torch.testing.assert_close(fitted.apply(images / 255), fitted.apply(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [0.1, 0.003])
def test_zca_is_kornias(eps: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kornia.enhance import ZCAWhitening

        images = pixels()
        kornia = ZCAWhitening(eps=eps, compute_inv=True).fit(images.double() / 255)
        expected = kornia(images.double() / 255)
    zca = fit_preprocess("zca", images, eps)
    assert zca.whiten is not None
    assert zca.colour is not None
    torch.testing.assert_close(zca.mean, kornia.mean_vector[0].float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(zca.whiten, kornia.transform_matrix.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(zca.colour, kornia.transform_inv.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(zca.apply(images), expected.float(), rtol=1e-4, atol=2e-5)


def test_zca_whitens_the_digits_whose_covariance_is_singular() -> None:
    images = load_data("digits").train.images
    assert (images.flatten(1).amax(0) == 0).any()  # pixels that never light up
    out = fit_preprocess("zca", images, eps=1e-4).apply(images).flatten(1)
    assert out.isfinite().all()
    values = torch.linalg.eigvalsh(torch.cov(out.T.double()))
    assert values[-1] == pytest.approx(1, abs=0.02)
    assert (values > 0.5).sum() >= 45
    assert values[0] < 1e-6


def test_eigenvalues_that_rounding_made_negative_do_no_harm() -> None:
    images = pixels(10, 1, 6, 6)  # rank 9 of 36
    assert torch.linalg.eigvalsh(preprocess._pixel_moments(images)[1])[0] < -1e-20
    assert fit_preprocess("zca", images, eps=1e-20).apply(images).isfinite().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 2100), st.integers(0, 2**31), st.sampled_from([0, 200]))
def test_the_moments_are_float64_s_across_chunks(n: int, seed: int, low: int) -> None:
    images = torch.randint(low, 256, (n, 1, 2, 3), generator=make_generator(seed, "moments"), dtype=torch.uint8)
    mean, covariance = preprocess._pixel_moments(images)
    flat = images.flatten(1).double() / 255
    torch.testing.assert_close(mean, flat.mean(0), rtol=0, atol=1e-13)
    torch.testing.assert_close(covariance, torch.cov(flat.T), rtol=0, atol=1e-13)


def test_extreme_pixels_keep_the_sums_exact() -> None:
    images = torch.zeros(2048, 1, 1, 2, dtype=torch.uint8)  # -128 squared, 1024 times, is the largest float32 sum
    images[::3, 0, 0, 1] = 255
    _, covariance = preprocess._pixel_moments(images)
    torch.testing.assert_close(covariance, torch.cov(images.flatten(1).double().T / 255), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(101)
    whole = fit_preprocess(kind, images)
    expected = whole.apply(images), whole.invert(images / 255)
    monkeypatch.setattr(preprocess, "CHUNK", 600)
    parts = fit_preprocess(kind, images)
    assert torch.equal(parts.mean, whole.mean)
    torch.testing.assert_close((parts.apply(images), parts.invert(images / 255)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1 << 24, 40])
def test_gradients_flow_both_ways(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(40, 1, 3, 3)
    fitted = fit_preprocess(kind, images)
    monkeypatch.setattr(preprocess, "CHUNK", chunk)
    x = (images / 255).requires_grad_()
    (slope,) = torch.autograd.grad(fitted.invert(fitted.apply(x)).sum(), x)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_survives_storing(kind: str) -> None:
    images = pixels()
    fitted = fit_preprocess(kind, images, 0.05)
    restored = Preprocess.from_state(json.loads(json.dumps(fitted.header())), fitted.state())
    assert restored.header() == fitted.header()
    assert torch.equal(restored.apply(images), fitted.apply(images))
    assert torch.equal(fitted.to("cpu").apply(images), fitted.apply(images))
    assert restored.shape == (3, 5, 4)


def test_what_does_not_fit_is_refused() -> None:
    images = pixels()
    normalise, zca = fit_preprocess("normalise", images), fit_preprocess("zca", images)
    with pytest.raises(UserError, match="no preprocessing called 'whiten'; choose one of: normalise, zca"):
        fit_preprocess("whiten", images)
    with pytest.raises(UserError, match="uint8"):
        fit_preprocess("zca", images / 255)
    with pytest.raises(UserError, match="at least 2 images"):
        fit_preprocess("zca", images[:1])
    with pytest.raises(UserError, match="eps above 0"):
        fit_preprocess("zca", images, 0.0)
    with pytest.raises(UserError, match=r"\(300, 1, 5, 4\) do not fit"):
        normalise.apply(images[:, :1])
    with pytest.raises(UserError, match="do not fit zca"):
        zca.invert(images[..., :2])
    assert normalise.apply(images[..., :2]).shape == (300, 3, 5, 2)
    with pytest.raises(UserError, match="needs a tensor whiten"):
        Preprocess.from_state(zca.header(), {"mean": zca.mean})
    with pytest.raises(UserError, match="known kind"):
        Preprocess.from_state({**zca.header(), "kind": "pca"}, zca.state())
    with pytest.raises(UserError, match=r"shape \(60,\)"):
        Preprocess.from_state(zca.header(), {**zca.state(), "mean": zca.mean[1:]})


@pytest.mark.parametrize("rows", [3, FEW_ROWS + 1])
def test_rows_times_a_matrix_and_its_gradient_are_those_of_torch(rows: int) -> None:
    """The matrices of whitening are symmetric, so that they would hide a gradient by the wrong one."""
    generator = torch.Generator().manual_seed(0)
    x, matrix = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((rows, 5), (5, 4)))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    multiply_rows(ours, matrix).pow(3).sum().backward()
    (theirs @ matrix).pow(3).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
