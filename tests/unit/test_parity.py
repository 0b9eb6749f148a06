"""The methods against derivations of their own, written out here from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.types import Batch
from limbeck.experts import Expert, ExpertConfig
from limbeck.experts.segments import GrowingEpochs
from limbeck.methods import METHODS, DataFacts, MethodInputs, Plan
from limbeck.methods.trajectory_matching import WithTeacherLabels, init_label_logits
from limbeck.select import select_per_class
from limbeck.select.coresets import select_correct
from limbeck.synthetic.loop import outer_loop
from limbeck.task import Task
from limbeck.training.plain import Gsam, Schedule, train

pytestmark = pytest.mark.usefixtures("untouched_generators")


def make(name: str, task: Task, experts: list[Expert], ipc: int = 1, **options: Any) -> Plan:
    """A recipe with these options, on recorded experts of three epochs."""
    method = METHODS[name]
    config = method.resolve_options(
        method.config(**options), DataFacts(len(task.data.train), ipc, ExpertConfig(epochs=3))
    )
    trajectories = [expert.trajectory("recorded") for expert in experts]
    return method.plan(config, MethodInputs(task, [path for path in trajectories if path is not None], ipc, 0))


def net(task: Task, theta: Tensor, images: Tensor) -> Tensor:
    """The network by torch's own functional call, from parameters sliced here."""
    module, parameters, at = task.model.module, {}, 0
    for name, parameter in module.named_parameters():
        parameters[name] = theta[at : at + parameter.numel()].reshape(parameter.shape)
        at += parameter.numel()
    logits: Tensor = torch.func.functional_call(module, parameters, (images,))
    return logits


def augmented_loss(task: Task, theta: Tensor, images: Tensor, labels: Tensor, seed: int | None) -> Tensor:
    if seed is not None:
        images = task.augment(images, seed)
    return F.cross_entropy(net(task, theta, images), labels)


def draws(task: Task, expert: Expert, bound: int, span: int, steps: int, step: int) -> tuple[Tensor, Tensor, list[int]]:
    """Start, target and augmentation seeds of an outer step of seed 0."""
    assert expert.recorded is not None
    points = expert.recorded.tensor()
    generator = make_generator(0, "segment", step)
    torch.randint(1, (), generator=generator)  # which expert
    s = int(torch.randint(0, bound, (), generator=generator))
    seeds = torch.randint(2**62, (steps,), generator=make_generator(0, "batches", step)).tolist()
    return points[s], points[s + span], seeds


# --- MTT and TESLA


@pytest.mark.parametrize("gradient", ["exact", "backprop"])
def test_mtt_is_its_paper(task: Task, expert: Expert, gradient: str) -> None:
    """Loss and gradients through the whole graph (2. of the specification), in images and in the step size."""
    recipe = make(
        "mtt", task, [expert], syn_steps=5, expert_epochs=1, max_start_epoch=3, lr_teacher=0.05, gradient=gradient
    )
    loss = recipe.objective(recipe.synthetic, 4, 0)
    loss.backward()

    start, target, seeds = draws(task, expert, 3, 1, 5, step=4)
    images = recipe.synthetic.images.detach().clone().requires_grad_()
    lr = torch.tensor(0.05, requires_grad=True)
    theta = start.clone().requires_grad_()
    for seed in seeds:
        (step,) = torch.autograd.grad(
            augmented_loss(task, theta, images, recipe.synthetic.labels, seed), theta, create_graph=True
        )
        theta = theta - lr * step
    expected = ((theta - target) ** 2).mean() / ((start - target) ** 2).mean()
    expected_images, expected_lr = torch.autograd.grad(expected, [images, lr])
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=0)
    grads = recipe.synthetic.images.grad, recipe.synthetic.log_lr.grad
    assert grads[0] is not None
    assert grads[1] is not None
    assert float((grads[0] - expected_images).norm() / expected_images.norm()) < 1e-4
    assert float(grads[1]) == pytest.approx(float(expected_lr) * 0.05, rel=1e-3)  # d loss / d log lr = lr d loss / d lr


