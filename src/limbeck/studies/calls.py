"""A call of `limbeck.prepare` as JSON, so that the parent and its child processes prepare the same job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.sizes import parse_size
from limbeck.data import READING, ImageData, load_data
from limbeck.jobs.job import Job, prepare
from limbeck.jobs.presets import preset_options
from limbeck.studies.cells import merge

SPLITS = ("test", "validation")
"""Keywords of `load_data` that may name folders."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call: of `load_data`, and of `prepare`.

    >>> call = Call.of({"data": "digits", "method": "dm", "ipc": 1, "iterations": 2}, 3, Path())
    >>> call.options
    {'method': 'dm', 'ipc': 1, 'iterations': 2, 'seed': 3}
    >>> call.prepare(Path("runs/x")).config.seed
    3
    """

    data: str
    reading: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any], seed: int, folder: Path) -> Call:
        """The call for the options of a cell and a seed; paths of data and experts are relative to `folder`.

        The options of a `preset` come first, and the word None undoes an option, as on the command line.
        Raises UserError where no data is named.
        """
        options = _undo(options)
        preset = options.pop("preset", None)
        if preset is not None:
            options = merge(preset_options(preset), options)
        data = options.pop("data", None)
        if not isinstance(data, str):
            raise UserError('the study names no data; say it under [options], as data = "digits".')
        reading = {name: options.pop(name) for name in sorted(READING & set(options))}
        reading |= {name: _near(reading[name], folder) for name in SPLITS if isinstance(reading.get(name), str)}
        if "experts" in options:
            options["experts"] = _near(options["experts"], folder)
        return cls(_near(data, folder), reading, {**options, "seed": seed})

    @property
    def reading_key(self) -> tuple[Any, ...]:
        """Calls of one key read the same images."""
        return self.data, self.options["seed"], repr(self.reading)

    def load(self) -> ImageData:
        """Read the images."""
        reading = dict(self.reading)
        if isinstance(reading.get("pixel_range"), list):
            reading["pixel_range"] = tuple(reading["pixel_range"])
        if isinstance(reading.get("resize"), str):
            reading["resize"] = parse_size(reading["resize"])
        return load_data(self.data, seed=self.options["seed"], **reading)

    def prepare(self, out: Path, data: ImageData | None = None) -> Job:
        """Prepare the job. data: the images, where they are read already."""
        return prepare(self.load() if data is None else data, out=out, **self.options)

    def to_json(self) -> dict[str, Any]:
        """The arguments, as JSON values."""
        return asdict(self)


def _undo(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with None for the word None, in tables too."""
    values = {name: _undo(value) if isinstance(value, Mapping) else value for name, value in options.items()}
    return {name: None if value == "None" else value for name, value in values.items()}


def _near(source: str, folder: Path) -> str:
    """A path that exists below the folder of the study file, as an absolute one; any other word as it is."""
    path = folder / source
    return str(path.resolve()) if path.exists() else source
