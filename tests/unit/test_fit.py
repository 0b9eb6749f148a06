"""Back-propagation through training on real images, on the network that everything uses by default."""

from __future__ import annotations

import pytest
import torch

from limbeck import ImageData
from limbeck.networks.registry import ModelConfig
from limbeck.objectives.fit import Fit, Trained
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import make_task
from limbeck.training import Backprop, CrossEntropy, Replay

pytestmark = pytest.mark.usefixtures("untouched_generators")


@pytest.mark.parametrize("width", [8, 32], ids=["without kernels", "with kernels"])
def test_training_on_the_set_is_differentiated_through(digits: ImageData, width: int) -> None:
    """As documented: of `task.loss`, whose derivatives may be hand-written, as of the plain loss by autograd."""
    task = make_task(digits, ModelConfig(width=width))
    images, hot = task.train[0][:5], torch.eye(10)[task.train[1][:5]]
    plain = CrossEntropy(task.model, task.augment)
    gradients = []
    for student in (
        Trained(task.model, task.loss, 3, adjoint=Replay()),
        Trained(task.model, plain, 3, adjoint=Backprop()),
    ):
        synthetic = SyntheticSet.from_images(images, hot, 0.05, ("images", "labels", "log_lr"))
        loss = Fit(student, task.train, 64)(synthetic, 0, 0)
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in synthetic.parameters().values())])
    for ours, theirs in zip(*gradients):
        assert theirs.norm() > 0
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()
