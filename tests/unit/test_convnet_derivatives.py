"""Explicit derivatives: exact against autograd and finite differences, compiled and in torch's operations alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.core.types import Batch
from limbeck.data.augment import DSA
from limbeck.derivatives.autograd import Loss, NeedsGrad, as_loss
from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.derivatives.convnet import TorchDerivatives, convnet_derivatives, torch_derivatives
from limbeck.derivatives.explicit import FusedCrossEntropy
from limbeck.derivatives.kernels import library as kernels
from limbeck.derivatives.torch_block import parameter_dtype
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import CrossEntropy
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.training.unroll import Backprop, Replay, unroll

pytestmark = pytest.mark.skipif(kernels.load() is None, reason=f"no kernels: {kernels.unavailable_reason()}")

ALL = NeedsGrad(True, True, True)
CASES = [  # shape, width, depth, images: widths to be padded, a padded first block, sides that do not halve, chunks
    ((3, 32, 32), 8, None, 3),
    ((1, 28, 28), 6, None, 4),
    ((1, 8, 8), 16, None, 5),
    ((3, 20, 26), 5, 3, 3),
    ((2, 9, 11), 3, 1, 2),
    ((1, 8, 8), 4, 2, 70),
    ((1, 14, 10), 32, 2, 3),
    ((3, 32, 32), 32, None, 11),
    ((1, 28, 28), 32, None, 6),
    ((4, 9, 11), 32, 1, 2),
    ((3, 20, 26), 64, 3, 23),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def task(
    shape: tuple[int, int, int], width: int, depth: int | None, count: int, soft: bool, dtype: torch.dtype
) -> tuple[FusedCrossEntropy, Tensor, Batch, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = flat_model(ModelConfig(width=width, depth=depth), shape, 5)
    explicit = convnet_derivatives(model, dtype, "cpu") or operations(model, dtype)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(parameter_dtype(dtype))

    theta = model.init(0).to(parameter_dtype(dtype)) + 0.1 * normal(model.layout.count)
    labels = normal(count, 5).exp() if soft else torch.arange(count) % 5  # sums other than 1 too
    batch = Batch(normal(count, *shape), labels, seed=3)
    return FusedCrossEntropy(CrossEntropy(model, DSA()), explicit), theta, batch, normal(model.layout.count)


def by_autograd(loss: FusedCrossEntropy) -> Loss:
    """The same loss without its explicit derivatives."""
    return Loss(loss.function)


def operations(model: FlatModel, dtype: torch.dtype) -> TorchDerivatives:
    """In torch's operations, by parts of eight images."""
    explicit = torch_derivatives(model, dtype)
    assert explicit is not None
    return replace(explicit, max_bytes=0)


