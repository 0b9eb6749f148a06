"""TensorBoard: event files in the folder tensorboard/ of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from limbeck.core.events import Event, Listener
from limbeck.progress.trackers.numbers import numbers_of


@contextmanager
def track(folder: Path, config: Mapping[str, Any]) -> Iterator[Listener]:
    """A listener that writes scalars, the pictures along the distillation, and the configuration as text."""
    from torch.utils.tensorboard import SummaryWriter  # needs tensorboard, which not everybody has

    writers: list[SummaryWriter] = []

    def write(event: Event) -> None:
        if event["event"] == "stage" and not writers:
            writers.append(SummaryWriter(str(folder / "tensorboard")))
            lines = [f"| {name} | {value} |" for name, value in config.items()]
            writers[0].add_text("configuration", "\n".join(["| option | value |", "|---|---|", *lines]))
        if not writers:
            return
        if numbers := numbers_of(event):
            for name, value in numbers.values.items():
                writers[0].add_scalar(name.replace(" ", "_"), value, numbers.step)
        if event["event"] == "preview":
            with Image.open(event["path"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writers[0].add_image("distill/images", pixels, event["step"], dataformats="HWC")

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
