"""First and second derivatives of the field's ConvNet by explicit formulas, without a graph of autograd.

For a direction v in parameter space the student's adjoint needs the derivatives of v . grad loss in parameters, images
and labels. They are the tangent of a forward and backward pass: Pearlmutter's R-operator (Pearlmutter, "Fast Exact
Multiplication by the Hessian", Neural Computation 1994). For blocks of convolution, instance norm, ReLU and average
pooling the explicit formulas need no more convolutions than the tangent has, and channels-last memory, in which a
processor convolves fastest.

`TorchDerivatives` computes them in torch's operations, on any device. `CompiledDerivatives` (compiled.py) computes the
same in one call of C++ on a processor; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.derivatives.autograd import Hvp, NeedsGrad
from limbeck.derivatives.compiled import Block, CompiledDerivatives, supports
from limbeck.derivatives.cuda_graph import CapturedDerivatives
from limbeck.derivatives.explicit import ExplicitDerivatives
from limbeck.derivatives.kernels.library import load
from limbeck.derivatives.torch_block import Convolution, NormReluPool, channels_last, parameter_dtype
from limbeck.networks.flat import FlatModel, Layout
from limbeck.networks.registry import ConvNet

ROOM = 1 << 30  # bytes of the largest activation of a part
LEAST = 8  # images of a part: fewer do not keep two threads busy
BLOCK = NormReluPool()


class Stage(NamedTuple):
    """One block's parameters: weight as its convolution has it prepared; gamma, beta (out,)."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor


class Passed(NamedTuple):
    """What one block keeps of a forward and backward pass, for its tangent: see kernels/block.hpp."""

    x: Tensor
    z: Tensor
    stats: Tensor
    dy: Tensor
    dz: Tensor
    sums: Tensor


class Head(NamedTuple):
    """What the last layer keeps: features (n, d), probabilities (n, classes), the labels' sums (n, 1), dlogits."""

    features: Tensor
    probabilities: Tensor
    weight: Tensor
    label_sums: Tensor
    dlogits: Tensor


class Tape(NamedTuple):
    """A forward and backward pass of some images."""

    stages: list[Stage]
    passed: list[Passed]
    head: Head


