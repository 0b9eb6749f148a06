"""Features of all classes at once, networks along experts, and characteristic functions, against closed forms."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import derive_seed
from limbeck.data.augment import DSA, ComposedDSA
from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.derivatives.convnet import convnet_derivatives
from limbeck.derivatives.image_functions import ImageFunctions
from limbeck.experts import Convexified, ExpertConfig, Recorded, convexify
from limbeck.methods import METHODS, DataFacts, MethodInputs, Plan
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.objectives.along_experts import Ahead, AlongExperts, Anywhere, AtEnd
from limbeck.objectives.characteristic import CharacteristicDistance, characteristic_function
from limbeck.objectives.classes import ClassPairs, MatchClasses
from limbeck.objectives.combine import Sum
from limbeck.objectives.features import (
    ClassCrossEntropy,
    ClassFeatures,
    FeatureDistance,
    MatchFeatures,
    mean_distance,
)
from limbeck.objectives.query import RandomRows
from limbeck.select.coresets import rows_by_class
from limbeck.synthetic.loop import Objective
from limbeck.synthetic.set import SyntheticSet
from limbeck.synthetic.tiles import Partition
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("untouched_generators")

CLASSES = 3
MODEL = flat_model(ModelConfig(width=4, depth=2), (2, 8, 8), CLASSES)
CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


THETA = MODEL.init(1).double() + 0.1 * draw(MODEL.layout.count, seed=2)
REAL = draw(30, 2, 8, 8, seed=3), torch.arange(30) % CLASSES
PAIRS = ClassPairs(REAL, RandomRows(rows_by_class(REAL[1], CLASSES), 7), ComposedDSA(DSA("color_crop", siamese=True)))


def make_set(factor: int = 1, soft: bool = False) -> SyntheticSet:
    labels = torch.arange(6) // 2
    decode = Partition(factor) if factor > 1 else None
    images = draw(6, 2, 8, 8, seed=4)
    if not soft:
        return SyntheticSet.from_images(images, labels, 0.01, ("images",), decode=decode)
    logits = 3 * F.one_hot(labels, CLASSES).double()
    return SyntheticSet.from_images(images, logits, 0.01, ("images", "labels"), decode=decode)


def value_and_gradients(objective: Objective, synthetic: SyntheticSet) -> list[Tensor]:
    value = objective(synthetic, 3, 5)
    value.backward()
    return [value.detach(), *(p.grad for p in synthetic.parameters().values() if p.grad is not None)]


def always(step: int, seed: int) -> Tensor:
    return THETA


# --- all classes at once


@pytest.mark.parametrize("together", [1, 4, 500])
@pytest.mark.parametrize("factor", [1, 2])
def test_features_of_all_classes_are_those_of_one_class_after_another(factor: int, together: int) -> None:
    pairs = replace(PAIRS, max_images=5)
    at_once = MatchFeatures(pairs, always, MODEL.features, mean_distance, together)
    by_class = MatchClasses(pairs.real, pairs.rows, always, FeatureDistance(MODEL), pairs.augment, pairs.max_images)
    results = [value_and_gradients(objective, make_set(factor)) for objective in (at_once, by_class)]
    assert len(results[0]) == 2
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def plain_module() -> nn.Module:
    network = deepcopy(MODEL.module).double()
    for parameter, part in zip(network.parameters(), MODEL.layout.split(THETA)):
        parameter.data.copy_(part)
    return network


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "logits"])
@pytest.mark.parametrize("together", [1, 500])
def test_the_cross_entropy_is_that_of_a_plain_module(together: int, soft: bool) -> None:
    """The sum over classes of the mean over the images of the class, in one graph."""
    synthetic = make_set(2, soft)
    results = value_and_gradients(ClassCrossEntropy(PAIRS, always, MODEL, together), synthetic)
    network, leaves = plain_module(), [p.detach().clone().requires_grad_() for p in synthetic.parameters().values()]
    images, raw = leaves[0], leaves[1] if soft else synthetic.labels
    total = torch.zeros((), dtype=torch.float64)
    for label in range(CLASSES):
        rows = torch.arange(6) // 2 == label
        tiles, labels = Partition(2)(images[rows], raw[rows])
        assert PAIRS.augment is not None
        augmented = PAIRS.augment(tiles, derive_seed(5, "siamese", 3, label))
        total = total + F.cross_entropy(network(augmented), labels.softmax(1) if soft else labels)
    expected = [total.detach(), *torch.autograd.grad(total, leaves)]
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


def test_a_class_moves_by_its_own_images_alone() -> None:
    """A summed step is the sum of the steps of the classes, and the distance alone sees no labels."""
    distance = MatchFeatures(PAIRS, always, MODEL.features)
    objective = Sum(((1.0, distance), (2.5, ClassCrossEntropy(PAIRS, always, MODEL))))
    _, whole = value_and_gradients(objective, make_set())
    for label in range(CLASSES):
        synthetic = make_set()
        rows = synthetic.labels == label
        single = SyntheticSet.from_images(synthetic.images[rows], synthetic.labels[rows], 0.01, ("images",))
        _, gradient = value_and_gradients(objective, single)
        torch.testing.assert_close(gradient, whole[rows], rtol=1e-10, atol=1e-13)
    assert len(value_and_gradients(distance, make_set(soft=True))) == 2, "a gradient in labels"
    torch.testing.assert_close(
        value_and_gradients(Sum(((1.0, distance), (0.0, ClassCrossEntropy(PAIRS, always, MODEL)))), make_set())[1],
        value_and_gradients(distance, make_set())[1],
    )


# --- networks along experts


def path(count: int = 2, schedule: str = "arc") -> Convexified:
    points = torch.cumsum(torch.randn(11, MODEL.layout.count, generator=torch.Generator().manual_seed(1)), 0)
    return convexify(points, MODEL.layout, tuple(round(i * 10 / (count - 1)) for i in range(count)), schedule=schedule)


def test_a_uniform_place_on_two_waypoints_is_a_point_of_their_chord() -> None:
    """NCFM's mixture: theta = l theta_0 + (1 - l) theta_K, l uniform, one number for all tensors."""
    expert = path(schedule="uniform")
    source = AlongExperts([expert], Anywhere(), CPU)
    start, chord = expert.waypoints[0], expert.waypoints[1] - expert.waypoints[0]
    parts = []
    for step in range(200):
        share = torch.dot(source(step, 0) - start, chord) / chord.dot(chord)
        torch.testing.assert_close(source(step, 0), start + share * chord, rtol=1e-4, atol=1e-4)
        parts.append(float(share))
    quantiles = np.quantile(parts, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.5, 0.9], atol=0.12)


