from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.synthetic.grids import image_grid, image_strip, save_png, thumbnails


def _cells(grid: Image.Image, scale: int, height: int) -> np.ndarray:
    """The opaque part of the grid's first row, one pixel per original pixel."""
    pixels = np.asarray(grid)
    left = int(np.flatnonzero((pixels[: height * scale, :, 3] == 255).all(0))[0])
    return pixels[: height * scale : scale, left::scale]


def test_values_within_zero_and_one_are_shown_as_they_are() -> None:
    image = torch.tensor([[0.0, 0.2], [0.6, 1.0]]).reshape(1, 1, 2, 2)
    cells = _cells(image_grid(image, torch.tensor([0]), ["zero"], upscale=20), 20, 2)
    assert cells[:, :, 0].tolist() == [[0, 51], [153, 255]]
    assert (cells[:, :, 3] == 255).all()


def test_values_outside_are_clipped_at_sigma_and_stretched() -> None:
    image = torch.tensor([-1.0, 1.0, -1.0, 1.0]).reshape(1, 1, 2, 2)
    cells = _cells(image_grid(image, torch.tensor([0]), ["a"], sigma=2.0, upscale=20), 20, 2)
    assert cells[0, :, 0].tolist() == [64, 191]  # mean 0, std 1: the range is -2 to 2
    plain = _cells(image_grid(image, torch.tensor([0]), ["a"], sigma=None, upscale=20), 20, 2)
    assert plain[0, :, 0].tolist() == [0, 255]


def test_rounding_errors_do_not_stretch() -> None:
    image = torch.tensor([0.0, 0.5, 0.5, 1.0 + 1e-6]).reshape(1, 1, 2, 2)
    cells = _cells(image_grid(image, torch.tensor([0]), ["a"], upscale=20), 20, 2)
    assert cells[:, :, 0].tolist() == [[0, 128], [128, 255]]


@pytest.mark.parametrize(("channels", "grey"), [(1, True), (2, True), (3, False), (5, False)])
def test_channels(channels: int, grey: bool) -> None:
    image = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    cells = _cells(image_grid(image, torch.tensor([0]), ["a"], upscale=8), 8, 4)
    expected = (image[0, [0, 0, 0] if grey else [0, 1, 2]].double() * 255).round().permute(1, 2, 0)
    assert cells[:, :4, :3].tolist() == expected.int().tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_survived(bad: float) -> None:
    image = torch.full((2, 1, 4, 4), 3.0)
    image[0, 0, 0, 0] = bad
    assert image_grid(image, torch.tensor([0, 1]), ["a", "b"]).size[1] > 90
    assert image_grid(torch.full((1, 3, 4, 4), bad), torch.tensor([0]), ["a"]).mode == "RGBA"


def test_one_row_per_class_and_at_most_so_many_columns() -> None:
    labels = torch.tensor([2, 0, 2, 2, 0])
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    wide = image_grid(images, labels, ["a", "b", "c"], upscale=10)
    assert wide.height == 2 * 80 + 4  # two classes have images
    narrow = image_grid(images, labels, ["a", "b", "c"], upscale=10, max_columns=1)
    assert narrow.height == wide.height
    assert narrow.width < wide.width
    soft = torch.nn.functional.one_hot(labels, 3).float()
    assert image_grid(images, soft, ["a", "b", "c"], upscale=10).tobytes() == wide.tobytes()


@pytest.mark.parametrize("side", [8, 28, 32, 64, 224])
def test_small_images_become_about_96_pixels_tall(side: int) -> None:
    grid = image_grid(torch.rand(1, 1, side, side), torch.tensor([0]), ["a"])
    assert 72 <= grid.height <= max(128, side)


@pytest.mark.parametrize("name", ["", "two\nlines\x00", "x" * 500, "<script>", "猫", "\U0001f600", "-"])
def test_any_class_name_fits(name: str) -> None:
    grid = image_grid(torch.rand(1, 1, 8, 8), torch.tensor([0]), [name])
    assert grid.size[0] < 300
    assert image_grid(torch.rand(1, 1, 8, 8), torch.tensor([7]), [name]).size[0] < 300  # a label without a name