@dataclass(frozen=True, eq=False)
class TorchDerivatives:
    """Derivatives of cross-entropy of a ConvNet on a batch of images that are augmented already.

    layout, convolutions (one a block) and eps are the network's; dtype is how activations are stored. A batch is
    worked on in parts whose largest activation takes `room` bytes (at least LEAST images), so that memory does not grow
    with it; a step holds some six of that size at a time.
    """

    layout: Layout
    convolutions: tuple[Convolution, ...]
    eps: float
    dtype: torch.dtype = torch.float32
    room: int = ROOM

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient (P,) of the mean over n images (n, c, h, w); labels are classes (n,) or probabilities."""
        stages, weight, bias = self._stages(theta)
        parts = (
            self._pass(stages, weight, bias, part, target, len(images), weights=True)[1]
            for part, target in self._chunks(images, labels)
        )
        return self._join(reduce(_add, parts))

    def hvp(self, theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """direction . gradient, and those of its derivatives that are asked for."""
        stages, weight, bias = self._stages(theta)
        passes = (
            self._pass(stages, weight, bias, part, target, len(images), weights=False)[0]
            for part, target in self._chunks(images, labels)
        )
        return self._of_tapes(passes, len(images), direction, needs)

    def _of_tapes(self, tapes: Iterable[Tape], count: int, direction: Tensor, needs: NeedsGrad) -> Hvp:
        """The products from passes of a batch of `count` images, part by part."""
        total: list[Tensor] | None = None
        stages1, weight1, bias1 = self._stages(direction)
        dimages, dlabels, directional = (
            [],
            [],
            torch.zeros((), dtype=parameter_dtype(self.dtype), device=direction.device),
        )
        for tape in tapes:
            made, dimage, dlabel, slope = self._tangent(tape, stages1, weight1, bias1, count, needs)
            total = made if total is None else _add(total, made)
            dimages += [] if dimage is None else [dimage]
            dlabels.append(dlabel)
            directional = directional + slope
        assert total is not None
        return Hvp(
            directional,
            self._join(total) if needs.theta else None,
            torch.cat(dimages) if needs.images else None,
            torch.cat(dlabels) if needs.labels else None,
        )

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the network says (n, classes); nothing here can be differentiated."""
        stages, weight, bias = self._stages(theta)
        said = []
        for part in images.split(self._count(images)):
            x = channels_last(part, self.dtype)
            for stage, conv in zip(stages, self.convolutions):
                z = conv.forward([(x, stage.weight)])
                x, _ = BLOCK.forward(z, stage.gamma, stage.beta, self.eps)
            said.append(torch.addmm(bias, _flatten(x).to(weight), weight.T))
        return torch.cat(said)

    def _chunks(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        probabilities = labels if labels.dtype.is_floating_point else F.one_hot(labels, self.layout.shapes[-1][0])
        probabilities, count = probabilities.to(parameter_dtype(self.dtype)), self._count(images)
        for part, target in zip(images.split(count), probabilities.split(count)):
            yield channels_last(part, self.dtype), target

    def _count(self, images: Tensor) -> int:
        """Images of a part."""
        each = self.layout.shapes[0][0] * images.shape[2] * images.shape[3] * self.dtype.itemsize
        return max(LEAST, self.room // each)

    def _stages(self, theta: Tensor) -> tuple[list[Stage], Tensor, Tensor]:
        """The blocks' parameters; the last layer's weight for features in channels-last order, and its bias."""
        parts = self.layout.split(theta.detach().to(parameter_dtype(self.dtype)))
        stages = [
            Stage(conv.prepare(weight), gamma, beta)
            for conv, weight, _, gamma, beta in zip(self.convolutions, *[iter(parts[:-2])] * 4)
        ]
        return stages, self._reordered(parts[-2]), parts[-1]

    @cached_property
    def _channels(self) -> int:
        return self.layout.shapes[-4][0]

    def _reordered(self, weight: Tensor) -> Tensor:
        """(classes, c h w) -> (classes, h w c)."""
        return weight.view(len(weight), self._channels, -1).transpose(1, 2).reshape(len(weight), -1)

    def _join(self, parts: list[Tensor]) -> Tensor:
        """One vector (P,) from dweight, dgamma, dbeta of each block and the last layer's two.

        A convolution's bias is taken out again by the mean that is subtracted: its derivatives are 0.
        """
        *blocks, weight, bias = parts
        every: list[Tensor] = []
        for dweight, dgamma, dbeta in zip(*[iter(blocks)] * 3):
            every += [dweight.to(dgamma), torch.zeros_like(dbeta), dgamma, dbeta]
        every.append(weight.view(len(weight), -1, self._channels).transpose(1, 2).reshape(len(weight), -1))
        return self.layout.join([*every, bias])

    def _pass(
        self,
        stages: list[Stage],
        weight: Tensor,
        bias: Tensor,
        images: Tensor,
        labels: Tensor,
        count: int,
        weights: bool,
    ) -> tuple[Tape, list[Tensor]]:
        """Forwards and backwards; `weights`: whether the gradient is made as well."""
        x, rising = images, []
        for stage, conv in zip(stages, self.convolutions):
            z = conv.forward([(x, stage.weight)])
            y, stats = BLOCK.forward(z, stage.gamma, stage.beta, self.eps)
            rising.append((x, z, stats))
            x = y
        features = _flatten(x).to(weight)
        probabilities = torch.addmm(bias, features, weight.T).softmax(1)
        label_sums = labels.sum(1, keepdim=True)
        dlogits = (probabilities * label_sums - labels) / count
        made = [dlogits.T @ features, dlogits.sum(0)] if weights else []
        dy = _unflatten(dlogits @ weight, x)
        passed: list[Passed] = []
        for index in reversed(range(len(stages))):
            stage, conv, (x, z, stats) = stages[index], self.convolutions[index], rising[index]
            dz, sums = BLOCK.backward(z, stage.gamma, stage.beta, stats, dy)
            passed.insert(0, Passed(x, z, stats, dy, dz, sums))
            if weights:
                dbeta, dgamma = sums.sum(0)
                made = [conv.weight_gradient([(x, dz)]), dgamma, dbeta, *made]
            if index:
                dy = conv.backward([(dz, stage.weight)], x.shape)
        return Tape(stages, passed, Head(features, probabilities, weight, label_sums, dlogits)), made

    def _tangent(
        self, tape: Tape, stages1: list[Stage], weight1: Tensor, bias1: Tensor, count: int, needs: NeedsGrad
    ) -> tuple[list[Tensor], Tensor | None, Tensor, Tensor]:
        """The tangent of `_pass` where the parameters move: of the gradient, of dimages; dlabels, and the slope."""
        x1: Tensor | None = None
        rising: list[tuple[Tensor | None, Tensor, Tensor]] = []
        for stage, stage1, kept, conv in zip(tape.stages, stages1, tape.passed, self.convolutions):
            z1 = conv.forward([(kept.x, stage1.weight), *([] if x1 is None else [(x1, stage.weight)])])
            y1, stats1 = BLOCK.forward_tangent(
                kept.z, stage.gamma, stage.beta, kept.stats, z1, stage1.gamma, stage1.beta
            )
            rising.append((x1, z1, stats1))
            x1 = y1
        assert x1 is not None
        features, p, weight, label_sums, dlogits = tape.head
        features1 = _flatten(x1).to(weight)
        logits1 = features1 @ weight.T + torch.addmm(bias1, features, weight1.T)
        centred = logits1 - (p * logits1).sum(1, keepdim=True)
        dlogits1 = p * centred * label_sums / count
        slope, dlabels = (dlogits * logits1).sum(), -centred / count
        made = [dlogits1.T @ features + dlogits.T @ features1, dlogits1.sum(0)]
        dy1 = _unflatten(dlogits1 @ weight + dlogits @ weight1, x1)
        for index in reversed(range(len(tape.stages))):
            stage, stage1, kept = tape.stages[index], stages1[index], tape.passed[index]
            conv, (x1, z1, stats1) = self.convolutions[index], rising[index]
            dz1, sums1 = BLOCK.backward_tangent(
                kept.z, stage.gamma, stage.beta, kept.stats, kept.dy, kept.sums, z1, stage1.gamma, stats1, dy1
            )
            if needs.theta:
                dbeta1, dgamma1 = sums1.sum(0)
                dweight1 = conv.weight_gradient([(kept.x, dz1), *([] if x1 is None else [(x1, kept.dz)])])
                made = [dweight1, dgamma1, dbeta1, *made]
            if index or needs.images:
                dy1 = conv.backward([(dz1, stage.weight), (kept.dz, stage1.weight)], kept.x.shape)
        return made, dy1.contiguous() if needs.images else None, dlabels, slope


def _flatten(x: Tensor) -> Tensor:
    """(n, c, h, w) channels last -> (n, h w c), a view."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _unflatten(rows: Tensor, like: Tensor) -> Tensor:
    """(n, h w c) -> (n, c, h, w) channels last."""
    n, c, h, w = like.shape
    return rows.to(like.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


def _add(total: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [first + second for first, second in zip(total, more)]


def convnet_derivatives(model: FlatModel, dtype: torch.dtype, device: str) -> ExplicitDerivatives | None:
    """The explicit derivatives of this network; None for any but the field's ConvNet.

    On a processor those of the compiled network, None without it. On other devices those in torch's operations, without
    a graph of autograd; on a GPU recorded as a graph of its own.
    """
    found = _blocks(model)
    if found is None:
        return None
    blocks, eps = found
    if device == "cpu":
        library = load() if supports(blocks, dtype) else None
        classes, features = model.layout.shapes[-2]
        if library is None:
            return None
        return CompiledDerivatives(library, blocks, classes, features, model.layout.count, eps, dtype)
    written = torch_derivatives(model, dtype)
    return CapturedDerivatives(written) if written is not None and device == "cuda" else written


def torch_derivatives(model: FlatModel, dtype: torch.dtype) -> TorchDerivatives | None:
    """`TorchDerivatives` of this network; None for any but the field's ConvNet."""
    found = _blocks(model)
    if found is None:
        return None
    blocks, eps = found
    return TorchDerivatives(model.layout, tuple(Convolution(block.padding, dtype) for block in blocks), eps, dtype)


def _blocks(model: FlatModel) -> tuple[tuple[Block, ...], float] | None:
    """The blocks and eps of a ConvNet of convolution, instance norm, ReLU and average pooling; None of any other."""
    module = model.module
    if type(module) is not ConvNet:
        return None
    layers, blocks, eps = list(module.features), list[Block](), 0.0
    for conv, norm, activation, pooling in zip(*[iter(layers)] * 4):
        fitting = (
            isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.GroupNorm)
            and norm.num_groups == norm.num_channels
            and isinstance(activation, nn.ReLU)
            and isinstance(pooling, nn.AvgPool2d)
        )
        if not fitting:
            return None
        blocks.append(Block(conv.in_channels, conv.out_channels, int(conv.padding[0])))
        eps = norm.eps
    return None if len(layers) % 4 or not blocks else (tuple(blocks), eps)
