"""Laws of the student's rules: torch's steps, with the exact derivative of full back-propagation through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.types import Batch
from limbeck.data.augment import DSA
from limbeck.derivatives.autograd import Hvp, Loss, NeedsGrad
from limbeck.networks.flat import FlatModel
from limbeck.networks.registry import ConvNet
from limbeck.training import (
    Adam,
    Backprop,
    CrossEntropy,
    Descent,
    Momentum,
    Plain,
    Replay,
    State,
    advance,
    unroll,
)
from limbeck.training.unroll import Adjoint, Choice

pytestmark = pytest.mark.usefixtures("untouched_generators")

RULES: dict[str, Descent] = {
    "plain": Plain(),
    "plain, decay": Plain(decay=0.02),
    "momentum": Momentum(0.9),
    "momentum, decay": Momentum(0.7, decay=0.02),
    "nesterov": Momentum(0.9, nesterov=True, decay=0.02),
    "adam": Adam(),
    "adam, decay": Adam(0.8, 0.99, 1e-4, decay=0.02),
    "adamw": Adam(decoupled=0.1),
    "adamw, decay": Adam(decay=0.02, decoupled=0.1),
}
TORCH: dict[str, Callable[[Tensor, float], torch.optim.Optimizer]] = {
    "plain": lambda theta, lr: torch.optim.SGD([theta], lr),
    "plain, decay": lambda theta, lr: torch.optim.SGD([theta], lr, weight_decay=0.02),
    "momentum": lambda theta, lr: torch.optim.SGD([theta], lr, 0.9),
    "momentum, decay": lambda theta, lr: torch.optim.SGD([theta], lr, 0.7, weight_decay=0.02),
    "nesterov": lambda theta, lr: torch.optim.SGD([theta], lr, 0.9, weight_decay=0.02, nesterov=True),
    "adam": lambda theta, lr: torch.optim.Adam([theta], lr),
    "adam, decay": lambda theta, lr: torch.optim.Adam([theta], lr, (0.8, 0.99), 1e-4, weight_decay=0.02),
    "adamw": lambda theta, lr: torch.optim.AdamW([theta], lr, weight_decay=0.1),
}


def third_before_last(path: Sequence[Tensor]) -> list[int]:
    return [len(path) - 4]


def choice_name(choice: Choice) -> str:
    return getattr(choice, "__name__", str(choice))


def beyond(path: Sequence[Tensor]) -> list[int]:
    return [len(path)]


BY_RULE = pytest.mark.parametrize("rule", RULES)
IMAGES, PIXELS, HIDDEN, CLASSES = 5, 4, 3, 2
SIZES = (HIDDEN * PIXELS, HIDDEN, CLASSES * HIDDEN, CLASSES)


def tanh_network(theta: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy of a smooth network with one hidden layer, whose derivatives are autograd's."""
    w1, b1, w2, b2 = theta.split(SIZES)
    hidden = torch.tanh(F.linear(batch.images.flatten(1), w1.view(HIDDEN, PIXELS), b1))
    return F.cross_entropy(F.linear(hidden, w2.view(CLASSES, HIDDEN), b2), batch.labels)


@dataclass(frozen=True)
class Student:
    """A student's tensors in float64, with rows drawn per step and a step size per step."""

    tensors: dict[str, Tensor]
    rows: list[Tensor]
    target: Tensor
    first: int
    """Steps that were taken before, which Adam counts."""

    def batches(self, tensors: dict[str, Tensor]) -> list[Batch]:
        return [Batch(tensors["images"], tensors["labels"].softmax(1), None, rows) for rows in self.rows]

    def end(self, rule: Descent, adjoint: Adjoint, tensors: dict[str, Tensor], choice: Choice | None = None) -> Tensor:
        slots = tuple(tensors[name] for name in sorted(tensors) if name.startswith("slot"))
        start = State(tensors["theta"], slots, self.first)
        return unroll(tanh_network, start, self.batches(tensors), tensors["lr"], adjoint, rule, choice)

    def gradients(self, rule: Descent, adjoint: Adjoint, choice: Choice | None = None) -> dict[str, Tensor]:
        tensors = {name: tensor.clone().requires_grad_() for name, tensor in self.tensors.items()}
        (self.end(rule, adjoint, tensors, choice) - self.target).square().sum().backward()
        return {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}


