"""Trained networks on perturbed test images: attacks against closed forms, autograd and preprocessing by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import ImageData, ModelConfig
from limbeck.core.evaluation_records import CLEAN, RobustnessRow
from limbeck.data import Split
from limbeck.evaluation.attacks import ATTACKS, margin_gradient
from limbeck.evaluation.corruptions import corrupt
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.robustness import (
    RobustnessConfig,
    RobustnessTest,
)
from limbeck.evaluation.training import TrainedNetwork
from limbeck.evaluation.trials import make_trials, train_networks
from limbeck.networks.statistics import RunningStatistics
from limbeck.task import Task, make_task
from limbeck.training.plain import predict_logits

ALL = RobustnessConfig(attacks=tuple(ATTACKS), corruptions=("shot_noise",), steps=2, images=20)


def three_classes(channels: int, seed: int = 0) -> ImageData:
    """Three classes whose means differ by a tenth of the range of pixels."""
    generator = torch.Generator().manual_seed(seed)

    def split(n: int) -> Split:
        labels = torch.arange(n) % 3
        pattern = torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(9))
        images = 0.4 + 0.2 * pattern[labels] + 0.1 * torch.randn(n, channels, 8, 8, generator=generator)
        return Split((images.clamp(0, 1) * 255).byte(), labels)

    return ImageData(f"three{channels}", split(90), split(30), split(60), ("a", "b", "c"), (), "0" * 16)


def trained(task: Task, networks: int = 1, epochs: int = 3) -> list[TrainedNetwork]:
    trials = make_trials(lambda _seed: task.train, EvalConfig(batch_size=30).schedule(0.05, epochs), networks, seed=1)
    return train_networks(task, trials, task.test)


TASKS = {
    "grey": (1, ModelConfig(width=8), "normalise"),
    "colour": (3, ModelConfig(width=8), "normalise"),
    "zca": (3, ModelConfig(width=8), "zca"),
    "batch norm": (3, ModelConfig(width=8, norm="batch"), "normalise"),
    "mlp": (1, ModelConfig(name="mlp", width=16), "normalise"),
}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest, shared_home: Path) -> Task:
    channels, model, preprocess = TASKS[request.param]
    return make_task(three_classes(channels), model, preprocess)


@pytest.fixture(scope="module")
def networks(task: Task) -> list[TrainedNetwork]:
    return trained(task, networks=2)


# --- attacks


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 8.0, 255.0])
def test_an_attack_stays_in_the_ball_and_in_the_range_of_pixels(
    task: Task, networks: list[TrainedNetwork], name: str, epsilon: float
) -> None:
    test = RobustnessTest(task, RobustnessConfig(attacks=(name,), epsilon=epsilon, steps=3, images=12), 0)
    pixels, _ = test.images
    perturbed = test.attack(networks[0], name)
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    change = (perturbed.double() - pixels.double()).abs().max()
    assert change <= epsilon / 255 + 1e-7
    assert change >= 0.99 * min(epsilon / 255, 0.6), "the ball is used"


def test_the_gradient_has_the_signs_of_that_of_the_cross_entropy(task: Task, networks: list[TrainedNetwork]) -> None:
    """By autograd in float64, through a preprocessing by hand."""
    test = RobustnessTest(task, ALL, 0)
    pixels, labels = test.images
    network, theta, _ = networks[0]
    logits = network if isinstance(network, RunningStatistics) else task.model
    ours = margin_gradient(logits, theta, labels, task.preprocess.apply)(pixels)

    state = {name: tensor.double() for name, tensor in task.preprocess.state().items()}
    leaf = pixels.double().requires_grad_()
    if task.preprocess.kind == "zca":
        images = ((leaf.flatten(1) - state["mean"]) @ state["whiten"]).view(leaf.shape)
    else:
        images = (leaf - state["mean"][:, None, None]) / state["std"][:, None, None]
    if isinstance(network, RunningStatistics):
        assert network.buffers is not None
        double = RunningStatistics(task.model)
        double.buffers = {
            name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in network.buffers.items()
        }
        logits = double
    loss = F.cross_entropy(logits(theta.double(), images), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, leaf)
    is_clear = expected.abs() > 1e-4 * expected.abs().amax((1, 2, 3), keepdim=True)
    assert is_clear.float().mean() > 0.9
    assert torch.equal(ours.sign()[is_clear], expected.sign().float()[is_clear])


def test_a_sure_network_has_a_gradient() -> None:
    """That of the cross-entropy is 0 here: the probability of the class rounds to 1."""
    weight = torch.tensor([[400.0, -400.0]])

    def network(theta: Tensor, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :1] @ theta

    pixels, labels = torch.full((1, 1, 1, 1), 0.9), torch.tensor([0])
    leaf = pixels.clone().requires_grad_()
    (rounded,) = torch.autograd.grad(F.cross_entropy(network(weight, leaf), labels), leaf)
    assert rounded.item() == 0
    assert margin_gradient(network, weight, labels, lambda images: images)(pixels).item() == -800


def test_fgsm_on_a_logistic_model_is_a_step_along_the_signs_of_its_weights() -> None:
    """Goodfellow et al. 2015, section 5: the closed form; an attack never raises accuracy there."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, generator=generator)
    pixels = 0.2 + 0.6 * torch.rand(50, 3, 2, 2, generator=generator)
    labels = (torch.rand(50, generator=generator) < 0.5).long()

    def network(theta: Tensor, images: Tensor) -> Tensor:
        score = (images.flatten(1) - 0.5) @ theta
        return torch.stack([-score, score], 1)

    gradient = margin_gradient(network, weight, labels, lambda images: images)
    towards = torch.where(labels == 1, -1.0, 1.0)[:, None] * weight.sign()
    expected = pixels + 0.1 * towards.view(pixels.shape)
    assert torch.allclose(ATTACKS["fgsm"].perturb(gradient, pixels, 0.1, 1, generator), expected)
    pgd = ATTACKS["pgd"].perturb(gradient, pixels, 0.1, 10, generator)
    assert torch.allclose(pgd, expected, atol=1e-6), "the same corner of the ball"
    is_correct = network(weight, pixels).argmax(1) == labels
    for name, attack in ATTACKS.items():
        for epsilon in (0.01, 0.1, 0.5):
            perturbed = attack.perturb(gradient, pixels, epsilon, 5, generator)
            assert not ((network(weight, perturbed).argmax(1) == labels) & ~is_correct).any(), name


