"""Laws of networks: shapes, the flat vector, seeds, features, and derivatives in float64."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from limbeck.core.errors import UserError
from limbeck.core.rng import fork_rng, make_generator
from limbeck.core.types import Batch
from limbeck.derivatives.autograd import Loss, NeedsGrad
from limbeck.laws.law import Law, NotApplicable, require
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import CrossEntropy, cross_entropy
from limbeck.networks.registry import ModelConfig, flat_model


class NetworkTrial:
    """A network for images of one shape (channels, height, width)."""

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], classes: int):
        self.config, self.shape, self.classes = config, shape, classes

    @cached_property
    def model(self) -> FlatModel:
        """The network as a function of one flat vector."""
        return flat_model(self.config, self.shape, self.classes)

    @cached_property
    def double_model(self) -> FlatModel:
        """The same in float64."""
        build = self.model.build
        return FlatModel(lambda: build().double(), self.shape)

    def draw_images(self, count: int) -> Tensor:
        """Images (count, channels, height, width) from N(0, 1)."""
        return torch.randn(count, *self.shape, generator=make_generator(0, "images"))


def _plain_module(model: FlatModel, theta: Tensor) -> nn.Module:
    """A new module with these parameters."""
    with fork_rng(0, "plain module"):
        module = model.build()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), model.layout.split(theta), strict=True):
            parameter.copy_(value)
    return module


def check_shapes(trial: NetworkTrial) -> None:
    """the function builds a torch.nn.Module in float32 that is pure and returns logits (n, classes)"""
    logits = trial.model(trial.model.init(0), trial.draw_images(3))
    require(tuple(logits.shape) == (3, trial.classes), f"the logits of 3 images have the shape {tuple(logits.shape)}")
    require(bool(torch.isfinite(logits).all()), "some logits are not finite")


def check_seeds(trial: NetworkTrial) -> None:
    """the initial parameters are those of the seed, bit for bit, and another seed gives others"""
    model = trial.model
    theta = model.init(3)
    require(torch.equal(theta, model.init(3)), "two initialisations from one seed differ")
    require(not torch.equal(theta, model.init(4)), "initialisations from two seeds are the same")
    require(torch.equal(model.layout.join(model.layout.split(theta)), theta), "the flat vector does not come back")


def check_forward(trial: NetworkTrial) -> None:
    """with a flat vector it is the plain module with these parameters, and images make a difference"""
    model, images = trial.model, trial.draw_images(2)
    theta = model.init(3)
    module = _plain_module(model, theta)
    with torch.no_grad():
        logits = model(theta, images)
        error = float((module(images) - logits).abs().max())
    require(error <= 1e-6 * max(1.0, float(logits.abs().max())), f"the logits differ by {error:.3g}")
    alike = torch.allclose(logits[0], logits[1], rtol=1e-4, atol=1e-6)
    require(not alike, "the logits of two different images are the same")


def check_features(trial: NetworkTrial) -> None:
    """the layer called classifier maps features (n, d) to logits, as DM and kmeans-features need it"""
    model, images = trial.model, trial.draw_images(2)
    theta = model.init(3)
    try:
        features = model.features(theta, images)
    except UserError as refusal:
        raise NotApplicable(str(refusal)) from None
    classifier = _plain_module(model, theta).classifier
    with torch.no_grad():
        error = float((classifier(features) - model(theta, images)).abs().max())  # type: ignore[operator]
    require(error <= 1e-4, f"the classifier of the features differs from the logits by {error:.3g}")


class _Derivatives(NamedTuple):
    """The gradient (P,) of a loss, and its Hessian-vector product in parameters (P,) and images."""

    gradient: Tensor
    theta: Tensor
    images: Tensor


def _by_autograd(model: FlatModel, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> _Derivatives:
    """By autograd of the plain module."""
    module, leaf = _plain_module(model, theta), images.clone().requires_grad_()
    parameters = list(module.parameters())
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            loss = cross_entropy(module(leaf), labels)
            parts = torch.autograd.grad(loss, parameters, create_graph=True)
            gradient = torch.cat([part.reshape(-1) for part in parts])
            second = torch.autograd.grad(gradient @ direction, [*parameters, leaf])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return _Derivatives(gradient.detach(), model.layout.join(list(second[:-1])), second[-1])


def check_derivatives(trial: NetworkTrial) -> None:
    """gradient and Hessian-vector product are those of the plain module by autograd in float64"""
    model = trial.double_model
    theta, images = model.init(0), trial.draw_images(3).double()
    labels = torch.arange(3) % trial.classes
    direction = torch.randn(len(theta), generator=make_generator(0, "direction")).double()
    exact = _by_autograd(model, theta, images, labels, direction)
    loss = Loss(CrossEntropy(model))
    gradient = loss.gradient(theta, Batch(images, labels))
    error = float((gradient - exact.gradient).norm() / exact.gradient.norm())
    require(error <= 1e-9, f"the gradient differs by {error:.3g}")
    hvp = loss.hvp(theta, Batch(images, labels), direction, NeedsGrad(True, True, False))
    for name, actual, expected in (("parameters", hvp.theta, exact.theta), ("images", hvp.images, exact.images)):
        require(actual is not None, f"there is no product in the {name}")
        error = float((actual - expected).norm() / expected.norm())  # type: ignore[operator]
        require(error <= 1e-8, f"the Hessian-vector product differs in the {name} by {error:.3g}")


def check_gradient_by_differences(trial: NetworkTrial) -> None:
    """the gradient agrees with a finite difference of the loss in float64"""
    model = trial.double_model
    theta, batch = model.init(0), Batch(trial.draw_images(3).double(), torch.arange(3) % trial.classes)
    loss = Loss(CrossEntropy(model))
    gradient = loss.gradient(theta, batch)
    direction = torch.randn(len(theta), generator=make_generator(0, "direction")).double()
    slope, errors = float(gradient @ direction), []
    for size in (1e-4, 1e-5, 1e-6, 1e-7):  # a kink of a ReLU lies between the ends of the larger ones now and then
        difference = float(loss(theta + size * direction, batch) - loss(theta - size * direction, batch)) / (2 * size)
        errors.append(abs(difference - slope) / float(gradient.norm()))
    require(min(errors) <= 1e-3, f"they differ by {min(errors):.3g} of the gradient's norm; does it use .detach()?")


NETWORK_LAWS: tuple[Law[NetworkTrial], ...] = (
    check_shapes,
    check_seeds,
    check_forward,
    check_features,
    check_derivatives,
    check_gradient_by_differences,
)
