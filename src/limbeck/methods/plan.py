"""What a method is handed, what it hands back, and how it is listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from limbeck.loop import always
from limbeck.synthetic import SyntheticSet
from limbeck.task import Task
from limbeck.trajectory.store import Kind
from limbeck.types import Hook, Objective, Trajectory


class Material(NamedTuple):
    """What a method works from: the task, experts' trajectories of the kind it asks for, images per class, seed."""

    task: Task
    trajectories: Sequence[Trajectory]
    ipc: int
    seed: int


class Plan(NamedTuple):
    """A method made concrete: what to lower, from where, by which optimisers, for how many outer steps."""

    objective: Objective
    synthetic: SyntheticSet
    optimisers: Sequence[torch.optim.Optimizer]
    iterations: int
    accept: Callable[[float], bool] = always
    hooks: Sequence[Hook] = ()


class MethodConfig(BaseModel):
    """Options of a method: its fields are its command-line flags."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class Method:
    """A line of the registry: name, where it comes from, its options, the experts it needs, and its recipe."""

    name: str
    summary: str
    source: str
    config: type[MethodConfig]
    experts: Kind | None
    plan: Callable[[Any, Material], Plan]
