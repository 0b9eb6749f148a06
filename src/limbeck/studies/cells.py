"""The cells of a study: the product of its axes without what is left out, each with its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product, zip_longest
from typing import Any

from pydantic import ValidationError

from limbeck.core.errors import UserError
from limbeck.core.study_records import CellValues
from limbeck.core.text import printable, quote, shorten
from limbeck.studies.config import Range, Study


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: the values of the axes, the options of its runs, and their seeds.

    space:    The options that are searched for; searched: what a search of `trials` found, which `options`
        have, too.
    """

    values: CellValues
    options: dict[str, Any]
    seeds: tuple[int, ...]
    space: dict[str, Range] = field(default_factory=dict)
    searched: dict[str, Any] = field(default_factory=dict)
    trials: int = 0

    @property
    def name(self) -> str:
        """The cell as an error names it.

        >>> Cell({"method": "MCT", "ipc": "10"}, {}, (0,)).name
        'method=MCT, ipc=10'
        """
        return printable(", ".join(f"{axis}={value}" for axis, value in self.values.items()), 80) or "the only cell"


def make_cells(study: Study) -> list[Cell]:
    """The cells of a study, the last axis fastest.

    Raises UserError where nothing is left.

    >>> axes = {"size": {"small": {"model": {"width": 4}}, "large": {"model": {"width": 8}}}, "ipc": {"1": {"ipc": 1}}}
    >>> study = Study(title="Sizes", options={"data": "digits", "model": {"depth": 2}}, axes=axes, skip=[{"ipc": "1"}])
    >>> make_cells(study.model_copy(update={"skip": ()}))[1].options
    {'data': 'digits', 'model': {'depth': 2, 'width': 8}, 'ipc': 1}
    >>> make_cells(study)
    Traceback (most recent call last):
    limbeck.core.errors.UserError: the study skips all of its cells; take something out of skip.
    """
    cells = []
    for names in product(*study.axes.values()):
        values = dict(zip(study.axes, names))
        if any(_has(values, left_out) for left_out in study.skip):
            continue
        tables = [study.axes[axis][name] for axis, name in values.items()]
        tables += [override.options for override in study.overrides if _has(values, override.where)]
        options: dict[str, Any] = {**study.options}
        for table in tables:
            options = merge(options, table)
        seeds, own = options.pop("seeds", study.seeds), options.pop("search", {})
        if not isinstance(seeds, list | tuple) or not seeds or not all(map(_is_seed, seeds)):
            raise UserError(f"{Cell(values, {}, ()).name}: seeds are whole numbers, as [0, 1, 2], not {quote(seeds)}.")
        cells.append(Cell(values, options, tuple(seeds), _space(study, values, own)))
    if not cells:
        raise UserError("the study skips all of its cells; take something out of skip.")
    return cells


def _is_seed(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _space(study: Study, values: CellValues, own: Any) -> dict[str, Range]:
    """The options that are searched for in a cell: those of the study, and its own."""
    if study.search is None:
        if own:
            raise UserError(f"{Cell(values, {}, ()).name}: it has options to search for, and the study no [search].")
        return {}
    try:
        return {**study.search.options, **{name: Range.model_validate(value) for name, value in own.items()}}
    except (ValidationError, AttributeError) as error:
        sentence = shorten(str(error).splitlines()[-1])
        raise UserError(f"{Cell(values, {}, ()).name}: its table search does not fit: {sentence}.") from None


def merge(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Options of which `others` win; a table is merged with a table, name by name.

    >>> merge({"ipc": 1, "model": {"name": "mlp", "width": 4}}, {"model": {"width": 8}})
    {'ipc': 1, 'model': {'name': 'mlp', 'width': 8}}
    """
    both = {name: merge(options[name], table) for name, table in others.items() if _are_tables(options, name, table)}
    return {**options, **others, **both}


def _are_tables(options: Mapping[str, Any], name: str, value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(options.get(name), Mapping)


def _has(values: CellValues, part: CellValues) -> bool:
    return all(values[axis] == value for axis, value in part.items())


def by_seed(cells: list[Cell]) -> Iterator[tuple[Cell, int]]:
    """Yield the runs in the order in which they are computed: the first seed of every cell, then the second one.

    So a study that is stopped half way has every cell.

    >>> cells = [Cell({"ipc": "1"}, {}, (0, 1)), Cell({"ipc": "2"}, {}, (0,))]
    >>> [(cell.name, seed) for cell, seed in by_seed(cells)]
    [('ipc=1', 0), ('ipc=2', 0), ('ipc=1', 1)]
    """
    for seeds in zip_longest(*(cell.seeds for cell in cells)):
        yield from ((cell, seed) for cell, seed in zip(cells, seeds) if seed is not None)
