"""The methods as plain data, so that `limbeck methods` lists them without loading torch.

`python -m limbeck.cli.catalogue` writes catalogue.json from the registry; a test keeps the file up to date.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """A method in the catalogue; the fields are those of `limbeck.methods.Method`."""

    name: str
    summary: str
    source: str
    learns: list[str]
    experts: str | None
    experimental: bool


def load_catalogue() -> list[Entry]:
    """Return every method: from the registry where that is loaded, since a user may have added methods to it."""
    if "limbeck.methods" in sys.modules:
        return read_registry()
    return [Entry(**entry) for entry in json.loads(files("limbeck.cli").joinpath("catalogue.json").read_text("utf-8"))]


def read_registry() -> list[Entry]:
    """Return every method of the registry; this loads torch."""
    from limbeck.methods import METHODS

    return [
        Entry(method.name, method.summary, method.source, list(method.learns), method.experts, method.experimental)
        for method in METHODS.values()
    ]


def to_json(entries: list[Entry]) -> str:
    """Return the text of catalogue.json."""
    return json.dumps([entry._asdict() for entry in entries], indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(to_json(read_registry()), encoding="utf-8")
