"""DATM (Guo et al., ICLR 2024): which part of long experts to match, by how many images there are to hold it."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.experts.segments import GrownEpochs
from limbeck.methods.coreset import Init
from limbeck.methods.ftd import FLAT
from limbeck.methods.plan import DataFacts, Method, MethodInputs, Plan
from limbeck.methods.trajectory_matching import RecordedConfig, logits_of, match, optimisers, real_set, whole_epochs
from limbeck.synthetic.set import SyntheticSet


class DATMConfig(RecordedConfig):
    """Options of DATM."""

    min_start_epoch: int = Field(default=0, ge=0)
    """start epochs are whole, from this one on (min_start_epoch of the authors' files)"""
    first_max_start_epoch: int | None = Field(default=None, ge=1)
    """U_0, the bound of start epochs at first (current_max_start_epoch); by default half way to U"""
    expansion_steps: int | None = Field(default=None, ge=1)
    """T, outer steps until the bound is U (expansion_end_epoch); by default a fifth of all"""
    threshold: float = Field(default=1.1, gt=0)
    """a step whose loss is above it is not taken (the authors: 1.1 at one image per class of CIFAR-10, else 1)"""
    lr_y: float = Field(default=5.0, gt=0)
    """step size of the label logits"""
    momentum_y: float = Field(default=0.9, ge=0, lt=1)
    """of SGD on the label logits"""
    gradient: Literal["exact", "backprop", "tesla-corrected"] = "exact"
    """exact and backprop are the same; tesla-corrected is that of the authors' second script"""
    init: Init = "correct"
    """real images to start from: a coreset's name; correct: random ones that an expert gets right at its end"""


def resolve(config: DATMConfig, facts: DataFacts) -> DATMConfig:
    """M and U as everywhere; a first bound half way from the least start epoch to U, reached after a fifth of all."""
    config = whole_epochs(config, facts)
    assert config.max_start_epoch is not None
    low, high = config.min_start_epoch, config.max_start_epoch
    if low >= high:
        raise UserError(f"start epochs from {low} to below {high} leave none; raise --max-start-epoch.")
    changed = {
        "first_max_start_epoch": config.first_max_start_epoch or low + (high - low + 1) // 2,
        "expansion_steps": config.expansion_steps or max(1, config.iterations // 5),
    }
    return config.model_copy(update=changed)


def label_logits(said: Tensor, labels: Tensor) -> Tensor:
    """Logits (n, classes) to start from: the mean of `said` (experts, n, classes) over the experts that are right.

    Where none is right: the mean of all, with the largest logit and that of the true class exchanged, so that the
    label is as sure as the experts are, and right.
    """
    right = (said.argmax(2) == labels).unsqueeze(2).to(said.dtype)
    count = right.sum(0)
    mean = torch.where(count > 0, (said * right).sum(0) / count.clamp_min(1), said.mean(0))
    rows, top = torch.arange(len(labels), device=labels.device), mean.argmax(1)
    largest, true = mean[rows, top].clone(), mean[rows, labels].clone()
    mean[rows, top] = true
    mean[rows, labels] = largest
    return mean


def start(config: DATMConfig, inputs: MethodInputs) -> SyntheticSet:
    """Real images and their label logits; all three parts are learned."""
    chosen = real_set(config.init, inputs, config.lr_teacher)
    images, labels = chosen.images.detach(), chosen.labels
    ends = [each.at(each.end) for each in inputs.trajectories]
    logits = torch.stack([logits_of(inputs.task.logits, theta, images) for theta in ends])
    learned = ("images", "labels", "log_lr")
    return SyntheticSet.from_images(images, label_logits(logits, labels), config.lr_teacher, learned)


def plan(config: DATMConfig, inputs: MethodInputs) -> Plan:
    """Recorded experts, a start range that grows, learned labels, a gate on the loss."""
    assert config.max_start_epoch is not None
    assert config.first_max_start_epoch is not None
    assert config.expansion_steps is not None
    assert config.expert_epochs is not None
    sampler = GrownEpochs(
        config.first_max_start_epoch,
        config.max_start_epoch,
        config.expansion_steps,
        config.expert_epochs,
        config.min_start_epoch,
    )
    synthetic = start(config, inputs)
    steps = [
        *optimisers(config, synthetic),
        torch.optim.SGD([synthetic.labels], config.lr_y, momentum=config.momentum_y),
    ]
    objective = match(config, inputs, sampler, config.gradient)
    return Plan(objective, synthetic, steps, config.iterations, accept=lambda loss: loss <= config.threshold)


DATM = Method(
    name="datm",
    summary="match a part of long experts that grows, from correctly classified images with learned labels",
    source="Guo et al., Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching, ICLR 2024",
    config=DATMConfig,
    experts="recorded",
    plan=plan,
    resolve=resolve,
    threads_matter=True,  # torch's softmax, backward, by AVX2: the labels' gradient
    expert_defaults=FLAT,
    learns=("images", "labels", "log_lr"),
)
