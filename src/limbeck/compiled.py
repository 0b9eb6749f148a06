"""The derivatives of the field's ConvNet in one call of kernels/network.cpp: what `pearlmutter.py` writes in Python.

While it lasts Python's lock is free, so that networks side by side do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.derivatives import Later, Products, Wanted
from limbeck.kernels import Kernels

PART = 5
"""Images that a thread takes through the network together: fewer leave the products of matrices too small, more leave
the cache. Products of 100 images of width 32, two threads: 14 ms by fives, 16 to 20 by tens."""


class Block(NamedTuple):
    """A convolution with padding, from `channels` to `out`; then instance norm, ReLU and pooling."""

    channels: int
    out: int
    padding: int


class Asked(NamedTuple):
    """What `answer` of kernels/network.cpp is to fill; None is for what is not asked for."""

    tapes: Tensor | None = None
    logits: Tensor | None = None
    gradient: Tensor | None = None
    dtheta: Tensor | None = None
    dimages: Tensor | None = None
    dlabels: Tensor | None = None
    along: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Compiled:
    """Derivatives of cross-entropy of a ConvNet on a batch of images that are augmented already.

    parameters: P, of which the last layer has `features` for each class. Raises ValueError where a tensor does not fit.
    """

    kernels: Kernels
    blocks: tuple[Block, ...]
    classes: int
    features: int
    parameters: int
    eps: float
    dtype: torch.dtype

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,) of the mean over n images (n, c, h, w); labels are classes (n,) or probabilities."""
        asked = Asked(gradient=torch.empty_like(theta))
        self._answer(theta, images, self._probabilities(labels), None, asked)
        assert asked.gradient is not None
        return asked.gradient

    def products(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, wanted: Wanted) -> Products:
        """direction . gradient, and those of its derivatives that are asked for."""
        return self._products(theta, images, self._probabilities(labels), direction, wanted, None)

    def kept(self, theta: Tensor, images: Tensor, labels: Tensor, wanted: Wanted) -> tuple[Tensor, Later]:
        """The gradient (P,), and its products later without another pass, which is held until then."""
        probabilities, parts = self._probabilities(labels), self._parts(len(images))
        sizes, size = self._sizes(images), torch.zeros((), dtype=torch.long)
        self.kernels.run("tape_size", self.dtype, len(self.blocks), sizes, -(-len(images) // parts), size)
        asked = Asked(torch.empty(parts, int(size), dtype=self.dtype), gradient=torch.empty_like(theta))
        self._answer(theta, images, probabilities, None, asked)
        assert asked.gradient is not None
        return asked.gradient, lambda direction: self._products(
            theta, images, probabilities, direction, wanted, asked.tapes
        )

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the network says (n, classes), of no image too; nothing here can be differentiated."""
        asked = Asked(logits=theta.new_empty(len(images), self.classes, dtype=self.dtype))
        if len(images):
            self._answer(theta.detach(), images, None, None, asked)
        assert asked.logits is not None
        return asked.logits

    def _products(
        self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, wanted: Wanted, tapes: Tensor | None
    ) -> Products:
        asked = Asked(
            tapes,
            dtheta=torch.empty_like(theta) if wanted.theta else None,
            dimages=torch.empty(images.shape, dtype=self.dtype) if wanted.images else None,
            dlabels=torch.empty_like(labels),
            along=torch.zeros((), dtype=torch.float64),
        )
        self._answer(theta, images, labels, direction, asked)
        assert asked.along is not None
        along = asked.along.to(self.dtype)
        return Products(along, asked.dtheta, asked.dimages, asked.dlabels if wanted.labels else None)

    def _answer(
        self, theta: Tensor, images: Tensor, labels: Tensor | None, direction: Tensor | None, asked: Asked
    ) -> None:
        parts = self._parts(len(images)) if asked.tapes is None else len(asked.tapes)
        for vector in (theta, direction):
            if vector is not None and vector.shape != (self.parameters,):
                raise ValueError(f"parameters of shape {tuple(vector.shape)}, not ({self.parameters},)")
        if labels is not None and labels.shape != (len(images), self.classes):
            raise ValueError(f"labels of shape {tuple(labels.shape)} for {len(images)} images, {self.classes} classes")
        given = [None if each is None else each.to(self.dtype) for each in (theta, images, labels, direction)]
        self.kernels.run(
            "answer",
            self.dtype,
            len(self.blocks),
            self._sizes(images),
            self.eps,
            len(images),
            parts,
            *(None if each is None else each.contiguous().view(-1) for each in given),
            *(None if each is None else each.view(-1) for each in asked),
        )

    def _parts(self, count: int) -> int:
        """Parts of a batch, as many for every thread."""
        if count == 0:
            raise ValueError("a batch without any image has no mean loss, and no gradient")
        threads = torch.get_num_threads()
        return min(count, -(-count // (PART * threads)) * threads)

    def _sizes(self, images: Tensor) -> Tensor:
        """The network for images of this size, as network.cpp reads it."""
        sizes, (channels, height, width) = [self.classes], images.shape[1:]
        for block in self.blocks:
            sizes += [block.channels, block.out, height, width, block.padding]
            height, width = ((side + 2 * block.padding - 2) // 2 for side in (height, width))
        if channels != self.blocks[0].channels or self.blocks[-1].out * height * width != self.features:
            raise ValueError(f"images of shape {tuple(images.shape)} are not those the network was built for")
        return torch.tensor(sizes)

    def _probabilities(self, labels: Tensor) -> Tensor:
        whole = labels if labels.dtype.is_floating_point else F.one_hot(labels, self.classes)
        return whole.to(self.dtype)


def fits(blocks: Sequence[Block], dtype: torch.dtype) -> bool:
    """Whether network.cpp has this network: whole panels of channels (matrix.hpp), padding 1 but in the first block."""
    panel = {torch.float32: 32, torch.float64: 16}.get(dtype, 0)
    return panel > 0 and all(
        block.out % panel == 0 and (place == 0 or block.padding == 1) for place, block in enumerate(blocks)
    )
