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
    made = deepcopy(MODEL.module).double()
    for held, part in zip(made.parameters(), MODEL.layout.split(parameters)):
        held.data.copy_(part)
        held.requires_grad_()
    return made


def real() -> tuple[Tensor, Tensor]:
    images = torch.randn(30, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return images, torch.arange(30) % CLASSES


def synthetic(decode: Decode | None = None, soft: bool = False) -> SyntheticSet:
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(6) // 2
    learned: tuple[str, ...] = ("images",)
    if soft:
        labels, learned = 3 * F.one_hot(labels, CLASSES).double(), ("images", "labels")
    return SyntheticSet.from_images(images, labels, 0.01, learned, decode=decode)


def objective(discrepancy: Discrepancy, **more: Any) -> MatchClasses:
    parameters = theta()
    rows = RandomRows(rows_by_class(real()[1], CLASSES), 7)
    return MatchClasses(real(), rows, lambda: parameters, discrepancy, **more)


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


def test_which_tensors() -> None:
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
    held = synthetic(decode, soft)
    indices = (convolution_indices if layers == "conv" else weight_indices)(MODEL.layout)
    augment = ComposedDSA(DSA("color_crop_flip_cutout", siamese=True))
    matched = objective(GradientDistance(LOSS, MODEL.layout, indices, DISTANCES[name]), augment=augment)
    seeds: list[int] = []

    def spy(images: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return augment(images, seed)

    loss = replace(matched, augment=spy)(held, 3, 9)
    loss.backward()
    assert seeds[0::2] == seeds[1::2]  # siamese: one seed for real and synthetic images
    assert len(set(seeds)) == CLASSES

    net = module(theta())
    kept = [p for p in net.parameters() if p.dim() == 4 or (layers == "all" and p.dim() == 2)]
    images = held.images.detach().clone().requires_grad_()
    logits = held.labels.detach().clone()
    if soft:
        logits.requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    everything, known = real()
    for label in range(CLASSES):
        rows = matched.rows(3, label, 9)
        target = torch.autograd.grad(
            F.cross_entropy(net(augment(everything[rows], seeds[2 * label])), known[rows]), kept
        )
        mine = (logits.argmax(1) if soft else logits) == label
        training, labels = decode(images[mine], logits[mine]) if decode else (images[mine], logits[mine])
        labels = labels.softmax(1) if soft else labels
        ours = torch.autograd.grad(
            F.cross_entropy(net(augment(training, seeds[2 * label])), labels), kept, create_graph=True
        )
        total = total + sum(by_hand(name, a, b) for a, b in zip(ours, target))
    torch.testing.assert_close(loss.detach(), total.detach())
    expected = torch.autograd.grad(total, [images, logits] if soft else [images])
    torch.testing.assert_close(held.images.grad, expected[0], rtol=1e-9, atol=1e-12)
    if soft:
        torch.testing.assert_close(held.labels.grad, expected[1], rtol=1e-9, atol=1e-12)
    assert held.log_lr.grad is None


def test_the_gradient_meets_finite_differences() -> None:
    held = synthetic(Partition(2))
    matched = objective(GradientDistance(LOSS, MODEL.layout, convolution_indices(MODEL.layout), DISTANCES["mse"]))
    matched(held, 0, 0).backward()
    assert held.images.grad is not None
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(held.images.shape, dtype=torch.float64, generator=generator)
    values, small = [], 1e-5
    for sign in (1, -1):
        moved = replace(held, images=(held.images.detach() + sign * small * direction).requires_grad_())
        values.append(float(matched(moved, 0, 0).detach()))
    measured = (values[0] - values[1]) / (2 * small)
    assert measured == pytest.approx(float((held.images.grad * direction).sum()), rel=1e-6)


def test_no_gradient_reaches_a_network_or_the_data() -> None:
    parameters = theta()
    data = real()
    before = data[0].clone()
    rows = RandomRows(rows_by_class(data[1], CLASSES), 7)
    distance = GradientDistance(LOSS, MODEL.layout, weight_indices(MODEL.layout), DISTANCES["cosine"])
    held = synthetic()
    MatchClasses(data, rows, lambda: parameters, distance)(held, 0, 0).backward()
    assert parameters.grad is None
    assert not parameters.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in MODEL.module.parameters())
    assert torch.equal(data[0], before)


def test_only_one_class_at_a_time() -> None:
    """What a class's loss is does not depend on the other classes' images, and its gradient is in its rows alone."""
    distance = GradientDistance(LOSS, MODEL.layout, convolution_indices(MODEL.layout), DISTANCES["l1"])
    matched = objective(distance)
    whole = synthetic()
    matched(whole, 0, 0).backward()
    assert whole.images.grad is not None
    for label in range(CLASSES):
        mine = whole.labels == label
        alone = SyntheticSet.from_images(whole.images[mine], whole.labels[mine], 0.01, ("images",))
        matched(alone, 0, 0).backward()
        assert alone.images.grad is not None
        assert torch.equal(alone.images.grad, whole.images.grad[mine])


def test_at_most_so_many_synthetic_images() -> None:
    seen: list[int] = []

    def count(parameters: Tensor, truth: Any, made: Any) -> Tensor:
        seen.append(len(made[0]))
        total: Tensor = made[0].sum()
        return total

    matched = objective(count, max_images=5)
    held = synthetic(Partition(2))  # 8 training images a class
    assert torch.equal(matched(held, 0, 0), matched(held, 0, 0))
    assert not torch.equal(matched(held, 0, 0), matched(held, 1, 0))
    assert set(seen) == {5}


# --- features


def test_distribution_matching_in_closed_form() -> None:
    """Sum over classes of |mean features of real - mean features of synthetic|^2, and its gradient."""
    matched, held = objective(FeatureDistance(MODEL)), synthetic()
    loss = matched(held, 2, 0)
    loss.backward()
    net = module(theta())
    assert isinstance(net.features, nn.Module)
    everything, _ = real()
    images = held.images.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for label in range(CLASSES):
        truth = net.features(everything[matched.rows(2, label, 0)]).flatten(1).mean(0)
        total = total + (net.features(images[held.labels == label]).flatten(1).mean(0) - truth).pow(2).sum()
    torch.testing.assert_close(loss.detach(), total.detach())
    torch.testing.assert_close(held.images.grad, torch.autograd.grad(total, images)[0])


def test_features_of_the_same_images_are_matched() -> None:
    everything, known = real()
    held = SyntheticSet.from_images(everything, known, 0.01, ("images",))
    whole = replace(objective(FeatureDistance(MODEL)), rows=RandomRows(rows_by_class(known, CLASSES), 100))
    assert float(whole(held, 0, 0).detach()) == pytest.approx(0, abs=1e-20)


def test_discrepancies_add_up() -> None:
    gradient = GradientDistance(LOSS, MODEL.layout, convolution_indices(MODEL.layout), DISTANCES["mse"])
    features = FeatureDistance(MODEL)
    values, grads = [], []
    for each in (gradient, features, WeightedSum(((1.0, gradient), (0.5, features)))):
        held = synthetic()
        loss = objective(each)(held, 0, 0)
        loss.backward()
        assert held.images.grad is not None
        values.append(loss.detach())
        grads.append(held.images.grad)
    torch.testing.assert_close(values[2], values[0] + 0.5 * values[1])
    torch.testing.assert_close(grads[2], grads[0] + 0.5 * grads[1])


# --- augmentation


def test_siamese_draws_are_equal() -> None:
    """Two batches of different size with the same seed are changed alike, and each image as every other."""
    one = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for augment in (DSA(siamese=True), ComposedDSA(DSA(siamese=True))):
        changed = set()
        for seed in range(20):
            many, few = augment(one.expand(5, -1, -1, -1), seed), augment(one.expand(2, -1, -1, -1), seed)
            assert torch.equal(many[:2], few)
            assert all(torch.equal(image, many[0]) for image in many)
            changed.add(not torch.equal(many[:1], one))
        assert True in changed


def test_images_are_augmented_each_for_itself_otherwise() -> None:
    one = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).expand(5, -1, -1, -1)
    made = ComposedDSA(DSA("color"))(one, 0)
    assert not torch.equal(made[0], made[1])
    assert torch.equal(ComposedDSA(DSA("none"))(one, 0), one)


