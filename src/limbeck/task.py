"""What a method works on: data, network, preprocessing and augmentation, on one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from limbeck.data import ImageData, Preprocess, Split, fit_preprocess
from limbeck.data.augment import DSA, CropThen, default_strategy
from limbeck.errors import UserError
from limbeck.flat import FlatModel
from limbeck.models import ModelConfig, flat_model
from limbeck.student.losses import CrossEntropy


@dataclass(frozen=True, eq=False)
class Task:
    """Data as a network sees it. `model_config` and `preprocess` are resolved: nothing in here is a default."""

    data: ImageData
    model_config: ModelConfig
    preprocess: Preprocess
    augment: DSA
    device: torch.device

    @cached_property
    def model(self) -> FlatModel:
        return flat_model(self.model_config, self.data.shape, self.data.num_classes)

    @cached_property
    def loss(self) -> CrossEntropy:
        """The training loss: cross-entropy of augmented images; canvases are cropped first."""
        return CrossEntropy(self.model, CropThen(self.data.size, self.augment))

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
            "preprocess": self.preprocess.header(),
            "augment": self.augment.strategy,
        }


def make_task(
    data: ImageData,
    model: ModelConfig,
    preprocess: str | Preprocess = "normalise",
    augment: str | None = None,
    device: str = "cpu",
) -> Task:
    """Resolve every default: depth from the image size, preprocessing fitted on train, augmentation by data set.

    preprocess: normalise, zca, or one that is fitted already. augment: DSA families joined by '_', or none.
    Raises UserError for a device that is not there, and for a network that does not fit the images.
    """
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{device}' cannot be used here: {str(error).splitlines()[0]}") from None
    dsa = DSA(default_strategy(data.name) if augment is None else augment)
    fitted = fit_preprocess(preprocess, data.train.images) if isinstance(preprocess, str) else preprocess
    task = Task(data, model.resolved(data.size), fitted.to(where), dsa, where)
    _ = task.model  # built now, so that what does not fit is refused before any work
    return task