def error(actual: Tensor | None, exact: Tensor | None) -> float:
    assert actual is not None
    assert exact is not None
    return float((actual.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("shape", "width", "depth", "count"), CASES)
def test_equals_autograd_in_float64(
    shape: tuple[int, int, int], width: int, depth: int | None, count: int, soft: bool
) -> None:
    loss, theta, batch, direction = task(shape, width, depth, count, soft, torch.float64)
    needs = NeedsGrad(True, True, soft)
    assert error(loss.gradient(theta, batch), by_autograd(loss).gradient(theta, batch)) < 1e-12
    actual, exact = loss.hvp(theta, batch, direction, needs), by_autograd(loss).hvp(theta, batch, direction, needs)
    for name in ("directional", "theta", "images", *(("labels",) if soft else ())):
        assert error(getattr(actual, name), getattr(exact, name)) < 1e-12, name
    assert error(loss.derivatives.logits(theta, batch.images), loss.function.model(theta, batch.images)) < 1e-12


def test_hvp_equals_finite_differences_of_the_gradient() -> None:
    loss, theta, batch, direction = task((1, 8, 8), 6, 2, 4, True, torch.float64)
    actual = loss.hvp(theta, batch, direction, ALL)

    def slope(t: Tensor, images: Tensor, labels: Tensor) -> float:
        return float(torch.dot(direction, loss.gradient(t, Batch(images, labels, batch.seed))))

    for place, name in enumerate(("theta", "images", "labels")):
        at = [theta, batch.images, batch.labels]
        step = torch.zeros_like(at[place])
        step.view(-1)[::7] = 1e-6  # several numbers at once: their slopes add up
        forward, backward = list(at), list(at)
        forward[place], backward[place] = at[place] + step, at[place] - step
        numeric = (slope(*forward) - slope(*backward)) / 2
        exact = float((getattr(actual, name) * step).sum())
        assert numeric == pytest.approx(exact, rel=1e-5), name


@pytest.mark.parametrize("width", [16, 32])
def test_float32_is_as_accurate_as_autograd(width: int) -> None:
    loss, theta, batch, direction = task((3, 32, 32), width, None, 40, True, torch.float32)
    model = loss.function.model
    exact64 = FusedCrossEntropy(CrossEntropy(model, DSA()), operations(model, torch.float64))
    batch64 = Batch(batch.images.double(), batch.labels.double(), batch.seed)
    exact = exact64.hvp(theta.double(), batch64, direction.double(), ALL)
    actual, eager = (
        loss.hvp(theta, batch, direction, ALL),
        by_autograd(loss).hvp(theta, batch, direction, ALL),
    )
    for name in ("theta", "images", "labels"):
        value, expected_value = (error(getattr(result, name), getattr(exact, name)) for result in (actual, eager))
        assert value < max(6 * expected_value, 3e-6), name  # Winograd's transforms round: 1.4e-6 to 2.3e-6 against 5e-7
    largest = direction.norm() * loss.gradient(theta, batch).norm()
    assert abs(float(actual.directional) - float(exact.directional)) < 1e-6 * float(largest)


def test_bfloat16_is_a_few_per_cent_off_in_the_same_direction() -> None:
    loss, theta, batch, direction = task((3, 32, 32), 16, None, 40, True, torch.bfloat16)
    actual, exact = (
        loss.hvp(theta, batch, direction, ALL),
        by_autograd(loss).hvp(theta, batch, direction, ALL),
    )
    gradient = loss.gradient(theta, batch)
    assert gradient.dtype is torch.float32
    assert 1e-4 < error(gradient, by_autograd(loss).gradient(theta, batch)) < 0.1
    for name in ("theta", "images", "labels"):
        value, expected_value = getattr(actual, name).flatten(), getattr(exact, name).flatten()
        assert error(value, expected_value) < 0.15, name
        assert torch.cosine_similarity(value, expected_value, dim=0) > 0.99, name


@pytest.mark.parametrize("gain", [1.0, 0.5])
@pytest.mark.parametrize("curvature", [True, False])
def test_replay_equals_replay_by_autograd(curvature: bool, gain: float) -> None:
    loss, theta, batch, direction = task((1, 8, 8), 6, 2, 6, True, torch.float64)
    gradients = []
    for loss_function in (loss, loss.function):
        images, labels = batch.images.clone().requires_grad_(), batch.labels.clone().requires_grad_()
        lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        rows = [torch.tensor([0, 2, 3]), None, torch.tensor([5, 1])]
        batches = [Batch(images, labels, seed, part) for seed, part in enumerate(rows)]
        end = unroll(loss_function, theta, batches, lr, Replay(curvature, gain))
        gradients.append(torch.autograd.grad(torch.dot(end, direction), [images, labels, lr]))
    for value, expected_value in zip(*gradients):
        assert error(value, expected_value) < 1e-12


def test_replay_equals_backprop() -> None:
    loss, theta, batch, direction = task((3, 32, 32), 4, None, 4, True, torch.float64)
    gradients = []
    for adjoint in (Replay(), Backprop()):
        images = batch.images.clone().requires_grad_()
        end = unroll(loss, theta, [Batch(images, batch.labels, seed) for seed in range(4)], 0.05, adjoint)
        gradients.append(torch.autograd.grad(torch.dot(end, direction), images)[0])
    assert error(*gradients) < 1e-12


def test_a_repeated_call_gives_the_same_bits() -> None:
    loss, theta, batch, direction = task((1, 28, 28), 8, None, 5, False, torch.float32)
    first = loss.hvp(theta, batch, direction, NeedsGrad(True, True, False))
    second = loss.hvp(theta, batch, direction, NeedsGrad(True, True, False))
    assert first.theta is not None
    assert second.theta is not None
    assert first.theta.equal(second.theta)


@pytest.mark.parametrize(
    "needs", [NeedsGrad(False, True, False), NeedsGrad(False, False, True), NeedsGrad(True, False, False)]
)
def test_only_derivatives_that_are_needed_are_computed(needs: NeedsGrad) -> None:
    """Of several parts of the batch too: TESLA's gradient asks for images alone."""
    loss, theta, batch, direction = task((1, 8, 8), 4, 2, 70, True, torch.float64)
    actual, exact = loss.hvp(theta, batch, direction, needs), by_autograd(loss).hvp(theta, batch, direction, ALL)
    for name, is_needed in zip(("theta", "images", "labels"), needs):
        if is_needed:
            assert error(getattr(actual, name), getattr(exact, name)) < 1e-12
        else:
            assert getattr(actual, name) is None


def test_nan_is_propagated() -> None:
    loss, theta, batch, _ = task((1, 8, 8), 4, 2, 3, False, torch.float32)
    theta[0] = float("nan")  # one weight of the first block
    gradient = loss.gradient(theta, batch)
    assert gradient.isnan().any()
    assert loss.derivatives.logits(theta, batch.images).isnan().all()


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(name="mlp"),
        ModelConfig(norm="layer"),
        ModelConfig(norm="group"),
        ModelConfig(activation="sigmoid"),
        ModelConfig(pooling="max"),
        ModelConfig(norm="none", name="widening"),
    ],
)
def test_other_networks_are_left_to_autograd(config: ModelConfig) -> None:
    assert convnet_derivatives(flat_model(config, (1, 8, 8), 3), torch.float32, "cpu") is None


