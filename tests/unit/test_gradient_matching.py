"""Matching of gradients and of features, against autograd on a plain module in float64."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.data.augment import DSA, ComposedDSA
from limbeck.derivatives.autograd import Loss
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.objectives.classes import Discrepancy, MatchClasses, WeightedSum
from limbeck.objectives.features import FeatureDistance
from limbeck.objectives.gradient import DISTANCES, GradientDistance, convolution_indices, weight_indices
from limbeck.objectives.query import RandomRows
from limbeck.select.coresets import rows_by_class
from limbeck.synthetic.set import Decode, SyntheticSet
from limbeck.synthetic.tiles import Partition

pytestmark = pytest.mark.usefixtures("untouched_generators")

CLASSES = 3
MODEL = flat_model(ModelConfig(width=4, depth=2), (2, 8, 8), CLASSES)
LOSS = Loss(CrossEntropy(MODEL))


def theta() -> Tensor:
    """Every tensor is moved, so that gains and biases are in no special place."""
    start = MODEL.init(1).double()
    return start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2)).double()


def module(parameters: Tensor) -> nn.Module:
    """The network as a plain module that holds these parameters."""
    network = deepcopy(MODEL.module).double()
    for parameter, part in zip(network.parameters(), MODEL.layout.split(parameters)):
        parameter.data.copy_(part)
        parameter.requires_grad_()
    return network


def real() -> tuple[Tensor, Tensor]:
    images = torch.randn(30, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return images, torch.arange(30) % CLASSES


def make_set(decode: Decode | None = None, soft: bool = False) -> SyntheticSet:
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(6) // 2
    learned: tuple[str, ...] = ("images",)
    if soft:
        labels, learned = 3 * F.one_hot(labels, CLASSES).double(), ("images", "labels")
    return SyntheticSet.from_images(images, labels, 0.01, learned, decode=decode)


def objective(discrepancy: Discrepancy, **options: Any) -> MatchClasses:
    parameters = theta()
    rows = RandomRows(rows_by_class(real()[1], CLASSES), 7)
    return MatchClasses(real(), rows, lambda step, seed: parameters, discrepancy, **options)


def by_hand(name: str, a: Tensor, b: Tensor) -> Tensor:
    """The four distances row by row."""
    if name == "mse":
        return ((a - b) ** 2).sum()
    if name == "l1":
        return (a - b).abs().sum()
    rows = list(zip(a.reshape(len(a), -1), b.reshape(len(b), -1)))
    if name == "l1_mean":
        return sum(((x - y).abs().mean() for x, y in rows), start=torch.zeros(()).double())
    angles = [1 - torch.dot(x, y) / (x.norm() * y.norm() + 1e-6) for x, y in rows]
    return torch.stack(angles).sum()


@pytest.mark.parametrize("name", DISTANCES)
def test_distances(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 3, 3, 3), (4, 6), (1, 9)):
        a, b = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
        torch.testing.assert_close(DISTANCES[name](a, b), by_hand(name, a, b))
        assert DISTANCES[name](a, a) == pytest.approx(0, abs=1e-5)
        assert torch.autograd.gradcheck(lambda x, y=b: DISTANCES[name](x, y), (a.requires_grad_(),))


def test_cosine_survives_rows_of_zeros() -> None:
    zero = torch.zeros(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(DISTANCES["cosine"](zero, torch.ones(3, 4)), zero)
    assert bool(torch.isfinite(gradient).all())


def test_indices_of_weights_and_convolutions() -> None:
    shapes = MODEL.layout.shapes
    assert [len(shapes[i]) for i in convolution_indices(MODEL.layout)] == [4, 4]
    assert [len(shapes[i]) for i in weight_indices(MODEL.layout)] == [4, 4, 2]
    assert {i for i, shape in enumerate(shapes) if len(shape) == 1}.isdisjoint(weight_indices(MODEL.layout))
    with pytest.raises(UserError, match="use dc or dsa"):
        convolution_indices(flat_model(ModelConfig(name="mlp"), (2, 8, 8), CLASSES).layout)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "logits"])
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("layers", ["conv", "all"])
@pytest.mark.parametrize("name", DISTANCES)
def test_the_whole_gradient_is_that_of_one_graph(name: str, layers: str, factor: int, soft: bool) -> None:
    """All classes in one graph on a plain nn.Module, differentiated once."""
    decode: Decode | None = None if factor == 1 else Partition(factor, pad=(0.3, -0.2))
    synthetic = make_set(decode, soft)
    indices = (convolution_indices if layers == "conv" else weight_indices)(MODEL.layout)
    augment = ComposedDSA(DSA("color_crop_flip_cutout", siamese=True))
    match = objective(GradientDistance(LOSS, MODEL.layout, indices, DISTANCES[name]), augment=augment)
    seeds: list[int] = []

    def spy(images: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return augment(images, seed)

    loss = replace(match, augment=spy)(synthetic, 3, 9)
    loss.backward()
    assert seeds[0::2] == seeds[1::2]  # siamese: one seed for real and synthetic images
    assert len(set(seeds)) == CLASSES

    net = module(theta())
    weights = [p for p in net.parameters() if p.dim() == 4 or (layers == "all" and p.dim() == 2)]
    images = synthetic.images.detach().clone().requires_grad_()
    logits = synthetic.labels.detach().clone()
    if soft:
        logits.requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    real_images, real_labels = real()
    for label in range(CLASSES):
        rows = match.rows(3, label, 9)
        target = torch.autograd.grad(
            F.cross_entropy(net(augment(real_images[rows], seeds[2 * label])), real_labels[rows]), weights
        )
        rows = (logits.argmax(1) if soft else logits) == label
        training, labels = decode(images[rows], logits[rows]) if decode else (images[rows], logits[rows])
        labels = labels.softmax(1) if soft else labels
        gradients = torch.autograd.grad(
            F.cross_entropy(net(augment(training, seeds[2 * label])), labels), weights, create_graph=True
        )
        total = total + sum(by_hand(name, a, b) for a, b in zip(gradients, target))
    torch.testing.assert_close(loss.detach(), total.detach())
    expected = torch.autograd.grad(total, [images, logits] if soft else [images])
    torch.testing.assert_close(synthetic.images.grad, expected[0], rtol=1e-9, atol=1e-12)
    if soft:
        torch.testing.assert_close(synthetic.labels.grad, expected[1], rtol=1e-9, atol=1e-12)
    assert synthetic.log_lr.grad is None


def test_the_gradient_meets_finite_differences() -> None:
    synthetic = make_set(Partition(2))
    match = objective(GradientDistance(LOSS, MODEL.layout, convolution_indices(MODEL.layout), DISTANCES["mse"]))
    match(synthetic, 0, 0).backward()
    assert synthetic.images.grad is not None
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(synthetic.images.shape, dtype=torch.float64, generator=generator)
    values, small = [], 1e-5
    for sign in (1, -1):
        shifted = replace(synthetic, images=(synthetic.images.detach() + sign * small * direction).requires_grad_())
        values.append(float(match(shifted, 0, 0).detach()))
    measured = (values[0] - values[1]) / (2 * small)
    assert measured == pytest.approx(float((synthetic.images.grad * direction).sum()), rel=1e-6)


def test_no_gradient_reaches_a_network_or_the_data() -> None:
    parameters = theta()
    data = real()
    copy = data[0].clone()
    rows = RandomRows(rows_by_class(data[1], CLASSES), 7)
    distance = GradientDistance(LOSS, MODEL.layout, weight_indices(MODEL.layout), DISTANCES["cosine"])
    synthetic = make_set()
    MatchClasses(data, rows, lambda step, seed: parameters, distance)(synthetic, 0, 0).backward()
    assert parameters.grad is None
    assert not parameters.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in MODEL.module.parameters())
    assert torch.equal(data[0], copy)


def test_a_class_does_not_depend_on_the_others() -> None:
    """What a class's loss is does not depend on the other classes' images, and its gradient is in its rows alone."""
    distance = GradientDistance(LOSS, MODEL.layout, convolution_indices(MODEL.layout), DISTANCES["l1"])
    match = objective(distance)
    synthetic = make_set()
    match(synthetic, 0, 0).backward()
    assert synthetic.images.grad is not None
    for label in range(CLASSES):
        rows = synthetic.labels == label
        single = SyntheticSet.from_images(synthetic.images[rows], synthetic.labels[rows], 0.01, ("images",))
        match(single, 0, 0).backward()
        assert single.images.grad is not None
        assert torch.equal(single.images.grad, synthetic.images.grad[rows])


def test_max_images_limits_a_class() -> None:
    counts: list[int] = []

    def count(parameters: Tensor, truth: Any, pair: Any) -> Tensor:
        counts.append(len(pair[0]))
        total: Tensor = pair[0].sum()
        return total

    match = objective(count, max_images=5)
    synthetic = make_set(Partition(2))  # 8 training images a class
    assert torch.equal(match(synthetic, 0, 0), match(synthetic, 0, 0))
    assert not torch.equal(match(synthetic, 0, 0), match(synthetic, 1, 0))
    assert set(counts) == {5}


# --- features


def test_distribution_matching_in_closed_form() -> None:
    """Sum over classes of |mean features of real - mean features of synthetic|^2, and its gradient."""
    match, synthetic = objective(FeatureDistance(MODEL)), make_set()
    loss = match(synthetic, 2, 0)
    loss.backward()
    net = module(theta())
    assert isinstance(net.features, nn.Module)
    real_images, _ = real()
    images = synthetic.images.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for label in range(CLASSES):
        truth = net.features(real_images[match.rows(2, label, 0)]).flatten(1).mean(0)
        total = total + (net.features(images[synthetic.labels == label]).flatten(1).mean(0) - truth).pow(2).sum()
    torch.testing.assert_close(loss.detach(), total.detach())
    torch.testing.assert_close(synthetic.images.grad, torch.autograd.grad(total, images)[0])


def test_features_of_the_same_images_are_matched() -> None:
    real_images, real_labels = real()
    synthetic = SyntheticSet.from_images(real_images, real_labels, 0.01, ("images",))
    match = replace(objective(FeatureDistance(MODEL)), rows=RandomRows(rows_by_class(real_labels, CLASSES), 100))
    assert float(match(synthetic, 0, 0).detach()) == pytest.approx(0, abs=1e-20)


def test_discrepancies_add_up() -> None:
    gradient = GradientDistance(LOSS, MODEL.layout, convolution_indices(MODEL.layout), DISTANCES["mse"])
    features = FeatureDistance(MODEL)
    values, grads = [], []
    for discrepancy in (gradient, features, WeightedSum(((1.0, gradient), (0.5, features)))):
        synthetic = make_set()
        loss = objective(discrepancy)(synthetic, 0, 0)
        loss.backward()
        assert synthetic.images.grad is not None
        values.append(loss.detach())
        grads.append(synthetic.images.grad)
    torch.testing.assert_close(values[2], values[0] + 0.5 * values[1])
    torch.testing.assert_close(grads[2], grads[0] + 0.5 * grads[1])
