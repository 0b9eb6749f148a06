"""What a reader under test is: its right files, their damage, and all that limbeck does with them.

A subject works in the current folder, with relative paths, so that sentences do not grow with the folders of a test.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
from torture.mutations import Mutation

from limbeck import ModelConfig, load_data
from limbeck.data import ImageData
from limbeck.task import Task, make_task

Use = Callable[[], object]
NETWORK = ModelConfig(width=4, depth=1)


@dataclass(frozen=True)
class Subject:
    """A reader under test.

    make:   writes right files into the current folder. damage: damages one of them, and returns what was done.
    uses:   everything that reads them; a use that is expensive comes in a few cases only, by the generator.
    """

    make: Callable[[], object]
    damage: Callable[[Random], str]
    uses: Callable[[Random], Iterable[Use]]


def damage_one(files: Mapping[str, Mutation]) -> Callable[[Random], str]:
    """Damage to one of these files."""

    def damage(generator: Random) -> str:
        name = generator.choice(sorted(files))
        content, change = files[name](Path(name).read_bytes(), generator)
        Path(name).write_bytes(content)
        return f"{name}: {change}"

    return damage


def sometimes(use: Use, generator: Random, share: float) -> list[Use]:
    """The use in this share of the cases."""
    return [use] if generator.random() < share else []


def rarely_drawn(use: Use, generator: Random, share: float = 0.2) -> Use:
    """The use; in the other cases its report has no plots, which take most of its time."""
    if generator.random() < share:
        return use

    def without_plots() -> None:
        with patch("limbeck.report.view.plot", lambda *args, **kwargs: None):
            use()

    return without_plots


def tiny() -> ImageData:
    """60 images of 8 x 8 pixels and 3 classes, on which a network trains in milliseconds."""
    path = Path(os.environ["LIMBECK_HOME"]) / "tiny.npz"
    if not path.exists():
        generator = np.random.default_rng(0)
        labels = np.arange(60) % 3
        images = (generator.integers(0, 60, (60, 8, 8)) + 80 * labels[:, None, None]).astype(np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x_train=images, y_train=labels)
    return load_data(path)


def tiny_task() -> Task:
    return make_task(tiny(), NETWORK)
