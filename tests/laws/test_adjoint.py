"""Laws of the adjoints: the exact ones agree with each other and with finite differences, at constant graph memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import UserError
from limbeck.core.types import Batch
from limbeck.data.augment import DSA, FAMILIES
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import ConvNet
from limbeck.objectives import displacement
from limbeck.training import Backprop, CrossEntropy, Replay, unroll
from limbeck.training.unroll import Adjoint

pytestmark = pytest.mark.usefixtures("untouched_generators")

EXACT: dict[str, Adjoint] = {"backprop": Backprop(), "replay": Replay()}
STRATEGIES = ["none", *FAMILIES, DSA.strategy]
IMAGES, CLASSES = 5, 3


def network(**options: str) -> FlatModel:
    return FlatModel(lambda: ConvNet(3, (8, 8), CLASSES, depth=2, width=4, **options).double())


@dataclass(frozen=True)
class Problem:
    """A student to unroll and the scalar that is asked of it; every leaf can be differentiated."""

    loss: CrossEntropy
    leaves: dict[str, Tensor]
    target: Tensor
    rows: list[Tensor | None]
    seeds: list[int | None]
    labels: str

    def batches(self, leaves: dict[str, Tensor]) -> list[Batch]:
        labels = leaves["labels"].softmax(1) if self.labels == "logits" else leaves["labels"]
        return [Batch(leaves["images"], labels, seed, rows) for seed, rows in zip(self.seeds, self.rows)]

    def value(self, adjoint: Adjoint, leaves: dict[str, Tensor]) -> Tensor:
        theta = unroll(self.loss, leaves["theta0"], self.batches(leaves), leaves["lr"], adjoint)
        return displacement(theta, leaves["theta0"].detach(), self.target)

    def gradients(self, adjoint: Adjoint) -> dict[str, Tensor]:
        leaves = {name: leaf.clone().requires_grad_(leaf.dtype.is_floating_point) for name, leaf in self.leaves.items()}
        self.value(adjoint, leaves).backward()
        actual = {name: leaf.grad for name, leaf in leaves.items() if leaf.requires_grad}
        assert all(grad is not None for grad in actual.values())
        return {name: grad for name, grad in actual.items() if grad is not None}


def problem(
    steps: int,
    strategy: str = "none",
    batching: str = "rows",
    labels: str = "probabilities",
    lr: str = "per step",
    **options: str,
) -> Problem:
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    model = network(**options)
    theta0 = model.init(1)
    label_tensors = {
        "hard": torch.arange(IMAGES) % CLASSES,
        "probabilities": normal(IMAGES, CLASSES).softmax(1),
        "logits": normal(IMAGES, CLASSES),
    }[labels]
    sizes = torch.tensor(0.3, dtype=torch.double) if lr == "scalar" else 0.2 + 0.2 * normal(steps).sigmoid()
    rows: list[Tensor | None] = [None] * steps
    if batching == "rows":  # every row comes again in later batches, some twice in one
        rows = [torch.randint(IMAGES, (4,), generator=generator) for _ in range(steps)]
    seeds: list[int | None] = [None if strategy == "none" else 100 + step for step in range(steps)]
    leaves = {"images": normal(IMAGES, 3, 8, 8), "labels": label_tensors, "lr": sizes, "theta0": theta0}
    target = theta0 + 0.3 * normal(len(theta0))
    return Problem(CrossEntropy(model, DSA(strategy)), leaves, target, rows, seeds, labels)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.norm() > 0, name
        assert (actual[name] - value).norm() <= tolerance * value.norm(), name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_replay_equals_backprop(steps: int, strategy: str) -> None:
    case = problem(steps, strategy)
    assert_same(case.gradients(Replay()), case.gradients(Backprop()), 1e-10)


@pytest.mark.parametrize("lr", ["scalar", "per step"])
@pytest.mark.parametrize("labels", ["hard", "probabilities", "logits"])
@pytest.mark.parametrize("batching", ["whole", "rows"])
@pytest.mark.parametrize("steps", [1, 5])
def test_replay_equals_backprop_for_every_kind_of_batch(steps: int, batching: str, labels: str, lr: str) -> None:
    case = problem(steps, DSA.strategy, batching, labels, lr)
    assert_same(case.gradients(Replay()), case.gradients(Backprop()), 1e-10)


def test_the_set_is_one_tensor_or_many() -> None:
    """Batches that share a tensor and batches with their own copies of it have the same total gradient."""
    case = problem(5)
    images, totals = case.leaves["images"], []
    for shared in (True, False):
        x = images.clone().requires_grad_()
        batches = [b._replace(images=x if shared else x * 1) for b in case.batches(case.leaves)]
        theta = unroll(case.loss, case.leaves["theta0"], batches, case.leaves["lr"])
        totals.append(*torch.autograd.grad(theta.square().sum(), x))
    torch.testing.assert_close(*totals, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adjoint", EXACT)
@pytest.mark.parametrize(
    ("strategy", "batching", "labels", "lr"),
    [(strategy, "rows", "probabilities", "per step") for strategy in STRATEGIES]
    + [("none", "whole", "logits", "scalar"), (DSA.strategy, "whole", "hard", "scalar")],
)
def test_exact_adjoints_equal_finite_differences(
    adjoint: str, strategy: str, batching: str, labels: str, lr: str
) -> None:
    case = problem(4, strategy, batching, labels, lr, activation="sigmoid")
    actual = case.gradients(EXACT[adjoint])
    generator = torch.Generator().manual_seed(0)
    start = case.leaves["theta0"]

    def value(name: str, leaf: Tensor) -> float:
        leaves = {**case.leaves, name: leaf}
        theta = unroll(case.loss, leaves["theta0"], case.batches(leaves), leaves["lr"], EXACT[adjoint])
        return float(displacement(theta.detach(), start, case.target))

    for name, gradient in actual.items():
        for direction in (gradient / gradient.norm(), torch.randn(gradient.shape, generator=generator).double()):
            h = 1e-4 * direction
            leaf = case.leaves[name]
            slope_h = (value(name, leaf + h) - value(name, leaf - h)) / 2e-4
            slope_2h = (value(name, leaf + 2 * h) - value(name, leaf - 2 * h)) / 4e-4
            slope = (4 * slope_h - slope_2h) / 3  # Richardson: error of fourth order
            expected = float((gradient * direction).sum())
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6 * float(gradient.norm())), name


def tesla(case: Problem) -> tuple[Tensor, Tensor]:
    """The two sweeps of Cui et al. 2023 for one step size, with the factor of 2 that the released code loses."""
    start, images, beta = case.leaves["theta0"], case.leaves["images"], case.leaves["lr"]
    distance = (start - case.target).square().sum()

    def gradient(theta: Tensor, x: Tensor, i: int) -> Tensor:
        theta = theta.detach().requires_grad_()
        rows = torch.arange(IMAGES) if case.rows[i] is None else case.rows[i]
        batch_images, seed = x[rows], case.seeds[i]
        if seed is not None:
            batch_images = case.loss.augment(batch_images, seed)  # type: ignore[misc]
        loss = F.cross_entropy(case.loss.model(theta, batch_images), case.leaves["labels"][rows])
        return torch.autograd.grad(loss, theta, create_graph=True)[0]

    thetas, total = [start], torch.zeros_like(start)
    for i in range(len(case.rows)):
        total = total + gradient(thetas[-1], images, i).detach()
        thetas.append(start - beta * total)
    v = beta * (case.target - start) + beta**2 * total
    grad_images = torch.zeros_like(images)
    for i, theta in enumerate(thetas[:-1]):
        x = images.clone().requires_grad_()
        grad_images += 2 * torch.autograd.grad(v @ gradient(theta, x, i) / distance, x)[0]
    return grad_images, -2 / distance * (start - beta * total - case.target) @ total


@pytest.mark.parametrize("strategy", ["none", DSA.strategy])
@pytest.mark.parametrize("batching", ["whole", "rows"])
@pytest.mark.parametrize("labels", ["hard", "probabilities"])
def test_without_curvature_it_is_tesla(labels: str, batching: str, strategy: str) -> None:
    case = problem(6, strategy, batching, labels, "scalar")
    images, lr = tesla(case)
    actual = case.gradients(Replay(curvature=False))
    exact = case.gradients(Replay())
    assert_same({"images": actual["images"], "lr": actual["lr"]}, {"images": images, "lr": lr}, 1e-12)
    assert (actual["images"] - exact["images"]).norm() > 1e-3 * exact["images"].norm()


@pytest.mark.parametrize("curvature", [True, False])
def test_image_gain_scales_the_image_gradient_alone(curvature: bool) -> None:
    case = problem(4, DSA.strategy)
    full, half = (case.gradients(Replay(curvature, gain)) for gain in (1.0, 0.5))
    assert torch.equal(half.pop("images"), 0.5 * full.pop("images"))
    assert all(torch.equal(half[name], value) for name, value in full.items())


class SavedTensor:
    """A tensor that autograd keeps; what it holds counts for as long as this lives."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Bytes of the distinct storages that autograd keeps: now, and the most there were."""
    bytes_of: dict[int, int] = {}
    references: Counter[int] = Counter()
    counts = {"now": 0, "peak": 0}

    def update() -> None:
        counts["now"] = sum(bytes_of[key] for key, count in references.items() if count)
        counts["peak"] = max(counts["peak"], counts["now"])

    def release(key: int) -> None:
        references[key] -= 1
        update()

    def pack(tensor: Tensor) -> SavedTensor:
        saved, storage = SavedTensor(tensor), tensor.untyped_storage()
        bytes_of[storage.data_ptr()] = storage.nbytes()
        references[storage.data_ptr()] += 1
        weakref.finalize(saved, release, storage.data_ptr())
        update()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda factor: factor.tensor):
        yield counts


