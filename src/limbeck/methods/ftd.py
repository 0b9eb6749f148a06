"""FTD (Du et al., CVPR 2023): MTT on flat expert trajectories, with the exponential average of the images."""

from __future__ import annotations

from typing import Literal

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.initial import InitName
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    RecordedConfig,
    RecordedOptions,
    init_learned_set,
    make_objective,
    make_optimisers,
    resolve_lengths,
)

FLAT = {"keep": "both", "sam_rho": 0.01, "sam_alpha": 0.3, "sam_adaptive": True}
"""How flat experts are trained (GSAM), as fields of `ExpertConfig`."""


class FTDConfig(RecordedConfig):
    """Options of FTD."""

    gradient: Literal["exact", "backprop"] = "exact"
    """The same gradient in two ways: exact keeps the graph of one step at a time, backprop of all (as the authors)."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""


class FTDOptions(RecordedOptions, FTDConfig):
    """Options of FTD with every default resolved."""


def resolve(config: FTDConfig, facts: DataFacts) -> FTDOptions:
    """Return the options with numbers for M and U."""
    return FTDOptions(**config.model_dump() | resolve_lengths(config, facts))


def plan(options: FTDOptions, inputs: MethodInputs) -> Plan:
    """Match whole epochs of flat experts."""
    synthetic = init_learned_set(options, options.init, inputs)
    sampler = WholeEpochs(options.max_start_epoch, options.expert_epochs)
    objective = make_objective(options, inputs, synthetic, sampler, options.gradient)
    optimisers = make_optimisers(options, synthetic)
    return Plan(objective, synthetic, optimisers, options.iterations)


FTD = Method(
    name="ftd",
    summary="MTT on flat expert trajectories (GSAM), with the average of the images",
    source="Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation, CVPR 2023",
    config=FTDConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    expert_defaults=FLAT,
    ema_decay=0.99,  # the authors: 0.999 to 0.9999 over 5000 outer steps
)