def student(rule: Descent, steps: int = 7, first: int = 0) -> Student:
    """A student that takes up its rule in the middle of a training where `first` is not 0."""
    generator = torch.Generator().manual_seed(steps + first)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    theta, target = normal(2, sum(SIZES))
    tensors = {
        "images": normal(IMAGES, 1, 2, 2),
        "labels": normal(IMAGES, CLASSES),
        "lr": 0.02 + 0.03 * normal(steps).sigmoid(),
        "theta": theta,
    }
    for i, _slot in enumerate(rule.start(theta).slots):
        value = 0.1 * normal(len(theta))  # Adam's second slot is a mean of squares
        tensors[f"slot {i}"] = value if i == 0 else 0.05 + value.square()
    rows = [torch.randint(IMAGES, (3,), generator=generator) for _ in range(steps)]
    return Student(tensors, rows, target, first)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.norm() > 0, name
        assert (actual[name] - value).norm() <= tolerance * value.norm(), name


@pytest.mark.parametrize("first", [0, 4])
@BY_RULE
def test_replay_equals_backprop_in_all_inputs(rule: str, first: int) -> None:
    case = student(RULES[rule], first=first)
    expected = case.gradients(RULES[rule], Backprop())
    assert_close(case.gradients(RULES[rule], Replay()), expected)
    assert expected.keys() == case.tensors.keys()


@BY_RULE
def test_replay_equals_finite_differences(rule: str) -> None:
    case = student(RULES[rule], first=4)

    def value(tensors: dict[str, Tensor]) -> float:
        return float((case.end(RULES[rule], Replay(), tensors) - case.target).square().sum())

    for name, gradient in case.gradients(RULES[rule], Replay()).items():
        step = 1e-5 * gradient / gradient.norm()
        plus, minus = (value({**case.tensors, name: case.tensors[name] + sign * step}) for sign in (1, -1))
        assert (plus - minus) / 2e-5 == pytest.approx(float(gradient.norm()), rel=1e-6), name


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("adam", "adamw", "adamw, decay")])
def test_replay_equals_backprop_on_a_convnet_with_augmentation(rule: str) -> None:
    """As used, with rows and a seed per step. A small eps would amplify rounding where instance norm hides a bias."""
    model = FlatModel(lambda: ConvNet(1, (8, 8), 3, depth=2, width=4, activation="sigmoid").double())
    loss, generator = CrossEntropy(model, DSA()), torch.Generator().manual_seed(0)
    gradients = []
    for adjoint in (Replay(), Backprop()):
        images = torch.randn(4, 1, 8, 8, generator=generator.manual_seed(0), dtype=torch.double).requires_grad_()
        lr = torch.tensor(0.05, dtype=torch.double, requires_grad=True)
        batches = [Batch(images, torch.arange(4) % 3, seed, torch.tensor([seed, 3])) for seed in range(3)]
        end = unroll(loss, model.init(1), batches, lr, adjoint, RULES[rule])
        (end - model.init(2)).square().sum().backward()
        gradients.append({"images": images.grad, "lr": lr.grad})
    assert_close(*gradients, tolerance=1e-10)


