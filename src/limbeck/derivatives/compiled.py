"""First and second derivatives of the field's ConvNet in one call of kernels/network.cpp.

Python's lock is released during the call, so that networks that are trained in parallel do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.derivatives.autograd import Hvp, NeedsGrad
from limbeck.derivatives.kernels.library import NAMES, Library

MAX_BLOCKS = 8  # of network.hpp


class Block(NamedTuple):
    """A convolution with padding, from `channels` to `out`; then instance norm, ReLU and pooling."""

    channels: int
    out: int
    padding: int


@dataclass(frozen=True, eq=False)
class CompiledDerivatives:
    """Explicit derivatives of a ConvNet's cross-entropy by a compiled library: see `ExplicitDerivatives`.

    library:    The compiled network.
    blocks:     The network's blocks; classes and width are the numbers of outputs and inputs of its last layer.
    parameters: P, the length of theta.
    eps:        Of instance norm.
    dtype:      The type of all tensors, float32 or float64; tensors of another type are converted.

    Every method gives the same bits by any number of threads, and raises ValueError for tensors of a wrong shape and
    MemoryError where memory is short.
    """

    library: Library
    blocks: tuple[Block, ...]
    classes: int
    width: int
    parameters: int
    eps: float
    dtype: torch.dtype

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,) of the mean over n images (n, c, h, w); labels are classes (n,) or probabilities."""
        gradient = self._empty_vector()
        self.library.compute(*self._arguments(theta, images, self._probabilities(labels), gradient=gradient))
        return self._unpad(gradient)

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient."""
        probabilities = self._probabilities(labels)
        dtheta = self._empty_vector() if needs.theta else None
        dimages = torch.empty(images.shape, dtype=self.dtype) if needs.images else None
        dlabels, directional = torch.empty_like(probabilities), torch.zeros((), dtype=torch.float64)
        outputs = {"dtheta": dtheta, "dimages": dimages, "dlabels": dlabels, "directional": directional}
        self.library.compute(*self._arguments(theta, images, probabilities, direction, **outputs))
        return Hvp(
            directional.to(self.dtype),
            None if dtheta is None else self._unpad(dtheta),
            dimages,
            dlabels if needs.labels else None,
        )

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The network's outputs (n, classes) without a graph; n may be 0."""
        logits = torch.empty(len(images), self.classes, dtype=self.dtype)
        if len(images):
            self.library.compute(*self._arguments(theta, images, None, logits=logits))
        return logits

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """The inputs of the last layer (n, d) without a graph; n may be 0."""
        wide = torch.empty(len(images), self._padded_features, dtype=self.dtype)
        if len(images):
            self.library.compute(*self._arguments(theta, images, None, features=wide))
        return wide[:, : self.width].contiguous()

    def features_adjoint(self, theta: Tensor, images: Tensor, direction: Tensor) -> Tensor:
        """The derivative in the images (n, c, h, w) of the sum of direction * features, both (n, d)."""
        dimages = torch.empty(images.shape, dtype=self.dtype)
        if len(images):
            wide = self._pad_features(direction)
            self.library.compute(*self._arguments(theta, images, None, dfeatures=wide, dimages=dimages))
        return dimages

    def supports(self, theta: Tensor, images: Tensor) -> bool:
        """Whether these tensors are of the network's type and on the processor."""
        return all(tensor.dtype is self.dtype and tensor.device.type == "cpu" for tensor in (theta, images))

    def _arguments(
        self,
        theta: Tensor,
        images: Tensor,
        labels: Tensor | None,
        direction: Tensor | None = None,
        **outputs: Tensor | None,
    ) -> tuple[torch.dtype, Tensor, float, int, dict[str, Tensor | None]]:
        """The arguments of `Library.compute`, after a check of their shapes."""
        if not len(images):
            raise ValueError("a batch without images has no mean loss and no gradient")
        for vector in (theta, direction):
            if vector is not None and vector.shape != (self.parameters,):
                raise ValueError(f"parameters of shape {tuple(vector.shape)}, not ({self.parameters},)")
        if labels is not None and labels.shape != (len(images), self.classes):
            raise ValueError(f"labels of shape {tuple(labels.shape)} for {len(images)} images, {self.classes} classes")
        buffers = {
            "theta": self._pad(theta),
            "images": images.detach().to(self.dtype).contiguous(),
            "labels": None if labels is None else labels.detach().contiguous(),
            "direction": None if direction is None else self._pad(direction),
            **outputs,
        }
        return self.dtype, self._sizes(images), self.eps, len(images), buffers

    def _sizes(self, images: Tensor) -> Tensor:
        """The network for images of this size, in the format of `Net` in network.hpp."""
        sizes, (channels, height, width) = [self.classes], images.shape[1:]
        for block in self._padded_blocks:
            sizes += [block.channels, block.out, height, width, block.padding]
            height, width = ((side + 2 * block.padding - 2) // 2 for side in (height, width))
        if channels != self.blocks[0].channels or self.blocks[-1].out * height * width != self.width:
            raise ValueError(f"images of shape {tuple(images.shape)} do not fit the network")
        return torch.tensor(sizes)

    def _probabilities(self, labels: Tensor) -> Tensor:
        """Classes (n,) or probabilities (n, classes) -> (n, classes)."""
        probabilities = labels if labels.dtype.is_floating_point else F.one_hot(labels, self.classes)
        return probabilities.to(self.dtype)

    @cached_property
    def _padded_blocks(self) -> tuple[Block, ...]:
        """The blocks padded to whole panels of channels. Padding has zero weights, and its activations stay zero."""
        panel = self.library.panel(self.dtype)
        outs = [-(-block.out // panel) * panel for block in self.blocks]
        inputs = [self.blocks[0].channels, *outs]
        return tuple(Block(inputs[i], outs[i], block.padding) for i, block in enumerate(self.blocks))

    def _pad_features(self, direction: Tensor) -> Tensor:
        """(n, d) -> the same for the padded network."""
        wide = torch.zeros(len(direction), self._padded_features, dtype=self.dtype)
        wide[:, : self.width] = direction.detach()
        return wide

    @property
    def _padded_features(self) -> int:
        """The features of the padded network, channels first, so that those of the padding are the last."""
        return self.width // self.blocks[-1].out * self._padded_blocks[-1].out

    @cached_property
    def _padded_places(self) -> tuple[Tensor | None, int]:
        """The indices of the parameters in the padded vector (None where nothing is padded), and its length."""
        places, count = list[Tensor](), 0

        def add(shape: tuple[int, ...], used: tuple[slice, ...]) -> None:
            nonlocal count
            size = torch.Size(shape).numel()
            places.append(torch.arange(count, count + size).view(shape)[used].flatten())
            count += size

        for block, padded in zip(self.blocks, self._padded_blocks):
            add((padded.out, padded.channels, 9), (slice(block.out), slice(block.channels)))
            for _ in ("bias", "gamma", "beta"):
                add((padded.out,), (slice(block.out),))
        out, padded_out = self.blocks[-1].out, self._padded_blocks[-1].out
        add((self.classes, padded_out, self.width // out), (slice(None), slice(out)))
        add((self.classes,), (slice(None),))
        return (None if count == self.parameters else torch.cat(places)), count

    def _empty_vector(self) -> Tensor:
        return torch.empty(self._padded_places[1], dtype=self.dtype)

    def _pad(self, vector: Tensor) -> Tensor:
        """(P,) -> the padded vector."""
        places, count = self._padded_places
        vector = vector.detach().to(self.dtype)
        if places is None:
            return vector.contiguous()
        return torch.zeros(count, dtype=self.dtype).index_copy_(0, places, vector)

    def _unpad(self, vector: Tensor) -> Tensor:
        """The padded vector -> (P,)."""
        places, _ = self._padded_places
        return vector if places is None else vector[places]


def supports(blocks: Sequence[Block], dtype: torch.dtype) -> bool:
    """Whether network.cpp can compute this network: padding 1 after the first block, and not too many blocks."""
    return dtype in NAMES and len(blocks) <= MAX_BLOCKS and all(block.padding == 1 for block in blocks[1:])
