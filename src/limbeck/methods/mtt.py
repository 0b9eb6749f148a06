"""MTT, Matching Training Trajectories (Cazenavette et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    RecordedConfig,
    RecordedOptions,
    StartConfig,
    init_learned_set,
    make_objective,
    make_optimisers,
    resolve_lengths,
)


class MTTConfig(RecordedConfig, StartConfig):
    """Options of MTT."""

    gradient: Literal["exact", "backprop"] = "exact"
    """The same gradient in two ways: exact keeps the graph of one step at a time, backprop of all (as the authors)."""


class MTTOptions(RecordedOptions, MTTConfig):
    """Options of MTT with every default resolved."""


def resolve(config: MTTConfig, facts: DataFacts) -> MTTOptions:
    """Return the options with numbers for M and U."""
    return MTTOptions(**config.model_dump() | resolve_lengths(config, facts))


def plan(options: MTTOptions, inputs: MethodInputs) -> Plan:
    """Match whole epochs of recorded experts by the exact gradient, with hard labels."""
    synthetic = init_learned_set(options, options.init, inputs, options.canvas, options.factor)
    sampler = WholeEpochs(options.max_start_epoch, options.expert_epochs)
    objective = make_objective(options, inputs, synthetic, sampler, options.gradient)
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
