"""Networks by name. To add one, write a module of (channels, size, classes, **options) and add a line to MODELS.

`find_network` also takes MODULE:NAME for a user's own function, and timm:NAME for a network of timm.

>>> MODELS["mlp"](1, (8, 8), 10, width=4)(torch.zeros(2, 1, 8, 8)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import nn
from torch.nn.parameter import is_lazy

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.memory import total_memory
from limbeck.core.ranges import Depth, Width
from limbeck.core.rng import fork_rng
from limbeck.core.text import quote, shorten
from limbeck.core.user_imports import find_object
from limbeck.networks.alexnet import AlexNet
from limbeck.networks.convnet import MLP, ConvNet, default_depth, widening
from limbeck.networks.flat import FlatModel
from limbeck.networks.lenet import LeNet
from limbeck.networks.resnet import ResNet18, resnet18ap
from limbeck.networks.timm_models import TimmNetwork
from limbeck.networks.vgg import VGG11
from limbeck.networks.vit import ViT

__all__ = [
    "MLP",
    "MODELS",
    "ConvNet",
    "ModelConfig",
    "default_depth",
    "find_network",
    "flat_model",
    "parse_network",
    "widening",
]

Factory = Callable[..., nn.Module]
"""(channels, (height, width), classes, **options) -> a network with random weights."""

MODELS: dict[str, Factory] = {
    "convnet": ConvNet,
    "widening": widening,
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "resnet18ap": resnet18ap,
    "vit": ViT,
}
"""Functions of (channels, size, classes, **options) that build a network, by the name that users give."""


def find_network(name: str) -> Factory:
    """The function that builds the network of this name: of `MODELS`, of timm (timm:NAME), or the user's.

    The user's are MODULE:NAME, and the entry points of the group `limbeck.networks`.

    Raises UserError for a name that is none of these, and for what cannot be imported.

    >>> find_network("lenet")
    <class 'limbeck.networks.lenet.LeNet'>
    """
    prefix, _, model = name.partition(":")
    if "=" in name:
        raise UserError(
            f"the network {quote(name)} has options in its name, as --networks takes them; elsewhere a network and its "
            "options are given one by one: --model.name resnet18 --model.width 16."
        )
    if prefix == "timm" and model:
        return partial(TimmNetwork, model)
    factory = find_object(name, "network", MODELS)
    if not callable(factory):
        raise UserError(
            f"the network {quote(name)} is a {type(factory).__name__}; it has to be a function of (channels, size, "
            "classes) that returns a torch.nn.Module."
        )
    return factory  # type: ignore[no-any-return]


class ModelConfig(BaseModel):
    """A network and its options; an option that is not set has the network's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "convnet"
    """Name of the network: convnet, widening (channels double), mlp, lenet, alexnet, vgg11, resnet18, resnet18ap, vit;
    timm:NAME for one of timm, and my_file:make for a function `make` of your own."""
    depth: Depth | None = None
    """Number of blocks of a convnet or vit; a convnet's default depends on the image size (3 at 28 and 32 pixels)."""
    width: Width | None = None
    """Channels of every block, or of the first where they grow (the papers: 128; vgg11 and resnet18 64)."""
    norm: str | None = None
    """Norm after every convolution: instance, batch, layer (convnet only), group or none."""
    activation: str | None = None
    """Activation: relu, leaky-relu, sigmoid, softplus or swish."""
    pooling: str | None = None
    """Pooling at the end of every block: avg, max or none."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, values: Any) -> Any:
        return parse_network(values).model_dump(exclude_none=True) if isinstance(values, str) else values

    def options(self) -> dict[str, Any]:
        """The options that are set, as keyword arguments of the network.

        Raises UserError for an unknown network, and for an option that this network does not have.
        """
        parameters = _parameters(self.name)
        options = {key: value for key, value in self.model_dump(exclude={"name"}).items() if value is not None}
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        for key in options:
            if key not in parameters and not takes_all:
                own = ", ".join(name for name in type(self).model_fields if name != "name" and name in parameters)
                raise UserError(f"the network {quote(self.name)} has no option {quote(key)}; it has {own or 'none'}.")
        return options

    def resolved(self, size: tuple[int, int]) -> ModelConfig:
        """The same network for images of this size, with its defaults filled in: a record must not depend on them.

        >>> ModelConfig(name="convnet", width=32).resolved((32, 32)).depth
        3
        """
        options = self.options()
        defaults = {
            key: parameter.default
            for key, parameter in _parameters(self.name).items()
            if key in type(self).model_fields and parameter.default is not inspect.Parameter.empty
        }
        if "depth" in defaults and defaults["depth"] is None:
            defaults["depth"] = default_depth(min(size))
        return ModelConfig(name=self.name, **{**defaults, **options})

    def label(self, usual: ModelConfig) -> str:
        """The name with those options in which the network differs from `usual`, as `parse_network` reads them.

        >>> ModelConfig(name="resnet18", width=16).label(ModelConfig(name="resnet18", width=64))
        'resnet18:width=16'
        """
        options = self.model_dump(exclude={"name"})
        words = [f"{key}={value}" for key, value in options.items() if value not in (None, getattr(usual, key))]
        return ":".join([self.name, *words])


def parse_network(text: str) -> ModelConfig:
    """The network that NAME:key=value:key=value names; the keys are options of `ModelConfig`.

    NAME is any that `find_network` knows, also MODULE:NAME and timm:NAME: a part with = is none of Python's names.
    Raises UserError for an option that is no option of networks, that is given twice, and for a wrong value.

    >>> parse_network("my_file:make:width=8:norm=batch")
    ModelConfig(name='my_file:make', depth=None, width=8, norm='batch', activation=None, pooling=None)
    """
    parts = text.split(":")
    words = [part for part in parts if "=" in part]
    name = ":".join(parts[: len(parts) - len(words)])
    if parts[len(parts) - len(words) :] != words or not name:
        raise UserError(f"the network {quote(text)} is not of the form NAME:option=value; write resnet18:width=16.")
    keys = [key for key in ModelConfig.model_fields if key != "name"]
    options: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in keys:
            raise UserError(
                f"the network {quote(text)}: networks have no option {quote(key)}; {suggest_names(key, keys)}"
            )
        if key in options:
            raise UserError(f"the network {quote(text)} has the option {quote(key)} twice; give one of the two.")
        if not value:
            raise UserError(f"the network {quote(text)} has no value for the option {quote(key)}; write {key}=VALUE.")
        options[key] = value
    try:
        return ModelConfig(name=name, **options)
    except ValidationError as error:
        fault = error.errors()[0]
        message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}"
        raise UserError(f"the network {quote(text)}: {fault['loc'][0]}={quote(fault['input'])}: {message}.") from None


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of the function that builds a network; none where Python cannot tell."""
    network = find_network(name)  # its UserError is a ValueError, too
    try:
        return inspect.signature(network).parameters
    except ValueError:
        return {}


