"""Trackers: listeners that write a job's numbers where other tools show them. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from limbeck.core.errors import UserError, suggest_names
from limbeck.core.events import Listener
from limbeck.core.text import quote

TrackerName = Literal["jsonl", "tensorboard", "trackio", "wandb"]
Open = Callable[[Path, Mapping[str, Any]], AbstractContextManager[Listener]]
"""(folder of the run or store, its configuration) -> a listener for a `with` block."""


def open_tracker(
    name: TrackerName, folder: str | Path, config: Mapping[str, Any] | None = None
) -> AbstractContextManager[Listener]:
    """A listener for a `with` block, which writes the numbers of events for the tool `name`.

    folder: Of the run or the store; jsonl and tensorboard write into it, and its name is that of the run elsewhere.
    config: The configuration, for tools that show it.
    Nothing is opened before the first stage begins. Raises UserError where the package of the tool is missing.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with open_tracker("jsonl", folder) as track:
    ...         track({"event": "stage", "name": "distill", "total": 1})
    ...     [path.name for path in Path(folder).iterdir()]
    ['events.jsonl']
    """
    if name not in get_args(TrackerName):
        raise UserError(f"no tracker called {quote(name)}; {suggest_names(name, get_args(TrackerName))}")
    if name != "jsonl" and find_spec(name) is None:
        raise UserError(f"the tracker {name} needs the package {name}: pip install 'limbeck[{name}]'.")
    module = import_module(f"limbeck.progress.trackers.{name}_")
    tracker: AbstractContextManager[Listener] = module.track(Path(folder), config or {})
    return tracker
