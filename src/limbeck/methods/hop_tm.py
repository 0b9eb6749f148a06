"""HoP-TM (Dong et al., MICCAI 2025): MTT of the easiest parameters first, and of the shape of the path."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, Share, StepSize, Weight
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
from limbeck.objectives.path import PositionAndShape, halfway_and_last


class HoPTMConfig(RecordedConfig):
    """Options of HoP-TM."""

    iterations: Count = 300
    """Number of outer steps."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """Optimiser of the images (the authors': sgd)."""
    lr_img: StepSize = 0.1
    """Step size of the images."""
    lr_teacher: StepSize = 0.02
    """The student's step size at the start."""
    gradient: Literal["exact", "backprop"] = "exact"
    """The same gradient in two ways: exact keeps the graph of one step at a time, backprop of all (as the authors)."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""
    share: Annotated[Share, Field(gt=0)] = 0.2
    """Part of the parameters that are matched at the first outer step: those with the least error. It grows to all."""
    share_steps: Count | None = None
    """Outer steps in which it grows; the default is all of --iterations."""
    shape: Weight = 0.5
    """Weight of the difference in shape between the paths of student and expert (the authors: 0.5 and 1)."""


class HoPTMOptions(RecordedOptions, HoPTMConfig):
    """Options of HoP-TM with every default resolved."""

    share_steps: int


def resolve(config: HoPTMConfig, facts: DataFacts) -> HoPTMOptions:
    """Return the options with numbers for M, U and the steps in which the share grows."""
    steps = {"share_steps": config.share_steps or config.iterations}
    return HoPTMOptions(**config.model_dump() | resolve_lengths(config, facts) | steps)


def plan(options: HoPTMOptions, inputs: MethodInputs) -> Plan:
    """Match position and shape from whole epochs of convexified experts of some waypoints, with hard labels."""
    if options.syn_steps < 2:
        raise UserError("--method hop-tm compares the student halfway, which takes 2 steps; raise --syn-steps.")
    synthetic = init_learned_set(options, options.init, inputs)
    sampler = WholeEpochs(options.max_start_epoch, options.expert_epochs)
    distance = PositionAndShape(options.share, options.share_steps, options.shape)
    objective = make_objective(
        options, inputs, synthetic, sampler, options.gradient, stop=halfway_and_last, path_distance=distance
    )
    return Plan(objective, synthetic, make_optimisers(options, synthetic), options.iterations)


HOP_TM = Method(
    name="hop-tm",
    summary="match position and shape of expert trajectories, the easiest parameters first",
    source="Dong et al., High-Order Progressive Trajectory Matching for Medical Image Dataset Distillation, "
    "MICCAI 2025",
    config=HoPTMConfig,
    experts="convex",
    plan=plan,
    resolve=resolve,
    expert_defaults={"waypoints": 4, "smoothing": "none"},
)
