"""The options of a run beside those of its method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.ranges import Count, Decay, Seed, Size
from limbeck.core.short_repr import changed_options
from limbeck.core.text import printable, quote
from limbeck.data.preprocess import PreprocessName
from limbeck.evaluation.protocol import EvalConfig
from limbeck.experts.config import ExpertConfig
from limbeck.networks.registry import ModelConfig
from limbeck.select import FillName
from limbeck.task import Precision

Config = TypeVar("Config", bound=BaseModel)


class JobConfig(BaseModel):
    """The options of a run beside those of its method; its fields are keywords of `distill`.

    >>> JobConfig(ipc=10, model=ModelConfig(width=32)).model.width
    32
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    __repr_args__ = changed_options

    ipc: Size = 1
    """Images per class of the synthetic set."""
    seed: Seed = 0
    """Seed of everything random."""
    preprocess: PreprocessName = "normalise"
    """Mean and deviation per channel, or ZCA whitening, fitted on train; cifar and so on: the authors' constants."""
    augment: str | None = None
    """DSA families joined by '_', or none; the default is all, without flip where mirror images are wrong."""
    fill: FillName = "none"
    """Refuse classes with too few images (none), or repeat their images: as they are, augmented, or with noise."""
    ema_decay: Decay | None = None
    """Decay of an average of the set over outer steps, which is the result; 0: no average; the default is the
    method's."""
    balanced: bool = False
    """Draw as many real images of every class, for experts and for all else that takes batches of real images."""
    num_experts: Size | None = None
    """Number of experts; the default is 10, or all of the store that --experts names."""
    validate_every: Count | None = None
    """Outer steps between validations; the default is a tenth of all."""
    validate_networks: Size = 3
    """Networks per validation."""
    validate_epochs: Count = 300
    """Epochs of each network of a validation."""
    precision: Precision = "float32"
    """Number format of activations in training; tf32 and bfloat16 save time on GPUs, and only there."""
    model: ModelConfig = ModelConfig()
    expert: ExpertConfig = ExpertConfig()
    eval: EvalConfig = EvalConfig()


def check_options(config: type[Config], options: dict[str, Any], others: Iterable[str] = ()) -> Config:
    """Make a config of keyword options; UserError that names the option at fault.

    others: names of options that are not in this config, for the error about an unknown one.
    """
    try:
        return config(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = printable(".".join(str(part) for part in first["loc"]), 60)
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            raise UserError(f"there is no option {name}; {_suggest_option(name, config, others)}") from None
        reason = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise UserError(f"option {name}: {reason} (given: {quote(first.get('input'))}).") from None


def _suggest_option(name: str, config: type[BaseModel], others: Iterable[str]) -> str:
    """What an unknown keyword may have been meant as: one of a group of options, or one of nearly the same name.

    >>> _suggest_option("width", JobConfig, []), _suggest_option("iteration", JobConfig, ["iterations"])
    ('did you mean model=ModelConfig(width=...)?', 'did you mean iterations?')
    """
    groups = {field: type(info.default) for field, info in config.model_fields.items()}
    near = [
        f"{field}={group.__name__}({name}=...)"
        for field, group in groups.items()
        if issubclass(group, BaseModel) and name in group.model_fields
    ]
    if near:
        return f"did you mean {' or '.join(near)}?"
    sentence = suggest_names(name, [*config.model_fields, *others])
    return sentence if sentence.startswith("did you mean") else "'limbeck distill --help' lists all."
