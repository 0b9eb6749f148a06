"""DATM (Guo et al., ICLR 2024): match early or late parts of long experts, depending on the number of images."""

from __future__ import annotations

from typing import Literal

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, CountOrZero, StepSize
from limbeck.experts.segments import GrowingEpochs
from limbeck.methods.ftd import FLAT
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


class DATMConfig(RecordedConfig):
    """Options of DATM."""

    min_start_epoch: CountOrZero = 0
    """The first start epoch (min_start_epoch of the authors' files)."""
    first_max_start_epoch: Count | None = None
    """U_0, the bound of start epochs at the first step (current_max_start_epoch); the default is half way to U."""
    expansion_steps: Count | None = None
    """T, outer steps until the bound is U (expansion_end_epoch); the default is a fifth of all."""
    threshold: StepSize = 1.1
    """A step with a loss above it is skipped (the authors: 1.1 at one image per class of CIFAR-10, else 1)."""
    learn_labels: bool = True
    """Learn label probabilities too, from what the experts say about the images that the set starts from."""
    gradient: Literal["exact", "backprop", "tesla-corrected"] = "exact"
    """exact and backprop are the same; tesla-corrected is that of the authors' second script."""
    init: InitName = "correct"
    """Images to start from: a coreset (correct: random ones that an expert classifies correctly), or noise."""


class DATMOptions(RecordedOptions, DATMConfig):
    """Options of DATM with every default resolved."""

    first_max_start_epoch: int
    expansion_steps: int


def resolve(config: DATMConfig, facts: DataFacts) -> DATMOptions:
    """Return the options with numbers for M, U, U_0 and T; UserError for a start range that is empty."""
    lengths = resolve_lengths(config, facts)
    low, high = config.min_start_epoch, lengths["max_start_epoch"]
    if low >= high:
        raise UserError(
            f"start epochs from {low} to below {high} leave none; lower --min-start-epoch, or raise --max-start-epoch."
        )
    growth = {
        "first_max_start_epoch": config.first_max_start_epoch or low + (high - low + 1) // 2,
        "expansion_steps": config.expansion_steps or max(1, config.iterations // 5),
    }
    return DATMOptions(**config.model_dump() | lengths | growth)


def plan(options: DATMOptions, inputs: MethodInputs) -> Plan:
    """Match recorded experts from a start range that grows, learn labels, skip steps with too high a loss."""
    sampler = GrowingEpochs(
        first=options.first_max_start_epoch,
        last=options.max_start_epoch,
        steps=options.expansion_steps,
        span=options.expert_epochs,
        min_start=options.min_start_epoch,
    )
    synthetic = init_learned_set(options, options.init, inputs)
    optimisers = make_optimisers(options, synthetic)
    objective = make_objective(options, inputs, synthetic, sampler, options.gradient)
    return Plan(objective, synthetic, optimisers, options.iterations, accept=lambda loss: loss <= options.threshold)


DATM = Method(
    name="datm",
    summary="match a part of long experts that grows, from correctly classified images with learned labels",
    source="Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching, ICLR 2024",
    config=DATMConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    threads_matter=True,  # the backward pass of torch's softmax by AVX2, in the gradient of the labels
    expert_defaults=FLAT,
    learns=("images", "labels", "log_lr"),
)
