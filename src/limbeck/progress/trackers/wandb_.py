"""Weights & Biases: a run of the project limbeck; WANDB_MODE=offline keeps it on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from limbeck.core.events import Listener
from limbeck.progress.trackers.runs import PROJECT, track_run


def track(folder: Path, config: Mapping[str, Any]) -> AbstractContextManager[Listener]:
    """A listener for a run that has the folder's name."""
    import wandb  # which not everybody has

    return track_run(partial(wandb.init, project=PROJECT, name=folder.name, config=dict(config), dir=str(folder)))
