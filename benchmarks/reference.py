"""The field's algorithms, implemented from the publications and released code: the baseline of the benchmarks.

Eager PyTorch throughout: no compilation, no explicit derivatives, per-sample loading, a synchronisation per batch.
MTT: Cazenavette et al. 2022. TESLA: Cui et al. 2023. MCT: Zhong et al. 2025. DSA: Zhao & Bilen 2021. The costs of
the released code are reproduced on purpose (unused graphs, loops over images). Its randomness is not: every draw
comes from a seed, so that both sides of a comparison use the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import pi
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from limbeck.core.rng import derive_seed, fork_rng, make_generator
from limbeck.networks.flat import FlatModel

Augment = Callable[[Tensor, int], Tensor]
"""(images (n, c, h, w), seed) -> images of the same shape."""

FAMILIES = "color_crop_cutout_flip_scale_rotate"
TEST_BATCH = 128


# --- augmentation


def reference_dsa(images: Tensor, seed: int, strategy: str = FAMILIES) -> Tensor:
    """DSA as the field computes it: one family per batch, parameters per image, (n, c, h, w) -> (n, c, h, w).

    The family and the uniform numbers (n, 3) equal those that limbeck draws from the same seed, so that both sides
    compute the same images and draw the costly families equally often.
    """
    families, generator = strategy.split("_"), make_generator(seed, "augment")
    family = families[int(torch.randint(len(families), (), generator=generator))]
    uniform = torch.rand(len(images), 3, generator=generator).to(images)
    return OPERATIONS[family](images, uniform)


def _color(x: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = (u[:, i].view(-1, 1, 1, 1) for i in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * (saturation * 2) + grey
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _integers(u: Tensor, count: int) -> Tensor:
    return (u * count).long().clamp(max=count - 1)


def _crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side: pad with zeros, then index by a grid per image."""
    n, _, h, w = x.shape
    reach_y, reach_x = int(h * 0.125 + 0.5), int(w * 0.125 + 0.5)
    image, row, column = torch.meshgrid(torch.arange(n), torch.arange(h), torch.arange(w), indexing="ij")
    row = row + _integers(u[:, 0], 2 * reach_y + 1).view(-1, 1, 1)
    column = column + _integers(u[:, 1], 2 * reach_x + 1).view(-1, 1, 1)
    padded = F.pad(x, [reach_x, reach_x, reach_y, reach_y])
    return padded.permute(0, 2, 3, 1).contiguous()[image, row, column].permute(0, 3, 1, 2).contiguous()


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a square of half the side to zero, by a mask that is written by index."""
    n, _, h, w = x.shape
    hole_y, hole_x = int(h * 0.5 + 0.5), int(w * 0.5 + 0.5)
    image, row, column = torch.meshgrid(torch.arange(n), torch.arange(hole_y), torch.arange(hole_x), indexing="ij")
    centre_y = _integers(u[:, 0], h + 1 - hole_y % 2).view(-1, 1, 1)
    centre_x = _integers(u[:, 1], w + 1 - hole_x % 2).view(-1, 1, 1)
    row = (row + centre_y - hole_y // 2).clamp(0, h - 1)
    column = (column + centre_x - hole_x // 2).clamp(0, w - 1)
    mask = torch.ones(n, h, w, dtype=x.dtype)
    mask[image, row, column] = 0
    return x * mask.unsqueeze(1)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(u[:, 0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def _sample(x: Tensor, matrices: list[list[list[Tensor | float]]]) -> Tensor:
    """Bilinear sampling on affine grids, zeros outside; the matrices are nested lists of 0-d tensors."""
    grid = F.affine_grid(torch.tensor(matrices, dtype=x.dtype), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    low = 1 / 1.2
    sx, sy = (u[:, i] * (1.2 - low) + low for i in range(2))
    return _sample(
        x, [[[sx[i], 0.0, 0.0], [0.0, sy[i], 0.0]] for i in range(len(x))]
    )  # a loop over images, as in the released code


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (u[:, 0] - 0.5) * 2 * 15.0 * pi / 180
    matrices: list[list[list[Tensor | float]]] = [
        [
            [torch.cos(angle[i]), torch.sin(-angle[i]), 0.0],
            [torch.sin(angle[i]), torch.cos(angle[i]), 0.0],
        ]
        for i in range(len(x))
    ]
    return _sample(x, matrices)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}


# --- one distillation step


class Step(NamedTuple):
    """Result of one outer step: the loss, and its gradients in the images (n, c, h, w) and in the step size."""

    loss: float
    images: Tensor
    lr: float


def mtt_step(
    model: FlatModel,
    images: Tensor,
    labels: Tensor,
    lr: float,
    segment: tuple[Tensor, Tensor],
    rows: Sequence[Tensor],
    seeds: Sequence[int],
    augment: Augment,
) -> Step:
    """MTT's outer step: one backward pass through the graph of all N student steps.

    images (n, c, h, w), labels int64 (n,); segment: start and target, each (P,); rows and seeds hold one
    element per student step.
    """
    start, target = segment
    pixels = images.detach().clone().requires_grad_()
    beta = torch.tensor(lr, dtype=images.dtype, requires_grad=True)
    thetas = [start.detach().clone().requires_grad_()]
    for part, seed in zip(rows, seeds):
        x = augment(pixels[part], seed)
        loss = F.cross_entropy(model(thetas[-1], x), labels[part])
        (gradient,) = torch.autograd.grad(loss, thetas[-1], create_graph=True)
        thetas.append(thetas[-1] - beta * gradient)
    count = start.numel()
    distance = F.mse_loss(thetas[-1], target, reduction="sum") / count
    scale = F.mse_loss(start, target, reduction="sum") / count
    total = distance / scale
    total.backward()
    assert pixels.grad is not None
    assert beta.grad is not None
    return Step(total.item(), pixels.grad, beta.grad.item())


def released_step(
    model: FlatModel,
    images: Tensor,
    labels: Tensor,
    lr: float,
    segment: tuple[Tensor, Tensor],
    rows: Sequence[Tensor],
    seeds: Sequence[int],
    augment: Augment,
) -> Step:
    """The outer step of the code released with TESLA and MCT, in two sweeps; arguments as in `mtt_step`.

    The image gradient omits the curvature of later steps and is half of the one that the paper derives; the gradient
    in the step size is not halved. The first sweep builds second-order graphs that are never used, and stores every
    augmented batch with its graph.
    """
    start, target = segment
    pixels = images.detach().clone().requires_grad_()
    beta = torch.tensor(lr, dtype=images.dtype, requires_grad=True)
    scale = F.mse_loss(start, target, reduction="sum")
    thetas = [start.detach().clone().requires_grad_()]
    total = torch.zeros_like(start)
    samples: list[Tensor] = []
    augmented: list[Tensor] = []
    for part, seed in zip(rows, seeds):
        samples.append(pixels[part])
        augmented.append(augment(samples[-1], seed).clone())
        loss = F.cross_entropy(model(thetas[-1], augmented[-1]), labels[part])
        (gradient,) = torch.autograd.grad(loss, thetas[-1], create_graph=True, retain_graph=True)
        thetas.append((thetas[-1] - beta.item() * gradient.detach()).detach().requires_grad_())
        total = total + gradient.detach()

    image_gradient = torch.zeros_like(images)
    for i, part in enumerate(rows):
        loss = F.cross_entropy(model(thetas[i], augmented[i]), labels[part])
        (gradient,) = torch.autograd.grad(loss, thetas[i], create_graph=True, retain_graph=True)
        # the same vector in every step, computed in every step as in the released code
        direction = beta.item() * (target - start) + beta.item() ** 2 * total
        (derivative,) = torch.autograd.grad(torch.dot(direction, gradient) / scale, samples[i])
        image_gradient[part] += derivative

    distance = (start - beta * total - target).square().sum() / scale
    (lr_gradient,) = torch.autograd.grad(distance, beta)
    return Step(distance.item(), image_gradient, lr_gradient.item())


# --- training loops


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A map-style data set of tensors, which returns one image and its label per `__getitem__`."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images.detach(), labels.detach()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


class EpochStats(NamedTuple):
    """Accuracy, mean loss and number of batches of one pass over the data."""

    accuracy: float
    loss: float
    batches: int


def epoch_pass(
    net: nn.Module,
    loader: DataLoader[tuple[Tensor, Tensor]],
    optimiser: torch.optim.Optimizer | None,
    augment: Augment | None,
    seed: int,
) -> EpochStats:
    """One pass of the field's loop over the data, which trains if there is an optimiser and tests otherwise.

    Accuracy is counted in numpy and the loss is read back for every batch. A test pass builds the graphs of a
    training pass, as in the released code.
    """
    correct, loss_sum, count, batches = 0, 0.0, 0, 0
    for images, labels in loader:
        images = images.float()
        if augment is not None:
            images = augment(images, derive_seed(seed, "batch", batches))
        labels = labels.long()
        output = net(images)
        loss = F.cross_entropy(output, labels)
        predictions = np.argmax(output.detach().cpu().numpy(), axis=-1)
        correct += int(np.sum(np.equal(predictions, labels.cpu().numpy())))
        loss_sum += loss.item() * len(labels)
        count += len(labels)
        if optimiser is not None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        batches += 1
    return EpochStats(correct / count, loss_sum / count, batches)


class Epoch(NamedTuple):
    """An expert after an epoch: a copy of its parameters, and the statistics of the epoch and of the test pass."""

    snapshot: list[Tensor]
    train: EpochStats
    test: EpochStats


def expert_epochs(
    build: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    test: tuple[Tensor, Tensor],
    augment: Augment | None,
    seed: int,
    epochs: int,
    lr: float = 0.01,
    batch_size: int = 256,
) -> Iterator[Epoch]:
    """Train an expert as the field does, by SGD, with a snapshot of all parameters and a test pass after every epoch.

    images (n, c, h, w) in network input space. Yields after every epoch.
    """
    with fork_rng(seed, "net"):
        net = build()
    loader = DataLoader(
        Pairs(images, labels), batch_size, shuffle=True, num_workers=0, generator=make_generator(seed, "order")
    )
    test_loader = DataLoader(
        Pairs(*test), TEST_BATCH, shuffle=False, num_workers=0, generator=make_generator(seed, "test")
    )
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.0, weight_decay=0.0)
    for epoch in range(epochs):
        train_stats = epoch_pass(net, loader, optimiser, augment, derive_seed(seed, "epoch", epoch))
        test_stats = epoch_pass(net, test_loader, None, None, seed)
        # clone: on a CPU the released code's `.detach().cpu()` would share memory with the network in training
        yield Epoch([parameter.detach().cpu().clone() for parameter in net.parameters()], train_stats, test_stats)


def evaluate_synset(
    build: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    lr: float,
    test: tuple[Tensor, Tensor],
    augment: Augment | None,
    seed: int,
    epochs: int,
    batch_size: int = 256,
) -> float:
    """Test accuracy of a random network after `epochs` passes over a synthetic set, evaluated as the field does.

    SGD with momentum 0.9 and weight decay 5e-4; from epoch `epochs // 2 + 1` on with lr x 0.1 and a new optimiser.
    """
    with fork_rng(seed, "net"):
        net = build()
    loader = DataLoader(
        Pairs(images, labels), batch_size, shuffle=True, num_workers=0, generator=make_generator(seed, "order")
    )
    test_loader = DataLoader(
        Pairs(*test), TEST_BATCH, shuffle=False, num_workers=0, generator=make_generator(seed, "test")
    )
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        epoch_pass(net, loader, optimiser, augment, derive_seed(seed, "epoch", epoch))
    return epoch_pass(net, test_loader, None, None, seed).accuracy
