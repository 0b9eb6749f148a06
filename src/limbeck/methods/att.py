"""ATT (Liu et al., ECCV 2024): MTT whose student stops at the step that is nearest to the target."""

from __future__ import annotations

from typing import Literal

from limbeck.core.ranges import Count, Size, StepSize
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
from limbeck.objectives.path import Nearest


class ATTConfig(RecordedConfig):
    """Options of ATT."""

    iterations: Count = 300
    """Number of outer steps."""
    syn_steps: Size = 40
    """N, student steps per outer step at most; the loss and its gradient are those of the nearest one."""
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


class ATTOptions(RecordedOptions, ATTConfig):
    """Options of ATT with every default resolved."""


def resolve(config: ATTConfig, facts: DataFacts) -> ATTOptions:
    """Return the options with numbers for M and U."""
    return ATTOptions(**config.model_dump() | resolve_lengths(config, facts))


def plan(options: ATTOptions, inputs: MethodInputs) -> Plan:
    """Match whole epochs of recorded experts by the state of the student that is nearest to the target."""
    synthetic = init_learned_set(options, options.init, inputs)
    sampler = WholeEpochs(options.max_start_epoch, options.expert_epochs)
    objective = make_objective(options, inputs, synthetic, sampler, options.gradient, stop=Nearest())
    return Plan(objective, synthetic, make_optimisers(options, synthetic), options.iterations)


ATT = Method(
    name="att",
    summary="match recorded expert trajectories by the step of the student that comes nearest",
    source="Liu et al., Dataset Distillation by Automatic Training Trajectories, ECCV 2024",
    config=ATTConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    expert_defaults={"keep": "both"},
    ema_decay=0.98,  # the authors: 0.999 to 0.9999
)