@pytest.mark.parametrize(("gradient", "gain"), [("tesla-corrected", 1.0), ("tesla", 0.5)])
def test_tesla_is_its_two_sweeps(task: Task, expert: Expert, gradient: str, gain: float) -> None:
    """3.1 of the specification; the released code loses the factor 2 of the image gradient, and of that alone."""
    options = {"syn_steps": 5, "expert_epochs": 1, "max_start_epoch": 3, "lr_teacher": 0.05}
    recipe = make("tesla", task, [expert], gradient=gradient, **options)
    loss = recipe.objective(recipe.synthetic, 4, 0)
    loss.backward()

    start, target, seeds = draws(task, expert, 3, 1, 5, step=4)
    images, labels, beta = recipe.synthetic.images.detach(), recipe.synthetic.labels, 0.05
    thetas, total = [start], torch.zeros_like(start)
    for seed in seeds:
        theta = thetas[-1].clone().requires_grad_()
        (step,) = torch.autograd.grad(augmented_loss(task, theta, images, labels, seed), theta)
        total += step
        thetas.append(thetas[-1] - beta * step)
    scale = ((start - target) ** 2).sum()
    direction = beta * (target - start) + beta**2 * total
    expected_images = torch.zeros_like(images)
    for theta, seed in zip(thetas, seeds):
        theta, x = theta.clone().requires_grad_(), images.clone().requires_grad_()
        (step,) = torch.autograd.grad(augmented_loss(task, theta, x, labels, seed), theta, create_graph=True)
        (part,) = torch.autograd.grad(2 * (direction @ step) / scale, x)
        expected_images += gain * part
    live = torch.tensor(beta, requires_grad=True)
    expected = ((start - live * total - target) ** 2).sum() / scale
    (expected_lr,) = torch.autograd.grad(expected, live)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=0)
    grads = recipe.synthetic.images.grad, recipe.synthetic.log_lr.grad
    assert grads[0] is not None
    assert grads[1] is not None
    assert float((grads[0] - expected_images).norm() / expected_images.norm()) < 1e-4
    assert float(grads[1]) == pytest.approx(float(expected_lr) * beta, rel=1e-3)


def test_teacher_labels_are_the_target_checkpoints(task: Task, expert: Expert) -> None:
    options = {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 3, "teacher_labels": True}
    recipe = make("tesla", task, [expert], **options)
    loss = recipe.objective(recipe.synthetic, 1, 0)
    start, target, seeds = draws(task, expert, 3, 1, 2, step=1)
    images = recipe.synthetic.images.detach()
    soft = net(task, target, images).detach().softmax(1)
    theta = start.clone()
    for seed in seeds:
        leaf = theta.clone().requires_grad_()
        logits = net(task, leaf, task.augment(images, seed))
        (step,) = torch.autograd.grad(-(soft * logits.log_softmax(1)).sum(1).mean(), leaf)
        theta = theta - 0.01 * step
    expected = ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)


def test_a_taught_set_is_kept_with_the_mean_of_what_experts_say(task: Task, expert: Expert) -> None:
    recipe = make("tesla", task, [expert, expert], expert_epochs=1, max_start_epoch=3, teacher_labels=True)
    assert isinstance(recipe.as_evaluated, WithTeacherLabels)
    images, labels = recipe.evaluated_set().training_pair()
    assert expert.recorded is not None
    torch.testing.assert_close(labels, net(task, expert.recorded.at(3), images).softmax(1), rtol=1e-4, atol=1e-6)


# --- FTD: flat experts and the average


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gsam_is_its_formula(task: Task, adaptive: bool, alpha: float) -> None:
    """4.1 of the specification, tensor by tensor with global norms, over two steps of the trainer."""
    rho, lr, images, labels = 0.05, 0.1, *(part[:16] for part in task.train)
    theta0 = task.model.init(3)
    path = list(train(task.loss, theta0, images, labels, Schedule(1, lr, 8), 5, Gsam(rho, alpha, adaptive)))

    def gradients(parameters: list[Tensor], rows: Tensor, seed: int) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in parameters]
        theta = torch.cat([tensor.reshape(-1) for tensor in leaves])
        return list(torch.autograd.grad(augmented_loss(task, theta, images[rows], labels[rows], seed), leaves))

    def norm(tensors: list[Tensor]) -> Tensor:
        return torch.stack([tensor.pow(2).sum() for tensor in tensors]).sum().sqrt()

    weights = task.model.layout.split(theta0)
    order = torch.randperm(16, generator=make_generator(5, "order", 0))
    for step, rows in enumerate(order.split(8)):
        seed = derive_seed(5, "augment", 0, step)
        g = gradients(weights, rows, seed)
        if adaptive:
            scale = rho / (norm([w.abs() * tensor for w, tensor in zip(weights, g)]) + 1e-12)
            ahead = [w + scale * w.pow(2) * tensor for w, tensor in zip(weights, g)]
        else:
            ahead = [w + rho * tensor / (norm(g) + 1e-12) for w, tensor in zip(weights, g)]
        p = gradients(ahead, rows, seed)
        cosine = sum(float((a * b).sum()) for a, b in zip(g, p)) / float(norm(g) * norm(p))
        across = [a - cosine * norm(g) * b / norm(p) for a, b in zip(g, p)]
        weights = [w - lr * (b - alpha * c) for w, b, c in zip(weights, p, across)]
    expected = torch.cat([tensor.reshape(-1) for tensor in weights])
    distance = (expected - theta0).norm()
    assert float((path[-1] - expected).norm() / distance) < 1e-4
    plain = list(train(task.loss, theta0, images, labels, Schedule(1, lr, 8), 5))
    assert float((plain[-1] - expected).norm() / distance) > 1e-3


