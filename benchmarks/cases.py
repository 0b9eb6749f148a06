"""What benchmarks run on: random images of the field's shapes, the network for them, and its floating-point work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.core.rng import fork_rng, make_generator
from limbeck.data import ImageData, Split
from limbeck.data.images import compute_fingerprint
from limbeck.networks.registry import ModelConfig
from limbeck.task import Task, make_task

CLASSES = 10
EVERYWHERE = "color_crop_cutout_flip_scale_rotate"


def random_data(channels: int, side: int, train: int, test: int) -> ImageData:
    """Uniform random pixels in ten classes: `train` training images, `test` in each of validation and test.

    What is timed does not depend on what the images show.
    """
    generator = make_generator(0, "benchmark", channels, side)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(count) % CLASSES)

    parts = split(train), split(test), split(test)
    classes = tuple(str(label) for label in range(CLASSES))
    return ImageData("random", *parts, classes, (), compute_fingerprint(parts, classes))


def make(data: ImageData, width: int, precision: str = "float32", device: str = "cpu", norm: str | None = None) -> Task:
    """A ConvNet of this width, with all six augmentations; the precision is named only where it is not float32."""
    more = {} if precision == "float32" else {"precision": precision}
    return make_task(data, ModelConfig(width=width, norm=norm), augment=EVERYWHERE, device=device, **more)  # type: ignore[arg-type]


def synthetic(task: Task, ipc: int) -> tuple[Tensor, Tensor]:
    """Images (10 ipc, c, h, w) and their labels (10 ipc,), the first of the training part, class by class."""
    images, labels = task.train
    order = labels[: CLASSES * ipc].argsort(stable=True)
    return images[order], labels[order]


def segment(task: Task) -> tuple[Tensor, Tensor]:
    """Start and target (P,) of a stretch: a fresh network, and the same with noise of a hundredth."""
    start = task.model.init(0)
    target = start + 0.01 * torch.randn(len(start), generator=make_generator(0, "benchmark", "target"))
    return start.to(task.device), target.to(task.device)


def convolution_flops(task: Task) -> tuple[float, float]:
    """Floating-point operations of the convolutions for one image, forwards: the first layer's, and all others'."""
    found: list[float] = []

    def count(layer: nn.Conv2d) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.append(2.0 * layer.weight.numel() * output[0, 0].numel())

        return hook

    with fork_rng(0, "benchmark"):
        module = task.model.build()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count(layer))
    with torch.no_grad():
        module(torch.zeros(1, *task.data.shape))
    return found[0], sum(found[1:])
