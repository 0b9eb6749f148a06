"""How one network is trained and scored as a protocol says: mixed images, teachers' labels, the best over time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.disk import make_folder
from limbeck.core.errors import NewerError, UserError
from limbeck.core.events import Listener
from limbeck.core.files import content_key
from limbeck.core.folders import home_folder
from limbeck.core.locks import lock_work
from limbeck.core.parallel import CheckCancelled, Workers
from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.tensors import read_tensors, write_tensors
from limbeck.core.types import Batch
from limbeck.core.unfinished import remove_unfinished
from limbeck.data.augment import DSA, CanvasCrop
from limbeck.data.cutmix import MIXES
from limbeck.derivatives.autograd import Loss
from limbeck.evaluation.outcome import Outcome, measure
from limbeck.evaluation.protocol import EvalConfig
from limbeck.networks.losses import Augment, cross_entropy
from limbeck.networks.statistics import RunningStatistics
from limbeck.synthetic.set import hard_labels
from limbeck.task import Task
from limbeck.training.plain import Network, Schedule, final_parameters, train

TEACHER_LR = 0.01  # of the field's full-data training
FORMAT = "limbeck-teacher"

Teach = Callable[[Tensor], Tensor]
"""images (n, c, h, w) -> probabilities (n, classes)."""


class TrainedNetwork(NamedTuple):
    """A network after its training: for inference, its parameters (P,), and what it reaches on test."""

    network: Network
    theta: Tensor
    outcome: Outcome

    @property
    def is_finite(self) -> bool:
        """Whether all parameters are numbers."""
        return bool(torch.isfinite(self.theta).all())


@dataclass(frozen=True)
class LabelledLoss(Loss):
    """A loss on batches that are augmented, mixed, and labelled in every step.

    function: The loss of prepared batches; `loss` is the same with its derivatives.
    augment:  (images, seed) -> images; not used where the batch has no seed.
    mix:      (images, probabilities, generator) -> the same, or None.
    teach:    Labels the augmented and mixed images, or None: they keep the batch's labels, mixed as the images are.
    classes:  Number of classes.
    """

    loss: Loss
    augment: Augment
    mix: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None
    teach: Teach | None
    classes: int

    def __call__(self, theta: Tensor, batch: Batch) -> Tensor:
        """The loss of the prepared batch."""
        return self.loss(theta, self.prepare(batch))

    def gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        """The gradient (P,) on the prepared batch."""
        return self.loss.gradient(theta, self.prepare(batch))

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """The batch as the network sees it: random only through its seed."""
        images, labels, seed, _ = batch
        if seed is not None:
            images = self.augment(images, seed)
        if self.mix is not None and seed is not None:
            if not labels.is_floating_point():
                labels = torch.nn.functional.one_hot(labels, self.classes).to(images.dtype)
            images, labels = self.mix(images, labels, make_generator(seed, "mix"))
        if self.teach is not None:
            labels = self.teach(images)
        return Batch(images, labels)


@dataclass(frozen=True)
class Training:
    """How networks are trained on a task by a protocol, and scored.

    teach: Labels batches, where the protocol says so.
    """

    task: Task
    config: EvalConfig
    teach: Teach | None = None

    @property
    def workers(self) -> Workers:
        """How networks are trained at the same time."""
        return self.task.autograd_workers if self._needs_autograd else self.task.workers

    @property
    def _needs_autograd(self) -> bool:
        return self.teach is not None and self.config.temperature != 1

    def loss_and_network(self) -> tuple[Loss, Network]:
        """The training loss for one network, and that network for inference."""
        task, config = self.task, self.config
        if config.dsa == "set" and config.mix == "none" and self.teach is None:
            return task.loss_and_network()
        statistics = RunningStatistics(task.model) if task.model.has_statistics else None
        loss = self._tempered_loss(statistics) if self._needs_autograd else task.loss_with(None, statistics)
        crop = CanvasCrop(task.data.size, task.augment if config.dsa == "set" else DSA("none"))
        mix = MIXES.get(config.mix)
        prepared = LabelledLoss(loss.function, loss, crop, mix, self.teach, task.data.num_classes)
        return prepared, task.logits if statistics is None else statistics

    def _tempered_loss(self, statistics: RunningStatistics | None) -> Loss:
        """tau^2 times the cross-entropy of softmax(logits / tau) with the labels (Hinton et al. 2015), by autograd.

        Its gradient is that of the Kullback-Leibler divergence from the labels.
        """
        network = self.task.model if statistics is None else statistics.record
        temperature, device = self.config.temperature, self.task.device.type
        is_rounded = self.task.precision == "bfloat16"

        def function(theta: Tensor, batch: Batch) -> Tensor:
            with torch.autocast(device, torch.bfloat16) if is_rounded else nullcontext():
                logits = network(theta, batch.images)
            return temperature**2 * cross_entropy(logits.float() / temperature, batch.labels)

        return Loss(function)

    def labels(self, labels: Tensor) -> Tensor:
        """The labels that networks are trained on: the classes alone where the protocol says so."""
        return labels if self.config.labels == "set" else hard_labels(labels)

    def run(
        self,
        start: Tensor,
        pair: tuple[Tensor, Tensor],
        schedule: Schedule,
        seed: int,
        split: tuple[Tensor, Tensor],
        check: CheckCancelled,
    ) -> TrainedNetwork:
        """Train one network from `start` (P,) on images and labels, and measure it on `split`.

        It is measured at the end, or, where the protocol says so, after every so many epochs too: the best one counts.
        """
        loss, network = self.loss_and_network()
        path = train(loss, start, pair[0], self.labels(pair[1]), schedule, seed, check=check)
        every, classes = self.config.test_every, self.task.data.num_classes

        def measured(theta: Tensor) -> TrainedNetwork:
            now = network.copy() if isinstance(network, RunningStatistics) else network
            return TrainedNetwork(now, theta, measure(now, theta, *split, classes))

        if not every:
            return measured(final_parameters(path))
        candidates = (
            measured(theta)
            for epoch, theta in enumerate(path)
            if epoch == schedule.epochs or (epoch and epoch % every == 0)
        )
        return max(candidates, key=lambda candidate: candidate.outcome.accuracy)


def make_training(task: Task, config: EvalConfig, listen: Listener = lambda event: None) -> Training:
    """The training of a protocol on a task; teachers are trained where they are not stored yet."""
    if config.labels != "teacher":
        return Training(task, config)
    thetas = [teacher_parameters(task, config, index, listen) for index in range(config.teachers)]
    return Training(task, config, _mean_of(task, config, thetas))


def stand_in_training(task: Task, config: EvalConfig) -> Training:
    """The same with untrained teachers, to time its steps."""
    if config.labels != "teacher":
        return Training(task, config)
    thetas = [task.model.init(index).to(task.device) for index in range(config.teachers)]
    return Training(task, config, _mean_of(task, config, thetas))


def _mean_of(task: Task, config: EvalConfig, thetas: list[Tensor]) -> Teach:
    """softmax of the mean logits of teachers over the temperature; batch norm has statistics of the training images."""
    networks = [task.with_model(task.model_config).logits for _ in thetas]  # each keeps its own statistics

    def teach(images: Tensor) -> Tensor:
        logits = [network(theta, images) for network, theta in zip(networks, thetas)]
        return (torch.stack(logits).mean(0) / config.temperature).softmax(1)

    return teach


def teacher_parameters(task: Task, config: EvalConfig, index: int, listen: Listener) -> Tensor:
    """Parameters (P,) of a teacher: the task's network, trained on all its training images; stored for reuse."""
    path, _ = teacher_path(task, config, index)
    with lock_work(path.stem, "trains the same teacher") if task.ranks.size == 1 else nullcontext():
        theta = _read_teacher(path)
        return _train_teacher(task, config, index, listen) if theta is None else theta.to(task.device)


