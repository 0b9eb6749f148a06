"""The synthetic set while it is learned: its raw parameters, and the batches that a student takes from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log

import torch
from torch import Tensor

from limbeck.core.short_repr import short_repr
from limbeck.core.types import Batch

LOG_LR_RANGE = (-16.0, 5.0)
"""The range of log_lr within which the step size follows it: step sizes between 1e-7 and 150."""

Decode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(stored images, labels) -> (training images, their labels)."""


def hard_labels(labels: Tensor) -> Tensor:
    """Classes (n,) from classes (n,), or from logits or probabilities (n, classes): the largest one."""
    return labels.argmax(1) if labels.dtype.is_floating_point else labels


@dataclass(frozen=True, eq=False)
class SyntheticSet:
    """A synthetic set: raw parameters, and how training images and labels follow from them.

    images:  (n, channels, height, width) in network input space, sorted by class.
    labels:  int64 classes (n,), or float logits (n, classes) whose softmax is the target.
    log_lr:  scalar, the logarithm of the student's step size, which is therefore positive. See `LOG_LR_RANGE`.
    decode:  maps stored images and labels to training images and labels; None where they are the same.
    learned: names of the parameters that a method optimises.
    extra:   further raw parameters by name, for methods that have some (a temperature, say).

    >>> import torch
    >>> images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1])
    >>> synthetic = SyntheticSet.from_images(images, labels, lr=0.01)
    >>> sorted(synthetic.parameters()), round(float(synthetic.lr.detach()), 6)
    (['images', 'log_lr'], 0.01)
    >>> batches = synthetic.batches(steps=3, size=2, generator=torch.Generator().manual_seed(0))
    >>> [len(batch.rows) for batch in batches]
    [2, 2, 2]
    """

    __repr__ = short_repr

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
        """A set that starts at copies of these images, labels and extra parameters, with step size `lr`.

        The parameters named in `learned` require gradients. Raises ValueError for an `lr` that is not above 0.
        """
        log_lr = torch.tensor(log(lr), dtype=images.dtype, device=images.device)
        copies = {name: tensor.detach().clone() for name, tensor in (extra or {}).items()}
        synthetic = cls(images.detach().clone(), labels.detach().clone(), log_lr, decode, learned, copies)
        for parameter in synthetic.parameters().values():
            parameter.requires_grad_()
        return synthetic

    @property
    def lr(self) -> Tensor:
        """The student's step size, a positive scalar between 1e-7 and 150 for any log_lr.

        Its derivative with respect to log_lr is the step size itself, outside of the range too, so that log_lr can
        come back.
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
        """Copy raw tensors into this set in place, so that its optimisers stay valid."""
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
        """Training images, and labels as classes or, where they are logits, as probabilities."""
        images, labels = self.decoded_pair()
        return images, labels.softmax(1) if labels.dtype.is_floating_point else labels

    def batches(self, steps: int, size: int | None, generator: torch.Generator) -> list[Batch]:
        """`steps` batches of `size` images each, or of all images where `size` is None or not below their number.

        They pass over the set in a new order each time; the last batch of a pass may be smaller. All batches share one
        tensor of images and differ in their rows and in the seeds of their augmentation.
        """
        images, labels = self.training_pair()
        count = len(images)
        rows: list[Tensor | None] = []
        while len(rows) < steps:
            if size is None or size >= count:
                rows.append(None)
            else:
                order = torch.randperm(count, generator=generator).to(images.device)
                rows += [order[i : i + size] for i in range(0, count, size)]
        seeds = torch.randint(2**62, (steps,), generator=generator).tolist()
        return [Batch(images, labels, seed, batch_rows) for seed, batch_rows in zip(seeds, rows)]