class Straight:
    """A trajectory of one parameter: its epoch, and the number of the expert before the decimal point."""

    def __init__(self, number: int, end: int):
        self.number, self.end = number, end

    def at(self, t: float) -> Tensor:
        return torch.tensor([100.0 * self.number, t])


def test_places_of_one_step_are_on_the_same_expert_and_in_order() -> None:
    experts = [Straight(number, 10 + number) for number in range(3)]
    near, far, last = (AlongExperts(experts, place, CPU) for place in (Anywhere(), Ahead(0.1), AtEnd()))
    numbers, gaps = set(), []
    for step in range(100):
        (number, t), (same, later), (also, end) = (source(step, 7).tolist() for source in (near, far, last))
        assert number == same == also
        assert 0 <= t <= later <= end
        assert later - t <= 0.1 * end + 1e-4
        assert near(step, 7).tolist() == [number, t]
        numbers.add(number)
        gaps.append((later - t) / (0.1 * end))
    assert numbers == {0.0, 100.0, 200.0}
    assert 0.35 < float(np.mean(gaps)) < 0.6


def test_whole_places_are_all_epochs_of_a_recorded_path() -> None:
    expert = Recorded(torch.arange(5.0)[:, None])
    source = AlongExperts([expert], Anywhere(whole=True), CPU)
    assert {float(source(step, 0)) for step in range(80)} == {0.0, 1.0, 2.0, 3.0, 4.0}


