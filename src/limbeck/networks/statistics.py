"""Networks with batch norm in evaluation: running statistics of a training, and statistics of given images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.networks.flat import FlatModel

BATCH, BATCHES = 500, 4  # images of which, and batches over which, `Calibrated` averages


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode inside a `with` block: batch norm then normalises by running statistics."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def cumulative_average(module: nn.Module) -> Iterator[None]:
    """Let the running statistics of batch norm be plain means over calls inside a `with` block (momentum None)."""
    layers = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._NormBase)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = None
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


class RunningStatistics:
    """One network under training, as a function for its evaluation: (theta (P,), images) -> logits (n, classes).

    `record` calls the network in training mode and updates the running statistics in place, as a torch module does. A
    call of the object uses them in evaluation mode and changes nothing. Both take the parameters of the moment.

    >>> from limbeck.networks.registry import ModelConfig, flat_model
    >>> model = flat_model(ModelConfig(width=4, norm="batch"), (1, 8, 8), 2)
    >>> network, theta, images = RunningStatistics(model), model.init(0), torch.ones(2, 1, 8, 8)
    >>> before, _, after = network(theta, images), network.record(theta, images), network(theta, images)
    >>> torch.equal(before, after), torch.equal(after, network(theta, images))
    (False, True)
    """

    def __init__(self, model: FlatModel):
        self.model = model
        self.buffers: dict[str, Tensor] | None = None

    def record(self, theta: Tensor, images: Tensor) -> Tensor:
        """The logits (n, classes) in training mode; the statistics of this batch enter the running ones."""
        return self.model(theta, images, self._buffers_like(theta))

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """The logits (n, classes) by the running statistics: those of an image do not depend on the other images."""
        with evaluation_mode(self.model.module):
            return self.model(theta, images, self._buffers_like(theta))

    def copy(self) -> RunningStatistics:
        """The network with the statistics of the moment, which further training does not change."""
        copy = RunningStatistics(self.model)
        copy.buffers = None if self.buffers is None else {name: tensor.clone() for name, tensor in self.buffers.items()}
        return copy

    def _buffers_like(self, theta: Tensor) -> dict[str, Tensor]:
        if self.buffers is None:
            self.buffers = self.model.copy_buffers(theta)
        return self.buffers


class Calibrated:
    """A network in evaluation mode at parameters that come without running statistics: (theta (P,), images) -> logits.

    The statistics are means over up to 4 batches of 500 of `images`, in training mode at the same theta, as in
    torch.optim.swa_utils.update_bn. They are a function of theta and `images` alone. The points of a convexified
    trajectory and imported experts are evaluated in this way. The statistics of the last theta are kept.

    images: (n, c, h, w), in any order: a batch takes images at equal distances.
    """

    def __init__(self, model: FlatModel, images: Tensor):
        step = -(-len(images) // BATCH)
        starts = [step * i // BATCHES for i in range(BATCHES)] if step > BATCHES else range(step)
        self.model, self.batches = model, [images[start::step] for start in starts]
        self._last: tuple[Tensor, dict[str, Tensor]] | None = None

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """The logits (n, classes)."""
        buffers = self._statistics(theta)
        with evaluation_mode(self.model.module):
            return self.model(theta, images, buffers)

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """The inputs (n, d) of the last layer, as `FlatModel.features`."""
        buffers = self._statistics(theta)
        with evaluation_mode(self.model.module):
            return self.model.features(theta, images, buffers)

    @torch.no_grad()
    def _statistics(self, theta: Tensor) -> dict[str, Tensor]:
        theta = theta.detach()
        if self._last is not None and torch.equal(self._last[0], theta):
            return self._last[1]
        buffers = self.model.copy_buffers(theta)
        with cumulative_average(self.model.module):
            for batch in self.batches:
                self.model(theta, batch, buffers)
        self._last = theta.clone(), buffers
        return buffers


def for_inference(model: FlatModel, images: Tensor) -> FlatModel | Calibrated:
    """The network for inference at any theta: `Calibrated` on `images` where it has running statistics, else itself."""
    return Calibrated(model, images) if model.has_statistics else model
