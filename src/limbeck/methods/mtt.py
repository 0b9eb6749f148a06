"""MTT, Matching Training Trajectories (Cazenavette et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.initial import InitName
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    RecordedConfig,
    RecordedOptions,
    init_synthetic_set,
    make_objective,
    make_optimisers,
    resolve_lengths,
)


class MTTConfig(RecordedConfig):
    """Options of MTT."""

    gradient: Literal["exact", "backprop"] = "exact"
    """The same gradient in two ways: exact keeps the graph of one step at a time, backprop of all (as the authors)."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""
    canvas: int = Field(default=1, ge=1)
    """Images are canvases of so many image sides, cropped at random (the authors' textures)."""

    def initial_images(self, ipc: int) -> int:
        """Return one real image per tile of a canvas."""
        return ipc * self.canvas**2


class MTTOptions(RecordedOptions, MTTConfig):
    """Options of MTT with every default resolved."""


def resolve(config: MTTConfig, facts: DataFacts) -> MTTOptions:
    """Return the options with numbers for M and U."""
    return MTTOptions(**config.model_dump() | resolve_lengths(config, facts))


def plan(options: MTTOptions, inputs: MethodInputs) -> Plan:
    """Match whole epochs of recorded experts by the exact gradient, with hard labels."""
    synthetic = init_synthetic_set(options.init, inputs, options.lr_teacher, options.canvas)
    sampler = WholeEpochs(options.max_start_epoch, options.expert_epochs)
    objective = make_objective(options, inputs, sampler, options.gradient)
    return Plan(objective, synthetic, make_optimisers(options, synthetic), options.iterations)


MTT = Method(
    name="mtt",
    summary="match recorded expert trajectories, from whole epochs",
    source="Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022",
    config=MTTConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    expert_defaults={"keep": "both"},
)