# --- characteristic functions


def features(n: int, seed: int) -> Tensor:
    return F.normalize(draw(n, 5, seed=seed), dim=1)


def batch(*parts: Tensor) -> ClassFeatures:
    return ClassFeatures(torch.cat(parts), [len(part) for part in parts])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_distance_is_the_papers_formula_in_complex_numbers(alpha: float) -> None:
    real, synthetic = (features(9, 0), features(4, 1)), (features(3, 2), features(6, 3))
    distance = CharacteristicDistance(40, scale=7.0, alpha=alpha)
    frequencies = distance.frequencies(real[0], 2, 3).numpy()
    total = 0.0
    for truth, part in zip(real, synthetic):
        a, b = (np.exp(1j * frequencies @ x.numpy().T).mean(1) for x in (truth, part))
        amplitude = (abs(a) - abs(b)) ** 2
        phase = 2 * (abs(a) * abs(b) - a.real * b.real - a.imag * b.imag)
        total += 7.0 * float(np.sqrt(alpha * amplitude + (1 - alpha) * phase).mean())
        if alpha == 0.5:
            assert np.allclose(alpha * amplitude + (1 - alpha) * phase, abs(a - b) ** 2 / 2)
    assert float(distance(batch(*real), batch(*synthetic), 2, 3)) == pytest.approx(total, rel=1e-6)


def test_the_distance_is_0_of_equal_sets_in_any_order_and_number() -> None:
    x = features(8, 0)
    distance = CharacteristicDistance(64)
    shuffled = x[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert float(distance(batch(x), batch(shuffled), 0, 0)) < 1e-3  # the root of the smallest term is not 0
    other = features(5, 1)
    values = [float(distance(batch(x), batch(y), 0, 0)) for y in (other, torch.cat([other, other]), 3 * other)]
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
    assert values[0] > 1


def test_the_mean_squared_difference_is_the_gaussian_kernels_discrepancy() -> None:
    """Of |Phi_real - Phi_synthetic|^2 over t from N(0, I): the squared MMD with exp(-|x - y|^2 / 2)."""
    x, y = features(6, 0), features(4, 1)
    frequencies = CharacteristicDistance(100_000).frequencies(x, 0, 0)
    (re, im), (re1, im1) = (characteristic_function(batch(z), frequencies) for z in (x, y))
    measured = float(((re - re1).square() + (im - im1).square()).mean())
    kernel = {
        (i, j): (-torch.cdist(a, b).square() / 2).exp().mean()
        for i, a in enumerate((x, y))
        for j, b in enumerate((x, y))
    }
    assert measured == pytest.approx(float(kernel[0, 0] + kernel[1, 1] - 2 * kernel[0, 1]), rel=0.02)


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_the_gradient_of_the_distance(alpha: float) -> None:
    x, y = features(6, 0), features(4, 1).requires_grad_()
    distance = CharacteristicDistance(10, alpha=alpha)
    assert torch.autograd.gradcheck(lambda y: distance(batch(x), batch(y), 0, 0), (y,))
    equal = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(batch(x), batch(equal), 0, 0), equal)
    assert bool(torch.isfinite(gradient).all())


def test_frequencies_are_drawn_for_a_step_and_shared_by_its_classes() -> None:
    distance = CharacteristicDistance(10)
    x = features(3, 0)
    assert torch.equal(distance.frequencies(x, 1, 0), distance.frequencies(x[:1], 1, 0))
    assert not torch.equal(distance.frequencies(x, 1, 0), distance.frequencies(x, 2, 0))
    one, other = (float(distance(batch(x, x), batch(y, y), 1, 0)) for y in (features(3, 1), features(3, 2)))
    assert one == pytest.approx(2 * float(distance(batch(x), batch(features(3, 1)), 1, 0)))
    assert one != other


# --- methods


def recipe(name: str, task: Task, trajectories: list[Any], **options: Any) -> Plan:
    method = METHODS[name]
    config = method.resolve_options(method.config(**options), DataFacts(len(task.data.train), 2, ExpertConfig()))
    return method.plan(config, MethodInputs(task, trajectories, 2, 0))