def flat_model(config: ModelConfig, shape: tuple[int, int, int], classes: int) -> FlatModel:
    """The network for images of `shape` (channels, height, width) as a function of one flat vector.

    Raises UserError for a network that cannot be trained to distinguish `classes`, and as `FlatModel` does.

    >>> flat_model(ModelConfig(name="mlp", width=4), (1, 8, 8), 10).layout.names
    ('fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias', 'classifier.weight', 'classifier.bias')
    """
    options, factory = config.options(), find_network(config.name)
    channels, height, width = shape
    if config.name in MODELS:
        _require_room(partial(factory, channels, (height, width), classes, **options), config.name)

    def build() -> nn.Module:
        try:
            return factory(channels, (height, width), classes, **options)
        except Exception as error:  # of the user's own code, anything
            if config.name in MODELS or isinstance(error, UserError):
                raise
            reason = f"{type(error).__name__}: {shorten(error)}"
            raise UserError(
                f"the network {quote(config.name)} cannot be built for images of shape {shape}: {reason}"
            ) from error

    model = FlatModel(build, shape)
    _require_classifier(model, config.name, shape, classes)
    return model


def _require_room(build: Callable[[], nn.Module], name: str) -> None:
    """Raise UserError for a network that this machine cannot hold together with one vector of its parameters.

    It is built without memory, on torch's device "meta".
    """
    with torch.device("meta"), fork_rng(0, "shell"):
        network = build()
    if not isinstance(network, nn.Module):  # for `FlatModel` to refuse, as lazy parameters are
        return
    count = sum(parameter.numel() for parameter in network.parameters() if not is_lazy(parameter))
    memory = total_memory()
    if memory is not None and 8 * count > memory:
        raise UserError(
            f"the network {quote(name)} would have {count:,} parameters, two copies of which are "
            f"{8 * count / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB of memory; lower its "
            "width or its depth (--model.width, --pool-width)."
        )


@torch.no_grad()
def _require_classifier(model: FlatModel, name: str, shape: tuple[int, int, int], classes: int) -> None:
    if not model.layout.count:
        raise UserError(f"the network {quote(name)} has no parameters to train.")
    theta = model.init(0)
    if theta.dtype is not torch.float32:
        raise UserError(f"the parameters of the network {quote(name)} are {theta.dtype}; build it in torch.float32.")
    result = tuple(model(theta, torch.zeros(2, *shape)).shape)
    if result != (2, classes):
        raise UserError(
            f"the network {quote(name)} returns a tensor of shape {result} for 2 images; with {classes} classes it has "
            f"to return logits of shape (2, {classes})."
        )
