"""The options of a run beside those of its method."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck.core.errors import UserError
from limbeck.data.preprocess import PreprocessName
from limbeck.evaluation.protocol import EvalConfig
from limbeck.experts.store import ExpertConfig
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

    ipc: int = 1
    """Images per class of the synthetic set."""
    seed: int = 0
    """Seed of everything random."""
    preprocess: PreprocessName = "normalise"
    """Mean and deviation per channel, or ZCA whitening, fitted on train; cifar and so on: the authors' constants."""
    augment: str | None = None
    """DSA families joined by '_', or none; the default is all, without flip where mirror images are wrong."""
    fill: FillName = "none"
    """Refuse classes with too few images (none), or repeat their images: as they are, augmented, or with noise."""
    num_experts: int | None = Field(default=None, ge=1)
    """Number of experts; the default is 10, or all of the store that --experts names."""
    validate_every: int | None = Field(default=None, ge=1)
    """Outer steps between validations; the default is a tenth of all."""
    validate_networks: int = Field(default=3, ge=1)
    """Networks per validation."""
    validate_epochs: int = Field(default=300, ge=1)
    """Epochs of each network of a validation."""
    precision: Precision = "float32"
    """Number format of activations in training; tf32 and bfloat16 save time on GPUs, and only there."""
    model: ModelConfig = ModelConfig()
    expert: ExpertConfig = ExpertConfig()
    eval: EvalConfig = EvalConfig()


def check_options(config: type[Config], options: dict[str, Any]) -> Config:
    """Make a config of keyword options; UserError that names the option at fault."""
    try:
        return config(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"option {name}: {first['msg']} (given: {first.get('input')!r}).") from None
