"""What trained networks say of real images: features, and how hard an image is (forgetting, EL2N, GraNd)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.core.types import Batch, PureLoss, Trajectory
from limbeck.networks.flat import FlatModel
from limbeck.training.plain import predict

CHUNK = 500


@torch.no_grad()
def extract_features(model: FlatModel, theta: Tensor, images: Tensor) -> Tensor:
    """What enters the last linear layer, (n, d), of un-augmented images (n, channels, height, width)."""
    return torch.cat([model.features(theta, part) for part in images.split(CHUNK)])


@torch.no_grad()
def el2n(model: FlatModel, thetas: Sequence[Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Mean over networks of |softmax(logits) - one-hot|, (n,): the EL2N score (Paul et al. 2021, definition 2.2)."""
    total = torch.zeros(len(images), device=images.device)
    for theta in thetas:
        said = torch.cat([model(theta, part).softmax(1) for part in images.split(CHUNK)])
        said[torch.arange(len(labels), device=labels.device), labels] -= 1
        total += said.norm(dim=1)
    return total / len(thetas)


def grand(loss: PureLoss, thetas: Sequence[Tensor], images: Tensor, labels: Tensor, chunk: int = 50) -> Tensor:
    """Mean over networks of |gradient of the loss of one image|, (n,): the GraNd score (Paul et al., definition 2.1).

    loss: of (theta, batch), un-augmented; its gradient is taken image by image, `chunk` of them at once.
    """

    def norm(theta: Tensor, image: Tensor, label: Tensor) -> Tensor:
        gradient: Tensor = torch.func.grad(lambda t: loss(t, Batch(image[None], label[None])))(theta)
        size: Tensor = gradient.norm()
        return size

    each = torch.func.vmap(norm, in_dims=(None, 0, 0))
    scores = [
        torch.cat([each(theta, x, y) for x, y in zip(images.split(chunk), labels.split(chunk))]) for theta in thetas
    ]
    return torch.stack(scores).mean(0)


def forgetting(model: FlatModel, trajectories: Sequence[Trajectory], images: Tensor, labels: Tensor) -> Tensor:
    """How often an image that was classified correctly after an epoch was not after the next, (n,), mean over experts.

    Toneva et al. 2019, section 3, where training steps are looked at; here it is whole epochs, which is what a store
    keeps. An image that was never learned counts once an epoch, so that it ranks above all others, as in the paper.
    """
    total = torch.zeros(len(images), device=images.device)
    for path in trajectories:
        before = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        ever, lost = before.clone(), torch.zeros_like(total)
        for epoch in range(1, path.end + 1):
            right = predict(model, path.at(epoch).to(images.device), images) == labels
            lost += (before & ~right).to(lost)
            before, ever = right, ever | right
        total += torch.where(ever, lost, float(path.end))
    return total / len(trajectories)


def early_checkpoints(trajectories: Sequence[Trajectory]) -> list[Tensor]:
    """Experts after a tenth of their epochs, at least one: where Paul et al. (section 3) take their scores."""
    return [path.at(max(1, round(0.1 * path.end))) for path in trajectories]
