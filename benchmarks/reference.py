"""The field's way, written by us from the published algorithms: what limbeck is compared with.

Eager PyTorch throughout: no compilation, no written-out derivatives, per-sample loading, a synchronisation per batch.
MTT: Cazenavette et al. 2022. TESLA: Cui et al. 2023. MCT: Zhong et al. 2025. DSA: Zhao & Bilen 2021. The costs of
their released code are kept on purpose (graphs that nobody needs, loops over images), its randomness is not: every
draw comes from a seed, so that both sides can be given the same ones.
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
    """DSA as the field computes it: one family per batch, numbers per image (n, c, h, w) -> (n, c, h, w).

    The family and the uniform numbers (n, 3) are those that limbeck draws from the same seed, so that both make the
    same images and meet the costly families equally often.
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


def _whole(u: Tensor, count: int) -> Tensor:
    return (u * count).long().clamp(max=count - 1)


def _crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the side: pad with zeros, then index by a grid per image."""
    n, _, h, w = x.shape
    reach_y, reach_x = int(h * 0.125 + 0.5), int(w * 0.125 + 0.5)
    image, row, column = torch.meshgrid(torch.arange(n), torch.arange(h), torch.arange(w), indexing="ij")
    row = row + _whole(u[:, 0], 2 * reach_y + 1).view(-1, 1, 1)
    column = column + _whole(u[:, 1], 2 * reach_x + 1).view(-1, 1, 1)
    padded = F.pad(x, [reach_x, reach_x, reach_y, reach_y])
    return padded.permute(0, 2, 3, 1).contiguous()[image, row, column].permute(0, 3, 1, 2).contiguous()


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """A square of half the side becomes zero: a mask that is written to by index."""
    n, _, h, w = x.shape
    hole_y, hole_x = int(h * 0.5 + 0.5), int(w * 0.5 + 0.5)
    image, row, column = torch.meshgrid(torch.arange(n), torch.arange(hole_y), torch.arange(hole_x), indexing="ij")
    centre_y = _whole(u[:, 0], h + 1 - hole_y % 2).view(-1, 1, 1)
    centre_x = _whole(u[:, 1], w + 1 - hole_x % 2).view(-1, 1, 1)
    row = (row + centre_y - hole_y // 2).clamp(0, h - 1)
    column = (column + centre_x - hole_x // 2).clamp(0, w - 1)
    mask = torch.ones(n, h, w, dtype=x.dtype)
    mask[image, row, column] = 0
    return x * mask.unsqueeze(1)


def _flip(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(u[:, 0].view(-1, 1, 1, 1) < 0.5, x.flip(3), x)


def _sampled(x: Tensor, matrices: list[list[list[Tensor | float]]]) -> Tensor:
    """Bilinear sampling on affine grids, zeros outside; the matrices arrive as nested lists of 0-d tensors."""
    grid = F.affine_grid(torch.tensor(matrices, dtype=x.dtype), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _scale(x: Tensor, u: Tensor) -> Tensor:
    low = 1 / 1.2
    sx, sy = (u[:, i] * (1.2 - low) + low for i in range(2))
    return _sampled(x, [[[sx[i], 0.0, 0.0], [0.0, sy[i], 0.0]] for i in range(len(x))])  # per image, as the field does


def _rotate(x: Tensor, u: Tensor) -> Tensor:
    angle = (u[:, 0] - 0.5) * 2 * 15.0 * pi / 180
    matrices: list[list[list[Tensor | float]]] = [
        [
            [torch.cos(angle[i]), torch.sin(-angle[i]), 0.0],
            [torch.sin(angle[i]), torch.cos(angle[i]), 0.0],
        ]
        for i in range(len(x))
    ]
    return _sampled(x, matrices)


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
    """What one outer step hands to the optimisers: the loss, its gradient in the images (n, c, h, w), and in lr."""

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
    """MTT's step: the graph of all N student steps is kept, then one backward pass goes through it.

    images (n, c, h, w), labels int64 (n,); segment: start and target, each (P,); rows, seeds: one per student step.
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
    """The two sweeps of the code released with TESLA and MCT, with what they keep; arguments as in `mtt_step`.

    The image gradient leaves out the curvature of later steps and is half of what the paper derives; that in lr is not
    halved. Sweep one builds second-order graphs that nothing uses, and every augmented batch is kept with its graph.
    """
    start, target = segment
    pixels = images.detach().clone().requires_grad_()
    beta = torch.tensor(lr, dtype=images.dtype, requires_grad=True)
    scale = F.mse_loss(start, target, reduction="sum")
    thetas = [start.detach().clone().requires_grad_()]
    total = torch.zeros_like(start)
    chosen: list[Tensor] = []
    augmented: list[Tensor] = []
    for part, seed in zip(rows, seeds):
        chosen.append(pixels[part])
        augmented.append(augment(chosen[-1], seed).clone())
        loss = F.cross_entropy(model(thetas[-1], augmented[-1]), labels[part])
        (gradient,) = torch.autograd.grad(loss, thetas[-1], create_graph=True, retain_graph=True)
        thetas.append((thetas[-1] - beta.item() * gradient.detach()).detach().requires_grad_())
        total = total + gradient.detach()

    image_gradient = torch.zeros_like(images)
    for i, part in enumerate(rows):
        loss = F.cross_entropy(model(thetas[i], augmented[i]), labels[part])
        (gradient,) = torch.autograd.grad(loss, thetas[i], create_graph=True, retain_graph=True)
        # v is the same in every step, and is made anew in every step
        direction = beta.item() * (target - start) + beta.item() ** 2 * total
        (derivative,) = torch.autograd.grad(torch.dot(direction, gradient) / scale, chosen[i])
        image_gradient[part] += derivative

    distance = (start - beta * total - target).square().sum() / scale
    (lr_gradient,) = torch.autograd.grad(distance, beta)
    return Step(distance.item(), image_gradient, lr_gradient.item())


