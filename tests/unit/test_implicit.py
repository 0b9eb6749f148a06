"""The solved student: brute force finds the same optimum, and finite differences the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor

from limbeck.core.types import Batch
from limbeck.data.augment import DSA
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import ConvNet
from limbeck.objectives.fit import Fit, Solved, Trained
from limbeck.synthetic.set import SyntheticSet
from limbeck.training import Backprop, CrossEntropy, Implicit, Replay, cross_entropy, linearised, solve
from limbeck.training.implicit import HEAD, Cholesky, ConjugateGradient, PrimalAdam, Solver, System

pytestmark = pytest.mark.usefixtures("untouched_generators")

IMAGES, CLASSES, RIDGE = 5, 3, 0.02
TIGHT = ConjugateGradient(1e-14, 200)
EXACT: dict[str, Solver] = {"cholesky": Cholesky(), "conjugate gradient": TIGHT}


def network(dtype: torch.dtype = torch.double) -> FlatModel:
    def build() -> ConvNet:
        network = ConvNet(1, (8, 8), CLASSES, depth=2, width=3, norm="none", activation="softplus", widen=True)
        return network.to(dtype)

    return FlatModel(build)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


MODEL = network()
THETA = 2 * MODEL.init(1)
X, Y = normal(IMAGES, 1, 8, 8, seed=1), normal(IMAGES, CLASSES, seed=2)
REAL = normal(7, 1, 8, 8, seed=3), torch.arange(7) % CLASSES


def system(images: Tensor = X, chunk: int = 256) -> System:
    return System(MODEL, THETA, images, RIDGE, chunk)


def dense(images: Tensor) -> Tensor:
    """J, (n classes, P), column by column of the identity's products: nothing that the code under test uses."""
    return torch.autograd.functional.jacobian(lambda theta: MODEL(theta, images).flatten(), THETA)


def loss(x: Tensor, y: Tensor, solver: Solver = EXACT["cholesky"], model: FlatModel = MODEL) -> Tensor:
    theta = THETA.to(x)
    v = solve(model, theta, Batch(x, y), RIDGE, Implicit(solver))
    return cross_entropy(linearised(model, theta, v, REAL[0].to(x)), REAL[1])


def gradients(value: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    return list(torch.autograd.grad(value(*own), own))


def assert_slopes(value: Callable[..., Tensor], leaves: tuple[Tensor, ...], actual: list[Tensor]) -> None:
    """Central differences, Richardson's, along the gradient and along a random direction, to 1e-6."""
    for place, gradient in enumerate(actual):
        assert gradient.norm() > 0
        for direction in (gradient / gradient.norm(), normal(*gradient.shape, seed=9)):
            at = {}
            for h in (-2e-4, -1e-4, 1e-4, 2e-4):
                point = list(leaves)
                point[place] = leaves[place] + h * direction
                at[h] = float(value(*point).detach())
            slope = (4 * (at[1e-4] - at[-1e-4]) / 2e-4 - (at[2e-4] - at[-2e-4]) / 4e-4) / 3
            expected = float((gradient * direction).sum())
            assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6 * float(gradient.norm()))


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("solver", EXACT)
def test_it_is_the_ridge_regression(solver: str) -> None:
    j = dense(X)
    brute = torch.linalg.solve(j.T @ j + RIDGE * torch.eye(j.shape[1]).double(), j.T @ Y.flatten())
    v, alpha = EXACT[solver].forward(system(), Y)
    torch.testing.assert_close(v, brute, rtol=1e-9, atol=1e-11)
    stationary = RIDGE * v - j.T @ (Y.flatten() - j @ v)
    assert stationary.norm() < 1e-12
    assert (system()(alpha) - Y).norm() < 1e-11
    torch.testing.assert_close(linearised(MODEL, THETA, v, X).flatten(), j @ v)


