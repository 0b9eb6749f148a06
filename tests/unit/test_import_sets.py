"""Import of distilled sets of MTT, DATM, FTD and MCT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import (
    refuse,
    save,
    save_set,
)

from limbeck.data import ImageData
from limbeck.evaluation.run import evaluate
from limbeck.interop import import_set
from limbeck.networks.registry import ModelConfig


def test_hard_labels_need_a_step_size_by_hand(tmp_path: Path, digits: ImageData) -> None:
    images = save_set(tmp_path, torch.arange(10))
    save_set(tmp_path, torch.arange(10), "5000")
    refuse(r"no lr_best\.pt .*--lr", lambda: import_set(tmp_path, digits))
    distilled = import_set(tmp_path, digits, lr=0.02)
    assert torch.equal(distilled.images, images)
    assert torch.equal(distilled.labels, torch.arange(10))
    assert distilled.lr == 0.02
    assert distilled.provenance["which"] == "best"
    assert any("constants were not in the files" in note for note in distilled.provenance["imported"]["notes"])
    distilled.save(tmp_path / "set.safetensors")
    rows = evaluate(tmp_path / "set.safetensors", data=digits, num_networks=1, epochs=2)
    assert rows[0].lr == 0.02


def test_datm_labels_are_logits_with_a_step_size(tmp_path: Path, digits: ImageData) -> None:
    logits = torch.randn(10, 10, generator=torch.Generator().manual_seed(2)).requires_grad_()
    save_set(tmp_path, logits, "1000", lr=0.03)
    distilled = import_set(tmp_path / "images_1000.pt", digits, model=ModelConfig(width=4))
    torch.testing.assert_close(distilled.labels, logits.softmax(1))
    assert not distilled.labels.requires_grad
    assert distilled.lr == pytest.approx(0.03)
    assert distilled.provenance["step"] == 1000
    assert distilled.recipe["model"]["width"] == 4
    assert any("logits" in note for note in distilled.provenance["imported"]["notes"])


def test_probabilities_stay_and_zca_is_fitted_anew(tmp_path: Path, digits: ImageData) -> None:
    labels = torch.eye(10) * 0.91 + 0.009
    save_set(tmp_path, labels)
    distilled = import_set(tmp_path, digits, preprocess="zca", lr=0.01)
    torch.testing.assert_close(distilled.labels, labels)
    assert distilled.preprocess.kind == "zca"
    assert distilled.preprocess.eps == pytest.approx(0.1)
    assert any("ZCA matrix was not in the files" in note for note in distilled.provenance["imported"]["notes"])


@pytest.mark.parametrize(("name", "prefix"), [("best", "ema_"), ("4000", "ema_")])
def test_averaged_images_of_ftd(tmp_path: Path, digits: ImageData, name: str, prefix: str) -> None:
    save_set(tmp_path, torch.arange(10), name, prefix)
    assert import_set(tmp_path, digits, lr=0.01).provenance["which"] == name


def test_images_of_mct_carry_their_ipc(tmp_path: Path, digits: ImageData) -> None:
    for ipc in (1, 10):
        save_set(tmp_path, torch.arange(10), f"ipc-{ipc}_best")
    refuse("images_ipc-1_.*images_ipc-10_", lambda: import_set(tmp_path, digits, lr=0.01))
    assert len(import_set(tmp_path / "images_ipc-1_best.pt", digits, lr=0.01).images) == 10


def test_the_latest_is_taken_where_there_is_no_best(tmp_path: Path, digits: ImageData) -> None:
    for name in ("900", "1000"):
        save_set(tmp_path, torch.arange(10), name)
    assert import_set(tmp_path, digits, lr=0.01).provenance["step"] == 1000


def test_sets_that_do_not_fit_are_refused(tmp_path: Path, digits: ImageData) -> None:
    def bring_set(**options: Any) -> Any:
        return import_set(tmp_path, digits, **{"lr": 0.01, **options})

    refuse("holds no images_best", bring_set)
    images = save_set(tmp_path, torch.arange(10) + 1)
    refuse("classes 1 to 10", bring_set)
    save_set(tmp_path, torch.arange(9))
    refuse("for 10 images", bring_set)
    save_set(tmp_path, torch.zeros(10, 7))
    refuse("has 10 classes", bring_set)
    save(images[:, :, :4], tmp_path / "images_best.pt")
    refuse("of shape", bring_set)
    save(images * float("nan"), tmp_path / "images_best.pt")
    refuse("NaN", bring_set)
    save_set(tmp_path, torch.arange(10), lr=-1.0)
    refuse("not one step size above 0", lambda: bring_set(lr=None))
    refuse("above 0", lambda: bring_set(lr=0.0))
    refuse("no preprocessing called", lambda: bring_set(preprocess="other"))
    refuse("are for 3", lambda: bring_set(preprocess="cifar"))
    (tmp_path / "labels_best.pt").unlink()
    refuse("without labels", bring_set)
