"""Matching of gradients and of features: against autograd on a plain module, written out here, in float64."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data.augment import DSA, ComposedDSA, Draw
from limbeck.derivatives.autograd import Loss
from limbeck.experts import ExpertConfig
from limbeck.methods import METHODS, DataFacts, MethodInputs, Plan
from limbeck.methods.class_matching import mean_pixel_variance
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.objectives.classes import Discrepancy, MatchClasses, WeightedSum
from limbeck.objectives.features import FeatureDistance
from limbeck.objectives.gradient import DISTANCES, GradientDistance, convolution_indices, weight_indices
from limbeck.objectives.query import RandomRows, rows_by_class
from limbeck.synthetic.hooks import make_clamp_hooks
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import Decode, SyntheticSet
from limbeck.synthetic.tiles import Partition
from limbeck.task import Task, make_task

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
    return MatchClasses(real(), rows, lambda: parameters, discrepancy, **options)


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
    MatchClasses(data, rows, lambda: parameters, distance)(synthetic, 0, 0).backward()
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


# --- augmentation


def test_siamese_draws_are_equal() -> None:
    """Two batches of different size with the same seed are changed alike, and each image as every other."""
    image = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for augment in (DSA(siamese=True), ComposedDSA(DSA(siamese=True))):
        changed = set()
        for seed in range(20):
            five, two = augment(image.expand(5, -1, -1, -1), seed), augment(image.expand(2, -1, -1, -1), seed)
            assert torch.equal(five[:2], two)
            assert all(torch.equal(image, five[0]) for image in five)
            changed.add(not torch.equal(five[:1], image))
        assert True in changed


def test_images_are_augmented_independently_otherwise() -> None:
    real_images = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1, -1)
    augmented = ComposedDSA(DSA("color"))(real_images, 0)
    assert not torch.equal(augmented[0], augmented[1])
    assert torch.equal(ComposedDSA(DSA("none"))(real_images, 0), real_images)


def test_composed_dsa_is_flip_colour_one_geometry_and_cutout() -> None:
    """The draws again, one after the other, from the same stream."""
    picture = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    dsa = DSA("crop_color_scale_cutout_rotate_flip")
    families = set()
    for seed in range(12):
        generator = make_generator(seed, "augment")
        geometry = ("crop", "scale", "rotate")[int(torch.randint(3, (), generator=generator))]
        families.add(geometry)
        expected = picture
        for family in ("flip", "color", geometry, "cutout"):
            expected = dsa.apply(expected, Draw(family, torch.rand(3, 3, generator=generator)))
        assert torch.equal(ComposedDSA(dsa)(picture, seed), expected)
    assert families == {"crop", "scale", "rotate"}
    mirrored = ComposedDSA(DSA("flip", flip=1.0))(picture, 0)
    assert torch.equal(mirrored, picture.flip(3))


# --- recipes


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


def test_whitened_images_have_no_tiles(digits: Any) -> None:
    task = make_task(digits, ModelConfig(width=4), "zca")
    with pytest.raises(UserError, match="whitening"):
        recipe("dream", task)
    plan = recipe("dream", task, factor=1)
    plan.objective(plan.synthetic, 0, 0).backward()


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
    network = plan.objective.network()
    match = replace(plan.objective, network=lambda: network)
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