def test_products_are_those_of_the_jacobian_also_in_parts() -> None:
    j, a, v = dense(X), normal(IMAGES, CLASSES, seed=5), normal(len(THETA), seed=6)
    for chunk in (2, 256):
        operator = system(chunk=chunk)
        torch.testing.assert_close(operator.jvp(v).flatten(), j @ v)
        torch.testing.assert_close(operator.vjp(a), j.T @ a.flatten())
    factor = system().factor
    torch.testing.assert_close(factor @ factor.T, j @ j.T + RIDGE * torch.eye(len(j)).double())


def rcig_student(x: Tensor, y: Tensor, real: Tensor) -> tuple[Tensor, float]:
    """As the paper has it: W eliminated by kernel ridge regression, then delta by Newton; (logits, norm of KKT)."""
    h = MODEL.features(THETA, x)
    k = h @ h.T
    split = dict(zip(MODEL.layout.names, MODEL.layout.split(torch.arange(len(THETA)))))
    body = torch.tensor(sorted(set(range(len(THETA))) - set(split[HEAD].flatten().tolist())))
    j = dense(x)[:, body]
    eye = torch.eye(len(x)).double()

    def inner(delta: Tensor) -> Tensor:
        remainder = y - (j @ delta).view_as(y)
        alpha = torch.linalg.solve(k + RIDGE * eye, remainder)
        residual_term = (remainder - k @ alpha).square().sum() / 2
        return (residual_term + RIDGE / 2 * ((alpha * (k @ alpha)).sum() + delta.square().sum())) / y.numel()

    delta = torch.zeros(len(body), dtype=torch.double)
    for _ in range(2):  # it is quadratic; the second step takes away rounding
        slope = torch.func.grad(inner)(delta)
        delta = delta - torch.linalg.solve(torch.func.hessian(inner)(delta), slope)
    alpha = torch.linalg.solve(k + RIDGE * eye, y - (j @ delta).view_as(y))
    logits = (dense(real)[:, body] @ delta).view(len(real), -1) + MODEL.features(THETA, real) @ h.T @ alpha
    return logits, float(torch.func.grad(inner)(delta).norm())


def test_it_is_rcigs_inner_problem_and_gradient() -> None:
    """Their form of it, brute force: same logits, stationary, same meta-gradient by finite differences."""
    brute, kkt = rcig_student(X, Y, REAL[0])
    assert kkt < 1e-14
    v = solve(MODEL, THETA, Batch(X, Y), RIDGE, Implicit(Cholesky()))
    torch.testing.assert_close(linearised(MODEL, THETA, v, REAL[0]), brute, rtol=1e-9, atol=1e-10)
    assert_slopes(lambda x, y: cross_entropy(rcig_student(x, y, REAL[0])[0], REAL[1]), (X, Y), gradients(loss, X, Y))


@pytest.mark.parametrize("solver", EXACT)
def test_the_gradient_equals_finite_differences(solver: str) -> None:
    value = partial(loss, solver=EXACT[solver])
    assert_slopes(value, (X, Y), gradients(value, X, Y))


def test_the_gradient_equals_that_of_the_dense_solution() -> None:
    """Autograd through torch.linalg.solve of the dense system, an independent derivation."""

    def brute(x: Tensor, y: Tensor) -> Tensor:
        rows = torch.func.jacrev(lambda theta: MODEL(theta, x))(THETA).flatten(0, 1)
        alpha = torch.linalg.solve(rows @ rows.T + RIDGE * torch.eye(len(rows)).double(), y.flatten())
        return cross_entropy((dense(REAL[0]) @ (rows.T @ alpha)).view(7, -1), REAL[1])

    for actual, expected in zip(gradients(loss, X, Y), gradients(brute, X, Y), strict=True):
        assert relative(actual, expected) < 1e-10


