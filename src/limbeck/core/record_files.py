"""Reading of records from files, strictly, or leaving out damaged parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from limbeck.core.errors import UserError
from limbeck.core.files import read_json
from limbeck.core.records import Record
from limbeck.core.text import printable

R = TypeVar("R", bound=Record)
M = TypeVar("M", bound=BaseModel)


def read_record(path: Path, model: type[R], format: str, version: int = 1) -> R:
    """Read a record from a JSON file; UserError where the file is damaged, or of another format or version."""
    return parse_record(path, model, read_json(path, format, version))


def parse_record(path: Path, model: type[M], value: object) -> M:
    """A record or options from JSON that was read from the file `path`; UserError where it does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)[:3]
        places = ", ".join(printable(".".join(map(str, fault["loc"])), 40) for fault in faults)
        raise UserError(f"{path} is damaged: these parts do not fit: {places}; restore it or make it again.") from None


def salvage(model: type[R], value: object) -> tuple[R, list[str]]:
    """Read a record and leave out what does not fit it: (the record, the places that were left out).

    A list loses the element that lacks a field. Raises ValidationError where the remaining parts are no record.

    >>> from limbeck.core.records import ResultsRecord
    >>> row = {"set": "random", "model": "convnet", "split": "test", "accuracy_mean": 0.5, "n": 5}
    >>> results, faults = salvage(ResultsRecord, {"ipc": "one", "results": [row, {**row, "n": None}]})
    >>> len(results.results), results.ipc, faults
    (1, None, ['ipc', 'results.1.n', 'results.1'])
    """
    faults: list[str] = []
    content = json.loads(json.dumps(value))
    while True:
        try:
            return model.model_validate(content), faults
        except ValidationError as error:
            places = sorted({*_places(error, content)}, key=lambda place: [str(part).rjust(12) for part in place])
            if () in places:
                raise
            faults += [".".join(map(str, place)) for place in places]
            for *parents, name in reversed(places):
                part = content
                for parent in parents:
                    part = part[parent]
                del part[name]


def _places(error: ValidationError, content: Any) -> Iterator[tuple[str | int, ...]]:
    """The places of values that do not fit; for a missing field, the place of the object that lacks it.

    pydantic's own places have more parts: the types of a union that it tried, and '[key]' for a key. Every place here
    is one in `content`, so that removing it changes something, and `salvage` comes to an end.
    """
    for fault in error.errors(include_input=False, include_url=False):
        part: Any = content
        place: tuple[str | int, ...] = ()
        for name in fault["loc"]:
            is_index = isinstance(part, list) and isinstance(name, int) and name < len(part)
            if is_index or (isinstance(part, dict) and name in part):
                part, place = part[name], (*place, name)
        yield place
