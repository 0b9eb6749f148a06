"""MCT, Matching Convexified Trajectory (Zhong et al., CVPR 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from limbeck.methods.plan import Facts, Material, Method, MethodConfig, Plan
from limbeck.objectives.trajectory import MatchTrajectory
from limbeck.select import choose
from limbeck.student.unroll import Backprop, Replay
from limbeck.synthetic import SyntheticSet
from limbeck.trajectory.segments import Continuous
from limbeck.types import Adjoint

GRADIENTS: dict[str, Adjoint] = {
    "exact": Replay(),
    "backprop": Backprop(),
    "tesla": Replay(curvature=False, image_gain=0.5),  # as released, with its lost factor of 2
    "tesla-corrected": Replay(curvature=False),
}


class MCTConfig(MethodConfig):
    """Options of MCT; N, M and U are the papers' symbols, in epochs of the expert where they are times."""

    iterations: int = Field(default=500, ge=1)
    """outer steps"""
    syn_steps: int = Field(default=20, ge=1)
    """N, student steps per outer step"""
    expert_epochs: float | None = Field(default=None, gt=0)
    """M, how far along the expert the student has to get; by default 5 times as far as its own steps can reach"""
    max_start_epoch: float | None = Field(default=None, gt=0)
    """U, start epochs are uniform in [0, U); by default a part of the expert that grows with images per class"""
    gradient: Literal["exact", "backprop", "tesla", "tesla-corrected"] = "exact"
    """exact (constant graph memory), backprop (full graph), tesla (the authors' approximation, halved as released)"""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """of the images"""
    lr_img: float = Field(default=50.0, gt=0)
    """step size of the images"""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """of SGD on images and step size"""
    lr_teacher: float = Field(default=0.01, gt=0)
    """the student's step size at the start"""
    lr_lr: float = Field(default=1e-5, ge=0)
    """step size of the student's step size, in the papers' unit (of the step size itself); 0 keeps it fixed"""
    batch_syn: int | None = Field(default=None, ge=1)
    """synthetic images per student step; by default all"""
    init: Literal["random", "kmeans"] = "random"
    """real images to start from"""


def resolve(config: MCTConfig, facts: Facts) -> MCTConfig:
    """Give M and U numbers, from what was measured at one image per class on digits and Fashion-MNIST.

    Path lengths are compared in step size x steps: an epoch of the expert against the student's N steps.
    """
    epochs = float(facts.expert.epochs)
    reach = config.syn_steps * config.lr_teacher / (facts.expert.lr * facts.steps_per_epoch)
    span = config.expert_epochs or min(5 * reach, epochs / 2)
    part = min(0.1 * facts.ipc**0.5, 0.8)
    start = config.max_start_epoch or min(max(2 * span, part * epochs), epochs)
    return config.model_copy(update={"expert_epochs": span, "max_start_epoch": start})


def image_optimiser(config: MCTConfig, images: torch.Tensor) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam."""
    if config.optimizer == "adam":
        return torch.optim.Adam([images], config.lr_img, betas=(config.momentum, 0.999))
    return torch.optim.SGD([images], config.lr_img, momentum=config.momentum)


def plan(config: MCTConfig, material: Material) -> Plan:
    """Convexified experts, continuous segments, exact gradient."""
    task = material.task
    assert config.max_start_epoch is not None
    assert config.expert_epochs is not None
    images, labels = task.train
    rows = choose(config.init, images, labels, task.data.num_classes, material.ipc, material.seed).to(images.device)
    synthetic = SyntheticSet.start(images[rows], labels[rows], config.lr_teacher)
    objective = MatchTrajectory(
        trajectories=material.trajectories,
        sampler=Continuous(config.max_start_epoch, config.expert_epochs),
        loss=task.loss,
        steps=config.syn_steps,
        batch_size=config.batch_syn,
        adjoint=GRADIENTS[config.gradient],
    )
    # d lr = lr d log_lr: a step of lr_lr on the step size is one of lr_lr / lr^2 on its logarithm
    lr_log_lr = config.lr_lr / config.lr_teacher**2
    optimisers = [
        image_optimiser(config, synthetic.images),
        torch.optim.SGD([synthetic.log_lr], lr_log_lr, momentum=config.momentum),
    ]
    return Plan(objective, synthetic, optimisers, config.iterations)


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