def test_pgd_raises_the_loss_more_than_fgsm_and_both_raise_it(task: Task, networks: list[TrainedNetwork]) -> None:
    config = RobustnessConfig(attacks=("fgsm", "pgd"), epsilon=16, steps=20, images=60)
    test = RobustnessTest(task, config, 0)
    _, labels = test.images

    def loss(pixels: Tensor) -> float:
        logits = predict_logits(networks[0].network, networks[0].theta, task.preprocess.apply(pixels))
        return float(F.cross_entropy(logits, labels))

    clean, fgsm, pgd = (
        loss(pixels) for pixels in (test.images[0], *(test.attack(networks[0], name) for name in ("fgsm", "pgd")))
    )
    assert clean < fgsm <= pgd * 1.0001
    by_name = {row.perturbation: row.accuracy_mean for row in test.run(networks)}
    assert by_name["pgd"] <= by_name["fgsm"] <= by_name[CLEAN]
    assert by_name["pgd"] < by_name[CLEAN]


def test_without_a_change_accuracies_are_those_of_the_images_as_they_are(
    task: Task, networks: list[TrainedNetwork]
) -> None:
    """Those of all test images are the networks' own outcomes."""
    config = RobustnessConfig(attacks=tuple(ATTACKS), epsilon=0, images=1000)
    clean, *attacked = RobustnessTest(task, config, 0).run(networks)
    assert (clean.perturbation, clean.images, clean.n) == (CLEAN, 60, 2)
    assert clean.accuracies == [network.outcome.accuracy for network in networks]
    assert [row.accuracies for row in attacked] == [clean.accuracies] * len(ATTACKS)
    assert [(row.perturbation, row.epsilon, row.steps) for row in attacked] == [("fgsm", 0, 1), ("pgd", 0, 10)]


