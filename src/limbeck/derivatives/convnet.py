"""First and second derivatives of the field's ConvNet by explicit formulas, without a graph of autograd.

For a direction v in parameter space the student's adjoint needs the derivatives of v . grad loss in parameters, images
and labels. They are the tangent of a forward and backward pass: Pearlmutter's R-operator (Pearlmutter, "Fast Exact
Multiplication by the Hessian", Neural Computation 1994). For blocks of convolution, instance norm, ReLU and average
pooling the explicit formulas need no more convolutions than the tangent has.

`TorchDerivatives` computes them in torch's operations, on any device. `CompiledDerivatives` (compiled.py) computes the
same in one call of C++ on a processor; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.derivatives import torch_block
from limbeck.derivatives.autograd import Hvp, NeedsGrad
from limbeck.derivatives.compiled import Block, CompiledDerivatives, supports
from limbeck.derivatives.cuda_graph import CapturedDerivatives
from limbeck.derivatives.explicit import ExplicitDerivatives
from limbeck.derivatives.kernels.library import load
from limbeck.derivatives.torch_block import Convolution, parameter_dtype
from limbeck.networks.flat import FlatModel, Layout
from limbeck.networks.registry import ConvNet

MAX_ACTIVATION_BYTES = 1 << 30
MIN_PART = 8  # images: fewer do not keep two threads busy


class BlockParameters(NamedTuple):
    """Parameters of one block: the convolution's weight in the activations' type; gamma and beta of the norm (out,)."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor


class Parameters(NamedTuple):
    """A vector (P,) as blocks and the last layer: weight (classes, features), bias (classes,)."""

    blocks: list[BlockParameters]
    weight: Tensor
    bias: Tensor


class BlockTape(NamedTuple):
    """Tensors of a forward and backward pass through one block, for the tangent; named as in block.hpp."""

    x: Tensor
    z: Tensor
    stats: Tensor
    dy: Tensor
    dz: Tensor
    sums: Tensor


class Tape(NamedTuple):
    """Tensors of a forward and backward pass of n images, for the tangent.

    features (n, d), probabilities (n, classes), label_sums (n, 1) and dlogits (n, classes) are of the last layer.
    """

    parameters: Parameters
    blocks: list[BlockTape]
    features: Tensor
    probabilities: Tensor
    label_sums: Tensor
    dlogits: Tensor