@dataclass(frozen=True)
class Mixed:
    """The regression exactly, its adjoint by another solver: what that costs alone."""

    other: Solver

    def forward(self, system: System, targets: Tensor) -> tuple[Tensor, Tensor]:
        return Cholesky().forward(system, targets)

    def adjoint(self, system: System, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return self.other.adjoint(system, gradient)


def test_fewer_steps_less_exact() -> None:
    """Relative error of the image gradient, first with the adjoint alone solved in part, then with both."""
    (exact, _) = gradients(loss, X, Y)

    def error(solver: Solver) -> float:
        return relative(gradients(partial(loss, solver=solver), X, Y)[0], exact)

    cg = {steps: error(Mixed(ConjugateGradient(0, steps))) for steps in (2, 5, 10, 15)}
    assert cg[2] > cg[5] > cg[10] > cg[15]
    assert cg[5] < 0.1
    assert cg[10] < 1e-3
    adam = [error(Mixed(PrimalAdam(lr_adjoint=lr))) for lr in (0.1, 1, 10)]
    assert min(adam) > 10 * cg[10]
    assert error(ConjugateGradient(0, 15)) < 1e-4
    assert error(ConjugateGradient(1e-3, 100)) < 0.02
    assert error(PrimalAdam(0.01, 0.1)) > 0.1
    assert error(PrimalAdam(0.01, 0.1, steps=2000)) < 0.05  # 0.008 and 0.016 on two processors


def test_the_primal_keeps_the_heads_tangent_at_zero() -> None:
    """What moves in it is the body alone; the head is the kernel regression's, for every delta."""
    solver, operator = PrimalAdam(steps=5), system()
    v, alpha = solver.forward(operator, Y)
    head = dict(zip(MODEL.layout.names, MODEL.layout.split(v)))[HEAD]
    torch.testing.assert_close(head, alpha.T @ MODEL.features(THETA, X))
    residual = Y - operator.jvp(v)
    torch.testing.assert_close(residual, RIDGE * alpha)


@pytest.mark.parametrize("solver", [*EXACT.values(), PrimalAdam(steps=3)], ids=lambda solver: type(solver).__name__)
def test_inputs_are_unchanged_and_a_repeated_call_gives_the_same_bits(solver: Solver) -> None:
    copies = THETA.clone(), X.clone(), Y.clone(), [p.clone() for p in MODEL.module.parameters()]
    first, second = (gradients(partial(loss, solver=solver), X, Y) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second))
    assert torch.equal(THETA, copies[0])
    assert torch.equal(X, copies[1])
    assert torch.equal(Y, copies[2])
    assert all(torch.equal(p, then) for p, then in zip(MODEL.module.parameters(), copies[3]))
    assert all(p.grad is None for p in MODEL.module.parameters())


def test_images_in_parts_give_the_same_gradient() -> None:
    def parts(x: Tensor, y: Tensor) -> Tensor:
        v = Implicit(TIGHT).solve(System(MODEL, THETA, x, RIDGE, chunk=2), y)
        return cross_entropy(linearised(MODEL, THETA, v, REAL[0]), REAL[1])

    for actual, expected in zip(gradients(parts, X, Y), gradients(loss, X, Y)):
        assert relative(actual, expected) < 1e-9


def test_float32_is_near() -> None:
    single = network(torch.float)
    expected = gradients(loss, X, Y)
    for solver in (Cholesky(), ConjugateGradient(1e-5, 100)):
        actual = gradients(partial(loss, solver=solver, model=single), X.float(), Y.float())
        assert all(relative(a.double(), e) < 1e-3 for a, e in zip(actual, expected))


def test_equal_images_with_hardly_any_ridge() -> None:
    """The system is singular but for its ridge; in float32 rounding makes it indefinite."""
    single = network(torch.float)
    operator = System(single, THETA.float(), 100 * X[:1].expand(6, -1, -1, -1).float(), 1e-5)
    y = normal(1, CLASSES).expand(6, -1).float()
    v, _ = Cholesky().forward(operator, y)
    assert relative(operator.jvp(v), y) < 1e-2
    broken = replace(operator, images=operator.images * torch.inf)
    assert Cholesky().forward(broken, y)[1].isnan().all()


# --- the objective


def synthetic_set(flip: bool = False) -> SyntheticSet:
    images, labels = (torch.cat([X, X.flip(3)]), torch.cat([Y, Y])) if flip else (X, Y)
    return SyntheticSet.from_images(images, labels, 0.1, ("images", "labels"))


