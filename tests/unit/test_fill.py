"""Classes with fewer images than a set needs are filled up by repeating: as they are, augmented, or with noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import assert_refused
from small_runs import MINIMAL, read_json, result_rows
from torch import Tensor

import limbeck
from limbeck.data import ImageData, Split
from limbeck.evaluation.baselines import baseline_path, real_images
from limbeck.evaluation.protocol import EvalConfig
from limbeck.methods import MethodInputs
from limbeck.methods.coreset import CORESETS, select_real
from limbeck.select import SELECTORS, FillName, select_per_class, take_images
from limbeck.select.fill import NOISE
from limbeck.task import Task, make_task

LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 1, 1])  # three images and five
IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def brighten(images: Tensor, seed: int) -> Tensor:
    return images + seed % 1000


@pytest.fixture
def scarce(digits: ImageData) -> ImageData:
    """Digits in which class 3 has two training images and class 7 one."""
    train = digits.train
    places = [(train.labels[: row + 1] == label).sum() for row, label in enumerate(train.labels)]
    most = {3: 2, 7: 1}
    rows = torch.tensor([int(places[row]) <= most.get(int(label), 30) for row, label in enumerate(train.labels)])
    return replace(digits, train=Split(train.images[rows], train.labels[rows]), fingerprint="scarce")


@pytest.fixture
def scarce_task(scarce: ImageData) -> Task:
    return make_task(scarce, limbeck.ModelConfig(width=4))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_gives_a_small_class_whole_and_again(name: str) -> None:
    rows = select_per_class(name, IMAGES, LABELS, 2, 7, seed=1, repeat=True)
    assert LABELS[rows].tolist() == [0] * 7 + [1] * 7
    small, large = rows[:7].tolist(), rows[7:].tolist()
    assert sorted(small[:3]) == [0, 2, 5]
    assert small == [*small[:3], *small[:3], small[0]]
    assert sorted(large[:5]) == [1, 3, 4, 6, 7]
    assert large == [*large[:5], *large[:2]]
    enough = select_per_class(name, IMAGES, LABELS, 2, 2, seed=1)
    assert torch.equal(select_per_class(name, IMAGES, LABELS, 2, 2, seed=1, repeat=True), enough)


@pytest.mark.parametrize("fill", ["none", "repeat", "augment", "noise"])
def test_what_does_not_come_again_is_as_it_was(fill: FillName) -> None:
    rows = torch.tensor([5, 0, 3])
    assert torch.equal(take_images(IMAGES, rows, fill, brighten, 0), IMAGES[rows])


def test_repeats_are_varied_each_in_its_own_way() -> None:
    rows = torch.tensor([5, 0, 5, 5])
    before = IMAGES.clone()
    assert torch.equal(take_images(IMAGES, rows, "repeat", brighten, 0), IMAGES[rows])
    augmented = take_images(IMAGES, rows, "augment", brighten, 0)
    shifts = (augmented - IMAGES[rows]).flatten(1)
    assert shifts[:2].abs().max() == 0
    assert (shifts.std(1) < 1e-3).all(), "the whole image by one seed"
    assert len(set(shifts.mean(1).round().tolist())) == 3
    noisy = take_images(IMAGES, rows, "noise", brighten, 0) - IMAGES[rows]
    assert noisy[:2].abs().max() == 0
    assert not torch.equal(noisy[2], noisy[3])
    assert torch.equal(IMAGES, before)
    for fill in ("augment", "noise"):
        first, again, other = (take_images(IMAGES, rows, fill, brighten, seed) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_the_noise_is_a_tenth_of_the_deviation_of_pixels() -> None:
    images = torch.zeros(1, 3, 32, 32)
    noise = take_images(images, torch.zeros(9, dtype=torch.long), "noise", brighten, 0)[1:]
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.02) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("name", CORESETS)
def test_every_coreset_fills_a_class_up(name: str, scarce_task: Task) -> None:
    from limbeck.experts.recorded import Recorded

    path = Recorded(torch.stack([scarce_task.model.init(epoch) for epoch in range(4)]))
    inputs = MethodInputs(scarce_task, [path], 3, 0, "repeat")
    labels, rows = scarce_task.train[1], select_real(name, inputs, 3)
    assert labels[rows].tolist() == [label for label in range(10) for _ in range(3)]
    assert [len(rows[labels[rows] == label].unique()) for label in range(10)] == [3, 3, 3, 2, 3, 3, 3, 1, 3, 3]
    assert_refused(
        lambda: select_real(name, inputs._replace(fill="none"), 3),
        "class '3' of digits has 2",
        "ask for fewer",
        "--fill repeat",
    )


def test_baselines_have_the_same_budget(scarce_task: Task) -> None:
    for name in ("random", "kmeans"):
        images, labels = real_images(scarce_task, name, 4, "augment")(0)
        assert labels.bincount().tolist() == [4] * 10
        of_seven = images[labels == 7]
        (original,) = scarce_task.train[0][scarce_task.train[1] == 7]
        assert [torch.equal(image, original) for image in of_seven] == [True, False, False, False]
        assert not torch.equal(real_images(scarce_task, name, 4, "augment")(1)[0], images)


def test_a_stored_baseline_is_found_by_what_it_was_filled_with(scarce_task: Task) -> None:
    def key(name: str, ipc: int, *fill: FillName) -> str:
        return baseline_path(scarce_task, name, ipc, EvalConfig(), 0, *fill)[0].name

    assert len({key("random", 4, fill) for fill in ("repeat", "augment", "noise")}) == 3
    assert key("random", 1, "repeat") == key("random", 1, "augment") == key("random", 1), "nothing is filled up"
    assert key("full", 4, "repeat") == key("full", 4)


def test_a_run_with_small_classes(scarce: ImageData, tmp_path: Path) -> None:
    """Refused, told how; then distilled, with both baselines at its budget, and resumed under the same option only."""
    common: dict[str, Any] = {**MINIMAL, "ipc": 3, "out": tmp_path / "run", "method": "mtt", "validate_every": 4}
    common["eval"] = limbeck.EvalConfig(networks=1, epochs=2, baseline_lrs=(0.01,), full_networks=0)
    assert_refused(lambda: limbeck.distill(scarce, **common), "class '3'", "2 training images", "--ipc 3", "--fill")
    assert_refused(
        lambda: limbeck.distill(scarce, **common, fill="augment", augment="none"), "--fill augment", "--fill repeat"
    )
    events: list[dict[str, Any]] = []
    run = limbeck.distill(scarce, **common, fill="augment", listen=events.append)
    assert limbeck.load(run).hard_labels().bincount().tolist() == [3] * 10
    assert [row["set"] for row in result_rows(run)] == ["distilled", "distilled", "random", "kmeans"]
    assert read_json(run / "run.json")["config"]["fill"] == "augment"
    assert limbeck.distill(scarce, **common, fill="augment") == run
    assert_refused(lambda: limbeck.distill(scarce, **common, fill="noise"), "fill augment, not noise")


def test_runs_from_before_the_option_are_found(tmp_path: Path) -> None:
    job = limbeck.prepare("digits", method="random", out=tmp_path / "run")
    assert "fill" not in job.resolved
    assert limbeck.prepare("digits", method="random", fill="repeat").resolved["fill"] == "repeat"


def test_canvases_and_tiles_are_filled_up(scarce_task: Task) -> None:
    from limbeck.methods.trajectory_matching import init_synthetic_set

    canvases = init_synthetic_set("random", MethodInputs(scarce_task, [], 1, 0, "repeat"), 0.01, canvas=2).images
    of_seven = canvases[7].unfold(1, 8, 8).unfold(2, 8, 8)[0].reshape(4, 8, 8)
    (original,) = scarce_task.train[0][scarce_task.train[1] == 7]
    assert all(torch.equal(tile, original[0]) for tile in of_seven)
