"""TESLA (Cui et al., ICML 2023): MTT with a gradient that leaves out curvature, and labels from the teacher."""

from __future__ import annotations

from typing import Literal

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.initial import InitName
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    RecordedConfig,
    RecordedOptions,
    TeacherLabels,
    WithTeacherLabels,
    init_learned_set,
    make_objective,
    make_optimisers,
    resolve_lengths,
)


class TESLAConfig(RecordedConfig):
    """Options of TESLA."""

    gradient: Literal["tesla", "tesla-corrected"] = "tesla-corrected"
    """The gradient of the paper (tesla-corrected), or of the released code, which halves it for the images (tesla)."""
    teacher_labels: bool = False
    """Train the student on the expert's probabilities at the end of the segment, computed anew at every outer step."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""


class TESLAOptions(RecordedOptions, TESLAConfig):
    """Options of TESLA with every default resolved."""


def resolve(config: TESLAConfig, facts: DataFacts) -> TESLAOptions:
    """Return the options with numbers for M and U."""
    return TESLAOptions(**config.model_dump() | resolve_lengths(config, facts))


def plan(options: TESLAOptions, inputs: MethodInputs) -> Plan:
    """Match whole epochs of recorded experts by the approximate gradient, with hard labels or the teacher's."""
    synthetic = init_learned_set(options, options.init, inputs)
    sampler = WholeEpochs(options.max_start_epoch, options.expert_epochs)
    labels, as_evaluated = None, None
    if options.teacher_labels:
        labels = TeacherLabels(inputs.task.logits)
        as_evaluated = WithTeacherLabels(inputs, options.max_start_epoch - 1 + options.expert_epochs)
    objective = make_objective(options, inputs, synthetic, sampler, options.gradient, labels)
    optimisers = make_optimisers(options, synthetic)
    return Plan(objective, synthetic, optimisers, options.iterations, as_evaluated=as_evaluated)


TESLA = Method(
    name="tesla",
    summary="MTT with a gradient that leaves out curvature, and labels from the teacher",
    source="Cui et al., Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023",
    config=TESLAConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    expert_defaults={"keep": "both"},
    exact_gradient=False,
)
