"""The distilled set: what is saved comes back, in a `DataLoader` too, and wrong files are refused."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

import limbeck
from limbeck.core.errors import UserError
from limbeck.core.tensors import read_tensors, write_tensors
from limbeck.data import fit_preprocess
from limbeck.synthetic.distilled import DistilledSet, load, make_mosaics
from limbeck.synthetic.set import SyntheticSet
from limbeck.synthetic.tiles import Mode, Partition, make_partition

GOLDEN = Path(__file__).parents[1] / "golden" / "set.safetensors"
KINDS = [(kind, labels) for kind in ("normalise", "zca") for labels in ("hard", "soft")]


def pixels(count: int = 20) -> Tensor:
    """uint8 images that hold no randomness, so that every version of everything makes the same."""
    return (torch.arange(count * 3 * 2 * 2) ** 2 % 251).to(torch.uint8).reshape(count, 3, 2, 2)


def tiny(kind: str = "normalise", labels: str = "soft") -> DistilledSet:
    """tests/golden/set.safetensors was made by `tiny().save`."""
    preprocess = fit_preprocess(kind, pixels())
    soft = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]])
    return DistilledSet(
        images=preprocess.apply(pixels()[:3]),
        labels=torch.tensor([0, 0, 1]) if labels == "hard" else soft,
        lr=0.1,
        preprocess=preprocess,
        classes=("cat", "dög"),
        recipe={"epochs": 5, "augment": "flip", "model": {"name": "convnet", "depth": None}},
        provenance={"method": "mct", "step": 3, "data": {"fingerprint": "00ff"}},
    )


def assert_equal(loaded: DistilledSet, expected: DistilledSet) -> None:
    for name in ("images", "labels"):
        value, right = getattr(loaded, name), getattr(expected, name)
        assert value.dtype == right.dtype
        assert torch.equal(value, right)
    assert loaded.preprocess.header() == expected.preprocess.header()
    assert all(
        torch.equal(loaded.preprocess.state()[name], tensor) for name, tensor in expected.preprocess.state().items()
    )
    for name in ("lr", "classes", "recipe", "provenance"):
        assert getattr(loaded, name) == getattr(expected, name)


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_a_set_survives_its_file(tmp_path: Path, kind: str, labels: str) -> None:
    distilled = tiny(kind, labels)
    distilled.save(tmp_path / "set.safetensors")
    assert_equal(load(tmp_path / "set.safetensors"), distilled)
    assert_equal(limbeck.load(str(tmp_path / "set.safetensors")), distilled)
    before = (tmp_path / "set.safetensors").read_bytes()
    load(tmp_path / "set.safetensors").save(tmp_path / "set.safetensors")
    assert (tmp_path / "set.safetensors").read_bytes() == before


@pytest.mark.parametrize("lr", [float("inf"), float("nan"), 0.0, -1.0])
def test_a_step_size_that_is_none_is_refused(tmp_path: Path, lr: float) -> None:
    """It was loaded, and failed where its evaluation was recorded."""
    replace(tiny(), lr=lr).save(tmp_path / "set.safetensors")
    with pytest.raises(UserError, match="step size is not one number above 0"):
        load(tmp_path / "set.safetensors")


def test_the_golden_set_still_loads() -> None:
    loaded, expected = load(GOLDEN), tiny()
    torch.testing.assert_close(loaded.images, expected.images)
    torch.testing.assert_close(loaded.preprocess.state(), expected.preprocess.state())
    assert torch.equal(loaded.labels, expected.labels)
    assert (loaded.lr, loaded.classes, loaded.recipe) == (expected.lr, expected.classes, expected.recipe)
    assert loaded.provenance == expected.provenance
    torch.testing.assert_close(loaded.pictures() * 255, pixels()[:3].float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_it_is_a_torch_dataset(kind: str, labels: str) -> None:
    distilled = tiny(kind, labels)
    images, targets = zip(*DataLoader(distilled.dataset(), batch_size=2))
    assert torch.equal(torch.cat(images), distilled.images)
    assert torch.equal(torch.cat(targets), distilled.labels)
    assert len(distilled.dataset()) == 3
    logits = torch.zeros(3, 2)
    assert float(torch.nn.functional.cross_entropy(logits, torch.cat(targets))) == pytest.approx(0.6931, abs=1e-4)
    assert distilled.hard_labels().tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_pictures_are_the_pixels_again(kind: str) -> None:
    torch.testing.assert_close(tiny(kind).pictures() * 255, pixels()[:3].float(), rtol=0, atol=1e-2)


def test_a_notebook_shows_a_row_a_class() -> None:
    small = limbeck.load("fashion-mnist-ipc1")
    with Image.open(BytesIO(small._repr_png_())) as picture:
        width, height = picture.size
    assert height > 10 * 28
    assert width > 4 * 28, "four tiles a class"


def test_a_run_folder_gives_the_chosen_set_else_the_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no distilled set"):
        load(tmp_path)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"it is a folder of runs, name one: .*first\."):
        load(tmp_path)
    tiny(labels="hard").save(tmp_path / "set-last.safetensors")
    assert load(tmp_path).labels.dtype == torch.int64
    tiny(labels="soft").save(tmp_path / "set-chosen.safetensors")
    assert load(tmp_path).labels.dtype == torch.float32


def test_something_else_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other", {"images": torch.zeros(1)}, {"format": "limbeck-expert", "version": 1})
    with pytest.raises(UserError, match="is not a limbeck-set"):
        load(tmp_path / "other")
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "missing")
    whole = GOLDEN.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "cut")


@pytest.mark.parametrize("mode", ["single", "multi", "bound"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_of_tiles_stores_its_mosaics_alone(tmp_path: Path, mode: Mode, labels: str, channels: int) -> None:
    raw = torch.tensor([0, 0, 1]) if labels == "hard" else torch.tensor([[2.0, 0.0], [1.0, 0.5], [0.0, 1.0]])
    images = torch.randn(3, channels, 7, 8, generator=torch.Generator().manual_seed(0))
    tiles = Partition(2, mode, (0.5,) * channels, max_per_class=6)
    synthetic = SyntheticSet.from_images(images, raw, 0.1, decode=tiles)
    pixels = torch.arange(2 * channels * 56, dtype=torch.uint8).reshape(2, channels, 7, 8)
    parts = (*synthetic.training_pair(), 0.1, fit_preprocess("normalise", pixels), ("a", "b"), {}, {})
    tiled, plain = DistilledSet(*parts, mosaics=make_mosaics(synthetic)), DistilledSet(*parts)
    tiled.save(tmp_path / "tiled.safetensors")
    plain.save(tmp_path / "plain.safetensors")
    loaded = load(tmp_path / "tiled.safetensors")
    assert_equal(loaded, plain)
    assert_equal(load(tmp_path / "plain.safetensors"), plain)
    assert torch.equal(loaded.stored_pair[0], images)
    with safe_open(str(tmp_path / "tiled.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("images"), images)
    before = (tmp_path / "tiled.safetensors").read_bytes()
    loaded.save(tmp_path / "tiled.safetensors")
    assert (tmp_path / "tiled.safetensors").read_bytes() == before


@pytest.mark.parametrize("half", [False, True])
def test_tiles_of_whitened_images_come_back(half: bool, tmp_path: Path) -> None:
    pixels = (torch.rand(90, 1, 7, 8, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    preprocess, labels = fit_preprocess("zca", pixels), torch.tensor([0, 0, 1])
    stored = preprocess.apply(pixels[:3]).half().float()
    synthetic = SyntheticSet.from_images(stored, labels, 0.1, decode=make_partition(preprocess, 2))
    tiled = DistilledSet(
        *synthetic.training_pair(), 0.1, preprocess, ("a", "b"), {}, {}, mosaics=make_mosaics(synthetic)
    )
    tiled.save(tmp_path / "tiled.safetensors", half=half)
    tensors, header = read_tensors(tmp_path / "tiled.safetensors", "limbeck-set", 4)
    assert torch.equal(tensors["images"].float(), stored)
    assert header["tiles"] == {"factor": 2, "mode": "single", "pad": [0.5], "max_per_class": 128}
    loaded = load(tmp_path / "tiled.safetensors")
    assert torch.equal(loaded.images, tiled.images)
    assert torch.equal(loaded.stored_pair[0], stored)
    with pytest.raises(UserError, match="version"):  # as a limbeck without whitened tiles, which would cut them wrongly
        read_tensors(tmp_path / "tiled.safetensors", "limbeck-set", 3, oldest=1)


def test_whitening_without_bounds_is_refused(tmp_path: Path) -> None:
    pixels = (torch.rand(90, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    preprocess = fit_preprocess("zca", pixels)
    stored = preprocess.apply(pixels[:2])
    synthetic = SyntheticSet.from_images(stored, torch.tensor([0, 1]), 0.1, decode=make_partition(preprocess, 2))
    parts = (*synthetic.training_pair(), 0.1, preprocess, ("a", "b"), {}, {})
    path = tmp_path / "set.safetensors"
    DistilledSet(*parts, mosaics=make_mosaics(synthetic)).save(path)
    tensors, header = read_tensors(path, "limbeck-set", 4)
    header.pop("sha256")
    write_tensors(path, {**tensors, "preprocess.whiten": torch.full((16, 16), 3e38)}, header)
    with pytest.raises(UserError, match="tiles hold NaN or infinity"):
        load(path)


def test_images_that_were_changed_are_stored_as_they_are(tmp_path: Path) -> None:
    synthetic = SyntheticSet.from_images(torch.randn(2, 1, 4, 4), torch.tensor([0, 1]), 0.1, decode=Partition(2))
    pixels = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    parts = (*synthetic.training_pair(), 0.1, fit_preprocess("normalise", pixels), ("a", "b"), {}, {})
    changed = replace(DistilledSet(*parts, mosaics=make_mosaics(synthetic)), images=torch.zeros(8, 1, 4, 4))
    changed.save(tmp_path / "set.safetensors")
    assert_equal(load(tmp_path / "set.safetensors"), changed)


@pytest.mark.parametrize("change", [{"factor": 0}, {"factor": 2.5}, {"mode": "x"}, {"pad": [0.0, 0.0]}, {"factor": 5}])
def test_tiles_that_cannot_be_cut_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    synthetic = SyntheticSet.from_images(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), 0.1, decode=Partition(2))
    pixels = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4)
    parts = (*synthetic.training_pair(), 0.1, fit_preprocess("normalise", pixels), ("a", "b"), {}, {})
    DistilledSet(*parts, mosaics=make_mosaics(synthetic)).save(tmp_path / "set.safetensors")
    tensors, header = read_tensors(tmp_path / "set.safetensors", "limbeck-set", 2)
    header.pop("sha256")  # of the file as it was: every change would be refused for it
    write_tensors(tmp_path / "set.safetensors", tensors, {**header, "tiles": {**header["tiles"], **change}})
    with pytest.raises(UserError, match="tiles"):
        load(tmp_path / "set.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64, torch.complex64])
def test_images_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """For numbers of 8 bits torch has no isfinite, so that one was a NotImplementedError."""
    images = torch.zeros(2, 1, 4, 4)
    preprocess = fit_preprocess("normalise", torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4))
    path = tmp_path / "set.safetensors"
    DistilledSet(images, torch.tensor([0, 1]), 0.01, preprocess, ("a", "b"), {}, {}).save(path)
    tensors, header = read_tensors(path, "limbeck-set", 3, oldest=1)
    header.pop("sha256")
    write_tensors(path, {**tensors, "images": images.to(dtype)}, header)
    with pytest.raises(UserError, match="float32 images"):
        load(path)