def test_layers_are_flip_colour_one_of_the_rest_and_cutout() -> None:
    """The draws again, one after the other, from the same stream."""
    picture = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    dsa = DSA("crop_color_scale_cutout_rotate_flip")
    seen = set()
    for seed in range(12):
        generator = make_generator(seed, "augment")
        one = ("crop", "scale", "rotate")[int(torch.randint(3, (), generator=generator))]
        seen.add(one)
        expected = picture
        for family in ("flip", "color", one, "cutout"):
            expected = dsa.apply(expected, Draw(family, torch.rand(3, 3, generator=generator)))
        assert torch.equal(ComposedDSA(dsa)(picture, seed), expected)
    assert seen == {"crop", "scale", "rotate"}
    mirrored = ComposedDSA(DSA("flip", flip=1.0))(picture, 0)
    assert torch.equal(mirrored, picture.flip(3))


# --- recipes


def recipe(name: str, task: Task, ipc: int = 2, seed: int = 0, **options: Any) -> Plan:
    method = METHODS[name]
    config = method.resolve_options(method.config(**options), DataFacts(len(task.data.train), ipc, ExpertConfig()))
    return method.plan(config, MethodInputs(task, [], ipc, seed))


def test_idc_without_tiles_is_dsa_by_the_same_settings(task: Task) -> None:
    """Bit for bit: the recipes differ in settings alone."""
    one = replace(task, augment=DSA("scale"))
    idc = recipe("idc", one, factor=1, distance="cosine", match_augment="scale", inner=2)
    dsa = recipe("dsa", one, inner=2)
    assert isinstance(idc.objective, MatchClasses)
    assert isinstance(dsa.objective, MatchClasses)
    assert isinstance(dsa.objective.discrepancy, GradientDistance)
    assert torch.equal(idc.synthetic.images, dsa.synthetic.images)
    conv = replace(dsa.objective.discrepancy, indices=convolution_indices(one.model.layout))
    same = replace(dsa.objective, discrepancy=conv, augment=idc.objective.augment)
    ours, theirs = idc.objective(idc.synthetic, 0, 0), same(dsa.synthetic, 0, 0)
    ours.backward()
    theirs.backward()
    assert torch.equal(ours, theirs)
    assert idc.synthetic.images.grad is not None
    assert dsa.synthetic.images.grad is not None
    assert torch.equal(idc.synthetic.images.grad, dsa.synthetic.images.grad)