def test_the_same_seed_gives_the_same_rows(task: Task, networks: list[TrainedNetwork]) -> None:
    def run(seed: int) -> tuple[list[RobustnessRow], Tensor]:
        test = RobustnessTest(task, ALL, seed)
        return test.run(networks), test.attack(networks[0], "pgd")

    (rows, images), (same_rows, same_images), (_, other) = run(0), run(0), run(1)
    assert rows == same_rows
    assert torch.equal(images, same_images)
    assert not torch.equal(images, other)


def test_parameters_that_are_not_finite_score_0(task: Task, networks: list[TrainedNetwork]) -> None:
    lost = networks[0]._replace(theta=torch.full_like(networks[0].theta, torch.nan))
    assert {row.accuracy_mean for row in RobustnessTest(task, ALL, 0).run([lost])} == {0.0}


def test_batch_norm_is_attacked_by_its_running_statistics() -> None:
    """The change of an image does not depend on the other images, as it would by the statistics of a batch."""
    task = make_task(three_classes(3), ModelConfig(width=8, norm="batch"))
    (network,) = trained(task)
    test = RobustnessTest(task, RobustnessConfig(attacks=("fgsm",), images=30), 0)
    pixels, labels = test.images
    gradient = margin_gradient(network.network, network.theta, labels[:1], task.preprocess.apply)
    alone = ATTACKS["fgsm"].perturb(gradient, pixels[:1], 8 / 255, 1, torch.Generator())
    assert (test.attack(network, "fgsm")[:1] != alone).float().mean() < 0.02  # signs of numbers near 0


def test_the_best_network_over_time_keeps_the_statistics_of_its_moment() -> None:
    task = make_task(three_classes(3), ModelConfig(width=8, norm="batch"))
    from limbeck.evaluation.training import Training

    config = EvalConfig(protocol="field-max", test_every=1, batch_size=30)
    trials = make_trials(lambda _seed: task.train, config.schedule(0.5, 8), 3, seed=1)
    for network in train_networks(task, trials, task.test, training=Training(task, config)):
        predictions = predict_logits(network.network, network.theta, task.test[0]).argmax(1)
        assert float((predictions == task.test[1]).double().mean()) == network.outcome.accuracy


# --- corrupted images


def test_whitened_images_are_corrupted_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the test images of the rows, corrupted as pixels and whitened by the matrix, on the network."""
    task = make_task(three_classes(3), ModelConfig(width=8), "zca")
    (network,) = trained(task)
    config = RobustnessConfig(corruptions=("contrast", "shot_noise"), images=1000)
    rows = RobustnessTest(task, config, 3).run([network])
    pixels = task.data.test.images.float() / 255
    state = task.preprocess.state()
    for row in rows[1:]:
        assert row.severity is not None
        images = corrupt(row.perturbation, pixels, row.severity, 3).flatten(1)
        whitened = ((images - state["mean"]) @ state["whiten"]).view(pixels.shape)
        is_correct = task.model(network.theta, whitened).argmax(1) == task.data.test.labels
        assert row.accuracy_mean == pytest.approx(float(is_correct.double().mean()), abs=1e-9)
    assert len({row.accuracy_mean for row in rows}) > 2


def test_passes_are_counted(task: Task, networks: list[TrainedNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate multiplies by them."""
    config = RobustnessConfig(attacks=("fgsm", "pgd"), corruptions=("contrast",), steps=3, images=12)
    counts = {"forward": 0, "gradients": 0}

    def predict(*args: Any) -> Tensor:
        counts["forward"] += 1
        return predict_logits(*args)

    def counted_gradient(*args: Any) -> Any:
        gradient = margin_gradient(*args)

        def call(pixels: Tensor) -> Tensor:
            counts["gradients"] += 1
            return gradient(pixels)

        return call

    monkeypatch.setattr("limbeck.evaluation.robustness.predict_logits", predict)
    monkeypatch.setattr("limbeck.evaluation.robustness.margin_gradient", counted_gradient)
    RobustnessTest(task, config, 0).run(networks[:1])
    assert tuple(counts.values()) == config.passes == (8, 4)
