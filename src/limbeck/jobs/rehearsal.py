"""A method's plan before there are experts: on a stand-in for them, and on few real images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from limbeck.core.errors import UserError
from limbeck.core.rng import make_generator
from limbeck.data import Split
from limbeck.methods import Method, MethodConfig, MethodInputs
from limbeck.select import FillName
from limbeck.task import Task


class StandIn:
    """A trajectory in place of an expert that is not trained yet: a straight line between two random networks."""

    def __init__(self, start: Tensor, stop: Tensor, end: int):
        self.start, self.stop, self.end = start, stop, end

    def at(self, t: float) -> Tensor:
        """Parameters (P,) at epoch `t`."""
        return torch.lerp(self.start, self.stop, t / self.end)


def stand_in(task: Task, end: int, seed: int) -> StandIn:
    """A stand-in for an expert of `end` epochs."""
    start = task.model.init(seed, "estimate")
    stop = start + 0.1 * start.std() * torch.randn(start.shape, generator=make_generator(seed, "estimate"))
    return StandIn(start, stop, end)


def subset(task: Task, most: int) -> Task:
    """The same task with at most `most` training images a class."""
    train = task.data.train
    rows = torch.cat([(train.labels == c).nonzero().squeeze(1)[:most] for c in range(task.data.num_classes)])
    return replace(task, data=replace(task.data, train=Split(train.images[rows], train.labels[rows])))


def check_plan(
    method: Method,
    options: MethodConfig,
    task: Task,
    ipc: int,
    seed: int,
    epochs: int | None,
    fill: FillName = "none",
) -> None:
    """Raise the UserError by which the method's plan refuses its options, before anything is trained.

    epochs: those of the experts that will be trained; None for a method without experts.
    The plan is built on few real images, which takes a moment. If it refuses them, it is built on all images, so that
    no job is refused because the few were too few.
    """
    paths = [] if epochs is None else [stand_in(task, epochs, seed)]

    def build(part: Task) -> None:
        plan = method.plan(options, MethodInputs(part, paths, ipc, seed, fill))
        plan.evaluated_set().training_pair()

    try:
        build(subset(task, 2 * options.initial_images(ipc)))
    except UserError:
        build(task)
