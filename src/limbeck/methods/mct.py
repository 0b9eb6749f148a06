"""MCT, Matching Convexified Trajectory (Zhong et al., CVPR 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field

from limbeck.core.errors import UserError
from limbeck.core.types import Sampler
from limbeck.experts.segments import Continuous, WholeEpochs
from limbeck.methods.coreset import Init
from limbeck.methods.plan import DataFacts, Method, MethodConfig, MethodInputs, Plan
from limbeck.methods.trajectory_matching import (
    GRADIENTS,
    StartNoise,
    TeacherAt,
    WithTeacherLabels,
    image_optimiser,
    lr_optimiser,
    real_set,
    span_and_start,
)
from limbeck.objectives.combine import averaged
from limbeck.objectives.trajectory import MatchTrajectory
from limbeck.synthetic.hooks import Ema, StepDecay
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import SyntheticSet


class MCTConfig(MethodConfig):
    """Options of MCT; N, M and U are the papers' symbols, in epochs of the expert where they are times."""

    iterations: int = Field(default=300, ge=1)
    """outer steps"""
    syn_steps: int = Field(default=20, ge=1)
    """N, student steps per outer step"""
    expert_epochs: float | None = Field(default=None, gt=0)
    """M, how far along the expert the student has to get; by default 5 times as far as its own steps can reach"""
    max_start_epoch: float | None = Field(default=None, gt=0)
    """U, start epochs are uniform in [0, U); by default a part of the expert that grows with images per class"""
    sampling: Literal["continuous", "whole"] = "continuous"
    """start and target epochs are real numbers, or whole as in MTT"""
    first_max_start_epoch: float | None = Field(default=None, gt=0)
    """U at the first step, where it is to grow to its full value"""
    expansion_steps: int = Field(default=1, ge=1)
    """outer steps in which U grows"""
    gradient: Literal["exact", "backprop", "tesla", "tesla-corrected"] = "exact"
    """exact (constant graph memory), backprop (full graph), tesla (the authors' approximation, halved as released)"""
    optimizer: Literal["sgd", "adam"] = "adam"
    """of the images (the authors' default is sgd)"""
    lr_img: float = Field(default=0.1, gt=0)
    """step size of the images"""
    lr_img_every: int | None = Field(default=None, ge=1)
    """halve it after so many outer steps (the authors' --lr_decay is 2000)"""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """of SGD on images and step size; Adam's first"""
    lr_teacher: float = Field(default=0.02, gt=0)
    """the student's step size at the start"""
    lr_lr: float = Field(default=1e-5, ge=0)
    """step size of the student's step size, in the papers' unit (of the step size itself); 0 keeps it fixed"""
    batch_syn: int | None = Field(default=None, ge=1)
    """synthetic images per student step; by default all"""
    grad_accum: int = Field(default=1, ge=1)
    """segments whose gradients are averaged in an outer step"""
    init: Init = "random"
    """real images to start from: a coreset's name"""
    canvas: int = Field(default=1, ge=1)
    """images are canvases of so many image sides, cropped at random (MTT's textures)"""
    teacher_labels: bool = False
    """soft labels from the expert at epoch U, made anew at every outer step"""
    noise_start: float = Field(default=0.0, ge=0)
    """epsilon: the student starts at theta + epsilon |theta| N(0, 1), per tensor"""
    ema_decay: float = Field(default=0.98, ge=0, lt=1)
    """validate and keep the exponential average of the images (ours; 0 keeps the images as they are)"""


def resolve(config: MCTConfig, facts: DataFacts) -> MCTConfig:
    """Give M and U numbers."""
    span, start = span_and_start(
        facts, config.syn_steps, config.lr_teacher, config.expert_epochs, config.max_start_epoch
    )
    if config.sampling == "whole":
        span, start = max(1, round(span)), max(1, round(start))
    return config.model_copy(update={"expert_epochs": span, "max_start_epoch": start})


def plan(config: MCTConfig, inputs: MethodInputs) -> Plan:
    """Convexified experts, continuous segments, exact gradient."""
    task = inputs.task
    if config.teacher_labels and config.canvas > 1:
        raise UserError("--teacher-labels and --canvas do not go together: a label is of an image, not of its crops.")
    synthetic = real_set(config.init, inputs, config.lr_teacher, config.canvas)
    images = image_optimiser(config.optimizer, synthetic.images, config.lr_img, config.momentum)
    objective = MatchTrajectory(
        trajectories=inputs.trajectories,
        sampler=_sampler(config),
        loss=task.loss,
        steps=config.syn_steps,
        batch_size=config.batch_syn,
        adjoint=GRADIENTS[config.gradient],
        labels=TeacherAt(task.logits, config.max_start_epoch or 0.0) if config.teacher_labels else None,
        perturb=StartNoise(task.model.layout, config.noise_start) if config.noise_start else None,
    )
    hooks: list[Hook] = [StepDecay(images, config.lr_img_every, 0.5)] if config.lr_img_every else []
    as_evaluated: Callable[[SyntheticSet], SyntheticSet] | None = None
    if config.ema_decay:
        average = Ema(synthetic, config.ema_decay)
        hooks.append(average)
        as_evaluated = average.average
    if config.teacher_labels:
        as_evaluated = WithTeacherLabels(inputs, config.max_start_epoch or 0.0, as_evaluated)
    optimisers: list[torch.optim.Optimizer] = [
        images,
        lr_optimiser(synthetic, config.lr_lr, config.lr_teacher, config.momentum),
    ]
    mean = averaged(objective, config.grad_accum)
    return Plan(mean, synthetic, optimisers, config.iterations, hooks=hooks, as_evaluated=as_evaluated)


def _sampler(config: MCTConfig) -> Sampler:
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    if config.sampling == "whole":
        return WholeEpochs(int(config.max_start_epoch), int(config.expert_epochs))
    first = config.first_max_start_epoch or config.max_start_epoch
    return Continuous(config.max_start_epoch, config.expert_epochs, first, config.expansion_steps)


MCT = Method(
    name="mct",
    summary="match convexified expert trajectories, from any real start epoch",
    source="Zhong et al., Towards Stable and Storage-efficient Dataset Distillation: Matching Convexified Trajectory, "
    "CVPR 2025",
    config=MCTConfig,
    experts="convex",
    plan=plan,
    resolve=resolve,
)
