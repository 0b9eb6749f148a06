"""A study file: the options of all runs, the axes of the grid, and what is compared with what."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from limbeck.core.errors import UserError
from limbeck.core.ranges import Number, Seed, Size
from limbeck.core.study_records import CellValues
from limbeck.core.text import printable, shorten

OWN_KEYWORDS = {"seed": "seeds", "out": "--work"}
"""Keywords of `limbeck.distill` that a study sets itself, and what says them."""


class Part(BaseModel):
    """A part of a study file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Comparison(Part):
    """Every value of `axis` is compared with the value `against`, all other axes equal."""

    axis: str
    against: str


class Override(Part):
    """Options of the cells that have all of the values `where`, by axis."""

    where: CellValues
    options: dict[str, Any]


class Range(Part):
    """Values to search: numbers from `low` to `high`, uniform in their logarithm with `log`, or `choices`.

    Whole numbers are searched where both ends are whole.

    >>> Range(low=0.01, high=1.0, log=True).high, Range(choices=["sgd", "adam"]).choices
    (1.0, ('sgd', 'adam'))
    """

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Range:
        if self.choices is not None:
            if self.low is not None or self.high is not None or len(self.choices) < 2:
                raise ValueError("an option is searched between low and high, or among two choices or more")
        elif self.low is None or self.high is None or self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("an option is searched from low to a larger high, which are positive with log")
        return self


class Search(Part):
    """Options that are searched for on validation, in every cell with the same number of trials.

    seed:    Of the sampler; on_seed: of the distillation of trials, by default the first seed of the cell.
    options: By name, as lr_img or "expert.lr"; a value of an axis may have a table `search` with options of its own.
    """

    trials: Size
    seed: Seed = 0
    on_seed: Seed | None = None
    options: dict[str, Range] = Field(default_factory=dict)


class Study(Part):
    """The content of a study file.

    seeds:     Of distillation; a value of an axis may have seeds of its own.
    options:   Keywords of `limbeck.distill` for all runs, options of the methods among them.
    axes:      By name, the values of every axis by name, and the options of each; the runs are the product of the axes
               times the seeds. Where two axes set the same option, the later axis wins.
    overrides: Options of some cells, which win over those of the axes; later ones win over earlier ones.
    skip:      Cells to leave out: those that have all of the values of one of these.

    >>> study = Study(title="Two budgets", options={"data": "digits"}, axes={"ipc": {"1": {"ipc": 1}, "2": {"ipc": 2}}})
    >>> study.seeds, list(study.axes["ipc"])
    ((0,), ['1', '2'])
    """

    title: str = Field(min_length=1)
    text: str = ""
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    options: dict[str, Any]
    axes: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    skip: tuple[CellValues, ...] = ()
    compare: tuple[Comparison, ...] = ()
    search: Search | None = None

    @field_validator("compare", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """A single comparison may stand without a list around it."""
        return [value] if isinstance(value, Mapping) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"a seed stands twice in {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _names_are_there(self) -> Study:
        """Axes and values that are named exist, and no table sets what the study itself sets."""
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"the axis {axis} has no values; give it some, as [axes.{axis}.NAME]")
        for cell in (*self.skip, *(override.where for override in self.overrides)):
            for axis, value in cell.items():
                self._require(axis, value)
        for comparison in self.compare:
            self._require(comparison.axis, comparison.against)
        tables = [self.options, *(table for values in self.axes.values() for table in values.values())]
        for table in (*tables, *(override.options for override in self.overrides)):
            for name, where in OWN_KEYWORDS.items():
                if name in table:
                    raise ValueError(f"{name} is no option of a study; {where} says it")
        return self

    def _require(self, axis: str, value: str) -> None:
        if axis not in self.axes:
            raise ValueError(f"there is no axis {axis}; the axes are {', '.join(self.axes) or 'none'}")
        if value not in self.axes[axis]:
            raise ValueError(f"the axis {axis} has no value {value}; it has {', '.join(self.axes[axis])}")


def read_study(path: Path) -> tuple[Study, dict[str, Any]]:
    """Read a study file: (the study, the file as it stands).

    Raises UserError where there is none, and for what it cannot say.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; name a study file ('limbeck study --help' shows one).") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a study file, as {path / 'study.toml'}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {shorten(error)}; correct it there.") from None
    try:
        return Study.model_validate(content), content
    except ValidationError as error:
        first = error.errors()[0]
        place = printable(".".join(map(str, first["loc"])), 80)
        message = printable(first["msg"].removeprefix("Value error, "), 160)
        where = f"{place}: " if place else ""
        raise UserError(f"{path}: {where}{message[0].lower()}{message[1:]}; correct it there.") from None
