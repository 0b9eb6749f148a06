"""The distilled set: what is saved comes back, in a `DataLoader` too, and wrong files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import limbeck
from limbeck.core.errors import UserError
from limbeck.core.tensors import write_tensors
from limbeck.data import fit_preprocess
from limbeck.synthetic.distilled import DistilledSet, load

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


def assert_equal(found: DistilledSet, wanted: DistilledSet) -> None:
    for name in ("images", "labels"):
        left, right = getattr(found, name), getattr(wanted, name)
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    assert found.preprocess.header() == wanted.preprocess.header()
    assert all(torch.equal(found.preprocess.state()[name], held) for name, held in wanted.preprocess.state().items())
    for name in ("lr", "classes", "recipe", "provenance"):
        assert getattr(found, name) == getattr(wanted, name)


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_a_set_survives_its_file(tmp_path: Path, kind: str, labels: str) -> None:
    made = tiny(kind, labels)
    made.save(tmp_path / "set.safetensors")
    assert_equal(load(tmp_path / "set.safetensors"), made)
    assert_equal(limbeck.load(str(tmp_path / "set.safetensors")), made)
    before = (tmp_path / "set.safetensors").read_bytes()
    load(tmp_path / "set.safetensors").save(tmp_path / "set.safetensors")
    assert (tmp_path / "set.safetensors").read_bytes() == before


def test_the_golden_set_still_loads() -> None:
    found, wanted = load(GOLDEN), tiny()
    torch.testing.assert_close(found.images, wanted.images)
    torch.testing.assert_close(found.preprocess.state(), wanted.preprocess.state())
    assert torch.equal(found.labels, wanted.labels)
    assert (found.lr, found.classes, found.recipe) == (wanted.lr, wanted.classes, wanted.recipe)
    assert found.provenance == wanted.provenance
    torch.testing.assert_close(found.pictures() * 255, pixels()[:3].float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("kind", "labels"), KINDS)
def test_it_is_a_torch_dataset(kind: str, labels: str) -> None:
    made = tiny(kind, labels)
    images, targets = zip(*DataLoader(made.dataset(), batch_size=2))
    assert torch.equal(torch.cat(images), made.images)
    assert torch.equal(torch.cat(targets), made.labels)
    assert len(made.dataset()) == 3
    logits = torch.zeros(3, 2)
    assert float(torch.nn.functional.cross_entropy(logits, torch.cat(targets))) == pytest.approx(0.6931, abs=1e-4)
    assert made.hard_labels().tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_pictures_are_the_pixels_again(kind: str) -> None:
    torch.testing.assert_close(tiny(kind).pictures() * 255, pixels()[:3].float(), rtol=0, atol=1e-2)


def test_a_run_folder_gives_the_chosen_set_else_the_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no distilled set"):
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
