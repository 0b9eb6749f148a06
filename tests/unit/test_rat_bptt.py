"""RaT-BPTT: windows of a training, the clipped optimiser, and the authors' outer step written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.core.types import Batch
from limbeck.experts import ExpertConfig
from limbeck.methods import DataFacts, MethodInputs, Plan
from limbeck.methods.rat_bptt import RAT, RatBpttConfig, RatBpttOptions, make_descent
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import ConvNet
from limbeck.objectives.fit import Fit, Trained
from limbeck.synthetic.clipping import ClippedAdam
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training import Adam, CrossEntropy, Descent, Momentum, Plain, advance
from limbeck.training.window import AtEnd, ByNorm, Place, Uniform, Window

pytestmark = pytest.mark.usefixtures("untouched_generators")

PLACES: dict[str, Place] = {"uniform": Uniform(), "end": AtEnd(), "by-norm": ByNorm(0.5)}


def plan(task: Task, ipc: int = 1, **options: Any) -> Plan:
    small = {"total_steps": 6, "window": 3, "batch_real": 32, **options}
    config = RAT.resolve_options(RatBpttConfig(**small), DataFacts(300, ipc, ExpertConfig()))
    return RAT.plan(config, MethodInputs(task, [], ipc, 0))


def run(recipe: Plan, steps: range) -> None:
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, steps, 0, recipe.accept, recipe.hooks)


# --- the authors' outer step


def replica(task: Task, model: FlatModel, synthetic: SyntheticSet, rule: str, step: int) -> Tensor:
    """dL/dimages as the authors compute it: torch's optimiser, then a window whose whole graph autograd keeps."""
    total, length, seed, lr = 9, 4, 5, 0.01
    theta = model.init(seed, "student", step).double().requires_grad_()
    batches = synthetic.batches(total, 3, make_generator(seed, "batches", step))
    first = Uniform()(total - length, lambda: torch.zeros(total), make_generator(seed, "window", step))
    assert first, "a prefix is a part of this test"
    if rule == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam([theta], lr)
    else:
        optimiser = torch.optim.SGD([theta], lr, momentum=0.9, weight_decay=5e-4)

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        images = synthetic.images if batch.rows is None else synthetic.images[batch.rows]
        labels = synthetic.labels if batch.rows is None else synthetic.labels[batch.rows]
        return F.cross_entropy(model(theta, images), labels)

    for batch in batches[:first]:
        optimiser.zero_grad()
        (theta.grad,) = torch.autograd.grad(loss(theta, batch), theta)
        optimiser.step()
    state = optimiser.state[theta]
    current = theta
    names = ("exp_avg", "exp_avg_sq") if rule == "adam" else ("momentum_buffer",)
    moments = [state[name].clone() for name in names]
    for t, batch in enumerate(batches[first : first + length], first + 1):
        (g,) = torch.autograd.grad(loss(current, batch), current, create_graph=True)
        if rule == "adam":
            moments = [0.9 * moments[0] + 0.1 * g, 0.999 * moments[1] + 0.001 * g * g]
            corrected = [moments[0] / (1 - 0.9**t), moments[1] / (1 - 0.999**t)]
            current = current - lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
        else:
            moments = [0.9 * moments[0] + g + 5e-4 * current]
            current = current - lr * moments[0]
    rows = torch.randperm(len(task.train[0]), generator=make_generator(seed, "real", step))[:32]
    value = F.cross_entropy(model(current, task.train[0][rows].double()), task.train[1][rows])
    return torch.autograd.grad(value, synthetic.images)[0]


@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_the_image_gradient_is_the_authors(rule: str, task: Task) -> None:
    """Feng et al.'s step in float64, on a network without hidden biases, which Adam would move by rounding alone."""
    model = FlatModel(lambda: ConvNet(1, (8, 8), 10, depth=1, width=4, norm="none", activation="softplus").double())
    images, labels = task.train[0][:10].double(), torch.arange(10)
    synthetic = SyntheticSet.from_images(images, labels, 0.5, learned=("images",))
    descent: Descent = Adam() if rule == "adam" else Momentum(decay=5e-4)
    student = Trained(model, CrossEntropy(model), Window(9, 4), 3, descent=descent, lr=0.01)
    real = task.train[0].double(), task.train[1]
    for step in (0, 3):
        Fit(student, real, 32)(synthetic, step, 5).backward()
        assert synthetic.images.grad is not None
        expected = replica(task, model, synthetic, rule, step)
        assert expected.norm() > 0
        assert (synthetic.images.grad - expected).norm() <= 1e-11 * expected.norm()
        synthetic.images.grad = None