def test_gsam_without_radius_is_the_gradient(task: Task) -> None:
    batch = Batch(*(part[:8] for part in task.train))
    theta = task.model.init(1).requires_grad_()
    torch.testing.assert_close(Gsam(0.0, 0.3, True)(task.loss, theta, batch), task.loss.gradient(theta, batch))


def test_the_average_follows_its_recurrence(task: Task, expert: Expert) -> None:
    recipe = make("ftd", task, [expert]).with_average(0.75)
    images_per_step = [recipe.synthetic.snapshot().images]
    hooks = [*recipe.hooks, lambda synthetic, step, loss: images_per_step.append(synthetic.snapshot().images)]
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(4), 0, hooks=hooks)
    expected = images_per_step[0]
    for images in images_per_step[1:]:
        expected = 0.75 * expected + 0.25 * images
    evaluated = recipe.evaluated_set()
    torch.testing.assert_close(evaluated.images, expected)
    assert torch.equal(evaluated.log_lr, recipe.synthetic.log_lr)
    assert not torch.equal(evaluated.images, recipe.synthetic.images)


# --- DATM: start range, images, labels, gate


def test_the_start_range_grows_by_the_formula() -> None:
    """4.4.5 of the specification with CIFAR-10's 20 to 40 in 2000 steps, by hand."""
    sampler = GrowingEpochs(20, 40, 2000, 2)
    assert [sampler.bound(step) for step in (0, 99, 100, 1000, 1999, 2000, 9000)] == [20, 20, 21, 30, 39, 40, 40]
    starts = [int(GrowingEpochs(2, 4, 100, 1, 1)(step, 9, make_generator(0, step))[0]) for step in range(300)]
    assert set(starts[:50]) == {1}
    assert set(starts[50:100]) == {1, 2}
    assert set(starts[100:]) == {1, 2, 3}


def test_labels_start_at_the_mean_of_the_experts_that_are_right() -> None:
    logits = torch.tensor(
        [
            [[5.0, 1.0, 0.0], [2.0, 1.0, 0.0], [3.0, 0.0, 1.0]],
            [[3.0, 2.0, 0.0], [0.0, 4.0, 1.0], [4.0, 1.0, 2.0]],
            [[0.0, 9.0, 0.0], [1.0, 6.0, 3.0], [5.0, 2.0, 3.0]],
        ]
    )
    initial = init_label_logits(logits, torch.tensor([0, 1, 2]))
    assert initial[0].tolist() == [4.0, 1.5, 0.0]  # experts 0 and 1
    assert initial[1].tolist() == [0.5, 5.0, 2.0]  # experts 1 and 2
    assert initial[2].tolist() == [2.0, 1.0, 4.0]  # none: the mean (4, 1, 2), largest and true exchanged


def test_datm_starts_where_its_experts_are_right(task: Task, expert: Expert) -> None:
    assert expert.recorded is not None
    images, labels = task.train
    theta = expert.recorded.at(3)
    right = net(task, theta, images).argmax(1) == labels
    synthetic = make("datm", task, [expert], ipc=3).synthetic
    for image, label in zip(synthetic.images.detach(), torch.arange(10).repeat_interleave(3)):
        row = int((images == image).flatten(1).all(1).nonzero()[0])
        assert int(labels[row]) == int(label)
        assert bool(right[row]) or int((right & (labels == label)).sum()) < 3
    expected = net(task, theta, synthetic.images).detach()
    sure = expected.argmax(1) == torch.arange(10).repeat_interleave(3)
    assert sure.any()
    torch.testing.assert_close(synthetic.labels.detach()[sure], expected[sure], rtol=1e-4, atol=1e-5)


