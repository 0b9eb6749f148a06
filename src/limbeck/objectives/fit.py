"""The loss on real images of a student that was trained on the synthetic set (BPTT) or solved for on it (RCIG)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.core.sampling import balanced_rows
from limbeck.core.short_repr import short_repr
from limbeck.core.types import Batch, PureLoss
from limbeck.data.augment import append_mirror_images
from limbeck.derivatives.autograd import Loss, as_loss
from limbeck.derivatives.explicit import FusedCrossEntropy
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import cross_entropy
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.descent import Descent
from limbeck.training.implicit import Implicit, linearised, solve
from limbeck.training.unroll import PLAIN, Adjoint, Replay, unroll
from limbeck.training.window import Window

EXACT, IMPLICIT = Replay(), Implicit()
Predictor = Callable[[Tensor], Tensor]
"""images (n, ...) -> logits (n, classes), differentiable in the set on which the student was trained."""

Student = Callable[[SyntheticSet, int, int], Predictor]
"""(set, outer step, seed) -> a student trained on the set, random only through (seed, step)."""

OuterLoss = Callable[[Tensor, Tensor, SyntheticSet], Tensor]
"""(logits (n, classes), int64 classes (n,), set) -> scalar."""


@dataclass(frozen=True)
class Fit:
    """An objective: the loss on real images of a student that knows only the synthetic set.

    student:    `Trained`, `Solved`, or any `Student`; it determines how the gradient is computed.
    real:       Training images in network input space, and their int64 classes.
    batch_size: Real images per outer step, drawn at random; None for all.
    loss:       Of the student's logits; None for cross-entropy.
    class_rows: The rows of every class, where a batch is to have as many images of every class; None draws from all.

    Back-propagation through training and implicit gradients differ in the student alone:

    >>> from limbeck.data import load_data
    >>> from limbeck.networks.registry import ModelConfig
    >>> from limbeck.task import make_task
    >>> task = make_task(load_data("digits"), ModelConfig(width=32))
    >>> bptt = Fit(Trained(task.model, task.loss, steps=3, adjoint=Replay()), task.train, 64)
    >>> rcig = Fit(Solved(task.model, lambda step: task.model.init(step), ridge=0.01), task.train, 64)
    >>> images, one_hot = task.train[0][:5], torch.eye(10)[task.train[1][:5]]
    >>> for objective in (bptt, rcig):
    ...     synthetic = SyntheticSet.from_images(images, one_hot, lr=0.01, learned=("images", "labels"))
    ...     objective(synthetic, 0, 0).backward()
    ...     print(synthetic.images.grad.norm() > 0, synthetic.labels.grad.norm() > 0)
    tensor(True) tensor(True)
    tensor(True) tensor(True)
    """

    __repr__ = short_repr

    student: Student
    real: tuple[Tensor, Tensor]
    batch_size: int | None = None
    loss: OuterLoss | None = None
    class_rows: Sequence[Tensor] | None = None

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Tensor:
        """The loss at this outer step: a scalar, differentiable in the set's learned parameters."""
        images, labels = self.real
        generator = make_generator(seed, "real", step)
        rows = None
        if self.class_rows is not None:
            rows = balanced_rows(self.class_rows, self.batch_size or len(images), generator)
        elif self.batch_size is not None and self.batch_size < len(images):
            rows = torch.randperm(len(images), generator=generator)[: self.batch_size]
        if rows is not None:
            images, labels = images[rows.to(images.device)], labels[rows.to(labels.device)]
        student = self.student(synthetic, step, seed)
        if self.loss is not None:
            return self.loss(student(images), labels, synthetic)
        if isinstance(student, TrainedNetwork):
            return student.cross_entropy(images, labels)
        return cross_entropy(student(images), labels)