@pytest.mark.parametrize("how", ["single", "multi", "bound"])
def test_tiles_are_shrunk_real_images_of_their_class(task: Task, how: str) -> None:
    made = recipe("idc", task, factor=2, how=how)
    assert made.synthetic.images.shape == (20, 1, 8, 8)
    images, labels = made.synthetic.training_pair()
    assert labels.bincount().tolist() == [len(labels) // 10] * 10
    every, known = task.train
    shrunk = F.interpolate(F.adaptive_avg_pool2d(every, 4), size=(8, 8), mode="bilinear", align_corners=False)
    if how != "multi":
        away = torch.cdist(images.detach().flatten(1).double(), shrunk.flatten(1).double())
        assert float(away.min(1).values.max()) < 1e-3
        assert torch.equal(known[away.argmin(1)], labels)


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "idc", "dream"])
@pytest.mark.parametrize("policy", ["random", "dream", "centre", "boundary"])
def test_any_matcher_takes_any_policy(task: Task, name: str, policy: str) -> None:
    made = recipe(name, task, policy=policy, batch_real=8, pool=20)
    loss = made.objective(made.synthetic, 0, 0)
    loss.backward()
    assert made.synthetic.images.grad is not None
    assert made.synthetic.images.grad.norm() > 0
    assert len(made.hooks) >= (1 if policy == "random" else 2)


