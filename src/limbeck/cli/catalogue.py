"""The methods as plain data, so that they can be listed without torch.

`python -m limbeck.cli.catalogue` writes catalogue.json from the registry; a test holds the file up to date.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What is said of a method, with the meaning and the types of the fields of `Method`."""

    name: str
    summary: str
    source: str
    learns: list[str]
    experts: str | None


def catalogue() -> list[Entry]:
    """Every method; from the registry where it is loaded, since a user may have added methods to it."""
    if "limbeck.methods" in sys.modules:
        return registered()
    return [Entry(**entry) for entry in json.loads(files("limbeck.cli").joinpath("catalogue.json").read_text("utf-8"))]


def registered() -> list[Entry]:
    """Every method of the registry."""
    from limbeck.methods import METHODS

    return [
        Entry(method.name, method.summary, method.source, list(method.learns), method.experts)
        for method in METHODS.values()
    ]


def as_text(entries: list[Entry]) -> str:
    """The content of catalogue.json."""
    return json.dumps([entry._asdict() for entry in entries], indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(as_text(registered()), encoding="utf-8")
