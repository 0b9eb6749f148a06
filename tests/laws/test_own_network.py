"""Laws of the derivatives of a user's own network, by autograd, in either order of an image's memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.types import Batch
from limbeck.data.augment import DSA
from limbeck.derivatives.autograd import Loss, NeedsGrad
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import cross_entropy
from limbeck.networks.registry import MLP, ConvNet
from limbeck.select.scores import grand
from limbeck.training import CrossEntropy

IMAGES, CLASSES = 5, 3


class Residual(nn.Module):
    """A network of a user: strides, group norm and a sum of two branches."""

    def __init__(self, channels: int):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(channels, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.classifier = nn.GroupNorm(2, 4), nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.gelu(self.stem(images))
        logits: Tensor = self.classifier((hidden + self.norm(self.branch(hidden))).mean((2, 3)))
        return logits


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], bool]] = {  # and whether channels last is its order
    "instance norm": (lambda channels: ConvNet(channels, (8, 8), CLASSES, 2, 4), False),
    "layer norm": (lambda channels: ConvNet(channels, (8, 8), CLASSES, 2, 4, norm="layer"), False),
    "group norm, residual": (Residual, False),
    "no norm, average pooling": (lambda channels: ConvNet(channels, (8, 8), CLASSES, 2, 4, norm="none"), True),
    "no norm, max pooling": (lambda channels: ConvNet(channels, (8, 8), CLASSES, 2, 4, "none", pooling="max"), True),
    "no convolution": (lambda channels: MLP(channels, (8, 8), CLASSES, 4), False),
}


def user_network(name: str, channels: int) -> tuple[CrossEntropy, Tensor, Batch, Tensor]:
    """A loss, parameters, augmented images with soft labels, and a direction."""
    build, _ = NETWORKS[name]
    model = FlatModel(lambda: build(channels).double(), (channels, 8, 8))  # checked here: hooks see the loss alone
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(IMAGES, channels, 8, 8, generator=generator, dtype=torch.double)
    labels = torch.randn(IMAGES, CLASSES, generator=generator, dtype=torch.double).softmax(1)
    theta = model.init(1)
    direction = torch.randn(len(theta), generator=generator, dtype=torch.double)
    return CrossEntropy(model, DSA("scale")), theta, Batch(images, labels, 7), direction


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_hvp_of_any_network_equals_double_backward_in_torchs_own_order(name: str, channels: int) -> None:
    loss, theta, batch, direction = user_network(name, channels)
    leaves = [tensor.clone().requires_grad_() for tensor in (theta, batch.images, batch.labels)]
    value = cross_entropy(loss.model(leaves[0], DSA("scale")(leaves[1], 7)), leaves[2])
    (expected,) = torch.autograd.grad(value, leaves[0], create_graph=True)
    second = torch.autograd.grad(expected @ direction, leaves)
    assert (Loss(loss).gradient(theta, batch) - expected).norm() <= 1e-12 * expected.norm()
    for needs in (NeedsGrad(True, True, True), NeedsGrad(False, True, False), NeedsGrad(True, False, False)):
        hvp = Loss(loss).hvp(theta, batch, direction, needs)
        torch.testing.assert_close(hvp.directional, (expected @ direction).detach(), rtol=1e-12, atol=1e-14)
        for derivative, exact, want in zip(hvp[1:], second, needs):
            assert (derivative is not None) == want
            assert derivative is None or (derivative - exact).norm() <= 1e-12 * exact.norm()


def test_a_network_without_a_second_derivative_is_refused_in_a_sentence() -> None:
    """Of timm's MobileNetV3, for example: torch cannot differentiate hardsigmoid twice."""
    loss = Loss(CrossEntropy(FlatModel(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Hardsigmoid()))))
    theta, batch = torch.ones(15), Batch(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))
    assert loss.gradient(theta / 10, batch).norm() > 0
    with pytest.raises(UserError, match=r"no second derivative \(derivative for aten::hardsigmoid.*limbeck evaluate"):
        loss.hvp(theta / 10, batch, theta, NeedsGrad(True, True, False))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_see_the_order_that_is_fast_for_their_network(name: str, channels: int) -> None:
    loss, theta, batch, _ = user_network(name, channels)
    orders: list[bool] = []
    for layer in loss.model.module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _module, _inputs, output: orders.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    loss(theta, batch)
    assert set(orders) == ({NETWORKS[name][1]} if orders else set())


@pytest.mark.parametrize("name", ["no norm, average pooling", "group norm, residual"])
def test_gradients_image_by_image_are_possible_in_either_order(name: str) -> None:
    loss, theta, batch, _ = user_network(name, 3)
    images, labels = batch.images, torch.arange(IMAGES) % CLASSES
    one_by_one = [Loss(loss).gradient(theta, Batch(images[i : i + 1], labels[i : i + 1])).norm() for i in range(IMAGES)]
    torch.testing.assert_close(grand(loss, [theta], images, labels), torch.stack(one_by_one), rtol=1e-12, atol=1e-14)