# --- windows


@pytest.mark.parametrize("place", PLACES)
def test_a_window_lies_within_the_training(place: str) -> None:
    batches = [Batch(torch.ones(1, 1, 1, 1), torch.zeros(1))] * 5
    places = set()
    for total in range(1, 6):
        for length in range(1, total + 1):
            for seed in range(4):
                window = Window(total, length, PLACES[place])
                generator = torch.Generator().manual_seed(seed)
                state, inside = window.open(quadratic, torch.ones(2), batches[:total], 0.1, Momentum(), generator)
                assert 0 <= state.steps <= total - length
                assert len(inside) == length
                places.add(state.steps)
    assert len(places) > 2


def quadratic(theta: Tensor, batch: Batch) -> Tensor:
    return (theta - batch.images.mean()).square().sum()


@pytest.mark.parametrize(("total", "length"), [(3, 4), (3, 0)])
def test_a_window_that_does_not_fit_is_refused(total: int, length: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 3"):
        Window(total, length)


@pytest.mark.parametrize("place", PLACES)
def test_a_window_begins_where_the_training_is_by_then(place: str, task: Task) -> None:
    """With and without a probe, whose states serve as the prefix; and the drawn place is that of the generator."""
    synthetic = SyntheticSet.from_images(task.train[0][:10], task.train[1][:10], 0.1)
    batches = synthetic.batches(8, 4, make_generator(0, "batches"))
    start, rule = task.model.init(0), Momentum()
    window = Window(8, 3, PLACES[place])
    state, inside = window.open(task.loss, start, batches, 0.05, rule, make_generator(1, "window"))
    again, _ = window.open(task.loss, start, batches, 0.05, rule, make_generator(1, "window"))
    expected = advance(task.loss, start, batches[: state.steps], 0.05, rule)
    assert state.steps == expected.steps == again.steps
    assert torch.equal(state.theta, expected.theta)
    assert torch.equal(state.slots[0], expected.slots[0])
    assert [batch.seed for batch in inside] == [batch.seed for batch in batches[state.steps : state.steps + 3]]


@pytest.mark.parametrize("rule", [Plain(), Momentum(0.9), Adam()], ids=str)
def test_a_window_of_all_steps_is_the_whole_training(rule: Descent, task: Task) -> None:
    gradients = []
    for steps in (4, Window(4, 4), Window(4, 4, ByNorm())):
        synthetic = SyntheticSet.from_images(task.train[0][:10], task.train[1][:10], 0.01)
        loss = Fit(Trained(task.model, task.loss, steps, 4, descent=rule), task.train, 32)(synthetic, 2, 0)
        loss.backward()
        gradients.append([loss.detach(), synthetic.images.grad, synthetic.log_lr.grad])
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others) if a is not None and b is not None)
    assert all(gradient is not None for gradient in gradients[0])


def test_uniform_places_are_all_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([Uniform()(4, lambda: torch.ones(6), generator) for _ in range(2000)])
    assert ((draws.bincount(minlength=5) / 2000 - 0.2).abs() < 0.04).all()


def test_places_by_norm_are_a_softmax() -> None:
    norms = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 0.1
    probabilities = ByNorm(0.7).probabilities(norms)
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0, dtype=torch.double))
    assert torch.equal(probabilities.argsort(), norms.argsort())
    torch.testing.assert_close(ByNorm(0.7).probabilities(1e3 * norms), probabilities)
    for flat in (ByNorm(1e9).probabilities(norms), ByNorm().probabilities(torch.full((30,), 0.3))):
        torch.testing.assert_close(flat.double(), torch.full((30,), 1 / 30, dtype=torch.double))
    broken = ByNorm().probabilities(torch.tensor([1.0, float("nan"), float("inf")]))
    torch.testing.assert_close(broken.sum(), torch.tensor(1.0))
    spread = norms.std(correction=0)
    expected = (norms / spread / 0.7).exp()
    torch.testing.assert_close(probabilities, expected / expected.sum())
    generator, last = torch.Generator().manual_seed(0), 9
    draws = torch.tensor([ByNorm(0.5)(last, lambda: norms, generator) for _ in range(2000)])
    frequency = draws.bincount(minlength=10) / 2000
    assert ((frequency - ByNorm(0.5).probabilities(norms[:10])).abs() < 0.04).all()