@dataclass(frozen=True, eq=False)
class TorchDerivatives:
    """Explicit derivatives of a ConvNet's cross-entropy in torch's operations: see `ExplicitDerivatives`.

    layout:       The network's parameters.
    convolutions: One per block.
    eps:          Of instance norm.
    dtype:        The type in which activations are stored.
    max_bytes:    A batch is processed in parts whose largest activation takes this many bytes (of MIN_PART images at
                  least), so that memory does not grow with the batch; a step holds about six tensors of that size.
    """

    layout: Layout
    convolutions: tuple[Convolution, ...]
    eps: float
    dtype: torch.dtype = torch.float32
    max_bytes: int = MAX_ACTIVATION_BYTES

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,) of the mean over n images (n, c, h, w); labels are classes (n,) or probabilities."""
        parameters = self._parameters(theta)
        gradients = (
            self._pass(parameters, part, target, len(images), with_gradient=True)[1]
            for part, target in self._parts(images, labels)
        )
        return self._join(reduce(_add, gradients))

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The derivatives of direction . gradient."""
        parameters, tangent = self._parameters(theta), self._parameters(direction)
        gradient1: list[Tensor] | None = None
        dimages, dlabels = [], []
        directional = torch.zeros((), dtype=parameter_dtype(self.dtype), device=direction.device)
        for part, target in self._parts(images, labels):
            tape, _ = self._pass(parameters, part, target, len(images), with_gradient=False)
            terms, dimage, dlabel, slope = self._tangent_pass(tape, tangent, len(images), needs)
            gradient1 = terms if gradient1 is None else _add(gradient1, terms)
            dimages += [] if dimage is None else [dimage]
            dlabels.append(dlabel)
            directional = directional + slope
        assert gradient1 is not None
        return Hvp(
            directional,
            self._join(gradient1) if needs.theta else None,
            torch.cat(dimages) if needs.images else None,
            torch.cat(dlabels) if needs.labels else None,
        )

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The network's outputs (n, classes), without a graph."""
        blocks, weight, bias = self._parameters(theta)
        logits = []
        for part in images.split(self._part_size(images)):
            x = part.to(self.dtype)
            for block, conv in zip(blocks, self.convolutions):
                z = conv.forward([(x, block.weight)])
                x, _ = torch_block.forward(z, block.gamma, block.beta, self.eps)
            logits.append(torch.addmm(bias, x.flatten(1).to(weight), weight.T))
        return torch.cat(logits)

    def _parts(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and probabilities part by part."""
        probabilities = labels if labels.dtype.is_floating_point else F.one_hot(labels, self.layout.shapes[-1][0])
        probabilities, size = probabilities.to(parameter_dtype(self.dtype)), self._part_size(images)
        for part, target in zip(images.split(size), probabilities.split(size)):
            yield part.to(self.dtype), target

    def _part_size(self, images: Tensor) -> int:
        """The number of images in a part."""
        bytes_per_image = self.layout.shapes[0][0] * images.shape[2] * images.shape[3] * self.dtype.itemsize
        return max(MIN_PART, self.max_bytes // bytes_per_image)

    def _parameters(self, theta: Tensor) -> Parameters:
        tensors = self.layout.split(theta.detach().to(parameter_dtype(self.dtype)))
        blocks = [
            BlockParameters(weight.to(self.dtype), gamma, beta)
            for weight, _, gamma, beta in zip(*[iter(tensors[:-2])] * 4)
        ]
        return Parameters(blocks, *tensors[-2:])

    def _join(self, tensors: list[Tensor]) -> Tensor:
        """One vector (P,) from dweight, dgamma, dbeta of each block and the last layer's dweight and dbias.

        Instance norm subtracts a convolution's bias again with the mean: its derivatives are exactly 0.
        """
        parts: list[Tensor] = []
        for dweight, dgamma, dbeta in zip(*[iter(tensors[:-2])] * 3):
            parts += [dweight.to(dgamma), torch.zeros_like(dbeta), dgamma, dbeta]
        return self.layout.join([*parts, *tensors[-2:]])

    def _pass(
        self, parameters: Parameters, images: Tensor, labels: Tensor, count: int, with_gradient: bool
    ) -> tuple[Tape, list[Tensor]]:
        """A forward and backward pass of a part of a batch of `count` images -> its tape and terms of the gradient."""
        blocks, weight, bias = parameters
        x, states = images, []
        for block, conv in zip(blocks, self.convolutions):
            z = conv.forward([(x, block.weight)])
            y, stats = torch_block.forward(z, block.gamma, block.beta, self.eps)
            states.append((x, z, stats))
            x = y
        features = x.flatten(1).to(weight)
        probabilities = torch.addmm(bias, features, weight.T).softmax(1)
        label_sums = labels.sum(1, keepdim=True)
        dlogits = (probabilities * label_sums - labels) / count
        gradient = [dlogits.T @ features, dlogits.sum(0)] if with_gradient else []
        dy = (dlogits @ weight).to(x.dtype).view_as(x)
        tapes: list[BlockTape] = []
        for index in reversed(range(len(blocks))):
            block, conv, (x, z, stats) = blocks[index], self.convolutions[index], states[index]
            dz, sums = torch_block.backward(z, block.gamma, block.beta, stats, dy)
            tapes.insert(0, BlockTape(x, z, stats, dy, dz, sums))
            if with_gradient:
                dbeta, dgamma = sums.sum(0)
                gradient = [conv.weight_gradient([(x, dz)]), dgamma, dbeta, *gradient]
            if index:
                dy = conv.backward([(dz, block.weight)], x.shape)
        return Tape(parameters, tapes, features, probabilities, label_sums, dlogits), gradient

    def _tangent_pass(
        self, tape: Tape, tangent: Parameters, count: int, needs: NeedsGrad
    ) -> tuple[list[Tensor], Tensor | None, Tensor, Tensor]:
        """The tangent of `_pass` where the parameters move in the direction `tangent`.

        Returns the terms of the gradient's tangent, the derivatives in the images and in the labels, and the slope of
        the loss. A name with a 1 behind it is the tangent of the one without.
        """
        (blocks, weight, _), (blocks1, weight1, bias1) = tape.parameters, tangent
        x1: Tensor | None = None
        states: list[tuple[Tensor | None, Tensor, Tensor]] = []
        for block, block1, saved, conv in zip(blocks, blocks1, tape.blocks, self.convolutions):
            z1 = conv.forward([(saved.x, block1.weight), *([] if x1 is None else [(x1, block.weight)])])
            y1, stats1 = torch_block.forward_tangent(
                saved.z, block.gamma, block.beta, saved.stats, z1, block1.gamma, block1.beta
            )
            states.append((x1, z1, stats1))
            x1 = y1
        assert x1 is not None
        features, p, dlogits = tape.features, tape.probabilities, tape.dlogits
        features1 = x1.flatten(1).to(weight)
        logits1 = features1 @ weight.T + torch.addmm(bias1, features, weight1.T)
        centred = logits1 - (p * logits1).sum(1, keepdim=True)
        dlogits1 = p * centred * tape.label_sums / count
        slope, dlabels = (dlogits * logits1).sum(), -centred / count
        gradient1 = [dlogits1.T @ features + dlogits.T @ features1, dlogits1.sum(0)]
        dy1 = (dlogits1 @ weight + dlogits @ weight1).to(x1.dtype).view_as(x1)
        for index in reversed(range(len(blocks))):
            block, block1, saved = blocks[index], blocks1[index], tape.blocks[index]
            conv, (x1, z1, stats1) = self.convolutions[index], states[index]
            dz1, sums1 = torch_block.backward_tangent(
                saved.z, block.gamma, block.beta, saved.stats, saved.dy, saved.sums, z1, block1.gamma, stats1, dy1
            )
            if needs.theta:
                dbeta1, dgamma1 = sums1.sum(0)
                dweight1 = conv.weight_gradient([(saved.x, dz1), *([] if x1 is None else [(x1, saved.dz)])])
                gradient1 = [dweight1, dgamma1, dbeta1, *gradient1]
            if index or needs.images:
                dy1 = conv.backward([(dz1, block.weight), (saved.dz, block1.weight)], saved.x.shape)
        return gradient1, dy1 if needs.images else None, dlabels, slope


def _add(total: list[Tensor], terms: list[Tensor]) -> list[Tensor]:
    return [first + second for first, second in zip(total, terms)]


def convnet_derivatives(model: FlatModel, dtype: torch.dtype, device: str) -> ExplicitDerivatives | None:
    """The explicit derivatives of this network on this type of device; None for any but the field's ConvNet.

    On a processor they are those of the compiled network, and None where it cannot be built. On other devices they are
    in torch's operations; on a GPU these are captured as CUDA graphs.
    """
    if device != "cpu":
        derivatives = torch_derivatives(model, dtype)
        return CapturedDerivatives(derivatives) if derivatives is not None and device == "cuda" else derivatives
    network = _blocks(model)
    if network is None:
        return None
    blocks, eps = network
    library = load() if supports(blocks, dtype) else None
    if library is None:
        return None
    classes, features = model.layout.shapes[-2]
    return CompiledDerivatives(library, blocks, classes, features, model.layout.count, eps, dtype)


def torch_derivatives(model: FlatModel, dtype: torch.dtype) -> TorchDerivatives | None:
    """The explicit derivatives of this network in torch's operations; None for any but the field's ConvNet."""
    network = _blocks(model)
    if network is None:
        return None
    blocks, eps = network
    return TorchDerivatives(model.layout, tuple(Convolution(block.padding) for block in blocks), eps, dtype)


def _blocks(model: FlatModel) -> tuple[tuple[Block, ...], float] | None:
    """The blocks and eps of a ConvNet of convolution, instance norm, ReLU and average pooling; None of any other."""
    module = model.module
    if type(module) is not ConvNet:
        return None
    layers, blocks, eps = list(module.features), list[Block](), 0.0
    for conv, norm, activation, pooling in zip(*[iter(layers)] * 4):
        is_supported = (
            isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.GroupNorm)
            and norm.num_groups == norm.num_channels
            and isinstance(activation, nn.ReLU)
            and isinstance(pooling, nn.AvgPool2d)
        )
        if not is_supported:
            return None
        blocks.append(Block(conv.in_channels, conv.out_channels, int(conv.padding[0])))
        eps = norm.eps
    return None if len(layers) % 4 or not blocks else (tuple(blocks), eps)