def test_tensors_of_another_type_are_left_to_autograd() -> None:
    loss, theta, batch, direction = task((1, 8, 8), 4, 2, 3, False, torch.float32)
    theta, direction = theta.double(), direction.double()
    wide = Batch(batch.images.double(), batch.labels, batch.seed)
    assert not loss.supports(theta, wide)
    assert loss.gradient(theta, wide).equal(by_autograd(loss).gradient(theta, wide))
    needs = NeedsGrad(True, True, False)
    assert loss.hvp(theta, wide, direction, needs)[1].equal(by_autograd(loss).hvp(theta, wide, direction, needs)[1])


def test_a_plain_function_gets_its_derivatives_by_autograd_once() -> None:
    loss, theta, batch, _ = task((1, 8, 8), 4, 2, 3, False, torch.float32)
    assert as_loss(loss) is loss
    assert type(as_loss(loss.function)) is Loss
    assert as_loss(as_loss(loss.function)) == Loss(loss.function)
    assert as_loss(loss.function)(theta, batch).equal(loss(theta, batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "width", "depth", "count"), CASES)
def test_other_devices_compute_the_same_in_torch_operations(
    shape: tuple[int, int, int], width: int, depth: int | None, count: int, dtype: torch.dtype
) -> None:
    """On the processor, since these operations know no device; against the compiled network, and bfloat16's float32."""
    compiled = torch.float64 if dtype is torch.float64 else torch.float32
    loss, theta, batch, direction = task(shape, width, depth, count, True, compiled)
    torch_loss = replace(loss, derivatives=operations(loss.function.model, dtype))
    close = 1e-12 if dtype is torch.float64 else 0.15  # sums are rounded after other steps
    assert error(torch_loss.gradient(theta, batch), loss.gradient(theta, batch)) < close
    actual, expected = (loss_function.hvp(theta, batch, direction, ALL) for loss_function in (torch_loss, loss))
    for name in ("theta", "images", "labels"):
        assert error(getattr(actual, name), getattr(expected, name)) < close, name
    assert not replace(loss, device="elsewhere").supports(theta, batch)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    initial = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(initial)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("shape", "width", "depth", "count"), CASES)
def test_the_same_bits_by_any_number_of_threads(
    shape: tuple[int, int, int],
    width: int,
    depth: int | None,
    count: int,
    dtype: torch.dtype,
    threads: Callable[[int], None],
) -> None:
    """More threads than images too; and what they give is the pass as TorchDerivatives has it."""
    loss, theta, batch, direction = task(shape, width, depth, count, True, dtype)
    compiled, reference = loss.derivatives, operations(loss.function.model, torch.float64)
    assert isinstance(compiled, CompiledDerivatives)
    point = theta, batch.images, batch.labels
    wide = [tensor.double() for tensor in point]
    exact_gradient, exact = reference.gradient(*wide), reference.hvp(*wide, direction.double(), ALL)
    exact_logits = reference.logits(*wide[:2])
    close = 1e-13 if dtype is torch.float64 else 1e-5
    results = []
    for several in (1, 2, 3, 30):
        threads(several)
        gradient = compiled.gradient(*point)
        results.append([gradient, compiled.logits(*point[:2]), *compiled.hvp(*point, direction, ALL)])
    for result in results[1:]:
        assert all(value.equal(first) for value, first in zip(result, results[0], strict=True))
    gradient, logits, directional, *derivatives = results[0]
    assert error(gradient, exact_gradient) < close
    assert error(logits, exact_logits) < close
    for tensor, expected in zip(derivatives, (exact.theta, exact.images, exact.labels), strict=True):
        assert error(tensor, expected) < close
    assert abs(float(directional) - float(exact.directional)) < close * float(direction.norm() * gradient.norm())


