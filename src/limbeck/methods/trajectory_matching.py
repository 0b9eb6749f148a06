"""What recipes of trajectory matching share: the start, the gradients, the optimisers, the lengths of segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, log
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.types import Sampler, Segment
from limbeck.methods.coreset import choose_real
from limbeck.methods.plan import DataFacts, MethodConfig, MethodInputs
from limbeck.networks.flat import Layout
from limbeck.objectives.combine import averaged
from limbeck.objectives.trajectory import Labeller, MatchTrajectory
from limbeck.synthetic.loop import Objective
from limbeck.synthetic.set import LOG_LR_RANGE, SyntheticSet
from limbeck.training.plain import Network
from limbeck.training.unroll import Adjoint, Backprop, Replay

GRADIENTS: dict[str, Adjoint] = {
    "exact": Replay(),
    "backprop": Backprop(),
    "tesla": Replay(curvature=False, image_gain=0.5),  # as released, with its lost factor of 2
    "tesla-corrected": Replay(curvature=False),
}


class RecordedConfig(MethodConfig):
    """Options of every method that matches whole epochs; N, M and U are the papers' symbols, in epochs where times."""

    iterations: int = Field(default=500, ge=1)
    """outer steps"""
    syn_steps: int = Field(default=20, ge=1)
    """N, student steps per outer step"""
    expert_epochs: int | None = Field(default=None, ge=1)
    """M, epochs of the expert that the student has to go; by default 5 times as far as its own steps can reach"""
    max_start_epoch: int | None = Field(default=None, ge=1)
    """U, start epochs are whole and below it; by default a part of the expert that grows with images per class"""
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
    grad_accum: int = Field(default=1, ge=1)
    """segments whose gradients are averaged in an outer step"""


def span_and_start(facts: DataFacts, syn_steps: int, lr_teacher: float, span: float | None, start: float | None) -> Any:
    """M and U where they are not given, from what was measured at one image per class on digits and Fashion-MNIST.

    Path lengths are compared in step size x steps: an epoch of the expert against the student's N steps.
    """
    epochs = float(facts.expert.epochs)
    reach = syn_steps * lr_teacher / (facts.expert.lr * facts.steps_per_epoch)
    span = span or min(5 * reach, epochs / 2)
    part = min(0.05 * facts.ipc**0.5, 0.8)
    return span, start or min(max(span, part * epochs), epochs)


def whole_epochs(config: Any, facts: DataFacts) -> Any:
    """The same rule for a `RecordedConfig`, rounded to whole epochs, at least 1."""
    m, u = config.expert_epochs, config.max_start_epoch
    span, _ = span_and_start(facts, config.syn_steps, config.lr_teacher, m, u)
    span = m or max(1, round(span))
    _, start = span_and_start(facts, config.syn_steps, config.lr_teacher, span, u)
    fits = max(1, facts.expert.epochs - span + 1)
    return config.model_copy(update={"expert_epochs": span, "max_start_epoch": u or max(1, min(round(start), fits))})


def real_set(init: str, inputs: MethodInputs, lr: float, canvas: int = 1) -> SyntheticSet:
    """Real images with their classes, chosen by the coreset `init`; each a mosaic of canvas x canvas of them.

    Raises UserError for mosaics of whitened images: whitening knows images of one size only.
    """
    task = inputs.task
    images, labels = task.train
    count = inputs.ipc * canvas**2
    rows = choose_real(init, inputs, count)
    if canvas == 1:
        return SyntheticSet.from_images(images[rows], labels[rows], lr)
    if task.preprocess.kind == "zca":
        raise UserError(
            "--canvas needs --preprocess normalise: whitening is of whole images, a crop of a canvas is none."
        )
    channels, height, width = task.data.shape
    tiles = images[rows].view(-1, canvas, canvas, channels, height, width)
    mosaics = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, canvas * height, canvas * width)
    return SyntheticSet.from_images(mosaics, labels[rows][:: canvas**2], lr)


def image_optimiser(kind: str, images: Tensor, lr: float, momentum: float) -> torch.optim.Optimizer:
    """SGD with momentum, or Adam."""
    if kind == "adam":
        return torch.optim.Adam([images], lr, betas=(momentum, 0.999))
    return torch.optim.SGD([images], lr, momentum=momentum)


