"""Coresets: scores against their definitions taken image by image, and every name as a start of other methods."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from limbeck import METHODS, EvalConfig, ImageData, ModelConfig, distill, load
from limbeck.core.errors import UserError
from limbeck.core.files import read_json
from limbeck.core.rng import derive_seed
from limbeck.core.types import Batch
from limbeck.evaluation.trials import evaluate_set
from limbeck.experts import Expert, Recorded, Store
from limbeck.methods import MethodInputs
from limbeck.methods.coreset import CORESETS, CoresetName, select_real
from limbeck.methods.initial import RealName
from limbeck.methods.trajectory_matching import init_synthetic_set
from limbeck.select.scores import early_checkpoints, el2n, extract_features, forgetting, grand
from limbeck.task import Task, make_task
from limbeck.training import CrossEntropy

pytestmark = pytest.mark.usefixtures("untouched_generators")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))


def few_images(task: Task, count: int = 40) -> tuple[Tensor, Tensor]:
    images, labels = task.train
    return images[:count], labels[:count]


def thetas(task: Task) -> list[Tensor]:
    return [3 * task.model.init(seed) for seed in range(2)]


def test_el2n_is_the_error_of_probabilities(task: Task) -> None:
    images, labels = few_images(task)
    expected = torch.zeros(len(images))
    for theta in thetas(task):
        for i, (image, label) in enumerate(zip(images, labels)):
            probabilities = task.model(theta, image[None]).softmax(1)[0]
            probabilities[label] = probabilities[label] - 1
            expected[i] += probabilities.square().sum().sqrt() / 2
    torch.testing.assert_close(el2n(task.model, thetas(task), images, labels), expected)


def test_grand_is_the_norm_of_one_images_gradient(task: Task) -> None:
    images, labels = few_images(task, 12)
    loss = CrossEntropy(task.model)
    expected = torch.zeros(len(images))
    for theta in thetas(task):
        for i in range(len(images)):
            leaf = theta.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf, Batch(images[i : i + 1], labels[i : i + 1])), leaf)
            expected[i] += gradient.norm() / 2
    torch.testing.assert_close(grand(loss, thetas(task), images, labels, chunk=5), expected, rtol=1e-4, atol=1e-6)


def test_forgetting_counts_what_was_right_and_is_wrong_after(task: Task) -> None:
    images, labels = few_images(task)
    points = torch.stack([task.model.init(seed) * 3 for seed in range(6)])
    counts = forgetting(task.model, [Recorded(points)], images, labels)
    for i in range(len(images)):
        right = [int(task.model(theta, images[i : i + 1]).argmax()) == int(labels[i]) for theta in points[1:]]
        times_forgotten = sum(before and not after for before, after in pairwise(right))
        assert counts[i] == (times_forgotten if any(right) else 5)
    assert len(counts.unique()) > 2


def test_scores_are_taken_after_a_tenth_of_the_epochs(task: Task) -> None:
    points = torch.stack([task.model.init(seed) for seed in range(21)])
    assert torch.equal(early_checkpoints([Recorded(points)])[0], points[2])
    assert torch.equal(early_checkpoints([Recorded(points[:4])])[0], points[1])


def test_the_names_for_options_are_those_of_the_table_and_of_the_registry() -> None:
    assert get_args(CoresetName) == tuple(CORESETS)
    assert get_args(RealName) == (*CORESETS, "noise")
    assert set(CORESETS) <= set(METHODS)


@pytest.mark.parametrize("name", CORESETS)
def test_every_coreset_can_start_a_method(name: str, task: Task, expert: Expert) -> None:
    path = expert.trajectory("any")
    assert path is not None
    inputs = MethodInputs(task, [path], 3, 0)
    rows = select_real(name, inputs, 3)
    images, labels = task.train
    assert len(rows.unique()) == 30
    assert labels[rows].tolist() == sorted(list(range(10)) * 3)
    started = init_synthetic_set(name, inputs, 0.01)
    assert torch.equal(started.images, images[rows])
    coreset = METHODS[name].plan(METHODS[name].config(), inputs).synthetic
    assert torch.equal(coreset.images, images[rows])
    assert not coreset.images.requires_grad


def test_features_are_of_the_experts_end_and_of_a_fresh_network_without_one(task: Task, expert: Expert) -> None:
    path = expert.trajectory("any")
    assert path is not None
    selected = select_real("herding", MethodInputs(task, [path], 1, 0), 1)
    fresh = select_real("herding", MethodInputs(task, [], 1, 0), 1)
    for theta, rows in ((path.at(path.end), selected), (task.model.init(0, "features"), fresh)):
        points = extract_features(task.model, theta, task.train[0]).double()
        for label, row in enumerate(rows.tolist()):
            members = points[task.train[1] == label]
            away = (members - members.mean(0)).norm(dim=1)
            assert float((points[row] - members.mean(0)).norm()) == pytest.approx(float(away.min()))


@pytest.mark.parametrize("name", ["forgetting", "el2n", "grand", "correct"])
def test_scores_without_experts_are_refused(name: str, task: Task) -> None:
    with pytest.raises(UserError, match="--experts"):
        select_real(name, MethodInputs(task, [], 1, 0), 1)


def test_an_unknown_name_is_refused(task: Task) -> None:
    with pytest.raises(UserError, match="herding"):
        select_real("nearest", MethodInputs(task, [], 1, 0), 1)


QUICK: dict[str, Any] = {
    "model": {"width": 8},
    "validate_epochs": 2,
    "validate_networks": 1,
    "eval": {"networks": 2, "epochs": 3, "full_networks": 0, "baseline_lrs": (0.003, 0.03)},
}


def test_a_run_without_experts_trains_none_and_its_step_size_is_chosen_on_validation(
    digits: ImageData, tmp_path: Path
) -> None:
    run = distill(digits, method="random", ipc=1, out=tmp_path / "run", **QUICK)
    assert not (run / "experts.json").exists()
    results = read_json(run / "results.json", "limbeck-results")
    assert "experts" not in results["bytes"]
    config = read_json(run / "run.json", "limbeck-run")["config"]
    assert config["experts"] == "none"
    assert not {"expert", "num_experts"} & set(config)
    last, chosen_row = results["results"][:2]
    assert {**last, "which": "chosen"} == chosen_row
    distilled = load(run)
    task = make_task(digits, ModelConfig(width=8))
    evaluated = {
        lr: evaluate_set(
            task,
            lambda seed: (distilled.images, distilled.labels),
            EvalConfig(**QUICK["eval"]).schedule(lr),
            2,
            task.validation,
            derive_seed(0, "step size"),
        ).accuracy_mean
        for lr in (0.003, 0.03)
    }
    assert distilled.lr == max(evaluated, key=lambda lr: evaluated[lr]) == last["lr"]
    page = (run / "report.html").read_text()
    assert "The experts" not in page
    assert "experts are not described" not in page
    assert "real images, selected by a rule" in page
    assert "How distillation went" not in page
    assert page.count("<img") == 3, "the set, random and k-means images"


def test_experts_that_are_named_are_used(digits: ImageData, tmp_path: Path, store: Store) -> None:
    run = distill(digits, method="herding", ipc=1, out=tmp_path / "run", experts=store.path, **QUICK)
    assert read_json(run / "experts.json", "limbeck-experts")["count"] == 1
    assert (run / "results.json").exists()
