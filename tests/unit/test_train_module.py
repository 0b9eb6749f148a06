"""Training of any torch module on a set, against the training of a flat network by the same schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data import ImageData
from limbeck.data.augment import DSA, CanvasCrop
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import MODELS, ModelConfig, flat_model
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.recipe import CHOSEN_LR
from limbeck.task import Task
from limbeck.training.module import train_module
from limbeck.training.plain import final_parameters, make_schedule, train

SHAPE = (1, 8, 8)


@pytest.fixture
def small(task: Task, digits: ImageData) -> DistilledSet:
    rows = torch.arange(40)
    images, labels = task.train[0][rows], task.train[1][rows]
    recipe = {"epochs": 12, "batch_size": 16, "momentum": 0.9, "weight_decay": 5e-4, "augment": "crop_rotate"}
    return DistilledSet(images, labels, 0.03, task.preprocess, digits.classes, recipe, {})


def flat_parameters(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("options", [{}, {"optimiser": "adamw", "decay": "cosine"}, {"ema": 0.9}], ids=str)
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_a_module_is_trained_as_the_flat_network_is(name: str, options: dict[str, Any], small: DistilledSet) -> None:
    model = flat_model(ModelConfig(name=name, width=4), SHAPE, 10)
    theta, augment = model.init(3), DSA("crop_rotate")
    module = MODELS[name](1, (8, 8), 10, width=4)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), model.layout.split(theta)):
            parameter.copy_(value)
    schedule = make_schedule(10, 0.003, 16, **options)
    for _ in train_module(module, small.images, small.labels, schedule, 7, lambda x, y, seed: (augment(x, seed), y)):
        pass
    path = train(CrossEntropy(model, augment=augment), theta, small.images, small.labels, schedule, 7)
    expected = final_parameters(path)
    assert (expected - theta).norm() > 0.03  # it moved
    torch.testing.assert_close(flat_parameters(module), expected, atol=1e-4, rtol=1e-3)


def test_batch_norm_and_dropout_work_as_torch_has_them(small: DistilledSet, digits: ImageData) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(512, 10)
    )
    assert small.train(network) is network
    assert not network.training
    assert network[1].num_batches_tracked == 12 * 3
    images, labels = digits.test.images, digits.test.labels
    assert small.accuracy(network, images, labels) > 0.4
    alone = small.accuracy(network, images[:1], labels[:1])
    assert alone in (0.0, 1.0)
    expected = (network(small.preprocess.apply(images)).argmax(1) == labels).float().mean()
    assert small.accuracy(network, images, labels) == pytest.approx(float(expected))


def test_the_same_seed_gives_the_same_network(small: DistilledSet) -> None:
    start = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict()

    def trained(seed: int, **options: Any) -> Tensor:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        network.load_state_dict(start)
        return flat_parameters(small.train(network, seed=seed, **options))

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))
    assert not torch.equal(trained(0), trained(0, lr=0.01))
    assert not torch.equal(trained(0), trained(0, epochs=5))


@pytest.mark.parametrize(
    "change",
    [{"dsa": "none"}, {"mix": "cutmix"}, {"mix": "mixup"}, {"labels": "hard"}, {"optimiser": "adamw"}],
    ids=str,
)
def test_what_the_recipe_says_is_done(change: dict[str, str], small: DistilledSet) -> None:
    soft = replace(small, labels=torch.full((40, 10), 0.02).scatter_(1, small.labels[:, None], 0.82))
    start = nn.Linear(64, 10).state_dict()

    def trained(distilled: DistilledSet) -> Tensor:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        network[1].load_state_dict(start)
        return flat_parameters(distilled.train(network, lr=0.003))

    changed = replace(soft, recipe={**soft.recipe, **change})
    assert not torch.equal(trained(changed), trained(soft))
    if change == {"labels": "hard"}:
        assert torch.equal(trained(changed), trained(small))


def test_canvases_are_cropped(small: DistilledSet) -> None:
    canvas = replace(small, images=torch.randn(40, 1, 16, 16, generator=make_generator(0)))
    canvas = replace(canvas, provenance={"config": {"canvas": 2}})
    assert canvas.augment == CanvasCrop((8, 8), DSA("crop_rotate"))
    canvas.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))  # which takes 8 x 8 pixels


def test_what_cannot_be_followed_is_refused(small: DistilledSet) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for change, words in (({"labels": "teacher"}, "teacher"), ({"augment": None}, "augmentation")):
        with pytest.raises(UserError, match=words):
            replace(small, recipe={**small.recipe, **change}).train(network)
    with pytest.raises(UserError, match="epochs"):
        replace(small, recipe={"augment": "none"}).train(network)
    adamw = replace(small, recipe={**small.recipe, "optimiser": "adamw"})
    with pytest.raises(UserError, match=r"0.03 was learned with SGD, and its recipe trains by AdamW; .*lr=0.001"):
        adamw.train(network)
    chosen = replace(adamw, provenance={"lr": CHOSEN_LR})
    assert chosen.train(network) is network
    with pytest.raises(UserError, match="no parameters"):
        small.train(nn.Flatten())


def test_a_network_in_training_mode_is_tested_in_evaluation_mode(small: DistilledSet, digits: ImageData) -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 10))
    small.train(network)
    images, labels = digits.test.images, digits.test.labels
    expected, statistics = small.accuracy(network, images, labels), network[1].running_mean.clone()
    network.train()
    assert small.accuracy(network, images, labels) == expected
    assert network.training
    assert torch.equal(network[1].running_mean, statistics)
    with pytest.raises(UserError, match="no images"):
        small.accuracy(network, images[:0], labels[:0])
    assert 0 <= small.accuracy(nn.Flatten(), images, labels) <= 1  # which has no parameters
