"""Parts of the recipes that match trajectories: options, the initial set, objective, optimisers, teacher labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, log
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, Decay, Size, StepSize, Tiles, Weight
from limbeck.core.types import Sampler, Segment
from limbeck.methods.coreset import select_real, take_real
from limbeck.methods.initial import InitName, draw_noise, make_real_mosaics
from limbeck.methods.plan import DataFacts, MethodConfig, MethodInputs
from limbeck.networks.flat import Layout
from limbeck.objectives.combine import average_draws
from limbeck.objectives.path import PathDistance, Stop
from limbeck.objectives.trajectory import Labeller, MatchTrajectory
from limbeck.synthetic.loop import Objective
from limbeck.synthetic.set import LOG_LR_RANGE, SyntheticSet
from limbeck.synthetic.tiles import make_partition, tile_sides
from limbeck.training.plain import Network, predict_logits
from limbeck.training.unroll import Adjoint, Backprop, Replay

GRADIENTS: dict[str, Adjoint] = {
    "exact": Replay(),
    "backprop": Backprop(),
    "tesla": Replay(curvature=False, image_gain=0.5),  # the released code loses a factor of 2 in the image gradient
    "tesla-corrected": Replay(curvature=False),
}
"""How the gradient of the student's steps is taken, by the name of the option --gradient."""


class TrajectoryConfig(MethodConfig):
    """Options of every method that matches trajectories. N, M and U are the papers' symbols."""

    added: ClassVar[tuple[str, ...]] = ("learn_labels", "micro_batch")
    iterations: Count = 500
    """Number of outer steps."""
    syn_steps: Size = 20
    """N, student steps per outer step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the images."""
    lr_img: StepSize = 50.0
    """Step size of the images."""
    momentum: Decay = 0.5
    """Momentum of SGD on images and step size; of Adam it is beta1."""
    lr_teacher: StepSize = 0.01
    """The student's step size at the start."""
    lr_lr: Weight = 1e-5
    """Step size of the student's step size, in the papers' unit (of the step size itself); 0 keeps it constant."""
    batch_syn: Count | None = None
    """Synthetic images per student step; the default is all, or with tiles as many as there are stored images."""
    grad_accum: Size = 1
    """Segments whose gradients are averaged in an outer step."""
    micro_batch: Count | None = None
    """Images of a student step that are computed at a time, to save memory; the gradient is the same to rounding."""
    max_memory: str | None = None
    """Choose --micro-batch so that the memory is about this at most: a number with a unit, such as 8GB or 700MB."""
    learn_labels: bool = False
    """Learn label probabilities too, from what the experts say about the images that the set starts from (as DATM)."""
    lr_y: StepSize = 5.0
    """Step size of the logits of learned labels."""
    momentum_y: Decay = 0.9
    """Momentum of SGD on the logits of learned labels."""

    def recorded(self) -> dict[str, Any]:
        """Leave out how labels are learned where they are not, and the limit of memory, from which a number follows."""
        values = super().recorded()
        del values["max_memory"]
        if not self.learn_labels:
            del values["lr_y"], values["momentum_y"]
        return values


