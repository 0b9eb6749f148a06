"""The images that a set starts from: real ones that a coreset chooses, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, get_args

import torch
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import Tensor

from limbeck.core.rng import make_generator
from limbeck.methods.coreset import CoresetName, is_own_selector, take_real
from limbeck.methods.plan import MethodConfig, MethodInputs
from limbeck.select import find_selector
from limbeck.select.coresets import Selector
from limbeck.synthetic.tiles import Partition

RealName = Literal[CoresetName, "noise"]
DreamRealName = Literal[CoresetName, "noise", "dream"]


def _check_name(names: Sequence[str], name: str) -> str:
    """Return the name; a validation error for one that is neither of `names` nor that of a user's selector."""
    if name not in names and not is_own_selector(name):
        choices = ", ".join(names)
        raise PydanticCustomError("init", "Input should be one of {choices} or my_file:select", {"choices": choices})
    return name


InitName = Annotated[RealName | str, AfterValidator(partial(_check_name, get_args(RealName)))]
"""The type of the option --init: a coreset, noise, or a user's selector."""

DreamInitName = Annotated[DreamRealName | str, AfterValidator(partial(_check_name, get_args(DreamRealName)))]
"""The same, or DREAM's choice."""


def find_own_selector(config: MethodConfig) -> Selector | None:
    """Return the user's selector that the option `init` of a method names; None where it names none."""
    name = getattr(config, "init", None)
    return find_selector(name) if isinstance(name, str) and name not in get_args(DreamRealName) else None


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


def make_real_mosaics(rows: Tensor, inputs: MethodInputs, partition: Partition) -> Tensor:
    """Return mosaics of real images, class by class: each of factor x factor of them, shrunk to tiles.

    rows: of the training images, `ipc` factor^2 of every class, sorted by class.
    """
    classes = take_real(rows, inputs).split(inputs.ipc * partition.factor**2)
    return torch.cat([partition.join(images) for images in classes])
