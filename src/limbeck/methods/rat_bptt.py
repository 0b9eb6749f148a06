"""RaT-BPTT (Feng et al., ICLR 2024): fit real images by a student, differentiated in a window of its training."""

from __future__ import annotations

from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.ranges import Count, Size, StepSize, Tiles, Weight
from limbeck.methods.coreset import select_real
from limbeck.methods.initial import InitName, draw_noise, make_real_mosaics
from limbeck.methods.plan import DataFacts, Method, MethodConfig, MethodInputs, Plan
from limbeck.objectives.fit import Fit, Trained
from limbeck.synthetic.clipping import ClippedAdam
from limbeck.synthetic.set import SyntheticSet
from limbeck.synthetic.tiles import make_partition
from limbeck.training.descent import Adam, Descent, Momentum, Plain
from limbeck.training.window import AtEnd, ByNorm, Place, Uniform, Window

LR_STUDENT = {"momentum": 0.01, "adam": 1e-3, "plain": 0.02}
DECAY = {"momentum": 5e-4, "adam": 0.0, "plain": 0.0}
"""Defaults by the student's rule: evaluation's, the authors', and that of trajectory matching."""
LR_NET = 0.01  # the step size of the networks that evaluate the set until one is chosen on validation
CONFIDENCE = 0.9  # of a learned label in its class at the start


class RatBpttConfig(MethodConfig):
    """Options of RaT-BPTT. T and M are the paper's symbols."""

    iterations: Count = 480
    """Number of outer steps."""
    total_steps: Size = 60
    """T, steps of a student's training at most (the authors: 200 to 300)."""
    window: Size = 20
    """M, steps of it that are differentiated (the authors: 60 to 100)."""
    place: Literal["uniform", "end", "by-norm"] = "uniform"
    """Where the window lies: anywhere, at the end, or likelier where gradients are large (after AT-BPTT)."""
    temperature: StepSize = 1.0
    """Of the softmax of gradient norms, in their standard deviations, for --place by-norm."""
    student: Literal["momentum", "adam", "plain"] = "momentum"
    """Rule of the student's steps; evaluation is by momentum 0.9 (the authors train and evaluate by adam)."""
    lr_student: StepSize | None = None
    """Step size of the student; the default is 0.01 for momentum, 0.001 for adam, 0.02 for plain steps."""
    student_decay: Weight | None = None
    """Weight decay of the student; the default is 5e-4 for momentum, as in evaluation, and 0 otherwise."""
    batch_syn: Count | None = None
    """Synthetic images per student step; the default is all."""
    batch_real: Count = 128
    """Real images per outer step (the authors: 500 to 5000)."""
    lr_img: StepSize = 0.05
    """Step size of Adam on the images (the authors: 0.001, for images of unit norm)."""
    clip: StepSize = 2.0
    """Image gradients are scaled down to so many times the moving average of their norm."""
    learn_labels: bool = False
    """Learn labels too, as logits."""
    lr_y: StepSize = 0.05
    """Step size of Adam on the labels' logits."""
    factor: Tiles = 1
    """f: every image holds f x f tiles, each a training image when enlarged (IDC's multi-formation)."""
    init: InitName = "random"
    """Images to start from: a coreset of real ones, or noise (the authors')."""

    def initial_images(self, ipc: int) -> int:
        """Return one real image per tile."""
        return ipc * self.factor**2

    def real_images_per_step(self) -> int:
        """Return the batch of real images, which may all be of one class."""
        return self.batch_real


class RatBpttOptions(RatBpttConfig):
    """Options of RaT-BPTT with every default resolved."""

    lr_student: float
    student_decay: float


def resolve(config: RatBpttConfig, facts: DataFacts) -> RatBpttOptions:
    """Return the options with numbers for the student's step size and decay; UserError for too long a window."""
    if config.window > config.total_steps:
        raise UserError(
            f"--window {config.window} is longer than the training of --total-steps {config.total_steps}; lower it."
        )
    lr = LR_STUDENT[config.student] if config.lr_student is None else config.lr_student
    decay = DECAY[config.student] if config.student_decay is None else config.student_decay
    return RatBpttOptions(**config.model_dump() | {"lr_student": lr, "student_decay": decay})


def make_descent(options: RatBpttOptions) -> Descent:
    """Return the rule of the student's steps."""
    decay = options.student_decay
    rules: dict[str, Descent] = {"momentum": Momentum(decay=decay), "adam": Adam(decay=decay), "plain": Plain(decay)}
    return rules[options.student]


def init_labels(classes: Tensor, num_classes: int) -> Tensor:
    """Return logits (n, classes) whose softmax is `CONFIDENCE` for the classes (n,), and equal for the others."""
    one_hot = F.one_hot(classes, num_classes)
    logits: Tensor = torch.where(one_hot == 1, log(CONFIDENCE), log((1 - CONFIDENCE) / max(num_classes - 1, 1)))
    return logits


def init_set(options: RatBpttOptions, inputs: MethodInputs) -> SyntheticSet:
    """Return the initial images, mosaics of real ones or noise, with classes or, where they are learned, logits."""
    task, count = inputs.task, options.factor**2
    tiles = make_partition(task.preprocess, options.factor)
    if options.init == "noise":
        images, labels = draw_noise(inputs)
    else:
        rows = select_real(options.init, inputs, inputs.ipc * count)
        images, labels = make_real_mosaics(rows, inputs, tiles), task.train[1][rows[::count]]
    learned: tuple[str, ...] = ("images",)
    if options.learn_labels:
        learned, labels = ("images", "labels"), init_labels(labels, task.data.num_classes).to(images)
    return SyntheticSet.from_images(images, labels, LR_NET, learned, decode=tiles if count > 1 else None)


def plan(options: RatBpttOptions, inputs: MethodInputs) -> Plan:
    """Train a fresh student on the set, differentiate a window of it by the exact gradient, and fit real images."""
    task, synthetic = inputs.task, init_set(options, inputs)
    places: dict[str, Place] = {"uniform": Uniform(), "end": AtEnd(), "by-norm": ByNorm(options.temperature)}
    window = Window(options.total_steps, options.window, places[options.place])
    descent, lr = make_descent(options), options.lr_student
    student = Trained(task.model, task.loss, window, options.batch_syn, descent=descent, lr=lr)
    optimisers: list[torch.optim.Optimizer] = [ClippedAdam([synthetic.images], options.lr_img, options.clip)]
    if options.learn_labels:
        optimisers.append(torch.optim.Adam([synthetic.labels], options.lr_y))
    objective = Fit(student, task.train, options.batch_real, class_rows=inputs.class_rows())
    return Plan(objective, synthetic, optimisers, options.iterations)


RAT = Method(
    name="rat-bptt",
    summary="fit real images by students trained on the set, differentiated in a window; exact gradient, no experts",
    source="Feng et al., Embarrassingly Simple Dataset Distillation, ICLR 2024",
    config=RatBpttConfig,
    experts=None,
    plan=plan,
    resolve=resolve,
    learns=("images",),
    exact_gradient=False,  # what the set does before the window is left out: truncation
)