def test_arguments_are_left_alone_and_gradients_do_not_matter() -> None:
    images = torch.rand(2, 1, 8, 8, requires_grad=True)
    before = images.detach().clone()
    image_grid(images, torch.tensor([0, 1]), ["a", "b"])
    assert torch.equal(images.detach(), before)


def test_wrong_shapes_are_refused() -> None:
    for images, labels in ((torch.rand(0, 1, 2, 2), torch.zeros(0)), (torch.rand(2, 1, 2, 2), torch.zeros(3))):
        with pytest.raises(ValueError, match="need images"):
            image_grid(images, labels, ["a"])
    with pytest.raises(ValueError, match="at least 1"):
        image_grid(torch.rand(1, 1, 2, 2), torch.tensor([0]), ["a"], max_columns=0)


def test_png_is_written_whole(tmp_path: Path) -> None:
    grid = image_grid(torch.rand(1, 3, 8, 8), torch.tensor([0]), ["a"])
    path = tmp_path / "last.png"
    save_png(grid, path)
    save_png(grid, path)
    with Image.open(path) as read:
        assert read.tobytes() == grid.tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["last.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = image_grid(torch.rand(1, 3, 8, 8), torch.tensor([0]), ["a"])
    path = tmp_path / "last.png"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(grid, path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("last.png", b"old")]


@pytest.mark.parametrize(("name", "drawn"), [("Ka\u0308se", "Käse"), ("猫", "0"), ("łoś 猫", "łoś ?"), ("cat", "cat")])
def test_names_are_drawn_in_letters_that_the_font_has(name: str, drawn: str) -> None:
    """The font draws every letter that it lacks as the same box."""
    image, label = torch.rand(1, 1, 8, 8), torch.tensor([0])
    assert image_grid(image, label, [name]).tobytes() == image_grid(image, label, [drawn]).tobytes()


def test_accents_are_drawn() -> None:
    image, label = torch.rand(1, 1, 8, 8), torch.tensor([0])
    assert image_grid(image, label, ["Käse"]).tobytes() != image_grid(image, label, ["Kase"]).tobytes()
    assert image_grid(image, label, ["кот"]).tobytes() != image_grid(image, label, ["кит"]).tobytes()


def test_a_strip_shows_every_image_below_its_name() -> None:
    images = torch.linspace(0, 1, 7)[:, None, None, None].expand(7, 1, 8, 8)
    sheet = image_strip(images, torch.arange(7), [f"class {i}" for i in range(7)], columns=5)
    cell = sheet.width // 5
    assert sheet.height % 2 == 0
    for index, value in enumerate(torch.linspace(0, 1, 7).tolist()):
        left, bottom = index % 5 * cell, (index // 5 + 1) * sheet.height // 2
        red, _, _, opaque = sheet.getpixel((left + 10, bottom - 40))
        assert opaque == 255
        assert abs(red - 255 * value) <= 1


def test_thumbnails_are_small_and_hold_the_first_images_of_every_class() -> None:
    labels = torch.arange(3).repeat_interleave(10)
    images = torch.zeros(30, 1, 4, 4)
    images[11] = 1  # the second image of class 1
    few = thumbnails(images, labels)
    assert few.size == (10 * 5 - 1, 3 * 5 - 1), "few classes are rows"
    assert few.getpixel((5, 5)) == (255, 255, 255, 255)
    assert few.getpixel((0, 5)) == (0, 0, 0, 255)
    many = torch.arange(12).repeat_interleave(2)
    assert thumbnails(torch.zeros(24, 3, 4, 4), many).size == (10 * 5 - 1, 2 * 2 * 5 - 1)
    assert thumbnails(torch.zeros(200, 3, 64, 64), torch.arange(200)).size == (4 * 65 - 1, 64)
    assert thumbnails(torch.zeros(2, 3, 256, 128), torch.arange(2)).size == (2 * 33 - 1, 64)
