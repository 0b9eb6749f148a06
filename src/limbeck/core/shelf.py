"""Distilled sets that come with limbeck: their files, and the record of what they reach."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from limbeck.core.record_files import read_record
from limbeck.core.records import Record, ResultRow

FOLDER = Path(__file__).parents[1] / "sets"
FORMAT = "limbeck-shelf"


class ShelfEntry(Record):
    """One set of the shelf.

    data: Name of the data; source: what `--data` has to name to test on it.
    ipc: Stored images per class; tiles: training images that each of them holds.
    network: Of distillation, and of the rows. bytes: Of images and labels, as the file stores them.
    rows: Of the stored set (16 bits), of random and k-means images at the same budget, on test.
    difference: Of the accuracies of the stored set and of the set before it was rounded, over the same networks.
    commands: What made it. commit: Of limbeck.
    """

    data: str
    source: str
    ipc: int = Field(ge=1)
    tiles: int = Field(default=1, ge=1)
    method: str
    network: str
    bytes: int = Field(ge=1)
    rows: list[ResultRow]
    difference: float
    commands: list[str]
    commit: str
    licence: str

    def row(self, name: str) -> ResultRow | None:
        """The row of the `distilled` set, of `random` or of `kmeans` images; None where there is none."""
        return next((row for row in self.rows if row.set == name), None)


class Shelf(Record):
    """shelf.json: the sets by their names."""

    format: str = FORMAT
    version: int = 1
    sets: dict[str, ShelfEntry]


@cache
def read_shelf() -> dict[str, ShelfEntry]:
    """The sets that come with limbeck, by their names."""
    return read_record(FOLDER / "shelf.json", Shelf, FORMAT).sets


def find_shelf_file(name: str) -> Path | None:
    """The file of a set that comes with limbeck; None where there is none of this name, or a file or folder has it.

    >>> find_shelf_file("nothing") is None
    True
    """
    return FOLDER / f"{name}.safetensors" if name in read_shelf() and not Path(name).exists() else None