def saved_bytes(adjoint: Adjoint, steps: int) -> dict[str, int]:
    """What autograd keeps of an unroll once it is done, and at most during it and during its backward pass."""
    # no norm: under saved_tensors_hooks torch 2.13 never releases two tensors of GroupNorm's second derivative
    case = problem(steps, "color", "whole", "hard", "scalar", norm="none")
    leaves = {**case.leaves, "images": case.leaves["images"].clone().requires_grad_()}
    with counting() as forward:
        value = case.value(adjoint, leaves)
        after = forward["now"]
        forward["peak"], peak = 0, forward["peak"]
        value.backward()
    return {"after": after, "forward": peak, "backward": forward["peak"]}


@pytest.mark.parametrize("curvature", [True, False])
def test_what_autograd_keeps_does_not_grow_with_the_steps(curvature: bool) -> None:
    two_steps, sixteen_steps = (saved_bytes(Replay(curvature), steps) for steps in (2, 16))
    assert two_steps == sixteen_steps
    assert two_steps["after"] < two_steps["backward"]
    two_steps, sixteen_steps = (saved_bytes(Backprop(), steps) for steps in (2, 16))
    assert sixteen_steps["after"] > 6 * two_steps["after"]


@pytest.mark.parametrize("adjoint", EXACT)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_quadratic_contracts_as_it_must(adjoint: str, steps: int) -> None:
    """loss = a/2 |theta - x|^2 has theta_N = c theta_0 + (1 - c) x with c = (1 - lr a)^N."""
    a, lr = 3.0, torch.tensor(0.1, dtype=torch.double, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    theta0, x, r = torch.randn(3, 4, generator=generator, dtype=torch.double)
    theta0, x = theta0.requires_grad_(), x.reshape(1, 1, 2, 2).requires_grad_()

    def loss(theta: Tensor, batch: Batch) -> Tensor:
        return a / 2 * (theta - batch.images.flatten()).square().sum()

    theta = unroll(loss, theta0, [Batch(x, torch.zeros(1))] * steps, lr, EXACT[adjoint])
    c = (1 - 0.1 * a) ** steps
    torch.testing.assert_close(theta, c * theta0 + (1 - c) * x.flatten())
    (theta @ r).backward()
    torch.testing.assert_close(theta0.grad, c * r)
    if steps:
        torch.testing.assert_close(x.grad.flatten(), (1 - c) * r)
        slope = steps * a * (1 - 0.1 * a) ** (steps - 1) * ((x.flatten() - theta0) @ r)
        torch.testing.assert_close(lr.grad, slope.detach())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_loss_is_pure(strategy: str) -> None:
    """Called twice it gives the same bits, for value and gradient; that is what Replay relies on."""
    case = problem(1, strategy, "whole")
    batch = case.batches(case.leaves)[0]
    theta = case.leaves["theta0"].clone().requires_grad_()
    actual = [case.loss(theta, batch) for _ in range(2)]
    assert torch.equal(*actual)
    assert torch.equal(*(torch.autograd.grad(value, theta)[0] for value in actual))


@pytest.mark.parametrize("adjoint", [*EXACT.values(), Replay(curvature=False)], ids=str)
def test_gradients_land_nowhere_else(adjoint: Adjoint) -> None:
    case = problem(3, DSA.strategy)
    leaves = {name: leaf.clone() for name, leaf in case.leaves.items()}
    leaves["images"].requires_grad_()
    case.value(adjoint, leaves).backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == ["images"]
    assert not any(leaf.requires_grad for name, leaf in leaves.items() if name != "images")
    assert all(torch.equal(leaf.detach(), case.leaves[name]) for name, leaf in leaves.items())
    assert case.target.grad is None
    assert all(parameter.grad is None for parameter in case.loss.model.module.parameters())


@pytest.mark.parametrize("adjoint", [*EXACT.values(), Replay(curvature=False)], ids=str)
def test_the_same_unroll_gives_the_same_bits(adjoint: Adjoint) -> None:
    case = problem(4, DSA.strategy)
    first, second = (case.gradients(adjoint) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_adjoints_end_at_the_same_parameters() -> None:
    case = problem(5, DSA.strategy)
    reference, *replayed = (
        unroll(case.loss, case.leaves["theta0"], case.batches(case.leaves), case.leaves["lr"], adjoint)
        for adjoint in (Backprop(), Replay(), Replay(curvature=False), None)
    )
    torch.testing.assert_close(replayed[0], reference.detach(), rtol=1e-13, atol=1e-15)
    assert all(torch.equal(replayed[0], end) for end in replayed[1:])


@pytest.mark.parametrize("step_sizes", [[0.1, 0.2], torch.zeros(2, 2)])
def test_a_wrong_number_of_step_sizes_is_refused(step_sizes: Any) -> None:
    case = problem(3)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        unroll(case.loss, case.leaves["theta0"], case.batches(case.leaves), step_sizes)


LINEAR: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "constant gradient": lambda theta, batch: theta.sum(),
    "gradient without curvature": lambda theta, batch: theta.sum() * batch.images.sum(),
}


@pytest.mark.parametrize("loss", LINEAR)
@pytest.mark.parametrize("adjoint", EXACT)
def test_losses_without_curvature(adjoint: str, loss: str) -> None:
    x, lr = torch.ones(1, 1, 1, 1, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    unroll(LINEAR[loss], torch.zeros(2), [Batch(x, torch.zeros(1))] * 3, lr, EXACT[adjoint]).sum().backward()
    assert float(lr.grad) == -6


# --- losses that are no pure functions


class Impure:
    """A loss that is another one at every call."""

    def __init__(self, kind: str):
        self.kind, self.calls = kind, 0
        self.own, self.numpy = torch.Generator(), np.random.default_rng(0)

    def __call__(self, theta: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.calls += 1
        if self.kind == "noise":
            factor = torch.rand(theta.shape, generator=self.own, dtype=theta.dtype) > 0.3
        elif self.kind == "numpy":
            factor = torch.as_tensor(self.numpy.random(theta.shape) > 0.3)
        else:
            factor = torch.as_tensor(1.0 + 0.01 * self.calls)
        return (factor * (theta - batch.images.flatten()).square()).sum()


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("kind", ["noise", "numpy", "state"])
def test_replay_refuses_a_loss_that_changes(kind: str, dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    theta0, images = (torch.randn(size, generator=generator, dtype=dtype) for _ in range(2))
    batches = [Batch(images.view(1, 1, 1, size).requires_grad_(), torch.zeros(1))] * 2
    with pytest.raises(UserError, match="no pure function"):
        unroll(Impure(kind), theta0, batches, 0.1).square().sum().backward()
    unroll(Impure(kind), theta0, batches, 0.1, Backprop()).square().sum().backward()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_not_taken_for_change(strategy: str, dtype: torch.dtype) -> None:
    """In float32, and where products are rounded to bfloat16."""
    model = FlatModel(lambda: ConvNet(3, (8, 8), CLASSES, depth=2, width=16))
    loss = CrossEntropy(model, DSA(strategy), None if dtype == torch.float32 else dtype)
    images = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batches = [Batch(images, torch.arange(IMAGES) % CLASSES, seed) for seed in range(4)]
    end = unroll(loss, model.init(0), batches, torch.tensor(0.3, requires_grad=True))
    (end - model.init(1)).square().sum().backward()
    assert images.grad is not None