def test_correct_images_fall_through_to_the_next_expert_and_end() -> None:
    images = torch.arange(12.0)[:, None]
    labels = torch.tensor([0] * 6 + [1] * 6)
    calls: list[int] = []

    def expert(index: int, right: set[int]) -> Callable[[Tensor], Tensor]:
        def classify(part: Tensor) -> Tensor:
            calls.append(index)
            rows = part.squeeze(1).long()
            is_correct = torch.tensor([row in right for row in rows.tolist()], dtype=torch.bool)
            return torch.where(is_correct, labels[rows], 1 - labels[rows])

        return classify

    experts = [expert(0, {0, 1, 6}), expert(1, {4, 7})]
    rows = select_correct(images, labels, 2, 3, experts, 0).tolist()
    assert set(rows[:3]) == {0, 1, 4}
    assert set(rows[3:5]) == {6, 7}  # and one that no expert knows
    assert labels[rows].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(rows)) == 6
    assert calls == [0, 1, 0, 1]
    starts = {tuple(select_correct(images, labels, 2, 1, experts, seed).tolist()) for seed in range(9)}
    assert {row for pair in starts for row in pair} <= {0, 1, 6}
    assert len(starts) > 1


@pytest.mark.parametrize("threshold", [1e-6, 1e6])
def test_the_gate_takes_all_steps_or_none(task: Task, expert: Expert, threshold: float) -> None:
    recipe = make("datm", task, [expert], threshold=threshold)
    before = recipe.synthetic.snapshot().state()
    outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(2), 0, recipe.accept)
    is_changed = [not torch.equal(before[name], tensor) for name, tensor in recipe.synthetic.parameters().items()]
    assert is_changed == [threshold > 1] * 3
    momenta = [slots for optimiser in recipe.optimisers for slots in optimiser.state.values()]
    assert bool(momenta) == (threshold > 1)
    assert recipe.accept(threshold)
    assert not recipe.accept(threshold * 1.01)


def test_label_logits_learn_by_sgd_with_momentum(task: Task, expert: Expert) -> None:
    """Two steps z <- z - lr_y v, v <- 0.9 v + g, through the softmax, with gradients of the whole graph."""
    options = {"syn_steps": 3, "expert_epochs": 1, "max_start_epoch": 1, "threshold": 1e6, "lr_y": 2.0}
    recipe = make("datm", task, [expert], lr_lr=0.0, **options)
    logits, velocity = recipe.synthetic.labels.detach().clone(), torch.zeros(10, 10)
    for step in range(2):
        images = recipe.synthetic.images.detach()
        start, target, seeds = draws(task, expert, 1, 1, 3, step)
        z = logits.clone().requires_grad_()
        theta = start.clone().requires_grad_()
        for seed in seeds:
            loss = -(z.softmax(1) * net(task, theta, task.augment(images, seed)).log_softmax(1)).sum(1).mean()
            theta = theta - 0.01 * torch.autograd.grad(loss, theta, create_graph=True)[0]
        (g,) = torch.autograd.grad(((theta - target) ** 2).sum() / ((start - target) ** 2).sum(), z)
        velocity = 0.9 * velocity + g
        logits = logits - 2.0 * velocity
        before = recipe.synthetic.labels.detach().clone()
        outer_loop(recipe.objective, recipe.synthetic, recipe.optimisers, range(step, step + 1), 0, recipe.accept)
        assert not torch.equal(before, recipe.synthetic.labels)
        distance = (logits - before).norm()
        assert float((recipe.synthetic.labels.detach() - logits).norm() / distance) < 1e-3


def test_real_images_are_those_of_the_selector(task: Task, expert: Expert) -> None:
    images, labels = task.train
    rows = select_per_class("random", images, labels, 10, 2, 0)
    for name in ("mtt", "tesla", "ftd", "ptm"):
        synthetic = make(name, task, [expert], ipc=2).synthetic
        assert torch.equal(synthetic.images, images[rows])
        assert torch.equal(synthetic.labels, labels[rows])
