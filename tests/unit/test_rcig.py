"""RCIG: its objective, its ageing pool, its averages, its file and its own evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data import load_data
from limbeck.evaluation.regression import RegressionConfig, evaluate_targets, fit_targets, regression_rows
from limbeck.methods import MethodInputs, Plan
from limbeck.methods.rcig import RCIG, RCIGConfig, make_pool_network, make_solver, platt_loss
from limbeck.methods.rcig_pool import Pool
from limbeck.networks.flat import FlatModel, lecun_normal
from limbeck.networks.registry import ConvNet, ModelConfig, flat_model
from limbeck.objectives.fit import Fit, Solved
from limbeck.synthetic.distilled import DistilledSet, load
from limbeck.synthetic.hooks import Ema
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task, make_task
from limbeck.training import Implicit
from limbeck.training.implicit import Cholesky, ConjugateGradient, PrimalAdam

pytestmark = pytest.mark.usefixtures("untouched_generators")


def plan(task: Task, ipc: int = 1, seed: int = 0, **options: Any) -> Plan:
    return RCIG.plan(RCIGConfig(**{"pool": 3, "pool_width": 4, **options}), MethodInputs(task, [], ipc, seed))


def run(recipe: Plan, steps: range) -> list[float]:
    losses: list[float] = []
    hooks = [*recipe.hooks, lambda synthetic, step, loss: losses.append(loss)]
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, steps, 0, recipe.accept, hooks)
    return losses


def pool_of(recipe: Plan) -> Pool:
    (pool,) = (hook for hook in recipe.hooks if isinstance(hook, Pool))
    return pool


# --- the objective


def test_images_targets_and_temperature_have_exact_gradients(task: Task) -> None:
    """Central differences of the whole objective in float64: margin, mirror images and the rest in it."""

    def build() -> ConvNet:
        return ConvNet(1, (8, 8), 3, 2, 3, "none", "softplus", widen=True).double()

    model = FlatModel(build)

    def normal(*shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)

    theta = lecun_normal(model.layout, make_generator(0, "start")).double()
    real = normal(6, 1, 8, 8, seed=0), torch.arange(6) % 3
    student = Solved(model, lambda step: theta, 0.01, Implicit(Cholesky()), flip=True)
    objective = Fit(student, real, None, partial(platt_loss, True))
    targets = torch.eye(3).double() - 1 / 3 + 0.01 * normal(3, 3, seed=1)
    targets[0, 1] = targets[0, 0] - 0.05  # a margin below 1/(2 classes): its gradient is in it too
    leaves = [normal(3, 1, 8, 8, seed=2), targets, torch.tensor(0.3).double()]

    def value(images: Tensor, labels: Tensor, tau: Tensor) -> Tensor:
        return objective(SyntheticSet(images, labels, torch.zeros(()), extra={"tau": tau}), 0, 0)

    own = [leaf.clone().requires_grad_() for leaf in leaves]
    gradients = torch.autograd.grad(value(*own), own)
    for place, gradient in enumerate(gradients):
        assert gradient.norm() > 0
        for direction in (gradient / gradient.norm(), normal(*gradient.shape, seed=9)):
            at = {}
            for h in (-2e-4, -1e-4, 1e-4, 2e-4):
                perturbed = list(leaves)
                perturbed[place] = leaves[place] + h * direction
                at[h] = float(value(*perturbed))
            slope = (4 * (at[1e-4] - at[-1e-4]) / 2e-4 - (at[2e-4] - at[-2e-4]) / 4e-4) / 3
            expected = float((gradient * direction).sum())
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6 * float(gradient.norm()))


def test_platt_scaling_and_margin() -> None:
    targets = torch.tensor([[0.5, 0.0, -0.5], [0.1, 0.0, -0.1]])
    synthetic = SyntheticSet(torch.zeros(2, 1, 8, 8), targets, torch.zeros(()), extra={"tau": torch.tensor(2.0).log()})
    logits, labels = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0])
    plain = -torch.log_softmax(2 * logits, 1)[0, 0]
    torch.testing.assert_close(platt_loss(False, logits, labels, synthetic), plain)
    torch.testing.assert_close(platt_loss(True, logits, labels, synthetic), plain - (1 / 6 + 0.1) / 2)


def test_the_solver_goes_by_name_and_memory() -> None:
    assert make_solver(RCIGConfig(), 30000, 100) == Cholesky()
    assert make_solver(RCIGConfig(), 30000, 5000) == ConjugateGradient(1e-3, 30)
    assert make_solver(RCIGConfig(solver="cg", cg_steps=7), 1, 1) == ConjugateGradient(1e-3, 7)
    assert make_solver(RCIGConfig(solver="cholesky"), 10**9, 1) == Cholesky()
    assert make_solver(RCIGConfig(solver="adam"), 1, 1) == PrimalAdam()


@pytest.mark.parametrize("options", [{}, {"flip": True, "grad_images": 3}, {"solver": "cg"}], ids=str)
def test_it_learns(task: Task, options: dict[str, Any]) -> None:
    losses = run(plan(task, batch_real=64, **options), range(30))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# --- the network


def test_its_network_widens_without_normalisation(task: Task) -> None:
    model = make_pool_network(RCIGConfig(), task)
    assert [shape for shape in model.layout.shapes if len(shape) == 4] == [(16, 1, 3, 3), (32, 16, 3, 3)]
    assert model.layout.names[-2:] == ("classifier.weight", "classifier.bias")
    assert not any("Norm" in type(part).__name__ for part in model.module.modules())
    paper = flat_model(ModelConfig(name="widening").resolved((28, 28)), (1, 28, 28), 10)
    assert paper.layout.shapes[-2] == (10, 8192)
    x = torch.linspace(-1, 1, 9)
    sharp = torch.nn.Softplus(60)(x)
    torch.testing.assert_close(sharp, (1 + (60 * x.double()).exp()).log().float() / 60, rtol=1e-4, atol=1e-6)


def test_it_starts_as_flax_does(task: Task) -> None:
    layout = flat_model(ModelConfig(name="widening", width=64).resolved((8, 8)), (1, 8, 8), 10).layout
    parts = dict(zip(layout.names, layout.split(lecun_normal(layout, make_generator(0, "x")))))
    for name, part in parts.items():
        if name.endswith("bias"):
            assert not part.any()
        else:
            fan_in = part[0].numel()
            assert float(part.std()) == pytest.approx(fan_in**-0.5, rel=0.1)
            assert float(part.abs().max()) <= 2 / 0.879 * fan_in**-0.5


# --- the pool


def small_pool(task: Task, **options: Any) -> Pool:
    model = flat_model(ModelConfig(name="widening", width=2).resolved((8, 8)), (1, 8, 8), 10)
    return Pool(model, 3, seed=0, **options)


def a_set(task: Task) -> SyntheticSet:
    images, labels = task.train
    return SyntheticSet.from_images(images[:10], torch.eye(10)[labels[:10]] - 0.1, 0.01, ("images", "labels"))


def test_networks_learn_the_set_and_start_again(task: Task) -> None:
    pool, synthetic = small_pool(task, lr=1e-3), a_set(task)
    initial = [network.theta.clone() for network in pool.networks]
    indices, uses = [], [0, 0, 0]
    for step in range(60):
        index = pool.index(step)
        before = [network.theta.clone() for network in pool.networks]
        generation, num_steps = pool.networks[index].generation, pool.networks[index].num_steps
        assert torch.equal(pool.at(step), before[index])
        pool(synthetic, step + 1, 0.0)
        network = pool.networks[index]
        assert all(torch.equal(pool.networks[i].theta, before[i]) for i in range(3) if i != index)
        assert not torch.equal(network.theta, before[index])
        if network.generation == generation:
            assert 1 <= network.num_steps - num_steps <= 15
            assert network.num_steps < 100
        else:
            assert (network.generation, network.num_steps) == (generation + 1, 0)
            assert not network.exp_avg.any()
            assert all(not torch.equal(network.theta, theta) for theta in initial)
            assert num_steps >= 85
        indices.append(index)
        uses[index] += 1
    assert min(uses) > 5
    assert max(network.generation for network in pool.networks) > 0
    assert synthetic.images.grad is None


def test_a_network_learns_the_targets(task: Task) -> None:
    """By Adam as torch has it, over several visits, as if there had been one."""
    pool, synthetic = small_pool(task, lr=1e-3, steps=4), a_set(task)
    index = pool.index(0)
    theta = pool.networks[index].theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], 1e-3)

    def error(at: Tensor) -> Tensor:
        return (pool.model(at, synthetic.images.detach()) - synthetic.labels.detach()).square().mean()

    start = float(error(theta.detach()))
    steps = [step for step in range(30) if pool.index(step) == index]
    for step in steps:
        pool(synthetic, step + 1, 0.0)
    for _ in range(pool.networks[index].num_steps):
        optimiser.zero_grad()
        error(theta).backward()
        optimiser.step()
    torch.testing.assert_close(pool.networks[index].theta, theta.detach(), rtol=1e-5, atol=1e-7)
    assert float(error(theta.detach())) < start


def test_the_pool_is_taken_up_bit_for_bit(task: Task) -> None:
    synthetic = a_set(task)
    whole, part, again = (small_pool(task, lr=1e-3, flip=True, batch=6, reset=30) for _ in range(3))
    for step in range(20):
        whole(synthetic, step + 1, 0.0)
    for step in range(11):
        part(synthetic, step + 1, 0.0)
    again.restore({name: tensor.clone() for name, tensor in part.state().items()}, 11)
    for step in range(11, 20):
        again(synthetic, step + 1, 0.0)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, again.state()[name]), name
    assert whole.state()["ages"][:, 1].sum() > 0


def test_the_regression_leaves_the_pool_alone(task: Task) -> None:
    recipe = plan(task)
    before = pool_of(recipe).state()
    recipe.objective(recipe.synthetic, 0, 0).backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pool_of(recipe).state().items())


# --- what is kept


def test_the_average_is_without_bias(task: Task) -> None:
    synthetic = SyntheticSet.from_images(
        torch.zeros(1, 1, 8, 8), torch.zeros(1, 10), 0.1, ("images",), extra={"tau": torch.ones(())}
    )
    ema = Ema(synthetic, 0.9, ("images", "tau"), unbiased=True)
    assert torch.equal(ema.average(synthetic).images, synthetic.images)
    total, weight = 0.0, 0.0
    for step, number in enumerate((1.0, 3.0, -2.0), 1):
        with torch.no_grad():
            synthetic.images.fill_(number)
            synthetic.extra["tau"].fill_(2 * number)
        ema(synthetic, step, 0.0)
        total, weight = 0.9 * total + number, 0.9 * weight + 1
        evaluated = ema.average(synthetic)
        assert float(evaluated.images.detach().mean()) == pytest.approx(total / weight, rel=1e-5)
        assert float(evaluated.extra["tau"].detach()) == pytest.approx(2 * total / weight, rel=1e-5)
    again = Ema(synthetic, 0.9, ("images", "tau"), unbiased=True)
    again.restore(ema.state(), 3)
    assert torch.equal(again.average(synthetic).images, evaluated.images)


def test_what_is_shown_serves_both_protocols(task: Task) -> None:
    recipe = plan(task, ipc=2, label_scale=4.0)
    run(recipe, range(3))
    evaluated = recipe.evaluated_set()
    _, labels = evaluated.training_pair()
    torch.testing.assert_close(labels, (4 * evaluated.extra["targets"]).softmax(1))
    assert evaluated.extra["targets"].shape == (20, 10)
    assert torch.equal(evaluated.extra["targets"], recipe.synthetic.labels)
    last = plan(task, ipc=2)
    run(last, range(3))
    assert torch.equal(last.synthetic.labels, recipe.synthetic.labels)  # showing changes nothing


def as_file(task: Task, evaluated: SyntheticSet, targets: Tensor | None) -> DistilledSet:
    images, labels = (tensor.detach() for tensor in evaluated.training_pair())
    return DistilledSet(
        images, labels, 0.01, task.preprocess, task.data.classes, {}, {"config": {"flip": True}}, targets
    )


def test_targets_survive_the_file(task: Task, tmp_path: Path) -> None:
    recipe = plan(task)
    evaluated = recipe.evaluated_set()
    stored = as_file(task, evaluated, evaluated.extra["targets"].detach())
    stored.save(tmp_path / "set")
    loaded = load(tmp_path / "set")
    assert loaded.targets is not None
    assert torch.equal(loaded.targets, evaluated.extra["targets"])
    replace(stored, targets=None).save(tmp_path / "without")
    assert load(tmp_path / "without").targets is None


# --- its own evaluation


QUICK = RegressionConfig(networks=2, steps=150, warmup=50, width=8, lr=3e-3)


def test_the_step_size_rises_and_falls() -> None:
    rates = [RegressionConfig().rate(step) for step in range(1000)]
    assert max(rates) == rates[499] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:500]))
    assert all(a > b for a, b in pairwise(rates[500:]))
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)


def test_regression_fits_targets_and_knows_digits() -> None:
    task = make_task(load_data("digits"), ModelConfig(width=8))
    images, labels = task.train
    x, y = images[:200], torch.eye(10)[labels[:200]] - 0.1
    config = QUICK.model_copy(update={"batch_size": 64, "steps": 500})
    summary = evaluate_targets(task, x, y, config, task.validation, seed=0)
    assert summary.n == 2
    assert summary.accuracy_mean > 0.8
    assert summary == evaluate_targets(task, x, y, config, task.validation, seed=0)
    model = make_pool_network(RCIGConfig(pool_width=4), task)
    theta0 = lecun_normal(model.layout, make_generator(0, "x"))
    before = theta0.clone()
    theta = fit_targets(model, theta0, x[:10], y[:10], config, 0)
    assert torch.equal(theta0, before)
    assert float((model(theta, x[:10]) - y[:10]).square().mean()) < 0.01


def test_rows_of_results(task: Task) -> None:
    recipe = plan(task)
    evaluated = recipe.evaluated_set()
    quick = QUICK.model_copy(update={"steps": 3})
    rows = regression_rows(task, as_file(task, evaluated, evaluated.extra["targets"].detach()), quick, 0, "last")
    assert [row.protocol for row in rows] == ["regression", "regression, augmented"]
    assert {row.n for row in rows} == {2}
    assert rows[0].accuracy_mean != rows[1].accuracy_mean
    assert regression_rows(task, as_file(task, evaluated, None), quick, 0, "last") == []
    with pytest.raises(UserError, match=r"\(10, 10\)"):
        evaluate_targets(task, task.train[0][:10], torch.zeros(10, 3), quick, task.test, 0)


def test_a_distilled_set_beats_what_it_started_from(task: Task) -> None:
    """150 steps at one image per class, by both protocols' measure, on validation."""
    recipe = plan(task, pool_width=8, batch_real=128)
    start = recipe.evaluated_set()
    run(recipe, range(150))
    evaluated = recipe.evaluated_set()
    config = QUICK.model_copy(update={"networks": 3})

    def accuracy(synthetic: SyntheticSet) -> float:
        images, targets = synthetic.images.detach(), synthetic.extra["targets"].detach()
        return evaluate_targets(task, images, targets, config, task.validation, seed=0).accuracy_mean

    assert accuracy(evaluated) > accuracy(start) + 0.05
