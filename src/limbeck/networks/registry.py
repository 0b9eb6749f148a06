"""Networks by name. To add one, write a module of (channels, size, classes, **options) and add a line to MODELS.

>>> MODELS["mlp"](1, (8, 8), 10, width=4)(torch.zeros(2, 1, 8, 8)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from limbeck.core.errors import UserError
from limbeck.networks.convnet import MLP, ConvNet, default_depth, widening
from limbeck.networks.flat import FlatModel

__all__ = ["MLP", "MODELS", "ConvNet", "ModelConfig", "default_depth", "flat_model", "widening"]

MODELS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "widening": widening, "mlp": MLP}
"""Functions of (channels, size, classes, **options) that build a network, by the name that users give."""


class ModelConfig(BaseModel):
    """A network and its options; an option that is not set has the network's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "convnet"
    """Name of the network: convnet, widening (a convnet whose channels double from block to block) or mlp."""
    depth: int | None = Field(default=None, ge=1)
    """Number of blocks of a convnet; the default depends on the image size (3 at 28 and 32 pixels)."""
    width: int | None = Field(default=None, ge=1)
    """Channels of every block; in widening, of the first block (the papers: 128)."""
    norm: str | None = None
    """Norm after every convolution: instance, batch, layer, group or none."""
    activation: str | None = None
    """Activation: relu, leaky-relu, sigmoid, softplus or swish."""
    pooling: str | None = None
    """Pooling at the end of every block: avg, max or none."""

    def options(self) -> dict[str, Any]:
        """The options that are set, as keyword arguments of the network.

        Raises UserError for an unknown network, and for an option that this network does not have.
        """
        if self.name not in MODELS:
            raise UserError(f"there is no network called '{self.name}'; choose one of {', '.join(sorted(MODELS))}.")
        options = {key: value for key, value in self.model_dump(exclude={"name"}).items() if value is not None}
        parameters = inspect.signature(MODELS[self.name]).parameters
        for key in options:
            if key not in parameters:
                own = ", ".join(name for name in type(self).model_fields if name != "name" and name in parameters)
                raise UserError(f"the network '{self.name}' has no option '{key}'; it has {own or 'none'}.")
        return options

    def resolved(self, size: tuple[int, int]) -> ModelConfig:
        """The same network for images of this size, with its defaults filled in: a record must not depend on them.

        >>> ModelConfig(name="convnet", width=32).resolved((32, 32)).depth
        3
        """
        options = self.options()
        defaults = {
            key: parameter.default
            for key, parameter in inspect.signature(MODELS[self.name]).parameters.items()
            if key in type(self).model_fields and parameter.default is not inspect.Parameter.empty
        }
        if "depth" in defaults:
            defaults["depth"] = default_depth(min(size))
        return ModelConfig(name=self.name, **{**defaults, **options})


def flat_model(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> FlatModel:
    """The network for images of `shape` (channels, height, width) as a function of one flat vector.

    Raises UserError for a network that cannot be trained to distinguish `classes`, and as `FlatModel` does.

    >>> flat_model(ModelConfig(name="mlp", width=4), (1, 8, 8), 10).layout.names
    ('fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias', 'classifier.weight', 'classifier.bias')
    """
    options = config.options()
    channels, height, width = shape
    model = FlatModel(lambda: MODELS[config.name](channels, (height, width), classes, **options), shape)
    _require_classifier(model, config.name, shape, classes)
    return model


@torch.no_grad()
def _require_classifier(model: FlatModel, name: str, shape: tuple[int, int, int], classes: int) -> None:
    if not model.layout.count:
        raise UserError(f"the network '{name}' has no parameters to train.")
    theta = model.init(0)
    if theta.dtype is not torch.float32:
        raise UserError(f"the parameters of the network '{name}' are {theta.dtype}; build it in torch.float32.")
    result = tuple(model(theta, torch.zeros(2, *shape)).shape)
    if result != (2, classes):
        raise UserError(
            f"the network '{name}' returns a tensor of shape {result} for 2 images; with {classes} classes it has to "
            f"return logits of shape (2, {classes})."
        )
