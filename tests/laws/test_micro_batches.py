"""A student step whose images are computed in parts has the gradient of one batch, at the memory of a part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck import UserError
from limbeck.core.rng import make_generator
from limbeck.core.types import Batch
from limbeck.data import ImageData
from limbeck.data.augment import DSA
from limbeck.derivatives.autograd import Loss, NeedsGrad
from limbeck.derivatives.micro_batches import MicroBatches
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ConvNet, ModelConfig
from limbeck.objectives import displacement
from limbeck.task import Task, make_task
from limbeck.training import unroll

IMAGES, CLASSES = 7, 3


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("size", [1, 3, 7, 20])
@pytest.mark.parametrize("soft", [False, True])
def test_parts_have_the_gradient_of_one_batch(size: int, soft: bool) -> None:
    generator = make_generator(0, "parts")
    model = FlatModel(lambda: ConvNet(1, (8, 8), CLASSES, depth=2, width=4).double())
    function = CrossEntropy(model, DSA("color_crop_cutout_scale_rotate"))
    parts = MicroBatches(function, Loss(CrossEntropy(model)), size)
    images = torch.randn(IMAGES, 1, 8, 8, generator=generator, dtype=torch.double)
    labels = torch.arange(IMAGES) % CLASSES
    if soft:
        labels = torch.randn(IMAGES, CLASSES, generator=generator, dtype=torch.double).softmax(1)
    start = model.init(0).double()
    values = []
    for loss in (Loss(function), parts):
        leaves = [images.clone().requires_grad_(), torch.tensor(0.1, dtype=torch.double, requires_grad=True)]
        leaves += [labels.clone().requires_grad_()] if soft else []
        batches = [Batch(leaves[0], leaves[-1] if soft else labels, seed) for seed in (1, 2, 3)]
        distance = displacement(unroll(loss, start, batches, leaves[1]), start, torch.zeros_like(start))
        values.append([distance.detach(), *torch.autograd.grad(distance, leaves)])
    assert all(relative(part, whole) < 1e-12 for whole, part in zip(*values, strict=True))


def test_the_machine_s_derivatives_have_parts_too(task: Task) -> None:
    theta, seed = task.model.init(1), 5
    direction = torch.randn(len(theta), generator=make_generator(0, "direction"))
    batch = Batch(task.train[0][:50], task.train[1][:50], seed)
    whole, parts = task.loss, task.loss_in_parts(16)
    assert relative(parts.gradient(theta, batch), whole.gradient(theta, batch)) < 1e-5
    needs = NeedsGrad(theta=True, images=True, labels=False)
    for one, other in zip(parts.hvp(theta, batch, direction, needs), whole.hvp(theta, batch, direction, needs)):
        assert one is None if other is None else one is not None and relative(one, other) < 1e-4


def test_only_a_part_goes_through_the_network() -> None:
    sizes = []

    def count(theta: Tensor, batch: Batch) -> Tensor:
        sizes.append(len(batch.images))
        return (batch.images.mean() * theta**3).sum()

    model = FlatModel(lambda: ConvNet(1, (8, 8), CLASSES, depth=1, width=4))
    loss = MicroBatches(CrossEntropy(model), Loss(count), 3)
    batch = Batch(torch.ones(IMAGES, 1, 8, 8), torch.zeros(IMAGES, dtype=torch.int64))
    loss.gradient(torch.ones(2), batch)
    loss.hvp(torch.ones(2), batch, torch.ones(2), NeedsGrad(True, True, False))
    assert sizes == [3, 3, 1, 3, 3, 1]


def test_batch_norm_is_refused(digits: ImageData) -> None:
    task = make_task(digits, ModelConfig(width=4, norm="batch"))
    with pytest.raises(UserError, match="--micro-batch does not go with the batch norm"):
        task.loss_in_parts(2)
