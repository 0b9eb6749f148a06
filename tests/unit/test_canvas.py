"""MTT's textures: images larger than the network's input, of which every step sees a random crop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limbeck
from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data.augment import DSA, CanvasCrop, toroidal_crop
from limbeck.evaluation.baselines import baseline_images
from limbeck.evaluation.counts import budget
from limbeck.experts import ExpertConfig
from limbeck.interop.card import read_facts
from limbeck.interop.export import export_set
from limbeck.methods import MethodInputs
from limbeck.methods.trajectory_matching import init_synthetic_set
from limbeck.select import select_per_class
from limbeck.task import Task, make_task

pytestmark = pytest.mark.usefixtures("untouched_generators")


def test_a_crop_is_a_window_of_the_torus() -> None:
    images = torch.randn(40, 3, 12, 10, dtype=torch.double, generator=make_generator(1))
    crops = toroidal_crop(images, (6, 5), make_generator(0)).numpy()
    starts = set()
    for image, crop in zip(images.numpy(), crops):
        places = [
            (y, x)
            for y in range(12)
            for x in range(10)
            if np.array_equal(np.roll(image, (-y, -x), (1, 2))[:, :6, :5], crop)
        ]
        assert len(places) == 1
        starts |= set(places)
    assert len(starts) > 25  # each image has its own
    assert max(y for y, _ in starts) > 6  # and some go past the edge
    assert torch.equal(toroidal_crop(images, (6, 5), make_generator(0)), torch.from_numpy(crops))


def test_images_of_the_networks_size_are_only_augmented() -> None:
    images, dsa = torch.randn(4, 1, 8, 8, generator=make_generator(1)), DSA()
    assert torch.equal(CanvasCrop((8, 8), dsa)(images, 3), dsa(images, 3))
    canvases = torch.zeros(4, 1, 16, 16, requires_grad=True)
    cropped = CanvasCrop((8, 8), DSA("none"))(canvases, 3)
    assert cropped.shape == (4, 1, 8, 8)
    (gradient,) = torch.autograd.grad(cropped.sum(), canvases)
    assert gradient.sum() == 4 * 64
    assert set(gradient.unique().tolist()) == {0.0, 1.0}


def test_a_canvas_starts_as_a_mosaic_of_its_class(task: Task) -> None:
    result = init_synthetic_set("random", MethodInputs(task, [], 2, 5), 0.01, canvas=3)
    assert result.images.shape == (20, 1, 24, 24)
    assert result.labels.tolist() == [label for label in range(10) for _ in range(2)]
    images, labels = task.train
    rows = select_per_class("random", images, labels, 10, 18, 5)
    tiles = result.images.detach().unfold(2, 8, 8).unfold(3, 8, 8)
    for i in range(20):
        for tile in range(9):
            assert torch.equal(tiles[i, 0, tile // 3, tile % 3], images[rows[9 * i + tile], 0])


def test_canvases_that_make_no_sense_are_refused(task: Task, tmp_path: Path) -> None:
    white = make_task(task.data, task.model_config, "zca")
    with pytest.raises(UserError, match="--preprocess normalise"):
        init_synthetic_set("random", MethodInputs(white, [], 1, 0), 0.01, canvas=2)
    with pytest.raises(UserError, match="do not go together"):
        distilled(tmp_path, teacher_labels=True)
    with pytest.raises(UserError, match="fewer"):
        init_synthetic_set("random", MethodInputs(task, [], 1, 0), 0.01, canvas=9)


def distilled(folder: Path, **options: Any) -> Path:
    return limbeck.distill(
        "digits",
        out=folder / "run",
        canvas=2,
        iterations=3,
        syn_steps=2,
        num_experts=1,
        model=limbeck.ModelConfig(width=4),
        expert=ExpertConfig(epochs=2),
        eval=limbeck.EvalConfig(networks=1, epochs=3, full_networks=0),
        validate_epochs=2,
        **options,
    )


@pytest.mark.parametrize("method", ["mct", "mtt"])
def test_from_canvases_to_an_evaluated_set(method: str, tmp_path: Path) -> None:
    run = distilled(tmp_path, method=method)
    result = limbeck.load(run)
    assert result.images.shape == (10, 1, 16, 16)
    assert result.pictures().shape == (10, 1, 16, 16)
    rows = limbeck.evaluate(run)
    assert [row.which for row in rows] == ["last", "chosen"]


def test_canvases_are_compared_with_real_images_of_as_many_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    run = distilled(tmp_path, method="mtt")
    assert budget(limbeck.load(run)) == (4, "repeat")
    rows = [path for path in (tmp_path / "home" / "baselines").iterdir() if "full" not in path.name]
    assert [json.loads(path.read_text())["description"]["ipc"] for path in rows] == [4, 4]
    with Image.open(run / "previews" / "random.png") as picture, Image.open(run / "previews" / "last.png") as own:
        assert picture.height > 1.5 * own.height  # 4 rows of 8 pixels beside 1 of 16, with the names of classes
    limbeck.evaluate(run, networks="same")
    assert {path.name for path in rows} == {
        path.name for path in (tmp_path / "home" / "baselines").iterdir() if "full" not in path.name
    }
    assert json.loads((run / "results.json").read_text())["ipc"] == 1
    report = (run / "report.html").read_text()
    assert "10 images (1 per class) of digits" in report
    assert "40 random real images" in report
    assert "1 of 2 x 2 image sides" in report
    export_set(limbeck.load(run), tmp_path / "npz", "npz", read_facts(run))
    assert "random and kmeans images there are 4 for every canvas" in (tmp_path / "npz" / "README.md").read_text()


def test_canvases_of_more_pixels_than_a_class_has_are_not_refused(tmp_path: Path) -> None:
    job = limbeck.prepare("digits", method="mtt", canvas=12, init="noise", num_experts=1, out=tmp_path / "run")
    counts = job.task.data.train.counts(10)
    ipc, fill = job.budget
    assert max(counts) < ipc == 144
    images, labels = baseline_images(job.task, "random", ipc, 0, fill)
    assert labels.bincount().tolist() == [ipc] * 10
    for label, count in enumerate(counts):
        assert len(images[labels == label].unique(dim=0)) >= count - 1  # all that there are; some may be equal
