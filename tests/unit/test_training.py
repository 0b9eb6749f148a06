"""Training against torch's own optimiser on the plain module, and the scores against scikit-learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.networks.flat import FlatModel, Layout
from limbeck.networks.registry import MLP, ConvNet
from limbeck.training import CrossEntropy
from limbeck.training.plain import Schedule, final_parameters, predict, score, train

pytestmark = pytest.mark.usefixtures("untouched_generators")

MODULES = {
    "convnet": lambda: ConvNet(1, (8, 8), 3, depth=2, width=4),
    "mlp": lambda: MLP(1, (8, 8), 3, width=16),
}


def pair(count: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(3, (count,), generator=generator)


def load_module(model: FlatModel, theta: Tensor) -> nn.Module:
    """An ordinary module with these parameters, apart from the flat model's."""
    with torch.random.fork_rng(devices=[]):
        module = model.build()
    module.load_state_dict({name: part.clone() for name, part in zip(model.layout.names, model.layout.split(theta))})
    return module


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_the_flat_model_is_the_module(build: object) -> None:
    model = FlatModel(build)  # type: ignore[arg-type]
    theta, (images, _) = model.init(3), pair()
    module = load_module(model, theta)
    torch.testing.assert_close(model(theta, images), module(images), rtol=1e-6, atol=1e-6)
    assert model.layout.count == sum(parameter.numel() for parameter in module.parameters())
    assert torch.equal(model.layout.join([parameter.detach() for parameter in module.parameters()]), theta)
    torch.testing.assert_close(model(theta, images), module.classifier(model.features(theta, images)))  # type: ignore[operator]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(3, 0.1, 8),
        Schedule(3, 0.1, 100, momentum=0.9),
        Schedule(4, 0.1, 8, momentum=0.9, weight_decay=5e-3, drop=2),
    ],
    ids=["plain", "whole set", "drop"],
)
def test_training_is_torchs_sgd_on_the_module(schedule: Schedule) -> None:
    model = FlatModel(MODULES["convnet"])
    theta0, (images, labels) = model.init(0), pair()
    start = theta0.clone()
    path = list(train(CrossEntropy(model), theta0, images, labels, schedule, seed=5))

    module = load_module(model, theta0)
    options = {"momentum": schedule.momentum, "weight_decay": schedule.weight_decay}
    optimiser = torch.optim.SGD(module.parameters(), schedule.lr, **options)
    expected_path = [theta0]
    for epoch in range(schedule.epochs):
        if epoch == schedule.drop:
            optimiser = torch.optim.SGD(module.parameters(), schedule.lr / 10, **options)
        order = torch.randperm(len(images), generator=make_generator(5, "order", epoch))
        for rows in order.split(schedule.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(module(images[rows]), labels[rows]).backward()
            optimiser.step()
        expected_path.append(model.layout.join([parameter.detach() for parameter in module.parameters()]))

    assert len(path) == schedule.epochs + 1
    assert torch.equal(path[0], start)
    assert torch.equal(theta0, start)
    for actual, expected in zip(path, expected_path, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    assert len({theta.data_ptr() for theta in path}) == len(path)  # copies, not views of one vector


def test_the_step_size_drops_to_a_tenth() -> None:
    model = FlatModel(MODULES["mlp"])
    theta0, (images, labels) = model.init(0), pair()

    def change(drop: int | None) -> Tensor:
        path = list(train(CrossEntropy(model), theta0, images, labels, Schedule(1, 0.01, 100, drop=drop), 0))
        return path[1] - path[0]

    torch.testing.assert_close(10 * change(0), change(None), rtol=1e-2, atol=1e-6)


def test_training_repeats_and_depends_on_the_seed() -> None:
    model = FlatModel(MODULES["mlp"])
    ends = [
        final_parameters(train(CrossEntropy(model), model.init(0), *pair(), Schedule(2, 0.1, 8), seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_soft_labels_that_are_hard_train_alike() -> None:
    model, (images, labels) = FlatModel(MODULES["mlp"]), pair()
    one_hot = F.one_hot(labels, 3).float()
    ends = [
        final_parameters(train(CrossEntropy(model), model.init(0), images, y, Schedule(2, 0.1, 8), 0))
        for y in (labels, one_hot)
    ]
    torch.testing.assert_close(*ends)


def test_the_scores_are_scikit_learns() -> None:
    model, (images, _) = FlatModel(MODULES["convnet"]), pair(700)
    theta = model.init(1)
    guess = predict(model, theta, images)
    assert torch.equal(guess, model(theta, images).argmax(1))
    generator = torch.Generator().manual_seed(2)
    random_guess = torch.randint(3, (700,), generator=generator)
    labels = torch.where(torch.rand(700, generator=generator) < 0.6, guess, random_guess)
    labels[labels == 2] = torch.where(torch.arange(int((labels == 2).sum())) % 9 == 0, 2, 0)  # unbalanced
    result = score(model, theta, images, labels)
    assert result.accuracy == pytest.approx(accuracy_score(labels, guess), abs=1e-12)
    present = torch.isin(guess, labels.unique())
    assert present.all()
    assert result.balanced == pytest.approx(balanced_accuracy_score(labels, guess), abs=1e-12)
    assert abs(result.accuracy - result.balanced) > 1e-3


def test_a_class_without_images_does_not_count() -> None:
    model, (images, _) = FlatModel(MODULES["mlp"]), pair(10)
    theta = model.init(1)
    labels = predict(model, theta, images)
    assert score(model, theta, images, labels) == (1.0, 1.0)
    assert score(model, theta, images, torch.full_like(labels, 7)) == (0.0, 0.0)


def test_broken_parameters_score_zero() -> None:
    model, (images, labels) = FlatModel(MODULES["mlp"]), pair()
    assert score(model, torch.full((model.layout.count,), float("nan")), images, labels) == (0.0, 0.0)


def test_a_fresh_start_comes_from_the_seed_alone() -> None:
    model = FlatModel(MODULES["convnet"])
    first = model.init(1, "a")
    assert torch.equal(first, model.init(1, "a"))
    assert torch.equal(first, FlatModel(MODULES["convnet"]).init(1, "a"))
    others = [model.init(2, "a"), model.init(1, "b"), model.init(1)]
    assert not any(torch.equal(first, end) for end in others)
    assert first[model.layout.sizes[0] + 4 :][:4].tolist() == [1.0] * 4  # GroupNorm's weight begins at one


def test_a_layout_refuses_the_wrong_shape() -> None:
    layout = Layout(("a", "b"), ((2, 3), (2,)))
    with pytest.raises(ValueError, match="parameter a"):
        layout.join([torch.zeros(3, 2), torch.zeros(2)])
    assert layout.per_tensor(torch.tensor([1.0, 2.0])).tolist() == [1.0] * 6 + [2.0] * 2


def test_a_network_without_classifier_has_no_features() -> None:
    with pytest.raises(UserError, match="classifier"):
        FlatModel(lambda: nn.Linear(2, 2)).features(torch.zeros(6), torch.zeros(1, 2))
