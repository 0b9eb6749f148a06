"""The task of a method: data, network, preprocessing and augmentation, on one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.conditions import NUMERICS
from limbeck.core.distributed import SINGLE, Ranks
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.parallel import Workers
from limbeck.core.short_repr import short_repr
from limbeck.core.text import quote, shorten
from limbeck.core.user_code import source_key
from limbeck.data import ImageData, Preprocess, Split, fit_preprocess
from limbeck.data.augment import DSA, CanvasCrop, default_strategy
from limbeck.derivatives.autograd import Loss
from limbeck.derivatives.choice import Choice, choose
from limbeck.derivatives.compiled import CompiledDerivatives
from limbeck.derivatives.explicit import ExplicitDerivatives, FusedCrossEntropy
from limbeck.derivatives.image_functions import ImageFunctions
from limbeck.derivatives.micro_batches import MicroBatches
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import Augment, CrossEntropy
from limbeck.networks.registry import ModelConfig, find_network, flat_model
from limbeck.networks.statistics import RunningStatistics, for_inference
from limbeck.networks.timm_models import import_timm
from limbeck.training.plain import Network

Precision = Literal["float32", "tf32", "bfloat16"]
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Task:
    """Data as a network sees it, with the network and its loss; made by `make_task`, which resolves every default.

    data:         Images of all splits as bytes, and their classes.
    model_config: The network, with all its options set.
    preprocess:   From bytes to network input space, fitted on the training images.
    augment:      The augmentation of training images.
    device:       Where tensors are.
    precision:    Of activations in training; see `make_task`.
    ranks:        The processes that share the work; no result depends on their number.
    """

    __repr__ = short_repr

    data: ImageData
    model_config: ModelConfig
    preprocess: Preprocess
    augment: DSA
    device: torch.device
    precision: Precision = "float32"
    ranks: Ranks = SINGLE

    @cached_property
    def model(self) -> FlatModel:
        """The network as a pure function of its parameters."""
        return flat_model(self.model_config, self.data.shape, self.data.num_classes)

    @cached_property
    def loss(self) -> Loss:
        """The training loss: the cross-entropy of augmented images; canvases are cropped first.

        It has explicit derivatives where this network has them on this machine, and autograd's otherwise.
        """
        return self.loss_with(CanvasCrop(self.data.size, self.augment))

    def loss_with(self, augment: Augment | None, statistics: RunningStatistics | None = None) -> Loss:
        """The training loss with another augmentation, or with none.

        statistics: Running statistics of batch norm that every gradient updates, for a network that is evaluated.
        """
        if self.explicit is not None:
            return FusedCrossEntropy(CrossEntropy(self.model, augment), self.explicit, self.device.type)
        autocast_dtype = torch.bfloat16 if self.precision == "bfloat16" else None
        return Loss(CrossEntropy(self.model, augment, autocast_dtype, statistics))

    def loss_in_parts(self, size: int | None) -> Loss:
        """The training loss whose derivatives are computed for `size` images at a time, or for all; see `MicroBatches`.

        Raises UserError for networks with batch norm, whose outputs depend on the whole batch.
        """
        if size is None:
            return self.loss
        if self.model.has_statistics:
            raise UserError(
                f"--micro-batch does not go with the batch norm of {self.model_config.name}, which looks at all images "
                "of a batch together; leave it out, or take a network with instance or group norm (--model.norm)."
            )
        function = self.loss.function
        assert isinstance(function, CrossEntropy)
        return MicroBatches(function, self.loss_with(None), size)

    @cached_property
    def image_functions(self) -> ImageFunctions:
        """Features and logits of images under a network, differentiable in the images."""
        compiled = self.explicit if isinstance(self.explicit, CompiledDerivatives) else None
        return ImageFunctions(self.model, compiled)

    @cached_property
    def logits(self) -> Network:
        """(theta (P,), images (n, channels, height, width)) -> logits (n, classes); inference only.

        Batch norm uses statistics of the training images at that theta. For a network that was trained here there are
        running ones: see `loss_and_network`.
        """
        if self.explicit is not None:
            return self.explicit.logits
        return for_inference(self.model, self.train[0]) if self.model.has_statistics else self.model

    def loss_and_network(self) -> tuple[Loss, Network]:
        """The training loss for one network, and that network for inference.

        Gradients of the loss update the running statistics that the network uses, if it has batch norm.
        """
        if not self.model.has_statistics:
            return self.loss, self.logits
        statistics = RunningStatistics(self.model)
        return self.loss_with(CanvasCrop(self.data.size, self.augment), statistics), statistics

    @property
    def implementation(self) -> str:
        """The name of what computes derivatives; other implementations differ by rounding."""
        return self.choice.implementation

    @property
    def max_workers(self) -> int | None:
        """The number of experts that may be trained at the same time; None stands for one per thread.

        It is 1 under autograd, so that an expert has all threads, and on a GPU, which one network keeps busy.
        """
        return None if self.explicit is not None and self.device.type == "cpu" else 1

    @property
    def workers(self) -> Workers:
        """How fresh networks are trained at the same time for evaluation.

        Under autograd on a processor each has the same number of threads, so that its bits do not depend on the others.
        """
        if self.device.type != "cpu":
            return Workers(1)
        return Workers() if self.choice.is_compiled else self.autograd_workers

    @property
    def autograd_workers(self) -> Workers:
        """The same for losses that go through autograd on every machine."""
        is_threaded = self.device.type == "cpu" and self.model.serves_threads
        return Workers.of_fixed_share() if is_threaded else Workers(1)

    @cached_property
    def choice(self) -> Choice:
        """What computes this network's derivatives on this machine, and why; measured once per machine."""
        return choose(self.model, self.data.shape, DTYPES[self.precision], self.device.type)

    @property
    def explicit(self) -> ExplicitDerivatives | None:
        """The network's explicit derivatives; None where autograd computes them."""
        return self.choice.derivatives

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """Training images (n, c, h, w) in network input space, and their int64 classes (n,)."""
        return self._tensors(self.data.train)

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor]:
        """Validation images and their classes, by which runs and step sizes are chosen."""
        return self._tensors(self.data.validation)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test images and their classes. They are for reports: nothing may be chosen by them."""
        return self._tensors(self.data.test)

    def _tensors(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.preprocess.apply(split.images.to(self.device)), split.labels.to(self.device)

    def with_model(self, model: ModelConfig) -> Task:
        """A task of the same images, in the same tensors, for another network.

        Raises UserError for a network that does not fit the images.
        """
        task = replace(self, model_config=model.resolved(self.data.size))
        for split in ("train", "validation", "test"):
            task.__dict__[split] = getattr(self, split)  # where `cached_property` would put it
        _ = task.model
        return task

    def check_ipc(self, ipc: int, allow_fewer: bool = False) -> None:
        """Raise UserError unless ipc >= 1 and, without `allow_fewer`, every class has `ipc` training images."""
        if ipc < 1:
            raise UserError(f"images per class must be at least 1, not {ipc}.")
        if allow_fewer:
            return
        counts = self.data.train.counts(self.data.num_classes)
        for name, count in zip(self.data.classes, counts):
            if count < ipc:
                raise UserError(
                    f"class {quote(name)} of {self.data.name} has {count} training image{'s' * (count != 1)}, fewer "
                    f"than --ipc {ipc}; ask for fewer images per class, or fill it up with --fill repeat, augment or "
                    "noise."
                )

    def describe(self) -> dict[str, Any]:
        """The identity of experts and baselines of this task, for JSON: tasks that differ here share neither."""
        return {
            "data": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "classes": list(self.data.classes),
                "shape": list(self.data.shape),
            },
            "model": self.model_config.model_dump(),
            "preprocess": self.preprocess.describe(),
            "augment": self.augment.strategy,
            **({"code": code} if (code := source_key(find_network(self.model_config.name))) else {}),
        }

    def conditions(self) -> dict[str, Any]:
        """The conditions of computation, for JSON: the last bits may differ between conditions that differ.

        The number of threads is one of them under autograd; the bits of the compiled network do not depend on it. The
        version of timm is one for its networks, which change from version to version.
        """
        conditions: dict[str, Any] = {
            "numerics": NUMERICS,
            "device": self.device.type,
            "implementation": self.implementation,
            "precision": self.precision,
            "torch": str(torch.__version__),
        }
        if self.device.type == "cpu" and not self.choice.is_compiled:
            conditions["threads"] = torch.get_num_threads()
        if self.model_config.name.startswith("timm:"):
            conditions["timm"] = str(import_timm().__version__)
        return conditions

    def evaluation_conditions(self) -> dict[str, Any]:
        """The conditions of fresh networks that are trained for evaluation: `threads` is how many each of them has."""
        conditions, threads = self.conditions(), self.workers.threads_each
        return conditions if threads is None or "threads" not in conditions else {**conditions, "threads": threads}


MAX_NOTES, MAX_NOTE = 10, 300  # notes to emit, and characters of one


def announce_task(task: Task, listen: Listener) -> None:
    """Emit what was done to the data, how derivatives are computed, and a warning where these could be faster.

    Of a long list the first notes are emitted, and of a long note its beginning; `limbeck info DATA` has all of it.
    """
    data = task.data
    for note in data.notes[:MAX_NOTES]:
        end = "..." if len(note) > MAX_NOTE else ""
        listen({"event": "note", "text": f"{data.name}: {note[:MAX_NOTE]}{end}"})
    if data.notes[MAX_NOTES:]:
        count = len(data.notes) - MAX_NOTES
        listen({"event": "note", "text": f"{data.name}: {count} more notes, which 'limbeck info' on it shows"})
    announce_network(task, listen)
    if task.choice.reason:
        listen({"event": "warning" if task.choice.could_be_faster else "note", "text": task.choice.reason})


def announce_network(task: Task, listen: Listener) -> None:
    """Emit that dropout of the network was switched off, where it had any."""
    layers = task.model.dropout
    if layers:
        others = f" and {len(layers) - 3} more" if layers[3:] else ""
        text = f"dropout of {task.model_config.name} is off, in {', '.join(layers[:3])}{others}; see 'Which network'"
        listen({"event": "note", "text": text})


def allow_tf32(allowed: bool) -> None:
    """Set, for the whole process, whether products and convolutions on NVIDIA GPUs may round to 10 bits."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def set_switches(device: torch.device, precision: Precision) -> None:
    """Set torch's switches for a task of this precision on an NVIDIA GPU; on other devices do nothing."""
    if device.type == "cuda":
        allow_tf32(precision == "tf32")
        torch.backends.cudnn.deterministic = True  # the same command gives the same bits


