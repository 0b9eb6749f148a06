"""The online network is renewed, trained as by torch, and resumed with the same bits; CutMix is its definition."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.data.augment import DSA
from limbeck.data.cutmix import cutmix
from limbeck.objectives.online_network import (
    OnlineNetwork,
    RandomInit,
    RealBatches,
    Sgd,
    SyntheticBatches,
    TrainingBatches,
    WarmUp,
)
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training.plain import Schedule

pytestmark = pytest.mark.usefixtures("untouched_generators")


def synthetic_set(task: Task) -> SyntheticSet:
    images, labels = task.train
    return SyntheticSet.from_images(images[:12], labels[:12], 0.01, ("images",))


def training_batches(task: Task, kind: str) -> TrainingBatches:
    if kind == "real":
        return RealBatches(task.train, 10, 3, 16, 5, DSA("color_crop"))
    return SyntheticBatches(2, 5, 5, DSA("color_crop"))


def online_network(task: Task, kind: str = "real", every: int = 4, seed: int = 3) -> OnlineNetwork:
    init = RandomInit(task.model, seed, task.device)
    return OnlineNetwork(task.loss_with(None), init, every, training_batches(task, kind), Sgd(0.05, 0.9, 5e-4))


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_the_network_is_trained_and_renewed(task: Task, kind: str) -> None:
    network, synthetic = online_network(task, kind), synthetic_set(task)
    init = RandomInit(task.model, 3, task.device)
    assert torch.equal(network.parameters(), init(0))
    thetas = [network.parameters()]
    for step in range(1, 9):
        network(synthetic, step, 0.0)
        thetas.append(network.parameters())
    assert len({tuple(theta[:5].tolist()) for theta in thetas}) == 9
    assert torch.equal(thetas[4], init(1))
    assert torch.equal(thetas[8], init(2))
    assert not torch.equal(thetas[0], thetas[4])
    assert synthetic.images.grad is None
    resumed = online_network(task, kind)
    for step in range(1, 9):
        resumed(synthetic, step, 0.0)
    assert torch.equal(resumed.parameters(), thetas[8])


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_it_is_trained_as_torch_trains_a_module(task: Task, kind: str) -> None:
    """torch.optim.SGD with momentum and weight decay on the module itself, over the same lessons."""
    network, synthetic = online_network(task, kind, every=100), synthetic_set(task)
    module = deepcopy(task.model.module)
    for parameter, part in zip(module.parameters(), task.model.layout.split(network.parameters())):
        parameter.data.copy_(part)
        parameter.requires_grad_()
    optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for step in (1, 2, 3):
        network(synthetic, step, 0.0)
        for images, labels in training_batches(task, kind)(synthetic, step):
            optimiser.zero_grad()
            F.cross_entropy(module(images), labels).backward()
            optimiser.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    torch.testing.assert_close(network.parameters(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["real", "synthetic"])
@pytest.mark.parametrize("at", [2, 4, 5])
def test_it_resumes_with_the_same_bits(task: Task, kind: str, at: int) -> None:
    """In the life of a network, at its start, and after one lesson."""
    network, synthetic = online_network(task, kind), synthetic_set(task)
    for step in range(1, 8):
        network(synthetic, step, 0.0)
        if step == at:
            state = {name: tensor.clone() for name, tensor in network.state().items()}
    resumed = online_network(task, kind)
    resumed.restore(state, at)
    for step in range(at + 1, 8):
        resumed(synthetic, step, 0.0)
    assert all(torch.equal(tensor, network.state()[name]) for name, tensor in resumed.state().items())


def test_training_batches_lower_the_loss(task: Task) -> None:
    network, synthetic = online_network(task, every=100), synthetic_set(task)
    images, labels = task.train

    def loss() -> float:
        return float(F.cross_entropy(task.model(network.parameters(), images), labels))

    first_loss = loss()
    for step in range(1, 20):
        network(synthetic, step, 0.0)
    assert loss() < first_loss


def test_a_warm_up_is_an_epoch_of_training(task: Task) -> None:
    schedule = Schedule(1, 0.05, 32, 0.9, 5e-4)
    warm_up = WarmUp(task.loss_with(DSA("crop")), task.train, schedule)
    init = RandomInit(task.model, 3, task.device, warm_up)
    cold = RandomInit(task.model, 3, task.device)
    images, labels = task.train
    assert torch.equal(init(0), init(0))
    assert not torch.equal(init(0), init(1))
    losses = [float(F.cross_entropy(task.model(start(0), images), labels)) for start in (cold, init)]
    assert losses[1] < losses[0]


def test_real_batches(task: Task) -> None:
    real_batches = RealBatches(task.train, 10, 4, 16, 5, cutmix=0.0)
    synthetic = synthetic_set(task)
    batches = list(real_batches(synthetic, 1))
    assert len(batches) == 4
    images, labels = task.train
    for batch, target in batches:
        assert batch.shape == (16, 1, 8, 8)
        assert bool((target.sum(1) == 1).all())
        away = torch.cdist(batch.flatten(1).double(), images.flatten(1).double())
        assert float(away.min(1).values.max()) < 1e-3
        assert torch.equal(labels[away.argmin(1)], target.argmax(1))
    assert not torch.equal(batches[0][0], batches[1][0])
    assert not torch.equal(batches[0][0], next(iter(real_batches(synthetic, 2)))[0])
    mixed_counts = {
        part: sum(
            bool((t.max(1).values < 1).any()) for _, t in replace(real_batches, cutmix=part, steps=60)(synthetic, 1)
        )
        for part in (0.0, 0.5, 1.0)
    }
    assert mixed_counts[0.0] == 0
    assert 10 < mixed_counts[0.5] < 45 < mixed_counts[1.0]  # a box can be empty


def test_synthetic_batches_pass_over_the_set(task: Task) -> None:
    synthetic = synthetic_set(task)
    batches = list(SyntheticBatches(2, 5, 0)(synthetic, 1))
    assert [len(images) for images, _ in batches] == [5, 5, 2, 5, 5, 2]
    for part in (batches[:3], batches[3:]):
        part_images = torch.cat([images for images, _ in part])
        assert (
            float(torch.cdist(synthetic.images.detach().flatten(1), part_images.flatten(1)).min(1).values.max()) < 1e-3
        )
    assert not any(images.requires_grad for images, _ in batches)


# --- CutMix


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_is_a_box_of_another_image_and_its_share_of_the_label(seed: int) -> None:
    """Images that say everywhere which they are: what is pasted is one rectangle, of one other image."""
    count, height, width = 6, 10, 7
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, height, width).clone()
    labels = torch.eye(6)
    copy = images.clone()
    mixed, target = cutmix(images, labels, torch.Generator().manual_seed(seed))
    assert torch.equal(images, copy)
    boxes = []
    for i in range(count):
        foreign = mixed[i, 0] != i
        assert torch.equal(mixed[i, 0], mixed[i, 1])
        share = float(foreign.double().mean())
        if not foreign.any():
            continue  # it was mixed with itself, or the box is empty
        (label,) = mixed[i, 0][foreign].unique().tolist()
        rows, columns = foreign.any(1).nonzero().flatten(), foreign.any(0).nonzero().flatten()
        assert bool(foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        boxes.append((int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))
        expected = torch.zeros(6)
        expected[i], expected[int(label)] = 1 - share, share
        torch.testing.assert_close(target[i], expected)
    assert len(set(boxes)) <= 1
    torch.testing.assert_close(target.sum(1), torch.ones(6))


def test_cutmix_again_from_the_same_draws() -> None:
    """The paper's formulas over the same uniform numbers, pixel by pixel; and the loss is the mixture of both."""
    images = torch.randn(5, 1, 9, 12, generator=torch.Generator().manual_seed(0))
    labels = F.one_hot(torch.arange(5) % 3, 3).float()
    for seed in range(20):
        mixed, target = cutmix(images, labels, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        keep, y, x = torch.rand(3, generator=generator).tolist()
        order = torch.randperm(5, generator=generator)
        high, wide = int(9 * (1 - keep) ** 0.5) // 2, int(12 * (1 - keep) ** 0.5) // 2
        expected, area = images.clone(), 0
        for row in range(9):
            for column in range(12):
                if int(9 * y) - high <= row < int(9 * y) + high and int(12 * x) - wide <= column < int(12 * x) + wide:
                    expected[:, :, row, column] = images[order, :, row, column]
                    area += 1
        assert torch.equal(mixed, expected)
        share = 1 - area / (9 * 12)
        logits = torch.randn(5, 3, generator=generator)

        def loss(probabilities: Tensor, logits: Tensor = logits) -> Tensor:
            return F.cross_entropy(logits, probabilities)

        mixture = share * loss(labels) + (1 - share) * loss(labels[order])
        torch.testing.assert_close(loss(target), mixture)


def test_boxes_are_of_all_sizes() -> None:
    """lambda is uniform: the mean share that is kept is about a half or more, since boxes are cut at the border."""
    shares = []
    for seed in range(300):
        _, target = cutmix(torch.zeros(2, 1, 32, 32), torch.eye(2), torch.Generator().manual_seed(seed))
        shares.append(float(target.max()))
    assert min(shares) < 0.6
    assert max(shares) > 0.98