class StartConfig(TrajectoryConfig):
    """Options of the methods whose initial images may be canvases or mosaics."""

    added = ("factor",)
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise."""
    canvas: Tiles = 1
    """Images are canvases of so many image sides, cropped at random (MTT's textures)."""
    factor: Tiles = 1
    """f: every image holds f x f tiles, each a training image when enlarged (IDC's multi-formation); 1 for none."""

    def initial_images(self, ipc: int) -> int:
        """Return one real image per image of a canvas or tile of a mosaic."""
        return ipc * self.canvas**2 * self.factor**2


class RecordedConfig(TrajectoryConfig):
    """Options of every method that matches whole epochs of recorded trajectories."""

    expert_epochs: Count | None = None
    """M, epochs of the expert for the student to cover; the default is 5 times as far as its own steps can reach."""
    max_start_epoch: Count | None = None
    """U, start epochs are whole numbers below it; the default grows with images per class."""


class RecordedOptions(MethodConfig):
    """The two fields of a `RecordedConfig` that `resolve` gives numbers; a base of the resolved options."""

    expert_epochs: int
    max_start_epoch: int


def default_expert_epochs(config: TrajectoryConfig, facts: DataFacts) -> float:
    """Return M in epochs: 5 times as far as the student's N steps can reach, at most half of the expert.

    Path lengths are compared as step size times steps. The factor was measured at one image per class on digits and
    Fashion-MNIST.
    """
    reach = config.syn_steps * config.lr_teacher / (facts.expert.lr * facts.steps_per_epoch)
    return min(5 * reach, facts.expert.epochs / 2)


def default_max_start_epoch(expert_epochs: float, facts: DataFacts) -> float:
    """Return U in epochs: a part of the expert that grows with the root of images per class, from M to all of it."""
    part: float = min(0.05 * facts.ipc**0.5, 0.8)
    return min(max(expert_epochs, part * facts.expert.epochs), float(facts.expert.epochs))


def resolve_lengths(config: RecordedConfig, facts: DataFacts) -> dict[str, int]:
    """Return the fields of `RecordedOptions`: the defaults are whole numbers from 1, and U leaves room for M."""
    span = config.expert_epochs or max(1, round(default_expert_epochs(config, facts)))
    last_start = max(1, facts.expert.epochs - span + 1)
    start = config.max_start_epoch or max(1, min(round(default_max_start_epoch(span, facts)), last_start))
    return {"expert_epochs": span, "max_start_epoch": start}


def init_synthetic_set(
    init: str,
    inputs: MethodInputs,
    lr: float,
    canvas: int = 1,
    learned: tuple[str, ...] = ("images", "log_lr"),
    factor: int = 1,
) -> SyntheticSet:
    """Return a set with its classes: real images that the coreset `init` chooses, or noise.

    lr: the student's step size.
    canvas: an image is a mosaic of canvas x canvas real images, or noise of that size.
    learned: names of the parameters that the method optimises.
    factor: an image is a mosaic of factor x factor tiles (IDC's multi-formation).
    Raises UserError for canvases of whitened images: whitening is fitted to images of one size.
    """
    if factor > 1:
        return init_tiled_set(init, inputs, lr, factor, learned, canvas)
    if canvas > 1 and inputs.task.preprocess.kind == "zca":
        raise UserError(
            "--canvas needs --preprocess normalise: whitening is of whole images, a crop of a canvas is none."
        )
    if init == "noise":
        return SyntheticSet.from_images(*draw_noise(inputs, canvas), lr, learned)
    rows = select_real(init, inputs, inputs.ipc * canvas**2)
    labels = inputs.task.train[1][rows[:: canvas**2]]
    return SyntheticSet.from_images(make_canvases(take_real(rows, inputs), canvas), labels, lr, learned)


def init_tiled_set(
    init: str, inputs: MethodInputs, lr: float, factor: int, learned: tuple[str, ...], canvas: int = 1
) -> SyntheticSet:
    """Return `init_synthetic_set` for mosaics of factor x factor tiles; UserError where these are canvases too."""
    if canvas > 1:
        raise UserError("--canvas and --factor both say what an image holds: leave out one.")
    tile_sides(inputs.task.data.size, factor)  # refuses images that are too small
    tiles = make_partition(inputs.task.preprocess, factor)
    if init == "noise":
        return SyntheticSet.from_images(*draw_noise(inputs), lr, learned, decode=tiles)
    rows = select_real(init, inputs, inputs.ipc * factor**2)
    images, labels = make_real_mosaics(rows, inputs, tiles), inputs.task.train[1][rows[:: factor**2]]
    return SyntheticSet.from_images(images, labels, lr, learned, decode=tiles)


def init_label_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return initial label logits (n, classes): the mean of `logits` (experts, n, classes) over the correct experts.

    Where no expert is correct: the mean over all, with its largest logit and that of the true class exchanged, so that
    the label is correct and as confident as the experts are (DATM, Guo et al. 2024).
    """
    is_correct = (logits.argmax(2) == labels).unsqueeze(2).to(logits.dtype)
    count = is_correct.sum(0)
    mean = torch.where(count > 0, (logits * is_correct).sum(0) / count.clamp_min(1), logits.mean(0))
    rows, top = torch.arange(len(labels), device=labels.device), mean.argmax(1)
    largest, true = mean[rows, top].clone(), mean[rows, labels].clone()
    mean[rows, top] = true
    mean[rows, labels] = largest
    return mean


def init_learned_set(
    options: TrajectoryConfig, init: str, inputs: MethodInputs, canvas: int = 1, factor: int = 1
) -> SyntheticSet:
    """Return the set as `init_synthetic_set` does, with labels to learn where the options say so.

    A stored image that holds several training images starts at the mean of their logits.
    Raises UserError for labels that are to be learned and are those of a teacher, or of a canvas.
    """
    hard = init_synthetic_set(init, inputs, options.lr_teacher, canvas, factor=factor)
    if not options.learn_labels:
        return hard
    if canvas > 1 or getattr(options, "teacher_labels", False):
        other = "--canvas" if canvas > 1 else "--teacher-labels"
        raise UserError(f"--learn-labels and {other} do not go together; leave out one.")
    owner = torch.arange(len(hard.labels)).to(hard.labels)  # of a training image: the stored image it is cut from
    images, owners = replace(hard.snapshot(), labels=owner).decoded_pair()
    thetas = [path.at(path.end).to(images.device) for path in inputs.trajectories]
    logits = torch.stack([predict_logits(inputs.task.logits, theta, images) for theta in thetas])
    means = torch.stack([logits[:, owners == row].mean(1) for row in range(len(owner))], 1)
    labels, learned = init_label_logits(means, hard.labels), ("images", "labels", "log_lr")
    return SyntheticSet.from_images(hard.images, labels, options.lr_teacher, learned, decode=hard.decode)


def make_canvases(images: Tensor, canvas: int) -> Tensor:
    """Put images (canvas^2 n, c, h, w) into mosaics (n, c, canvas h, canvas w), row by row."""
    channels, height, width = images.shape[1:]
    tiles = images.view(-1, canvas, canvas, channels, height, width)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, canvas * height, canvas * width)


MAX_LOG_CHANGE = log(2)  # of the step size in one outer step; healthy runs change it by 0.06 at most (docs/LOG.md)


class StepSizeSGD(torch.optim.SGD):
    """SGD on the logarithm of a step size. One step changes it by `MAX_LOG_CHANGE` at most, within `LOG_LR_RANGE`.

    The gradient is clipped so that a step cannot exceed the bound with everything that momentum adds; below the bound
    every bit is that of plain SGD.
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


def make_optimisers(options: TrajectoryConfig, synthetic: SyntheticSet) -> list[torch.optim.Optimizer]:
    """Return the optimisers of the images, of the step size's logarithm and of learned labels, in this order.

    Since d lr = lr d log_lr, a step of --lr-lr on the step size is one of lr_lr / lr^2 on its logarithm.
    """
    images: torch.optim.Optimizer
    if options.optimizer == "adam":
        images = torch.optim.Adam([synthetic.images], options.lr_img, betas=(options.momentum, 0.999))
    else:
        images = torch.optim.SGD([synthetic.images], options.lr_img, momentum=options.momentum)
    step_size = StepSizeSGD([synthetic.log_lr], options.lr_lr / options.lr_teacher**2, momentum=options.momentum)
    if not options.learn_labels:
        return [images, step_size]
    return [images, step_size, torch.optim.SGD([synthetic.labels], options.lr_y, momentum=options.momentum_y)]


def make_objective(
    options: TrajectoryConfig,
    inputs: MethodInputs,
    synthetic: SyntheticSet,
    sampler: Sampler,
    gradient: str = "exact",
    labels: Labeller | None = None,
    perturb: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    stop: Stop | None = None,
    path_distance: PathDistance | None = None,
) -> Objective:
    """Return trajectory matching with these options. gradient: a name in `GRADIENTS`; the rest as `MatchTrajectory`.

    Raises UserError for a gradient that keeps the graph of all images although they are computed in parts.
    """
    if options.micro_batch is not None and isinstance(GRADIENTS[gradient], Backprop):
        raise UserError("--gradient backprop keeps the graph of all images, so that --micro-batch saves no memory.")
    objective = MatchTrajectory(
        trajectories=inputs.trajectories,
        sampler=sampler,
        loss=inputs.task.loss_in_parts(options.micro_batch),
        steps=options.syn_steps,
        batch_size=student_batch(options, synthetic),
        adjoint=GRADIENTS[gradient],
        labels=labels,
        perturb=perturb,
        stop=stop,
        path_distance=path_distance,
    )
    return average_draws(objective, options.grad_accum, inputs.task.ranks)


def student_batch(options: TrajectoryConfig, synthetic: SyntheticSet) -> int | None:
    """Return how many training images a student step takes; None for all.

    A set of tiles has factor^2 times as many of them as it stores. By default a step takes as many as are stored, and
    thus costs no more than without tiles.
    """
    if options.batch_syn is None and synthetic.decode is not None:
        return len(synthetic.images)
    return options.batch_syn


@dataclass(frozen=True)
class TeacherLabels:
    """Label probabilities of the un-augmented images by the expert of the segment.

    t: the epoch of the expert (U in MCT's code); None: the end of the segment (TESLA).
    """

    model: Network
    t: float | None = None

    def __call__(self, images: Tensor, segment: Segment) -> Tensor:
        theta = segment.target if self.t is None else segment.expert.at(min(self.t, segment.expert.end))
        return predict_logits(self.model, theta.to(images.device), images).softmax(1)


@dataclass(frozen=True)
class WithTeacherLabels:
    """For `Plan.as_evaluated`: the set with soft labels, the mean over experts of their probabilities at epoch `t`."""

    inputs: MethodInputs
    t: float

    def __call__(self, synthetic: SyntheticSet) -> SyntheticSet:
        evaluated = synthetic.snapshot()
        model, trajectories = self.inputs.task.logits, self.inputs.trajectories
        thetas = [path.at(min(self.t, path.end)).to(evaluated.images.device) for path in trajectories]
        probabilities = torch.stack([predict_logits(model, theta, evaluated.images).softmax(1) for theta in thetas])
        return replace(evaluated, labels=probabilities.mean(0).clamp_min(1e-12).log())


@dataclass(frozen=True)
class StartNoise:
    """theta + epsilon |theta| N(0, 1), except for tensors whose absolute sum is 0 or 1, as MCT's code has it."""

    layout: Layout
    epsilon: float

    def __call__(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(theta.shape, generator=generator).to(theta)
        size = torch.stack([part.abs().sum() for part in self.layout.split(theta)])
        is_noisy = self.layout.per_tensor(((size != 0) & (size != 1)).to(theta))
        return theta + self.epsilon * theta.abs() * noise * is_noisy