# --- the optimiser


def test_only_unusual_gradients_are_clipped() -> None:
    """Below the bound every bit is Adam's; above it a gradient keeps its direction and the average moves by a tenth."""
    x, y = (torch.zeros(3, requires_grad=True) for _ in range(2))
    clipped, adam = ClippedAdam([x], 0.1, clip=2.0), torch.optim.Adam([y], 0.1)
    gradient = torch.tensor([1.0, 2.0, 2.0])
    for scale in (1.0, 1.5, 0.5, 0.0, 1.7):
        x.grad, y.grad = scale * gradient, scale * gradient
        clipped.step()
        adam.step()
        assert torch.equal(x, y)
    average = clipped.state[x]["norm"].clone()
    x.grad = 1e6 * gradient
    clipped.step()
    torch.testing.assert_close(x.grad, 2 * average * gradient / 3)
    torch.testing.assert_close(clipped.state[x]["norm"], 1.1 * average)


def test_the_average_of_norms_is_restored() -> None:
    def steps(optimiser: ClippedAdam, x: Tensor, scales: tuple[float, ...]) -> Tensor:
        for scale in scales:
            x.grad = torch.full((2,), scale)
            optimiser.step()
        return x.detach()

    x, y = (torch.zeros(2, requires_grad=True) for _ in range(2))
    whole, first = ClippedAdam([x], 0.1, 2.0), ClippedAdam([y], 0.1, 2.0)
    expected = steps(whole, x, (1.0, 1.5, 30.0, 2.0))
    second = ClippedAdam([y], 0.1, 2.0)
    steps(first, y, (1.0, 1.5))
    second.load_state_dict(first.state_dict())
    assert torch.equal(steps(second, y, (30.0, 2.0)), expected)


# --- the method


def test_the_student_is_as_the_options_say() -> None:
    facts = DataFacts(300, 1, ExpertConfig())
    rules = {}
    for student in ("momentum", "adam", "plain"):
        options = RAT.resolve_options(RatBpttConfig(student=student), facts)
        assert isinstance(options, RatBpttOptions)
        rules[student] = options.lr_student, make_descent(options)
    assert rules == {
        "momentum": (0.01, Momentum(0.9, decay=5e-4)),
        "adam": (0.001, Adam()),
        "plain": (0.02, Plain()),
    }
    options = RAT.resolve_options(RatBpttConfig(lr_student=0.3, student_decay=0.0), facts)
    assert (options.lr_student, make_descent(options)) == (0.3, Momentum())


def test_too_long_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="--window 9 is longer than the training of --total-steps 8"):
        RAT.resolve_options(RatBpttConfig(total_steps=8, window=9), DataFacts(300, 1, ExpertConfig()))


def test_labels_are_learned_where_that_is_asked_for(task: Task) -> None:
    recipe = plan(task, learn_labels=True, student="adam")
    start = recipe.synthetic.snapshot()
    own = start.labels.softmax(1)[torch.arange(10), torch.arange(10)]
    torch.testing.assert_close(own, torch.full((10,), 0.9))
    run(recipe, range(2))
    assert not torch.equal(recipe.synthetic.labels, start.labels)
    assert plan(task).synthetic.labels.dtype == torch.int64


def test_images_are_tiles_where_that_is_asked_for(task: Task) -> None:
    recipe = plan(task, ipc=2, factor=2, batch_syn=15)
    assert len(recipe.synthetic.images) == 20
    images, labels = recipe.synthetic.training_pair()
    assert (len(images), labels.bincount().tolist()) == (80, [8] * 10)
    run(recipe, range(1))
