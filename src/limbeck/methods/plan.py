"""What a method is handed, what it hands back, and how it is listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from limbeck.core.types import Trajectory
from limbeck.experts.store import ExpertConfig, Kind
from limbeck.synthetic.loop import Hook, Objective
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task


class MethodInputs(NamedTuple):
    """What a method works from: the task, experts' trajectories of the kind it asks for, images per class, seed.

    A method without experts finds trajectories only where the user named a store of some.
    """

    task: Task
    trajectories: Sequence[Trajectory]
    ipc: int
    seed: int


class DataFacts(NamedTuple):
    """What a method's defaults may depend on: training images, images per class, and how its experts are trained."""

    train_images: int
    ipc: int
    expert: ExpertConfig

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.train_images // self.expert.batch_size)


def itself(synthetic: SyntheticSet) -> SyntheticSet:
    """The set that is optimised is the set that is used."""
    return synthetic


class Plan(NamedTuple):
    """A method made concrete: what to lower, from where, by which optimisers, for how many outer steps.

    show: the set to validate and to keep, from the one that is optimised (an average of it, say).
    """

    objective: Objective
    synthetic: SyntheticSet
    optimisers: Sequence[torch.optim.Optimizer]
    iterations: int
    accept: Callable[[float], bool] | None = None
    hooks: Sequence[Hook] = ()
    show: Callable[[SyntheticSet], SyntheticSet] = itself


def as_asked(config: Any, facts: DataFacts) -> Any:
    """No default depends on the data."""
    return config


def threads_never_matter(options: Any) -> bool:
    """Whatever the options are."""
    return False


def threads_always_matter(options: Any) -> bool:
    """Whatever the options are."""
    return True


class MethodConfig(BaseModel):
    """Options of a method: its fields are its command-line flags."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Method:
    """A line of the registry: name, where it comes from, its options, the experts it needs, and its recipe.

    resolve: fill in the defaults that depend on the data, so that a record holds numbers.
    experts: which trajectories it needs, any, or none: then no experts are trained for it.
    expert_defaults: fields of `ExpertConfig` that experts trained for this method have unless told otherwise.
    learns: names of the raw parameters of the set that it optimises.
    threads_matter: options -> whether its bits depend on the number of threads although the network is compiled, since
        some of its gradients go through autograd.
    """

    name: str
    summary: str
    source: str
    config: type[MethodConfig]
    experts: Kind | None
    plan: Callable[[Any, MethodInputs], Plan]
    resolve: Callable[[Any, DataFacts], Any] = as_asked
    expert_defaults: Mapping[str, Any] = field(default_factory=dict)
    learns: tuple[str, ...] = ("images", "log_lr")
    threads_matter: Callable[[Any], bool] = threads_never_matter
