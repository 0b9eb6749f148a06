"""Methods that match class by class: their plans, options, tiles, initial sets and first steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import UserError
from limbeck.data.augment import DSA
from limbeck.experts import ExpertConfig
from limbeck.methods import METHODS, DataFacts, MethodInputs, Plan
from limbeck.methods.class_matching import mean_pixel_variance
from limbeck.networks.registry import ModelConfig
from limbeck.objectives.classes import MatchClasses
from limbeck.objectives.gradient import GradientDistance, convolution_indices
from limbeck.synthetic.hooks import make_clamp_hooks
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task, make_task

pytestmark = pytest.mark.usefixtures("untouched_generators")


def recipe(name: str, task: Task, ipc: int = 2, seed: int = 0, **options: Any) -> Plan:
    method = METHODS[name]
    config = method.resolve_options(method.config(**options), DataFacts(len(task.data.train), ipc, ExpertConfig()))
    return method.plan(config, MethodInputs(task, [], ipc, seed))


def test_idc_without_tiles_is_dsa_by_the_same_settings(task: Task) -> None:
    """Bit for bit: the recipes differ in settings alone."""
    scale_task = replace(task, augment=DSA("scale"))
    idc = recipe("idc", scale_task, factor=1, distance="cosine", match_augment="scale", inner=2)
    dsa = recipe("dsa", scale_task, inner=2)
    assert isinstance(idc.objective, MatchClasses)
    assert isinstance(dsa.objective, MatchClasses)
    assert isinstance(dsa.objective.discrepancy, GradientDistance)
    assert torch.equal(idc.synthetic.images, dsa.synthetic.images)
    conv = replace(dsa.objective.discrepancy, indices=convolution_indices(scale_task.model.layout))
    convolutions_only = replace(dsa.objective, discrepancy=conv, augment=idc.objective.augment)
    idc_loss, dsa_loss = idc.objective(idc.synthetic, 0, 0), convolutions_only(dsa.synthetic, 0, 0)
    idc_loss.backward()
    dsa_loss.backward()
    assert torch.equal(idc_loss, dsa_loss)
    assert idc.synthetic.images.grad is not None
    assert dsa.synthetic.images.grad is not None
    assert torch.equal(idc.synthetic.images.grad, dsa.synthetic.images.grad)


@pytest.mark.parametrize("how", ["single", "multi", "bound"])
def test_tiles_are_shrunk_real_images_of_their_class(task: Task, how: str) -> None:
    plan = recipe("idc", task, factor=2, how=how)
    assert plan.synthetic.images.shape == (20, 1, 8, 8)
    images, labels = plan.synthetic.training_pair()
    assert labels.bincount().tolist() == [len(labels) // 10] * 10
    real_images, real_labels = task.train
    shrunk = F.interpolate(F.adaptive_avg_pool2d(real_images, 4), size=(8, 8), mode="bilinear", align_corners=False)
    if how != "multi":
        away = torch.cdist(images.detach().flatten(1).double(), shrunk.flatten(1).double())
        assert float(away.min(1).values.max()) < 1e-3
        assert torch.equal(real_labels[away.argmin(1)], labels)


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "idc", "dream"])
@pytest.mark.parametrize("policy", ["random", "dream", "centre", "boundary"])
def test_every_method_takes_every_policy(task: Task, name: str, policy: str) -> None:
    plan = recipe(name, task, policy=policy, batch_real=8, pool=20)
    loss = plan.objective(plan.synthetic, 0, 0)
    loss.backward()
    assert plan.synthetic.images.grad is not None
    assert plan.synthetic.images.grad.norm() > 0
    assert len(plan.hooks) >= (1 if policy == "random" else 2)


@pytest.mark.parametrize("init", ["random", "kmeans", "kmeans-features", "dream", "noise"])
def test_every_init(task: Task, init: str) -> None:
    plan = recipe("dream", task, init=init, factor=3)
    assert plan.synthetic.images.shape == (20, 1, 8, 8)
    assert bool(torch.isfinite(plan.synthetic.images).all())


def test_a_class_with_too_few_images_for_tiles_is_refused(task: Task) -> None:
    with pytest.raises(UserError, match="factor"):
        recipe("dream", task, ipc=20, factor=2)


@pytest.mark.parametrize("name", ["idc", "dream", "dream-plus", "rat-bptt"])
@pytest.mark.parametrize("factor", [1, 2])
def test_whitened_images_are_matched(digits: Any, name: str, factor: int) -> None:
    plan = recipe(name, make_task(digits, ModelConfig(width=4), "zca"), factor=factor)
    plan.objective(plan.synthetic, 0, 0).backward()
    assert plan.synthetic.images.grad is not None
    assert plan.synthetic.images.grad.norm() > 0


def test_pixels_stay_between_black_and_white(task: Task) -> None:
    (hook,) = make_clamp_hooks(task.preprocess)
    synthetic = SyntheticSet.from_images(
        torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 9, torch.arange(5), 0.1
    )
    pixels = task.preprocess.invert(synthetic.images.detach().clone())
    hook(synthetic, 1, 0.0)
    torch.testing.assert_close(task.preprocess.invert(synthetic.images.detach()), pixels.clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_a_step_in_pixel_space(digits: Any, kind: str) -> None:
    """The step size in input space moves pixels as the given one does in pixel space; for ZCA on average."""
    task = make_task(digits, ModelConfig(width=4), kind)
    variance = mean_pixel_variance(task.preprocess)
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(400, 1, 8, 8, generator=generator)
    pixels = torch.rand(400, 1, 8, 8, generator=generator).requires_grad_()
    (task.preprocess.apply(pixels) * slope).sum().backward()
    expected = task.preprocess.invert(task.preprocess.apply(pixels.detach()) - slope / variance)
    assert pixels.grad is not None
    if kind == "normalise":
        torch.testing.assert_close(pixels.detach() - expected, pixels.grad, rtol=1e-4, atol=1e-4)
    else:  # a pixel's squared change is, on average, that of the variance
        change = task.preprocess.invert(slope) - task.preprocess.invert(torch.zeros_like(slope))
        assert float(change.square().mean()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "idc", "dream", "dream-plus"])
def test_ten_steps_lower_the_loss(task: Task, name: str) -> None:
    """Of the same network, rows and draws before and after."""
    plan = recipe(name, task, ipc=1)
    assert isinstance(plan.objective, MatchClasses)
    network = plan.objective.network(0, 0)
    match = replace(plan.objective, network=lambda step, seed: network)
    first = sum(float(match(plan.synthetic, step, 77).detach()) for step in range(3))
    outer_loop(match, plan.synthetic, plan.optimisers, range(10), 0)
    last = sum(float(match(plan.synthetic, step, 77).detach()) for step in range(3))
    assert last < first


def test_loops_are_those_of_the_paper() -> None:
    config = METHODS["dc"].config()
    loops = {
        ipc: METHODS["dc"].resolve_options(config, DataFacts(1000, ipc, ExpertConfig())) for ipc in (1, 10, 20, 50, 100)
    }
    assert {ipc: (resolved.inner, resolved.net_epochs) for ipc, resolved in loops.items()} == {
        **{1: (1, 500), 10: (10, 50), 20: (20, 25), 50: (50, 10), 100: (50, 10)}
    }
