"""TESLA (Cui et al., ICML 2023): MTT by a gradient that leaves out curvature, with labels from the teacher."""

from __future__ import annotations

from typing import Literal

from limbeck.experts.segments import WholeEpochs
from limbeck.methods.coreset import Init
from limbeck.methods.plan import Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    RecordedConfig,
    TeacherLabels,
    WithTeacherLabels,
    match,
    optimisers,
    real_set,
    whole_epochs,
)


class TESLAConfig(RecordedConfig):
    """Options of TESLA."""

    gradient: Literal["tesla", "tesla-corrected"] = "tesla-corrected"
    """tesla-corrected is what the paper derives; tesla halves it for the images, as the released code does"""
    teacher_labels: bool = False
    """train the student on what the expert says of the images at the end of the segment, made anew every step"""
    init: Init = "random"
    """real images to start from: a coreset's name"""


def plan(config: TESLAConfig, inputs: MethodInputs) -> Plan:
    """Recorded experts, whole epochs, the approximate gradient; hard labels or the teacher's."""
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    synthetic = real_set(config.init, inputs, config.lr_teacher)
    sampler = WholeEpochs(config.max_start_epoch, config.expert_epochs)
    labels = TeacherLabels(inputs.task.logits) if config.teacher_labels else None
    last_target = config.max_start_epoch - 1 + config.expert_epochs
    as_evaluated = WithTeacherLabels(inputs, last_target) if config.teacher_labels else None
    objective = match(config, inputs, sampler, config.gradient, labels)
    steps = optimisers(config, synthetic)
    return Plan(objective, synthetic, steps, config.iterations, as_evaluated=as_evaluated)


TESLA = Method(
    name="tesla",
    summary="MTT with a gradient that leaves out curvature, and labels from the teacher",
    source="Cui et al., Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023",
    config=TESLAConfig,
    experts="recorded",
    plan=plan,
    resolve=whole_epochs,
    expert_defaults={"keep": "both"},
)