SOLVED = Solved(MODEL, lambda step: THETA, RIDGE, Implicit(Cholesky()))


def image_gradient(objective: Fit, synthetic: SyntheticSet, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(objective(synthetic, 0, seed), list(synthetic.parameters().values()))


def test_a_random_part_is_unbiased() -> None:
    """The mean over all subsets of stored images is the whole gradient, of images; targets have theirs each time."""
    whole_gradient = image_gradient(Fit(SOLVED, REAL), synthetic_set())
    total, count = torch.zeros_like(X), 0
    for rows in combinations(range(IMAGES), 2):
        part = synthetic_set()
        v = solve(MODEL, THETA, Batch(part.images, part.labels), RIDGE, Implicit(Cholesky()), torch.tensor(rows))
        value = cross_entropy(linearised(MODEL, THETA, v, REAL[0]), REAL[1])
        images, labels = torch.autograd.grad(value, [part.images, part.labels])
        assert images.flatten(1).norm(dim=1).nonzero().flatten().tolist() == list(rows)
        torch.testing.assert_close(labels, whole_gradient[1])
        total, count = total + images, count + 1
    torch.testing.assert_close(total / count, whole_gradient[0])


def test_the_part_is_drawn_anew_by_seed() -> None:
    objective = Fit(replace(SOLVED, grad_images=2, flip=True), REAL)
    parts = [image_gradient(objective, synthetic_set(), seed)[0].flatten(1).norm(dim=1) > 0 for seed in range(8)]
    assert all(int(part.sum()) == 2 for part in parts)
    assert len({tuple(part.tolist()) for part in parts}) > 1


def test_mirror_images_are_as_if_they_were_stored() -> None:
    flipped, stored = synthetic_set(), synthetic_set(flip=True)
    images, labels = image_gradient(Fit(replace(SOLVED, flip=True), REAL), flipped)
    doubled, targets = image_gradient(Fit(SOLVED, REAL), stored)
    torch.testing.assert_close(images, doubled[:IMAGES] + doubled[IMAGES:].flip(3))
    torch.testing.assert_close(labels, targets[:IMAGES] + targets[IMAGES:])


@pytest.mark.parametrize("adjoint", [Backprop(), Replay()], ids=["backprop", "replay"])
def test_back_propagation_through_training_is_the_same_objective(adjoint: Replay | Backprop) -> None:
    objective = Fit(Trained(MODEL, CrossEntropy(MODEL, DSA("scale")), steps=4, batch_size=3, adjoint=adjoint), REAL, 5)

    def value(images: Tensor, labels: Tensor, log_lr: Tensor) -> Tensor:
        return objective(SyntheticSet(images, labels, log_lr), 3, 0)

    leaves = X, Y, torch.tensor(-1.0).double()
    assert_slopes(value, leaves, gradients(value, *leaves))


def test_real_images_are_drawn_by_seed_and_step() -> None:
    calls: list[list[float]] = []

    def student(synthetic: SyntheticSet, step: int, seed: int) -> Callable[[Tensor], Tensor]:
        def predict(images: Tensor) -> Tensor:
            calls.append(images.flatten(1).sum(1).tolist())
            return torch.zeros(len(images), CLASSES)

        return predict

    for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        Fit(student, REAL, 4)(synthetic_set(), step, seed)
    assert calls[0] == calls[1]
    assert calls[0] not in calls[2:]
    assert all(len(set(row)) == 4 for row in calls)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="floats"):
        solve(MODEL, THETA, Batch(X, torch.zeros(IMAGES, dtype=torch.long)), RIDGE)
    with pytest.raises(ValueError, match="above 0"):
        solve(MODEL, THETA, Batch(X, Y), 0.0)


def test_rows_of_a_batch_are_selected() -> None:
    rows = torch.tensor([3, 1])
    selected, direct = (
        solve(MODEL, THETA, batch, RIDGE) for batch in (Batch(X, Y, None, rows), Batch(X[rows], Y[rows]))
    )
    assert torch.equal(selected, direct)
