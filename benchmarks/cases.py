"""Inputs of the benchmarks: random images in the field's shapes, networks for them, and the work of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.reference import FAMILIES
from limbeck.core.rng import fork_rng, make_generator
from limbeck.data import ImageData, Split
from limbeck.data.images import compute_fingerprint
from limbeck.networks.registry import ModelConfig
from limbeck.task import Task, make_task

CLASSES = 10


def random_data(channels: int, side: int, train: int, test: int) -> ImageData:
    """Uniform random pixels in ten classes: `train` training images, `test` images each for validation and test.

    Times do not depend on the content of the images.
    """
    generator = make_generator(0, "benchmark", channels, side)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(count) % CLASSES)

    parts = split(train), split(test), split(test)
    classes = tuple(str(label) for label in range(CLASSES))
    return ImageData("random", *parts, classes, (), compute_fingerprint(parts, classes))


def make_convnet_task(data: ImageData, width: int, device: str = "cpu", norm: str | None = None) -> Task:
    """The task of a ConvNet of this width on the data, with all six families of augmentation, in float32."""
    return make_task(data, ModelConfig(width=width, norm=norm), augment=FAMILIES, device=device)


def first_images(task: Task, ipc: int) -> tuple[Tensor, Tensor]:
    """The first `ipc` training images of each class (10 ipc, c, h, w), class by class, and their labels (10 ipc,)."""
    images, labels = task.train
    order = labels[: CLASSES * ipc].argsort(stable=True)
    return images[order], labels[order]


def make_segment(task: Task) -> tuple[Tensor, Tensor]:
    """Start and target (P,) of a segment: a random network, and the same plus normal noise of 0.01."""
    start = task.model.init(0)
    target = start + 0.01 * torch.randn(len(start), generator=make_generator(0, "benchmark", "target"))
    return start.to(task.device), target.to(task.device)


def convolution_flops(task: Task) -> tuple[float, float]:
    """Floating-point operations of the convolutions in a forward pass of one image: first layer, all other layers."""
    flops: list[float] = []

    def count(layer: nn.Conv2d) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            flops.append(2.0 * layer.weight.numel() * output[0, 0].numel())

        return hook

    with fork_rng(0, "benchmark"):
        module = task.model.build()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count(layer))
    with torch.no_grad():
        module(torch.zeros(1, *task.data.shape))
    return flops[0], sum(flops[1:])
