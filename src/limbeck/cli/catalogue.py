"""The methods as plain data, so that `limbeck methods` lists them without loading torch.

`python -m limbeck.cli.catalogue` writes catalogue.json from the registry; a test keeps the file up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Container
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from limbeck.core.errors import UserError
from limbeck.core.user_imports import entry_points

if TYPE_CHECKING:
    from limbeck.methods import Method


class Entry(NamedTuple):
    """A method in the catalogue; the fields are those of `limbeck.methods.Method`."""

    name: str
    summary: str
    source: str
    learns: list[str]
    experts: str | None
    experimental: bool


def load_catalogue() -> list[Entry]:
    """Return limbeck's methods: from the registry where that is loaded, since a user may have added methods to it."""
    if "limbeck.methods" in sys.modules:
        return read_registry()
    return [Entry(**entry) for entry in json.loads(files("limbeck.cli").joinpath("catalogue.json").read_text("utf-8"))]


def read_registry() -> list[Entry]:
    """Return every method of the registry; this loads torch."""
    from limbeck.methods import METHODS

    return [_describe(name, method) for name, method in METHODS.items()]


def load_plugins(names: Container[str]) -> tuple[list[Entry], list[str]]:
    """Return the methods of installed packages, and a sentence for each that cannot be used.

    names: those of limbeck's methods, which win. This loads torch where a package offers a method, and not otherwise.
    """
    entries, notes = [], []
    for name in entry_points("method"):
        if name in names:
            notes.append(f"the method '{name}' of an installed package is not used: limbeck has one of this name")
            continue
        from limbeck.methods import find_method

        try:
            entries.append(_describe(name, find_method(name)))
        except UserError as error:
            notes.append(f"'{name}' cannot be used: {error}")
    return entries, notes


def _describe(name: str, method: Method) -> Entry:
    return Entry(name, method.summary, method.source, list(method.learns), method.experts, method.experimental)


def to_json(entries: list[Entry]) -> str:
    """Return the text of catalogue.json."""
    return json.dumps([entry._asdict() for entry in entries], indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(to_json(read_registry()), encoding="utf-8")