@dataclass(frozen=True)
class TrainedNetwork:
    """A `Predictor`: a network with the parameters to which a student was trained.

    loss: Its training loss, whose explicit derivatives serve the cross-entropy of real images too.
    """

    __repr__ = short_repr

    model: FlatModel
    loss: Loss
    theta: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (n, classes) of images (n, ...), with autograd's graph."""
        return self.model(self.theta, images)

    def cross_entropy(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of images without augmentation, differentiable once."""
        if isinstance(self.loss, FusedCrossEntropy):
            return self.loss.value(self.theta, Batch(images, labels))
        return cross_entropy(self(images), labels)


@dataclass(frozen=True)
class Trained:
    """A `Student`: a network trained on the set from a random start.

    model:      The network, whose logits are the prediction.
    loss:       Its training loss: `task.loss`, or any pure function of (theta, batch).
    steps:      Steps of training, all of them differentiated; or a `Window` of a longer training (RaT-BPTT).
    batch_size: Synthetic images per step; None for all.
    adjoint:    How the gradient through the training is computed.
    descent:    The rule of a step.
    lr:         The step size; None for the set's own, which can then be learned.

    >>> from limbeck.networks.losses import CrossEntropy
    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> model = flat_model(ModelConfig(name="mlp", width=4), (1, 8, 8), 2)
    >>> synthetic = SyntheticSet.from_images(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), lr=0.1)
    >>> predict = Trained(model, CrossEntropy(model), steps=2)(synthetic, 0, 0)
    >>> predict(torch.ones(5, 1, 8, 8)).shape
    torch.Size([5, 2])
    """

    __repr__ = short_repr

    model: FlatModel
    loss: Loss | PureLoss
    steps: int | Window
    batch_size: int | None = None
    adjoint: Adjoint = EXACT
    descent: Descent = PLAIN
    lr: float | None = None

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Predictor:
        """The student of this outer step, as a function of images."""
        theta0 = self.model.init(seed, "student", step).to(synthetic.images)
        window = self.steps if isinstance(self.steps, Window) else Window(self.steps, self.steps)
        batches = synthetic.batches(window.total, self.batch_size, make_generator(seed, "batches", step))
        lr = synthetic.lr if self.lr is None else torch.as_tensor(self.lr, dtype=theta0.dtype, device=theta0.device)
        place = make_generator(seed, "window", step)
        state, batches = window.open(self.loss, theta0, batches, lr, self.descent, place)
        theta = unroll(self.loss, state, batches, lr, self.adjoint, self.descent)
        return TrainedNetwork(self.model, as_loss(self.loss), theta)


@dataclass(frozen=True)
class Solved:
    """A `Student`: a linearised network whose ridge regression on the set is solved (RCIG, Loo et al. 2023).

    The set's labels are the regression's targets as they are, not probabilities.

    model:       The network.
    init:        Outer step -> the parameters (P,) at which the network is linearised.
    ridge:       Of the regression, above 0; see `limbeck.solve`.
    adjoint:     The solver of the regression and of its gradient.
    flip:        Whether the regression is on the images and their mirror images.
    grad_images: The image gradient is computed for this many stored images per outer step, drawn at random and scaled
                 up; None for all. The released code leaves out the scale, and draws the regression's rows as well.

    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> model = flat_model(ModelConfig(name="widening", width=2), (1, 8, 8), 2)
    >>> targets = torch.eye(2) - 0.5
    >>> synthetic = SyntheticSet.from_images(torch.ones(2, 1, 8, 8), targets, lr=0.1, learned=("images", "labels"))
    >>> predict = Solved(model, model.init, ridge=0.1)(synthetic, 0, 0)
    >>> predict(torch.ones(5, 1, 8, 8)).shape
    torch.Size([5, 2])
    """

    __repr__ = short_repr

    model: FlatModel
    init: Callable[[int], Tensor]
    ridge: float
    adjoint: Implicit = IMPLICIT
    flip: bool = False
    grad_images: int | None = None

    def __call__(self, synthetic: SyntheticSet, step: int, seed: int) -> Predictor:
        """The student of this outer step, as a function of images."""
        theta0 = self.init(step).to(synthetic.images)
        images, labels = synthetic.decoded_pair()
        count = len(images)
        rows = None
        if self.grad_images is not None and self.grad_images < count:
            order = torch.randperm(count, generator=make_generator(seed, "through", step))
            rows = order[: self.grad_images].to(images.device)
        if self.flip:
            images, labels = append_mirror_images(images, labels)
            rows = None if rows is None else torch.cat([rows, rows + count])
        v = solve(self.model, theta0, Batch(images, labels), self.ridge, self.adjoint, rows)
        return partial(linearised, self.model, theta0, v)