@pytest.mark.parametrize("init", ["random", "kmeans", "kmeans-features", "dream", "noise"])
def test_every_start(task: Task, init: str) -> None:
    made = recipe("dream", task, init=init, factor=3)
    assert made.synthetic.images.shape == (20, 1, 8, 8)
    assert bool(torch.isfinite(made.synthetic.images).all())


def test_a_class_with_too_few_images_for_tiles_is_refused(task: Task) -> None:
    with pytest.raises(UserError, match="factor"):
        recipe("dream", task, ipc=20, factor=2)


def test_whitened_images_have_no_tiles(digits: Any) -> None:
    task = make_task(digits, ModelConfig(width=4), "zca")
    with pytest.raises(UserError, match="whitening"):
        recipe("dream", task)
    made = recipe("dream", task, factor=1)
    made.objective(made.synthetic, 0, 0).backward()


def test_pixels_stay_between_black_and_white(task: Task) -> None:
    (hook,) = make_clamp_hooks(task.preprocess)
    held = SyntheticSet.from_images(
        torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 9, torch.arange(5), 0.1
    )
    before = task.preprocess.invert(held.images.detach().clone())
    hook(held, 1, 0.0)
    torch.testing.assert_close(task.preprocess.invert(held.images.detach()), before.clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_a_step_in_pixel_space(digits: Any, kind: str) -> None:
    """The step size in input space moves pixels as the given one does in pixel space; for ZCA on average."""
    task = make_task(digits, ModelConfig(width=4), kind)
    variance = mean_pixel_variance(task.preprocess)
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(400, 1, 8, 8, generator=generator)
    pixels = torch.rand(400, 1, 8, 8, generator=generator).requires_grad_()
    (task.preprocess.apply(pixels) * slope).sum().backward()
    moved = task.preprocess.invert(task.preprocess.apply(pixels.detach()) - slope / variance)
    assert pixels.grad is not None
    if kind == "normalise":
        torch.testing.assert_close(pixels.detach() - moved, pixels.grad, rtol=1e-4, atol=1e-4)
    else:  # a pixel's squared change is, on average, that of the variance
        change = task.preprocess.invert(slope) - task.preprocess.invert(torch.zeros_like(slope))
        assert float(change.square().mean()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("name", ["dc", "dsa", "dm", "idc", "dream", "dream-plus"])
def test_ten_steps_lower_the_loss(task: Task, name: str) -> None:
    """Of the same network, rows and draws before and after."""
    made = recipe(name, task, ipc=1)
    assert isinstance(made.objective, MatchClasses)
    network = made.objective.network()
    same = replace(made.objective, network=lambda: network)
    before = sum(float(same(made.synthetic, step, 77).detach()) for step in range(3))
    outer_loop(same, made.synthetic, made.optimisers, range(10), 0)
    after = sum(float(same(made.synthetic, step, 77).detach()) for step in range(3))
    assert after < before


def test_papers_pairs_of_loops() -> None:
    config = METHODS["dc"].config()
    held = {
        ipc: METHODS["dc"].resolve_options(config, DataFacts(1000, ipc, ExpertConfig())) for ipc in (1, 10, 20, 50, 100)
    }
    assert {ipc: (each.inner, each.net_epochs) for ipc, each in held.items()} == {
        **{1: (1, 500), 10: (10, 50), 20: (20, 25), 50: (50, 10), 100: (50, 10)}
    }
