"""The distilled set as a file: everything that is needed to use it, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from limbeck.core.errors import UserError
from limbeck.core.files import read_tensors, write_tensors
from limbeck.data import Preprocess

FORMAT = "limbeck-set"


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A tiny training set, with what it takes to train on it.

    images:     float32 (n, channels, height, width), in network input space.
    labels:     int64 (n,) classes, or float32 (n, classes) probabilities.
    lr:         the step size that was learned with the images.
    preprocess: turns other images into that space (`apply`) and these into pictures (`invert`).
    classes:    class names, in label order.
    recipe:     how the set is meant to be trained on: network, epochs, momentum, weight decay, augmentation.
    provenance: method, resolved configuration, data name and fingerprint, outer step, seed.
    targets:    float32 (n, classes), what the images were distilled to stand for where that is a regression (RCIG);
                any real numbers. `labels` says the same for cross-entropy.
    """

    images: Tensor
    labels: Tensor
    lr: float
    preprocess: Preprocess
    classes: tuple[str, ...]
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    targets: Tensor | None = None

    def dataset(self) -> TensorDataset:
        """A torch `Dataset` of (image, label), ready for a network."""
        return TensorDataset(self.images, self.labels)

    def pictures(self) -> Tensor:
        """The images back in pixel space, nominally [0, 1] and not clipped; (n, channels, height, width)."""
        return self.preprocess.invert(self.images)

    def hard_labels(self) -> Tensor:
        """The class of each image (n,): the most likely one where labels are soft."""
        return self.labels.argmax(1) if self.labels.dtype.is_floating_point else self.labels

    def save(self, path: str | Path) -> None:
        """One safetensors file, written atomically."""
        tensors = {"images": self.images, "labels": self.labels, "lr": torch.tensor(self.lr, dtype=torch.float64)}
        if self.targets is not None:
            tensors["targets"] = self.targets
        tensors |= {f"preprocess.{name}": tensor for name, tensor in self.preprocess.state().items()}
        header = {
            "format": FORMAT,
            "version": 1,
            "classes": list(self.classes),
            "preprocess": self.preprocess.header(),
            "recipe": self.recipe,
            "provenance": self.provenance,
        }
        write_tensors(Path(path), tensors, header)


def load(path: str | Path) -> DistilledSet:
    """Read a distilled set from its file, or the chosen one from a run folder.

    Raises UserError when there is none, or when the file is damaged or something else.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / f"set-{which}.safetensors" for which in ("chosen", "last")]
        path = next((file for file in found if file.exists()), path / "set-chosen.safetensors")
        if not path.exists():
            raise UserError(f"{path.parent} holds no distilled set; it is not a run folder, or the run has not ended.")
    tensors, header = read_tensors(path, FORMAT)
    state = {name.removeprefix("preprocess."): t for name, t in tensors.items() if name.startswith("preprocess.")}
    return DistilledSet(
        images=tensors["images"],
        labels=tensors["labels"],
        lr=float(tensors["lr"]),
        preprocess=Preprocess.from_state(header["preprocess"], state),
        classes=tuple(header["classes"]),
        recipe=header["recipe"],
        provenance=header["provenance"],
        targets=tensors.get("targets"),
    )
