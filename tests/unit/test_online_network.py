"""The ageing network: new in time, trained as torch trains, taken up bit for bit; and CutMix against its definition."""

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


def small(task: Task) -> SyntheticSet:
    images, labels = task.train
    return SyntheticSet.from_images(images[:12], labels[:12], 0.01, ("images",))


def lessons(task: Task, kind: str) -> TrainingBatches:
    if kind == "real":
        return RealBatches(task.train, 10, 3, 16, 5, DSA("color_crop"))
    return SyntheticBatches(2, 5, 5, DSA("color_crop"))


def pool(task: Task, kind: str = "real", every: int = 4, seed: int = 3) -> OnlineNetwork:
    fresh = RandomInit(task.model, seed, task.device)
    return OnlineNetwork(task.loss_with(None), fresh, every, lessons(task, kind), Sgd(0.05, 0.9, 5e-4))


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_it_ages_and_is_renewed(task: Task, kind: str) -> None:
    held, made = pool(task, kind), small(task)
    fresh = RandomInit(task.model, 3, task.device)
    assert torch.equal(held.parameters(), fresh(0))
    seen = [held.parameters()]
    for step in range(1, 9):
        held(made, step, 0.0)
        seen.append(held.parameters())
    assert len({tuple(theta[:5].tolist()) for theta in seen}) == 9
    assert torch.equal(seen[4], fresh(1))
    assert torch.equal(seen[8], fresh(2))
    assert not torch.equal(seen[0], seen[4])
    assert made.images.grad is None
    again = pool(task, kind)
    for step in range(1, 9):
        again(made, step, 0.0)
    assert torch.equal(again.parameters(), seen[8])


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_it_is_trained_as_torch_trains_a_module(task: Task, kind: str) -> None:
    """torch.optim.SGD with momentum and weight decay on the module itself, over the same lessons."""
    held, made = pool(task, kind, every=100), small(task)
    module = deepcopy(task.model.module)
    for parameter, part in zip(module.parameters(), task.model.layout.split(held.parameters())):
        parameter.data.copy_(part)
        parameter.requires_grad_()
    optimiser = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for step in (1, 2, 3):
        held(made, step, 0.0)
        for images, labels in lessons(task, kind)(made, step):
            optimiser.zero_grad()
            F.cross_entropy(module(images), labels).backward()
            optimiser.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    torch.testing.assert_close(held.parameters(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["real", "synthetic"])
@pytest.mark.parametrize("at", [2, 4, 5])
def test_it_is_taken_up_bit_for_bit(task: Task, kind: str, at: int) -> None:
    """In the life of a network, at its start, and after one lesson."""
    whole, made = pool(task, kind), small(task)
    for step in range(1, 8):
        whole(made, step, 0.0)
        if step == at:
            kept = {name: tensor.clone() for name, tensor in whole.state().items()}
    again = pool(task, kind)
    again.restore(kept, at)
    for step in range(at + 1, 8):
        again(made, step, 0.0)
    assert all(torch.equal(tensor, whole.state()[name]) for name, tensor in again.state().items())


def test_lessons_lower_the_loss(task: Task) -> None:
    held, made = pool(task, every=100), small(task)
    images, labels = task.train

    def loss() -> float:
        return float(F.cross_entropy(task.model(held.parameters(), images), labels))

    before = loss()
    for step in range(1, 20):
        held(made, step, 0.0)
    assert loss() < before


def test_a_warm_up_is_an_epoch_of_plain_training(task: Task) -> None:
    schedule = Schedule(1, 0.05, 32, 0.9, 5e-4)
    warm = WarmUp(task.loss_with(DSA("crop")), task.train, schedule)
    fresh = RandomInit(task.model, 3, task.device, warm)
    cold = RandomInit(task.model, 3, task.device)
    images, labels = task.train
    assert torch.equal(fresh(0), fresh(0))
    assert not torch.equal(fresh(0), fresh(1))
    losses = [float(F.cross_entropy(task.model(each(0), images), labels)) for each in (cold, fresh)]
    assert losses[1] < losses[0]


def test_lessons_of_real_images(task: Task) -> None:
    plain = RealBatches(task.train, 10, 4, 16, 5, cutmix=0.0)
    made = small(task)
    held = list(plain(made, 1))
    assert len(held) == 4
    images, labels = task.train
    for batch, target in held:
        assert batch.shape == (16, 1, 8, 8)
        assert bool((target.sum(1) == 1).all())
        away = torch.cdist(batch.flatten(1).double(), images.flatten(1).double())
        assert float(away.min(1).values.max()) < 1e-3
        assert torch.equal(labels[away.argmin(1)], target.argmax(1))
    assert not torch.equal(held[0][0], held[1][0])
    assert not torch.equal(held[0][0], next(iter(plain(made, 2)))[0])
    mixed = {
        part: sum(bool((t.max(1).values < 1).any()) for _, t in replace(plain, cutmix=part, steps=60)(made, 1))
        for part in (0.0, 0.5, 1.0)
    }
    assert mixed[0.0] == 0
    assert 10 < mixed[0.5] < 45 < mixed[1.0]  # a box can be empty


def test_lessons_of_the_synthetic_set_pass_over_it(task: Task) -> None:
    made = small(task)
    held = list(SyntheticBatches(2, 5, 0)(made, 1))
    assert [len(images) for images, _ in held] == [5, 5, 2, 5, 5, 2]
    for part in (held[:3], held[3:]):
        seen = torch.cat([images for images, _ in part])
        assert float(torch.cdist(made.images.detach().flatten(1), seen.flatten(1)).min(1).values.max()) < 1e-3
    assert not any(images.requires_grad for images, _ in held)


# --- CutMix


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_is_a_box_of_another_image_and_its_share_of_the_label(seed: int) -> None:
    """Images that say everywhere which they are: what is pasted is one rectangle, of one other image."""
    count, height, width = 6, 10, 7
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, height, width).clone()
    labels = torch.eye(6)
    before = images.clone()
    made, target = cutmix(images, labels, torch.Generator().manual_seed(seed))
    assert torch.equal(images, before)
    boxes = []
    for i in range(count):
        foreign = made[i, 0] != i
        assert torch.equal(made[i, 0], made[i, 1])
        share = float(foreign.double().mean())
        if not foreign.any():
            continue  # it was mixed with itself, or the box is empty
        (other,) = made[i, 0][foreign].unique().tolist()
        rows, columns = foreign.any(1).nonzero().flatten(), foreign.any(0).nonzero().flatten()
        assert bool(foreign[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
        boxes.append((int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])))
        expected = torch.zeros(6)
        expected[i], expected[int(other)] = 1 - share, share
        torch.testing.assert_close(target[i], expected)
    assert len(set(boxes)) <= 1
    torch.testing.assert_close(target.sum(1), torch.ones(6))


def test_cutmix_again_from_the_same_draws() -> None:
    """The paper's formulas over the same uniform numbers, pixel by pixel; and the loss is the mixture of both."""
    images = torch.randn(5, 1, 9, 12, generator=torch.Generator().manual_seed(0))
    labels = F.one_hot(torch.arange(5) % 3, 3).float()
    for seed in range(20):
        made, target = cutmix(images, labels, torch.Generator().manual_seed(seed))
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
        assert torch.equal(made, expected)
        share = 1 - area / (9 * 12)
        logits = torch.randn(5, 3, generator=generator)

        def loss(wanted: Tensor, logits: Tensor = logits) -> Tensor:
            return F.cross_entropy(logits, wanted)

        mixture = share * loss(labels) + (1 - share) * loss(labels[order])
        torch.testing.assert_close(loss(target), mixture)


def test_boxes_are_of_all_sizes() -> None:
    """lambda is uniform: the mean share that is kept is about a half or more, since boxes are cut at the border."""
    kept = []
    for seed in range(300):
        _, target = cutmix(torch.zeros(2, 1, 32, 32), torch.eye(2), torch.Generator().manual_seed(seed))
        kept.append(float(target.max()))
    assert min(kept) < 0.6
    assert max(kept) > 0.98
