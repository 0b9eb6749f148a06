"""Features of real images under trained networks, and scores of how hard an image is: forgetting, EL2N, GraNd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core.types import Batch, PureLoss, Trajectory
from limbeck.networks.flat import FlatModel
from limbeck.networks.statistics import for_inference
from limbeck.training.plain import predict

CHUNK = 500
"""Images that go through a network at once."""


@torch.no_grad()
def extract_features(model: FlatModel, theta: Tensor, images: Tensor) -> Tensor:
    """The input of the last linear layer, (n, d), for images (n, channels, height, width) without augmentation.

    Batch norm uses statistics of these images; so in `el2n` and `forgetting`.
    """
    network = for_inference(model, images)
    return torch.cat([network.features(theta, part) for part in images.split(CHUNK)])


@torch.no_grad()
def el2n(model: FlatModel, thetas: Sequence[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The EL2N score, (n,): the mean over networks of |softmax(logits) - one-hot| (Paul et al. 2021, definition 2.2).

    thetas: parameters (P,) of the networks. labels: int64 (n,).
    """
    network = for_inference(model, images)
    total = torch.zeros(len(images), device=images.device)
    for theta in thetas:
        error = torch.cat([network(theta, part).softmax(1) for part in images.split(CHUNK)])
        error[torch.arange(len(labels), device=labels.device), labels] -= 1
        total += error.norm(dim=1)
    return total / len(thetas)


def grand(loss: PureLoss, thetas: Sequence[Tensor], images: Tensor, labels: Tensor, chunk: int = 50) -> Tensor:
    """The GraNd score, (n,): the mean over networks of |gradient of one image's loss| (Paul et al., definition 2.1).

    loss:   without augmentation; its gradient is taken image by image, for `chunk` images at once.
    thetas: parameters (P,) of the networks. labels: int64 (n,).
    """

    def gradient_norm(theta: Tensor, image: Tensor, label: Tensor) -> Tensor:
        gradient: Tensor = torch.func.grad(lambda t: loss(t, Batch(image[None], label[None])))(theta)
        norm: Tensor = gradient.norm()
        return norm

    norms = torch.func.vmap(gradient_norm, in_dims=(None, 0, 0))
    scores = [
        torch.cat([norms(theta, x, y) for x, y in zip(images.split(chunk), labels.split(chunk))]) for theta in thetas
    ]
    return torch.stack(scores).mean(0)


def forgetting(model: FlatModel, trajectories: Sequence[Trajectory], images: Tensor, labels: Tensor) -> Tensor:
    """The forgetting score, (n,): how often an image is classified correctly after one epoch and not after the next.

    It is the mean over experts. Toneva et al. 2019 (section 3) compare training steps; here they are whole epochs,
    which is what a store has. An image that an expert never classifies correctly counts once an epoch, so that it
    ranks above all others, as in the paper.
    """
    network = for_inference(model, images)
    total = torch.zeros(len(images), device=images.device)
    for trajectory in trajectories:
        before = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        learned, forgotten = before.clone(), torch.zeros_like(total)
        for epoch in range(1, trajectory.end + 1):
            correct = predict(network, trajectory.at(epoch).to(images.device), images) == labels
            forgotten += (before & ~correct).to(forgotten)
            before, learned = correct, learned | correct
        total += torch.where(learned, forgotten, float(trajectory.end))
    return total / len(trajectories)


def early_checkpoints(trajectories: Sequence[Trajectory]) -> list[Tensor]:
    """Parameters (P,) of experts after a tenth of their epochs, at least one: where Paul et al. (section 3) score."""
    return [trajectory.at(max(1, round(0.1 * trajectory.end))) for trajectory in trajectories]