def test_tensors_of_a_wrong_shape_are_refused() -> None:
    """It reads memory by itself, so that a wrong size must not get that far."""
    loss, theta, batch, direction = task((1, 14, 10), 32, 2, 3, True, torch.float32)
    derivatives = loss.derivatives
    with pytest.raises(ValueError, match="images of shape"):
        derivatives.gradient(theta, batch.images[..., :6, :6], batch.labels)
    with pytest.raises(ValueError, match="images of shape"):
        derivatives.logits(theta, batch.images.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="labels of shape"):
        derivatives.gradient(theta, batch.images, batch.labels[:2])
    empty = batch.images[:0], batch.labels[:0]
    for call in (
        lambda: derivatives.gradient(theta, *empty),
        lambda: derivatives.hvp(theta, *empty, direction, ALL),
    ):
        with pytest.raises(ValueError, match="without images"):
            call()
    assert derivatives.logits(theta, empty[0]).shape == (0, 5)
    with pytest.raises(ValueError, match="parameters of shape"):
        derivatives.gradient(theta[:-1], batch.images, batch.labels)
    with pytest.raises(ValueError, match="parameters of shape"):
        derivatives.hvp(theta, batch.images, batch.labels, direction[1:], ALL)


def test_a_tensor_of_another_type_is_converted_and_never_written_past_its_end() -> None:
    """An output of theta's type was once as long as theta's bytes, and written past its end: the process aborted."""
    loss, theta, batch, direction = task((1, 14, 10), 32, 2, 3, True, torch.float32)
    compiled = loss.derivatives
    exact = compiled.gradient(theta, batch.images, batch.labels)
    for dtype in (torch.bfloat16, torch.float64):
        inputs = theta.to(dtype), batch.images.to(dtype), batch.labels.to(dtype)
        actual = compiled.hvp(*inputs, direction.to(dtype), ALL)
        assert actual.theta is not None
        assert actual.theta.dtype is torch.float32
        assert error(compiled.gradient(*inputs), exact) < (1e-6 if dtype is torch.float64 else 0.1)


def test_the_library_refuses_buffers_of_another_type_device_layout_or_length() -> None:
    """Beneath `CompiledDerivatives`, which gives it none."""
    loss, theta, batch, _ = task((1, 14, 10), 32, 2, 3, True, torch.float32)
    compiled = loss.derivatives
    assert isinstance(compiled, CompiledDerivatives)
    sizes = compiled._sizes(batch.images)
    valid = {"theta": theta, "images": batch.images, "labels": batch.labels, "gradient": torch.empty_like(theta)}
    compiled.library.compute(torch.float32, sizes, 1e-5, 3, valid)
    invalid = {
        "theta": [theta.double(), theta[:-1]],
        "images": [batch.images.bfloat16(), batch.images[:2], batch.images.to("meta")],
        "labels": [batch.labels.T.contiguous().T, batch.labels[:, :4].contiguous(), None],
        "gradient": [torch.empty(len(theta) + 1), torch.empty(len(theta), dtype=torch.bfloat16), None],
    }
    for name, tensors in invalid.items():
        for tensor in tensors:
            with pytest.raises(ValueError, match="compiled network"):
                compiled.library.compute(torch.float32, sizes, 1e-5, 3, {**valid, name: tensor})
    for place, value in ((0, 0), (2, 33), (3, 1), (5, -1)):
        other = sizes.clone()
        other[place] = value
        with pytest.raises(ValueError, match="do not fit the compiled network"):
            compiled.library.compute(torch.float32, other, 1e-5, 3, valid)


MEMORY = """
import resource, torch
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.derivatives.convnet import convnet_derivatives
torch.set_num_threads(1)
model = flat_model(ModelConfig(width=128), (3, 32, 32), 10)
written, theta, images = convnet_derivatives(model, torch.float32, "cpu"), model.init(0), torch.rand(5, 3, 32, 32)
labels = torch.arange(5)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (16 << 20), resource.RLIM_INFINITY))
try:
    written.gradient(theta, images, labels)
except MemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(bool(written.gradient(theta, images, labels).isfinite().all()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much a process has")
def test_a_call_without_enough_memory_raises_and_the_next_one_works() -> None:
    """It must not end the process, and goes on where there is some again."""
    process = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert "not enough memory for a pass of the compiled network; use fewer threads" in process.stdout
    assert process.stdout.endswith("True\n")
