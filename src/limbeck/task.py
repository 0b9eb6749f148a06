"""What a method works on: data, network, preprocessing and augmentation, on one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.core.conditions import NUMERICS
from limbeck.core.errors import UserError
from limbeck.core.user_code import source_key
from limbeck.data import ImageData, Preprocess, Split, fit_preprocess
from limbeck.data.augment import DSA, CanvasCrop, default_strategy
from limbeck.derivatives.autograd import Loss
from limbeck.derivatives.choice import Choice, choose
from limbeck.derivatives.explicit import ExplicitDerivatives, FusedCrossEntropy
from limbeck.networks.flat import FlatModel
from limbeck.networks.losses import Augment, CrossEntropy
from limbeck.networks.registry import MODELS, ModelConfig, flat_model
from limbeck.training.plain import Network

Precision = Literal["float32", "tf32", "bfloat16"]
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Task:
    """Data as a network sees it. `model_config` and `preprocess` are resolved: nothing in here is a default."""

    data: ImageData
    model_config: ModelConfig
    preprocess: Preprocess
    augment: DSA
    device: torch.device
    precision: Precision = "float32"

    @cached_property
    def model(self) -> FlatModel:
        return flat_model(self.model_config, self.data.shape, self.data.num_classes)

    @cached_property
    def loss(self) -> Loss:
        """The training loss: cross-entropy of augmented images; canvases are cropped first.

        It has explicit derivatives where this network has them on this machine, and autograd's otherwise.
        """
        return self.loss_with(CanvasCrop(self.data.size, self.augment))

    def loss_with(self, augment: Augment | None) -> Loss:
        """The training loss with another augmentation, or with none."""
        if self.explicit is not None:
            return FusedCrossEntropy(CrossEntropy(self.model, augment), self.explicit, self.device.type)
        autocast_dtype = torch.bfloat16 if self.precision == "bfloat16" else None
        return Loss(CrossEntropy(self.model, augment, autocast_dtype))

    @property
    def logits(self) -> Network:
        """(theta (P,), images (n, channels, height, width)) -> logits (n, classes); inference only."""
        return self.model if self.explicit is None else self.explicit.logits

    @property
    def implementation(self) -> str:
        """The name of what computes derivatives; other implementations differ by rounding."""
        return self.choice.implementation

    @property
    def max_workers(self) -> int | None:
        """How many networks may be trained at the same time; None stands for one per thread.

        It is 1 under autograd, because functional_call swaps a module's parameters, so that one module serves one
        thread; and on a GPU, which one network keeps busy.
        """
        return None if self.explicit is not None and self.device.type == "cpu" else 1

    @cached_property
    def choice(self) -> Choice:
        """How this network's derivatives are computed on this machine, and why; measured once for a machine."""
        return choose(self.model, self.data.shape, DTYPES[self.precision], self.device.type)

    @property
    def explicit(self) -> ExplicitDerivatives | None:
        """The network's explicit derivatives; None where autograd computes them."""
        return self.choice.derivatives

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        return self._tensors(self.data.train)

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor]:
        return self._tensors(self.data.validation)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """For reports only: nothing may choose by it."""
        return self._tensors(self.data.test)

    def _tensors(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.preprocess.apply(split.images.to(self.device)), split.labels.to(self.device)

    def check_ipc(self, ipc: int) -> None:
        """UserError unless every class has at least `ipc` >= 1 training images."""
        if ipc < 1:
            raise UserError(f"images per class must be at least 1, not {ipc}.")
        counts = self.data.train.counts(self.data.num_classes)
        for name, count in zip(self.data.classes, counts):
            if count < ipc:
                raise UserError(
                    f"class '{name}' of {self.data.name} has {count} training images, fewer than --ipc {ipc}; "
                    "ask for fewer images per class."
                )

    def describe(self) -> dict[str, Any]:
        """What experts and baselines depend on, JSON-able: two tasks that differ here share neither."""
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
            **({"code": code} if (code := source_key(MODELS[self.model_config.name])) else {}),
        }

    def computed(self) -> dict[str, Any]:
        """The conditions under which figures are computed, JSON-able: where they differ, the last bits may.

        Sums of compiled kernels do not depend on the number of threads, others do.
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
        return conditions


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions on NVIDIA's GPUs may round to 10 bits: a setting of torch's, for all tasks."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def set_switches(device: torch.device, precision: Precision) -> None:
    """On an NVIDIA GPU, torch's switches as a task of this precision needs them; elsewhere nothing."""
    if device.type == "cuda":
        allow_tf32(precision == "tf32")
        torch.backends.cudnn.deterministic = True  # the same command gives the same bits


@contextmanager
def kept_switches() -> Iterator[None]:
    """Around a call that makes a task: torch's switches for NVIDIA's GPUs, which that sets, are put back at its end.

    The process belongs to whoever calls the library. torch has two generations of these switches and refuses to read
    the older one where the newer one was used.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches: list[tuple[Any, str]] = [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    try:
        before = [getattr(owner, name) for owner, name in switches]
    except RuntimeError:
        switches = [(owner, "fp32_precision") for owner in (matmul, cudnn.conv, cudnn.rnn)]  # type: ignore[attr-defined]
        before = [getattr(owner, name) for owner, name in switches]
    deterministic = cudnn.deterministic
    try:
        yield
    finally:
        for (owner, name), value in zip(switches, before):
            setattr(owner, name, value)
        cudnn.deterministic = deterministic


def make_task(
    data: ImageData,
    model: ModelConfig,
    preprocess: str | Preprocess = "normalise",
    augment: str | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Task:
    """Resolve every default: depth from the image size, preprocessing fitted on train, augmentation by data set.

    preprocess: normalise, zca, or one that is fitted already. augment: DSA families joined by '_', or none.
    precision:  of activations in training; parameters and sums are float32 either way. tf32 rounds what is multiplied
                to 10 bits, on NVIDIA's GPUs; float32 forbids it, which torch allows in convolutions unless told not to.
                On these devices torch's switches for that, and for deterministic cuDNN, are set for the whole process;
                `distill`, `train_experts`, `evaluate` and `inspect_store` put them back (`kept_switches`).
    Raises UserError for a device that is not there, a precision it does not have, and a network that does not fit the
    images.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{device}' cannot be used here: {str(error).splitlines()[0]}") from None
    if precision == "tf32" and where.type != "cuda":
        raise UserError(f"precision tf32 is of NVIDIA GPUs; with --device {device} use float32 or bfloat16.")
    set_switches(where, precision)
    dsa = DSA(default_strategy(data.name) if augment is None else augment)
    fitted = fit_preprocess(preprocess, data.train.images) if isinstance(preprocess, str) else preprocess
    task = Task(data, model.resolved(data.size), fitted.to(where), dsa, where, precision)
    _ = task.model  # built now, so that what does not fit is refused before any work
    return task