@pytest.mark.parametrize("rule", TORCH)
def test_a_step_is_that_of_torch(rule: str) -> None:
    case = student(RULES[rule])
    theta = case.tensors["theta"].clone().requires_grad_()
    optimiser = TORCH[rule](theta, 0.03)
    batches = case.batches(case.tensors)
    for batch in batches:
        optimiser.zero_grad()
        tanh_network(theta, Batch(batch.images[batch.rows], batch.labels[batch.rows])).backward()
        optimiser.step()
    start = case.tensors["theta"]
    for end in (
        unroll(tanh_network, start, batches, 0.03, Replay(), RULES[rule]),
        unroll(tanh_network, start, batches, 0.03, Backprop(), RULES[rule]).detach(),
        advance(tanh_network, start, batches, 0.03, RULES[rule]).theta,
    ):
        torch.testing.assert_close(end, theta.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_0_has_the_bits_of_plain(nesterov: bool, decay: float) -> None:
    case = student(Plain())
    plain = case.gradients(Plain(decay), Replay())
    slots = replace(case, tensors={**case.tensors, "slot 0": torch.zeros_like(case.target)})
    momentum = slots.gradients(Momentum(0.0, nesterov, decay), Replay())
    assert not momentum.pop("slot 0").any()
    assert momentum.keys() == plain.keys()
    assert all(torch.equal(momentum[name], gradient) for name, gradient in plain.items())
    ends = [case.end(rule, Replay(), case.tensors) for rule in (Plain(decay),)]
    assert torch.equal(slots.end(Momentum(0.0, nesterov, decay), Replay(), slots.tensors), *ends)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_on_a_quadratic_is_the_power_of_a_matrix(nesterov: bool) -> None:
    """loss = a/2 (theta - x)^2 moves (theta - x, m) by a constant matrix, so dL/dx follows from its power."""
    a, lr, rho, steps = 3.0, 0.1, 0.8, 9
    x = torch.tensor([0.4], dtype=torch.double).view(1, 1, 1, 1).requires_grad_()
    theta0 = torch.tensor([-1.3], dtype=torch.double).requires_grad_()
    quadratic = lambda theta, batch: a / 2 * (theta - batch.images.flatten()).square().sum()  # noqa: E731
    end = unroll(quadratic, theta0, [Batch(x, torch.zeros(1))] * steps, lr, Replay(), Momentum(rho, nesterov))
    end.sum().backward()
    gradient, momentum = torch.tensor([[a, 0.0], [a, rho]], dtype=torch.double)  # rows: of (theta - x, m)
    change = gradient + rho * momentum if nesterov else momentum
    matrix = torch.stack([torch.tensor([1.0, 0.0], dtype=torch.double) - lr * change, momentum])
    c = matrix.matrix_power(steps)[0, 0]
    torch.testing.assert_close(end, c * theta0 + (1 - c) * x.flatten())
    torch.testing.assert_close(theta0.grad, c[None])
    torch.testing.assert_close(x.grad.flatten(), 1 - c[None])


def test_adam_moves_a_linear_loss_by_its_step_size() -> None:
    """A constant gradient g gives steps of lr g / (|g| + eps): the derivative in g is lr eps / (|g| + eps)^2."""
    lr, eps, steps = 0.1, 0.5, 6
    x = torch.tensor([0.7, -0.2], dtype=torch.double).view(1, 1, 1, 2).requires_grad_()
    linear = lambda theta, batch: theta @ batch.images.flatten()  # noqa: E731
    theta0 = torch.zeros(2, dtype=torch.double)
    end = unroll(linear, theta0, [Batch(x, torch.zeros(1))] * steps, lr, Replay(), Adam(eps=eps))
    end.sum().backward()
    g = x.detach().flatten()
    torch.testing.assert_close(end, -steps * lr * g / (g.abs() + eps))
    torch.testing.assert_close(x.grad.flatten(), -steps * lr * eps / (g.abs() + eps).square())


@pytest.mark.parametrize("adjoint", [Replay(), Backprop()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_adam_leaves_a_parameter_without_a_gradient_alone(adjoint: Adjoint, dtype: torch.dtype) -> None:
    """Where v = 0 its root has no derivative, and where a gradient is tiny its powers underflow in float32."""
    x = torch.tensor([0.7, 0.0, 1e-18], dtype=dtype).view(1, 1, 1, 3).requires_grad_()
    linear = lambda theta, batch: theta @ batch.images.flatten() ** 3  # noqa: E731
    start = torch.zeros(3, dtype=dtype)
    end = unroll(linear, start, [Batch(x, torch.zeros(1))] * 3, 0.1, adjoint, Adam())
    end.square().sum().backward()
    assert end[0] != 0
    assert end[1] == 0
    assert x.grad.isfinite().all()
    assert x.grad.flatten()[1] == 0


# --- the path, and windows


@pytest.mark.parametrize("adjoint", [Replay(), Backprop()], ids=str)
@pytest.mark.parametrize("choice", [[7], [0, 7], [3, 5], [5, 3, 5], third_before_last], ids=choice_name)
@pytest.mark.parametrize("rule", ["plain, decay", "nesterov", "adamw, decay"])
def test_a_path_is_the_ends_of_shorter_unrolls(rule: str, choice: Choice, adjoint: Adjoint) -> None:
    case = student(RULES[rule], first=4)
    indices = choice([case.target] * 8) if callable(choice) else choice
    path = case.end(RULES[rule], adjoint, case.tensors, choice)
    assert path.shape == (len(indices), len(case.target))
    total = {name: torch.zeros_like(tensor) for name, tensor in case.tensors.items()}
    for state, index in zip(path, indices):
        shorter = replace(case, rows=case.rows[:index], tensors={**case.tensors, "lr": case.tensors["lr"][:index]})
        torch.testing.assert_close(state, shorter.end(RULES[rule], Replay(), shorter.tensors), rtol=1e-13, atol=1e-15)
        for name, gradient in shorter.gradients(RULES[rule], Replay()).items():
            total[name][: len(gradient)] += gradient
    actual = case.gradients(RULES[rule], adjoint, choice)
    assert_close(
        {name: actual[name] for name in actual if total[name].any()},
        {name: value for name, value in total.items() if value.any()},
    )
    assert all(not gradient.any() for name, gradient in actual.items() if not total[name].any())


def test_a_path_of_all_steps_has_the_bits_of_the_end() -> None:
    case = student(Plain())
    path = case.end(Plain(), Replay(), case.tensors, range(8))
    assert torch.equal(path[-1], case.end(Plain(), Replay(), case.tensors))
    assert torch.equal(path[0], case.tensors["theta"])


@pytest.mark.parametrize("choice", [[], [8], [-1], beyond], ids=choice_name)
def test_a_choice_that_is_not_on_the_path_is_refused(choice: Choice) -> None:
    case = student(Plain())
    with pytest.raises(ValueError, match="from 0 to 7"):
        case.end(Plain(), Replay(), case.tensors, choice)


def test_steps_after_the_last_chosen_one_are_not_differentiated() -> None:
    products: list[Tensor] = []

    class Counted(Loss):
        def hvp(self, theta: Tensor, batch: Batch, direction: Tensor, needs: NeedsGrad) -> Hvp:
            products.append(theta)
            return super().hvp(theta, batch, direction, needs)

    case = student(Plain())
    images = case.tensors["images"].clone().requires_grad_()
    batches = case.batches({**case.tensors, "images": images})
    unroll(Counted(tanh_network), case.tensors["theta"], batches, 0.1, choice=[2, 4]).sum().backward()
    assert len(products) == 4


@BY_RULE
def test_a_window_goes_on_where_the_training_stopped(rule: str) -> None:
    """Prefix and window end where the whole training ends, and the prefix is a constant."""
    case = student(RULES[rule])
    images = case.tensors["images"].clone().requires_grad_()
    batches, lr = case.batches({**case.tensors, "images": images}), case.tensors["lr"]
    for i, batch in enumerate(batches):  # image 0 is used in the prefix alone, image 1 in the window alone
        batches[i] = batch._replace(rows=torch.tensor([0 if i < 3 else 1, 2]))
    state = advance(tanh_network, case.tensors["theta"], batches[:3], lr[:3], RULES[rule])
    assert state.steps == 3
    assert not any(tensor.requires_grad for tensor in (state.theta, *state.slots))
    end = unroll(tanh_network, state, batches[3:], lr[3:], descent=RULES[rule])
    whole = unroll(tanh_network, case.tensors["theta"], batches, lr, descent=RULES[rule])
    assert torch.equal(end, whole)
    (end - case.target).square().sum().backward()
    assert not images.grad[0].any()
    assert images.grad[1].any()


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_without_curvature_only_the_hessian_is_left_out(rule: str) -> None:
    """A loss that is linear in theta has none, so that the approximation is exact; with one it is not."""
    descent = RULES[rule]
    linear = lambda theta, batch: theta[:4] @ batch.images.square().mean(0).flatten() + theta.sum()  # noqa: E731
    case = student(descent)
    images = [case.tensors["images"].clone().requires_grad_() for _ in range(2)]
    for x, adjoint in zip(images, (Replay(curvature=False), Replay())):
        batches = case.batches({**case.tensors, "images": x})
        unroll(linear, case.tensors["theta"], batches, 0.1, adjoint, descent).square().sum().backward()
    torch.testing.assert_close(images[0].grad, images[1].grad)
    exact, rough = (case.gradients(descent, Replay(curvature))["images"] for curvature in (True, False))
    assert (exact - rough).norm() > 1e-3 * exact.norm()
