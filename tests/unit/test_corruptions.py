"""Corruptions of images against scipy, pillow, colorsys and loops."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from limbeck.evaluation.attacks import ATTACKS
from limbeck.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from limbeck.evaluation.robustness import (
    RobustnessConfig,
)

ALL = RobustnessConfig(attacks=tuple(ATTACKS), corruptions=tuple(CORRUPTIONS), images=40)


def random_images(n: int, channels: int = 3, size: int = 12) -> Tensor:
    levels = torch.arange(n * channels * size * size).mul(7919).remainder(256).view(n, channels, size, size)
    return (levels.float() / 255 + 0.02 * torch.arange(float(n)).view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_corruption_keeps_shape_and_range_and_repeats_itself(name: str, channels: int) -> None:
    pixels = random_images(6, channels)
    assert torch.equal(corrupt(name, pixels, 0, 0), pixels)
    for severity in SEVERITIES:
        result = corrupt(name, pixels, severity, 0)
        assert result.shape == pixels.shape
        assert result.dtype == torch.float32
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
        assert torch.equal(result, corrupt(name, pixels, severity, 0))
        assert not torch.equal(result, pixels)
    assert len(CORRUPTIONS[name].parameters) == len(SEVERITIES)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_worse_severity_changes_images_more(name: str) -> None:
    place = torch.arange(32.0)
    waves = torch.stack([(place / a).sin()[:, None] * (place / b).cos() for a, b in ((2, 3), (3, 4), (4, 2))])
    pixels = (0.35 + 0.2 * waves).expand(4, 3, 32, 32)
    changes = [(corrupt(name, pixels, severity, 0) - pixels).square().mean() for severity in (1, 3, 5)]
    assert changes == sorted(changes)


def test_noise_has_the_moments_of_its_distribution() -> None:
    pixels = torch.full((40, 3, 32, 32), 0.5)
    n = pixels.numel()
    for severity, std in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10)):
        noise = corrupt("gaussian_noise", pixels, severity, 0) - pixels
        assert float(noise.std()) == pytest.approx(std, rel=4 / (2 * n) ** 0.5)
    for severity, photons in zip(SEVERITIES, (500, 250, 100, 75, 50)):
        counts = corrupt("shot_noise", pixels, severity, 0) * photons
        assert float(counts.mean()) == pytest.approx(photons / 2, abs=4 * (photons / 2 / n) ** 0.5)
        assert float(counts.var()) == pytest.approx(photons / 2, rel=4 * (2 / n) ** 0.5 + 0.01)
        assert float((counts - counts.round()).abs().max()) < 1e-3
    for severity, fraction in zip(SEVERITIES, (0.01, 0.02, 0.03, 0.05, 0.07)):
        result = corrupt("impulse_noise", pixels, severity, 0)
        for value in (0.0, 1.0):
            share = float((result == value).double().mean())
            assert share == pytest.approx(fraction / 2, abs=4 * (fraction / 2 / n) ** 0.5)
        assert set(result.unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_scipys(severity: int) -> None:
    pixels, sigma = random_images(3), (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    expected = gaussian_filter(pixels.double().numpy(), (0, 0, sigma, sigma), mode="nearest")
    assert np.allclose(corrupt("gaussian_blur", pixels, severity, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_is_added_to_v_in_hsv(severity: int) -> None:
    import colorsys

    pixels = random_images(2, size=6)
    pixels[0, :, 0, 0] = 0.0  # black has no hue
    amount = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    result = corrupt("brightness", pixels, severity, 0)
    for colour, other in zip(pixels.permute(0, 2, 3, 1).reshape(-1, 3), result.permute(0, 2, 3, 1).reshape(-1, 3)):
        h, s, v = colorsys.rgb_to_hsv(*colour.tolist())
        assert other.tolist() == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1.0, v + amount)), abs=1e-6)
    grey = random_images(2, 1)
    assert torch.allclose(corrupt("brightness", grey, severity, 0), (grey + amount).clamp(max=1))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_and_pixels_by_loops(severity: int) -> None:
    pixels = random_images(2, 2, 10)
    contrast, factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1], (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    darker, coarser = corrupt("contrast", pixels, severity, 0), corrupt("pixelate", pixels, severity, 0)
    small = int(10 * factor)
    for image, flat, blocks in zip(
        pixels.flatten(0, 1).double().numpy(), darker.flatten(0, 1).numpy(), coarser.flatten(0, 1).numpy()
    ):
        assert np.allclose(flat, image * contrast + image.mean() * (1 - contrast), atol=1e-6)
        scale = 10 / small
        members = [[x for x in range(10) if i * scale < x + 0.5 <= (i + 1) * scale + 1e-9] for i in range(small)]
        means = np.array([[image[np.ix_(rows, columns)].mean() for columns in members] for rows in members])
        place = [int((i + 0.5) * small / 10) for i in range(10)]
        assert np.allclose(blocks, means[np.ix_(place, place)], atol=1e-6)


def test_jpeg_is_pillows() -> None:
    for channels, mode in ((3, "RGB"), (1, "L")):
        levels = (random_images(2, channels, 16) * 255).round().byte()
        result = corrupt("jpeg_compression", levels.float() / 255, 5, 0)
        for image, other in zip(levels, result):
            file = io.BytesIO()
            array = image.permute(1, 2, 0).numpy()
            Image.fromarray(array if channels == 3 else array[:, :, 0], mode).save(file, "JPEG", quality=40)
            expected = np.asarray(Image.open(file)).reshape(16, 16, channels)
            assert np.array_equal((other * 255).round().byte().permute(1, 2, 0).numpy(), expected)
