"""The images that a set starts from: real ones that a coreset chooses, or noise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.methods.coreset import CoresetName
from limbeck.methods.plan import MethodInputs

InitName = Literal[CoresetName, "noise"]
"""The type of the option --init: a coreset, or noise."""


def draw_noise(inputs: MethodInputs, canvas: int = 1) -> tuple[Tensor, Tensor]:
    """Return images from N(0, 1) in network input space, `ipc` of every class, and their classes (n,).

    canvas: an image is so many image sides high and wide.
    This is `--pix_init noise` of MTT's code, and the start of DC's, DSA's and DM's.
    """
    task = inputs.task
    channels, height, width = task.data.shape
    labels = torch.arange(task.data.num_classes, device=task.device).repeat_interleave(inputs.ipc)
    generator = make_generator(inputs.seed, "noise")
    images = torch.randn(len(labels), channels, canvas * height, canvas * width, generator=generator)
    return images.to(task.train[0]), labels