def test_tgdd_on_an_expert_that_does_not_move_is_dm_on_that_network(task: Task) -> None:
    theta = task.model.init(0)
    expert = convexify(torch.stack([theta, theta]), task.model.layout, (0, 1))
    tgdd = recipe("tgdd", task, [expert], alpha=0, factor=1, batch_real=8)
    assert isinstance(tgdd.objective, MatchFeatures)
    pairs = tgdd.objective.pairs
    dm = MatchClasses(pairs.real, pairs.rows, lambda step, seed: theta, FeatureDistance(task.model), pairs.augment)
    losses = [objective(tgdd.synthetic, 1, 0) for objective in (tgdd.objective, dm)]
    torch.testing.assert_close(losses[0].detach(), losses[1].detach())


def test_the_optimiser_steps_in_pixel_space(task: Task) -> None:
    """One step of SGD, or of Adam, changes pixels as it would if they were learned themselves."""
    expert = convexify(torch.stack([task.model.init(0), task.model.init(1)]), task.model.layout, (0, 1))
    std = float(task.preprocess.state()["std"])
    for optimiser, expected in (("sgd", lambda grad: 0.1 * grad / std), ("adam", lambda grad: 0.1 * grad.sign())):
        plan = recipe("tgdd", task, [expert], optimizer=optimiser, lr_img=0.1, batch_real=8)
        before = plan.synthetic.images.detach().clone()
        plan.objective(plan.synthetic, 0, 0).backward()
        assert plan.synthetic.images.grad is not None
        change = expected(plan.synthetic.images.grad)
        plan.optimisers[0].step()
        pixels = std * (before - plan.synthetic.images.detach())
        moved = plan.synthetic.images.grad.abs() > 1e-4
        torch.testing.assert_close(pixels[moved], change[moved], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "idc", "dream"])
def test_every_class_matcher_takes_networks_from_experts(name: str, task: Task) -> None:
    """Recorded ones at whole epochs; and a sentence where there is no store."""
    points = torch.stack([task.model.init(index) for index in range(3)])
    small = {"batch_real": 8, "pool": 20, "network": "experts"}
    plan = recipe(name, task, [Recorded(points)], **small)
    assert isinstance(plan.objective, MatchClasses)
    thetas = [plan.objective.network(step, 0) for step in range(20)]
    indices = {index for theta in thetas for index in range(3) if torch.equal(theta, points[index])}
    assert len(thetas) == 20
    assert indices == {0, 1, 2}
    plan.objective(plan.synthetic, 0, 0).backward()
    assert plan.synthetic.images.grad is not None
    for hook in plan.hooks:
        hook(plan.synthetic, 1, 0.0)
    with pytest.raises(UserError, match="--experts FOLDER"):
        recipe(name, task, [], **small)


# --- compiled features


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 26)])
def test_compiled_features_and_logits_are_those_of_the_network(shape: tuple[int, int, int]) -> None:
    """Values, and derivatives in the images along a random direction, in float64."""
    model = flat_model(ModelConfig(width=5, depth=2), shape, 4)
    compiled = convnet_derivatives(model, torch.float64, "cpu")
    if not isinstance(compiled, CompiledDerivatives):
        pytest.skip("no kernels")
    functions, plain = ImageFunctions(model, compiled), ImageFunctions(model)
    theta = model.init(0).double() + 0.1 * draw(model.layout.count, seed=1)
    for name in ("features", "logits"):
        images = draw(23, *shape, seed=2).requires_grad_()
        results = []
        for source in (functions, plain):
            values = getattr(source, name)(theta, images)
            (gradient,) = torch.autograd.grad(values, images, draw(*values.shape, seed=3))
            results.append((values.detach(), gradient))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert functions.features(theta, draw(0, *shape)).shape == (0, compiled.width)
    single = functions.features(theta.float(), draw(2, *shape).float())  # of another type: by autograd
    assert torch.equal(single, plain.features(theta.float(), draw(2, *shape).float()))
