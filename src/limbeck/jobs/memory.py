"""Estimates the memory of an outer step of trajectory matching, and chooses the micro-batch that fits a limit.

The estimate counts bytes and measures nothing, so that the same command chooses the same everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from limbeck.core.errors import UserError
from limbeck.core.text import quote
from limbeck.core.types import Batch
from limbeck.experts.handle import Experts
from limbeck.report.text import size
from limbeck.task import Task

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30}
PROCESS = 500_000_000
"""Bytes of Python and torch, or of torch on a GPU."""
COPIES = 4.5
"""Bytes of a Hessian-vector product for each byte that autograd saves for a gradient with its graph. Measured on a
processor, with three to five blocks at 32 and 64 pixels: 1.8 to 3.0 by autograd, 3.1 to 4.2 by the explicit formulas in
torch's operations (docs/LOG.md, 2026-11-26)."""
COMPILED_IMAGES = 20
"""Images that the compiled network works on at a time; the memory of its activations is theirs, whatever the batch."""
IMAGE_COPIES = 6
"""Tensors as large as a batch beside the network: its images, augmented, and their gradients."""


def parse_bytes(text: str) -> int:
    """Bytes from a number with a unit. Raises UserError for other text.

    >>> parse_bytes("8GB"), parse_bytes("1.5 GiB"), parse_bytes("700mb")
    (8000000000, 1610612736, 700000000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.strip().upper())
    unit = None if match is None else UNITS.get(match[2] if match[2].endswith("B") or not match[2] else f"{match[2]}B")
    if match is None or unit is None or float(match[1]) == 0:
        raise UserError(f"--max-memory is a number with a unit, as 8GB or 700MB, not {quote(text)}.")
    return int(float(match[1]) * unit)


class Fit(NamedTuple):
    """What fits a limit: images of a student step at a time (0: not even one), and experts that are kept in memory."""

    images: int
    experts: int


@dataclass(frozen=True)
class StepMemory:
    """The memory of an outer step: `fixed` bytes, and those for each image at a time and each expert in memory.

    batch: The images of a student step; experts: the convexified ones, which may stay in their files.

    >>> memory = StepMemory(fixed=1000, per_image=10, batch=50, per_expert=100, experts=3)
    >>> memory.fit(1800), memory.fit(1400), memory.fit(1009)
    (Fit(images=50, experts=3), Fit(images=20, experts=2), Fit(images=0, experts=0))
    """

    fixed: int
    per_image: int
    batch: int
    per_expert: int = 0
    experts: int = 0

    def fit(self, limit: int) -> Fit:
        """All images and experts if they fit `limit` bytes; else experts take up to half of what is left for both."""
        everything, left = Fit(self.batch, self.experts), limit - self.fixed
        if self.bytes(everything) <= limit:
            return everything
        experts = min(self.experts, max(0, left) // 2 // self.per_expert) if self.experts else 0
        images = (left - experts * self.per_expert) // self.per_image
        if images < 1:
            experts, images = 0, left // self.per_image
        return Fit(max(0, min(self.batch, images)), experts)

    def bytes(self, fit: Fit) -> int:
        """The bytes of an outer step with so many images at a time and experts in memory."""
        return self.fixed + fit.images * self.per_image + fit.experts * self.per_expert


def step_memory(task: Task, options: Any, experts: Experts | None, ipc: int) -> StepMemory:
    """The memory of an outer step with these options (`TrajectoryConfig`), and of all that stays beside it."""
    stored = ipc * task.data.num_classes
    image, parameters = 4 * task.train[0][0].numel(), 4 * task.model.layout.count
    batch = options.batch_syn or stored
    states = options.syn_steps + 12  # of the student, and the products, the start, the target
    splits = (task.data.train, task.data.validation, task.data.test)
    fixed = PROCESS + sum(len(split) for split in splits) * image * 5 // 4  # as bytes, and as numbers
    fixed += 3 * stored * image * getattr(options, "canvas", 1) ** 2 + states * parameters
    fixed += IMAGE_COPIES * batch * image
    count, waypoints = 0, 0
    if experts is not None and experts.kind != "recorded":  # recorded ones stay in their files
        count, waypoints = experts.count, len(experts.config.waypoint_epochs()) * parameters
    activations = saved_bytes(task)
    if task.choice.is_compiled:
        return StepMemory(fixed + COMPILED_IMAGES * activations, IMAGE_COPIES * image, batch, waypoints, count)
    return StepMemory(fixed, int(COPIES * activations), batch, waypoints, count)


def saved_bytes(task: Task) -> int:
    """The bytes that autograd saves for one image more, for a gradient with its graph."""
    return _saved(task, 3) - _saved(task, 2)


def _saved(task: Task, images: int) -> int:
    storages: dict[int, int] = {}
    tensors: list[Tensor] = []  # else another one may take the place of one that is freed

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        tensors.append(tensor)
        return tensor

    theta = task.model.init(0, "memory").to(task.device).requires_grad_()
    batch = Batch(task.train[0][:images].clone().requires_grad_(), task.train[1][:images])
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.autograd.grad(task.loss_with(None).function(theta, batch), theta, create_graph=True)
    return sum(storages.values())


def fit_memory(options: Any, task: Task, experts: Experts | None, ipc: int) -> tuple[Any, Experts | None]:
    """The options with the micro-batch that fits `max_memory`, and the experts with how many of them stay in memory.

    Both are as they were where no limit is given, and where everything fits.
    Raises UserError where not even one image at a time fits, and where the images cannot be computed in parts.
    """
    text = getattr(options, "max_memory", None)
    if text is None:
        return options, experts
    if options.micro_batch is not None:
        raise UserError("--max-memory chooses the micro-batch; leave out --micro-batch, or --max-memory.")
    if getattr(options, "gradient", None) == "backprop":
        raise UserError("--gradient backprop keeps the graph of all steps, which --max-memory cannot bound.")
    memory = step_memory(task, options, experts, ipc)
    fit = memory.fit(parse_bytes(text))
    if not fit.images:
        raise UserError(
            f"--max-memory {text} is not enough: with one image of a student step at a time it is about "
            f"{size(memory.bytes(Fit(1, 0)))}, of which {size(memory.fixed)} do not depend on that; name more, or take "
            "fewer student steps or images, or a smaller network."
        )
    if fit.images < memory.batch and task.model.has_statistics:
        raise UserError(
            f"--max-memory {text} is enough for {fit.images} of the {memory.batch} images of a student step at a time, "
            f"but the batch norm of {task.model_config.name} looks at all of them together; name about "
            f"{size(memory.bytes(Fit(memory.batch, memory.experts)))}, or take another norm (--model.norm)."
        )
    if fit.images < memory.batch:
        options = options.model_copy(update={"micro_batch": fit.images})
    if experts is not None and fit.experts < memory.experts:
        experts = replace(experts, in_memory=fit.experts)
    return options, experts


def describe_memory(task: Task, options: Any, experts: Experts | None, ipc: int) -> str | None:
    """What `fit_memory` chose, in a sentence; None where no limit was given."""
    if getattr(options, "max_memory", None) is None:
        return None
    memory = step_memory(task, options, experts, ipc)
    count = memory.experts if experts is None or experts.in_memory is None else experts.in_memory
    fit = Fit(options.micro_batch or memory.batch, count)
    read = f", {fit.experts} of {memory.experts} experts in memory" if memory.experts else ""
    return (
        f"--max-memory {options.max_memory}: {fit.images} of {memory.batch} images of a student step at a time "
        f"(--micro-batch){read}, about {size(memory.bytes(fit))}"
    )
