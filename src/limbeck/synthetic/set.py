"""The synthetic set while it is being learned: raw parameters, and the batches a student takes from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log

import torch
from torch import Tensor

from limbeck.core.types import Batch

LOG_LR_RANGE = (-16.0, 5.0)  # step sizes between 1e-7 and 150

Decode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(stored images, labels) -> (training images, their labels)."""


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """Raw parameters and how to read them.

    images:  (n, channels, height, width) in network input space, class-sorted.
    labels:  int64 classes (n,), or float logits (n, classes) whose softmax is the target.
    log_lr:  scalar, the logarithm of the student's step size: the step size is positive by construction.
             It is meant to lie in `LOG_LR_RANGE`.
    decode:  stored images and labels to training images and labels; None where they are the same.
    learned: names of the parameters that a method optimises.
    extra:   further raw parameters by name, of methods that have some (a temperature, say).
    """

    images: Tensor
    labels: Tensor
    log_lr: Tensor
    decode: Decode | None = None
    learned: tuple[str, ...] = field(default=("images", "log_lr"))
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_images(
        cls,
        images: Tensor,
        labels: Tensor,
        lr: float,
        learned: tuple[str, ...] = ("images", "log_lr"),
        *,
        decode: Decode | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> SyntheticSet:
        """A set that begins at these images (copied), labels and step size; the learned parts ask for gradients."""
        log_lr = torch.tensor(log(lr), dtype=images.dtype, device=images.device)
        copies = {name: tensor.detach().clone() for name, tensor in (extra or {}).items()}
        synthetic = cls(images.detach().clone(), labels.detach().clone(), log_lr, decode, learned, copies)
        for parameter in synthetic.parameters().values():
            parameter.requires_grad_()
        return synthetic

    @property
    def lr(self) -> Tensor:
        """The student's step size, a positive scalar between 1e-7 and 150, however far log_lr goes.

        Its derivative in log_lr is the step size itself, beyond the range too, so that log_lr can return.
        """
        excess = self.log_lr - self.log_lr.clamp(*LOG_LR_RANGE)
        return (self.log_lr - excess.detach()).exp()

    def state(self) -> dict[str, Tensor]:
        """All raw tensors by name."""
        return {"images": self.images, "labels": self.labels, "log_lr": self.log_lr, **self.extra}

    def parameters(self) -> dict[str, Tensor]:
        """The learned raw tensors by name."""
        return {name: self.state()[name] for name in self.learned}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy raw tensors in, in place, so that optimisers keep hold of them."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def snapshot(self) -> SyntheticSet:
        """A detached copy."""
        copies = {name: tensor.detach().clone() for name, tensor in self.state().items()}
        images, labels, log_lr = (copies.pop(name) for name in ("images", "labels", "log_lr"))
        return replace(self, images=images, labels=labels, log_lr=log_lr, extra=copies)

    def decoded_pair(self) -> tuple[Tensor, Tensor]:
        """Training images and their raw labels: classes, or logits before the softmax."""
        return (self.images, self.labels) if self.decode is None else self.decode(self.images, self.labels)

    def training_pair(self) -> tuple[Tensor, Tensor]:
        """Training images and labels; label logits become probabilities."""
        images, labels = self.decoded_pair()
        return images, labels.softmax(1) if labels.dtype.is_floating_point else labels

    def batches(self, steps: int, size: int | None, generator: torch.Generator) -> list[Batch]:
        """`steps` batches of `size` images (None: all), passing over the set in a new order each time.

        They share one tensor of images and carry rows and an augmentation seed each.
        """
        images, labels = self.training_pair()
        count = len(images)
        whole = size is None or size >= count
        rows: list[Tensor | None] = []
        while len(rows) < steps:
            if whole or size is None:
                rows.append(None)
            else:
                order = torch.randperm(count, generator=generator).to(images.device)
                rows += [order[i : i + size] for i in range(0, count, size)]
        seeds = torch.randint(2**62, (steps,), generator=generator).tolist()
        return [Batch(images, labels, seed, part) for seed, part in zip(seeds, rows)]