def _read_teacher(path: Path) -> Tensor | None:
    """The parameters (P,) that are stored at a path; None where there are none, or damaged ones."""
    remove_unfinished(path.parent)
    if not path.exists():
        return None
    try:
        return read_tensors(path, FORMAT)[0]["theta"]
    except NewerError:
        raise
    except (UserError, KeyError):
        return None


def _train_teacher(task: Task, config: EvalConfig, index: int, listen: Listener) -> Tensor:
    schedule = config.plain.full_schedule(TEACHER_LR)
    path, description = teacher_path(task, config, index)
    listen({"event": "stage", "name": "teacher", "total": schedule.epochs, "unit": "epoch"})
    seed = derive_seed(0, "teacher", index)
    thetas = train(task.loss, task.model.init(seed).to(task.device), *task.train, schedule, seed)
    theta = next(thetas)
    for _ in range(schedule.epochs):
        theta = next(thetas)
        listen({"event": "advance", "text": f"teacher {index + 1} of {config.teachers}"})
    make_folder(path.parent)
    write_tensors(path, {"theta": theta}, {"format": FORMAT, "version": 1, "description": description})
    return theta


def teacher_path(task: Task, config: EvalConfig, index: int) -> tuple[Path, dict[str, Any]]:
    """The file in which a teacher is stored, and the description in its key."""
    options = {"epochs": config.full_epochs, "batch_size": config.full_batch_size, "lr": TEACHER_LR}
    options |= {"momentum": config.momentum, "weight_decay": config.weight_decay}
    description = {**task.describe(), "computed": task.conditions(), "teacher": index, **options}
    return home_folder() / "teachers" / f"{task.data.name}-{content_key(description)}.safetensors", description