@contextmanager
def restore_switches() -> Iterator[None]:
    """Restore torch's switches for NVIDIA GPUs, which `make_task` sets, at the end of a call.

    The process belongs to the caller of the library. torch has two generations of these switches, and raises where the
    older one is read after the newer one was set.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches: list[tuple[Any, str]] = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    try:
        values = [getattr(owner, name) for owner, name in switches]
    except RuntimeError:
        switches = [(owner, "fp32_precision") for owner in (matmul, cudnn.conv, cudnn.rnn)]  # type: ignore[attr-defined]
        values = [getattr(owner, name) for owner, name in switches]
    deterministic = cudnn.deterministic
    try:
        yield
    finally:
        for (owner, name), value in zip(switches, values):
            setattr(owner, name, value)
        cudnn.deterministic = deterministic


def make_task(
    data: ImageData,
    model: ModelConfig,
    preprocess: str | Preprocess = "normalise",
    augment: str | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    ranks: Ranks = SINGLE,
) -> Task:
    """Make a task and resolve its defaults: depth from the image size, augmentation from the data set's name.

    data:       Images of all splits.
    model:      The network and its options.
    preprocess: normalise, zca, or a fitted `Preprocess`; it is fitted on the training images.
    augment:    DSA families joined by '_', or none; by default those of the data set.
    device:     cpu, cuda, or another device of torch.
    precision:  Of activations in training; parameters and sums are float32 in every case. tf32 rounds factors to 10
                bits on NVIDIA GPUs; float32 forbids that, which torch allows in convolutions by default. There torch's
                switches for that, and for deterministic cuDNN, are set for the whole process; `distill`,
                `train_experts`, `evaluate` and `inspect_store` restore them (`restore_switches`).
    ranks:      The processes that share the work, see `limbeck.core.distributed`.

    Raises UserError for a device that is missing, a precision that it does not have, and a network that does not fit
    the images.

    >>> from limbeck.data import load_data
    >>> task = make_task(load_data("digits"), ModelConfig(width=8))
    >>> task.model_config.depth, task.augment.strategy, tuple(task.train[0].shape[1:])
    (2, 'color_crop_cutout_scale_rotate', (1, 8, 8))
    """
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {quote(device)} cannot be used here: {shorten(error, 160)}") from None
    if precision == "tf32" and target.type != "cuda":
        raise UserError(f"precision tf32 is of NVIDIA GPUs; with --device {device} use float32 or bfloat16.")
    set_switches(target, precision)
    dsa = DSA(default_strategy(data.name) if augment is None else augment)
    fitted = fit_preprocess(preprocess, data.train.images) if isinstance(preprocess, str) else preprocess
    task = Task(data, model.resolved(data.size), fitted.to(target), dsa, target, precision, ranks)
    _ = task.model  # built now, so that a network that does not fit is refused before any work
    return task