MAX_LOG_CHANGE = log(2)  # of the step size in one outer step; healthy runs change it by 0.06 at most (docs/LOG.md)


class StepSizeSGD(torch.optim.SGD):
    """SGD of the logarithm of a step size that changes it by `MAX_LOG_CHANGE` at most and keeps it in `LOG_LR_RANGE`.

    The gradient is clipped so that a step cannot exceed the bound with all that momentum adds; where it does not
    reach that, every bit is that of plain SGD.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            limit = (1 - group["momentum"]) * MAX_LOG_CHANGE / group["lr"] if group["lr"] else inf
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.clamp_(-limit, limit)
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.clamp_(*LOG_LR_RANGE)
        return loss


def lr_optimiser(synthetic: SyntheticSet, lr_lr: float, lr_teacher: float, momentum: float) -> torch.optim.Optimizer:
    """SGD of the step size's logarithm. d lr = lr d log_lr: a step of lr_lr is one of lr_lr / lr^2 on the logarithm."""
    return StepSizeSGD([synthetic.log_lr], lr_lr / lr_teacher**2, momentum=momentum)


def optimisers(config: RecordedConfig, synthetic: SyntheticSet) -> list[torch.optim.Optimizer]:
    """Those of images and step size."""
    return [
        image_optimiser(config.optimizer, synthetic.images, config.lr_img, config.momentum),
        lr_optimiser(synthetic, config.lr_lr, config.lr_teacher, config.momentum),
    ]


def match(
    config: RecordedConfig,
    inputs: MethodInputs,
    sampler: Sampler,
    gradient: str = "exact",
    labels: Labeller | None = None,
) -> Objective:
    """Trajectory matching of this config's lengths and batches."""
    objective = MatchTrajectory(
        trajectories=inputs.trajectories,
        sampler=sampler,
        loss=inputs.task.loss,
        steps=config.syn_steps,
        batch_size=config.batch_syn,
        adjoint=GRADIENTS[gradient],
        labels=labels,
    )
    return averaged(objective, config.grad_accum)


@torch.no_grad()
def logits_of(model: Network, theta: Tensor, images: Tensor, chunk: int = 500) -> Tensor:
    """(n, classes) of un-augmented images."""
    return torch.cat([model(theta.to(images.device), part) for part in images.split(chunk)])


@dataclass(frozen=True)
class TeacherLabels:
    """TESLA's labels: what the expert says of the images, un-augmented, at the end of the segment."""

    model: Network

    def __call__(self, images: Tensor, segment: Segment) -> Tensor:
        return logits_of(self.model, segment.target, images).softmax(1)


@dataclass(frozen=True)
class TeacherAt:
    """MCT's labels: what the expert says of the images, un-augmented, at one epoch (U in its code, not the target)."""

    model: Network
    t: float

    def __call__(self, images: Tensor, segment: Segment) -> Tensor:
        return logits_of(self.model, segment.expert.at(min(self.t, segment.expert.end)), images).softmax(1)


@dataclass(frozen=True)
class StartNoise:
    """theta + epsilon |theta| N(0, 1), but for tensors whose absolute sum is 0 or 1, as MCT's code has it (4b.4)."""

    layout: Layout
    epsilon: float

    def __call__(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(theta.shape, generator=generator).to(theta)
        size = torch.stack([part.abs().sum() for part in self.layout.split(theta)])
        moved = self.layout.per_tensor(((size != 0) & (size != 1)).to(theta))
        return theta + self.epsilon * theta.abs() * noise * moved


@dataclass(frozen=True)
class WithTeacherLabels:
    """For `Plan.as_evaluated`: the set with soft labels, the mean over all experts of their probabilities at epoch `t`.

    before: changes the set first (to an average of it, say).
    """

    inputs: MethodInputs
    t: float
    before: Callable[[SyntheticSet], SyntheticSet] | None = None

    def __call__(self, synthetic: SyntheticSet) -> SyntheticSet:
        changed = synthetic if self.before is None else self.before(synthetic)
        evaluated = changed.snapshot()
        model, trajectories = self.inputs.task.logits, self.inputs.trajectories
        thetas = [path.at(min(self.t, path.end)) for path in trajectories]
        probabilities = torch.stack([logits_of(model, theta, evaluated.images).softmax(1) for theta in thetas])
        return replace(evaluated, labels=probabilities.mean(0).clamp_min(1e-12).log())