# --- training loops


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A map data set of tensors: one image and its label per `__getitem__`."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images.detach(), labels.detach()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.images)


class Passed(NamedTuple):
    """One pass over the data: accuracy and mean loss of it, and how many batches it had."""

    accuracy: float
    loss: float
    batches: int


def epoch_pass(
    net: nn.Module,
    loader: DataLoader[tuple[Tensor, Tensor]],
    optimiser: torch.optim.Optimizer | None,
    augment: Augment | None,
    seed: int,
) -> Passed:
    """One pass of the field's loop, training where there is an optimiser.

    Every batch is counted in numpy and asks for the loss as a number; testing builds the graphs of a training pass.
    """
    right, loss_sum, seen, batches = 0, 0.0, 0, 0
    for images, labels in loader:
        images = images.float()
        if augment is not None:
            images = augment(images, derive_seed(seed, "batch", batches))
        labels = labels.long()
        output = net(images)
        loss = F.cross_entropy(output, labels)
        guess = np.argmax(output.detach().cpu().numpy(), axis=-1)
        right += int(np.sum(np.equal(guess, labels.cpu().numpy())))
        loss_sum += loss.item() * len(labels)
        seen += len(labels)
        if optimiser is not None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        batches += 1
    return Passed(right / seen, loss_sum / seen, batches)


class Epoch(NamedTuple):
    """An expert after an epoch: its parameters, and what the epoch and the test pass counted."""

    snapshot: list[Tensor]
    train: Passed
    test: Passed


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
    """The field's expert: plain SGD, a snapshot of all parameters and a whole test pass after every epoch.

    images (n, c, h, w) in network input space. Yields after every epoch.
    """
    with fork_rng(seed, "net"):
        net = build()
    loader = DataLoader(
        Pairs(images, labels), batch_size, shuffle=True, num_workers=0, generator=make_generator(seed, "order")
    )
    tests = DataLoader(Pairs(*test), TEST_BATCH, shuffle=False, num_workers=0, generator=make_generator(seed, "test"))
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.0, weight_decay=0.0)
    for epoch in range(epochs):
        trained = epoch_pass(net, loader, optimiser, augment, derive_seed(seed, "epoch", epoch))
        tested = epoch_pass(net, tests, None, None, seed)
        # a clone: on a processor the field's `.detach().cpu()` would share memory with the network that trains on
        yield Epoch([parameter.detach().cpu().clone() for parameter in net.parameters()], trained, tested)


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
    """The field's evaluation of a small set: test accuracy of one fresh network after `epochs` passes over it.

    SGD with momentum 0.9 and weight decay 5e-4; from epoch `epochs // 2 + 1` on lr x 0.1, with a new optimiser.
    """
    with fork_rng(seed, "net"):
        net = build()
    loader = DataLoader(
        Pairs(images, labels), batch_size, shuffle=True, num_workers=0, generator=make_generator(seed, "order")
    )
    tests = DataLoader(Pairs(*test), TEST_BATCH, shuffle=False, num_workers=0, generator=make_generator(seed, "test"))
    optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        if epoch == epochs // 2 + 1:
            lr *= 0.1
            optimiser = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        epoch_pass(net, loader, optimiser, augment, derive_seed(seed, "epoch", epoch))
    return epoch_pass(net, tests, None, None, seed).accuracy
