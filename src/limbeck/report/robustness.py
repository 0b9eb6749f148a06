"""Accuracies on perturbed test images as a table: one line a set and network, one column a perturbation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from limbeck.core.evaluation_records import CLEAN, EvaluationRow, RobustnessRow
from limbeck.report.heat_map import describe, line_of
from limbeck.report.text import NONE, percent

ALL_CORRUPTIONS = "corrupted"


@dataclass(frozen=True)
class RobustnessLine:
    """A set on a network: its name, the network, how many of them, and accuracies in percent, one a column."""

    name: str
    network: str
    n: int
    cells: list[str]


@dataclass(frozen=True)
class RobustnessTable:
    """columns: clean, attacks, corrupted (the mean of all corruptions), and every one; images: how many of them."""

    images: int
    columns: list[str]
    lines: list[RobustnessLine]

    @property
    def brief(self) -> RobustnessTable:
        """The same without the columns of single corruptions."""
        if ALL_CORRUPTIONS not in self.columns:
            return self
        end = self.columns.index(ALL_CORRUPTIONS) + 1
        lines = [RobustnessLine(line.name, line.network, line.n, line.cells[:end]) for line in self.lines]
        return RobustnessTable(self.images, self.columns[:end], lines)


def robustness_tables(rows: Sequence[EvaluationRow]) -> list[RobustnessTable]:
    """One table for every number of perturbed images; none for rows without tests on perturbed images.

    Of a run whose last set is the chosen one too, the chosen one alone is shown.

    >>> tests = [RobustnessRow(perturbation="clean", images=9, accuracies=[0.5], accuracy_mean=0.5, n=1)]
    >>> row = EvaluationRow(set="random", model="mlp", split="test", accuracy_mean=0.5, n=1, robustness=tests)
    >>> [(table.images, table.columns, table.lines[0].cells) for table in robustness_tables([row])]
    [(9, ['clean'], ['50.0 %'])]
    """
    tested = [row for row in rows if row.robustness and not _is_repeated(row, rows)]
    counts = sorted({test.images for row in tested for test in row.robustness or ()})
    return [_table(tested, count) for count in counts]


def _is_repeated(row: EvaluationRow, rows: Sequence[EvaluationRow]) -> bool:
    """Whether this is the row of a last set that the chosen set has too."""
    chosen = row.model_copy(update={"which": "chosen", "step": None})
    return row.which == "last" and any(other.model_copy(update={"step": None}) == chosen for other in rows)


def _table(rows: Sequence[EvaluationRow], images: int) -> RobustnessTable:
    own = [(row, _columns(test for test in row.robustness or () if test.images == images)) for row in rows]
    own = [(row, columns) for row, columns in own if columns]
    names = sorted(dict.fromkeys(name for _, columns in own for name in columns), key=_place)
    lines = list(dict.fromkeys(line_of(row) for row, _ in own))
    return RobustnessTable(
        images,
        names,
        [
            RobustnessLine(
                describe(line_of(row), lines), row.model, row.n, [_mean(columns.get(name)) for name in names]
            )
            for row, columns in own
        ],
    )


def _columns(tests: Iterable[RobustnessRow]) -> dict[str, list[list[float]]]:
    """The accuracies of networks (lists of one a network) by column: a corruption has one list a severity."""
    columns: dict[str, list[list[float]]] = {}
    for test in tests:
        if test.severity is not None:
            columns.setdefault(ALL_CORRUPTIONS, []).append(test.accuracies)
            columns.setdefault(test.perturbation.replace("_", " "), []).append(test.accuracies)
        else:
            columns[_name(test)] = [test.accuracies]
    return columns


def _name(test: RobustnessRow) -> str:
    if test.epsilon is None:
        return test.perturbation
    steps = f", {test.steps} steps" if test.steps and test.steps > 1 else ""
    return f"{test.perturbation} {test.epsilon:g}/255{steps}"


def _place(column: str) -> int:
    """clean comes first, then attacks, the mean of corruptions, and the single ones."""
    if "/255" in column:
        return 1
    return {CLEAN: 0, ALL_CORRUPTIONS: 2}.get(column, 3)


def _mean(accuracies: list[list[float]] | None) -> str:
    """Mean and sample standard deviation over networks of the mean over severities, in percent."""
    if accuracies is None:
        return NONE
    values = [fmean(of_network) for of_network in zip(*accuracies)]
    return percent(fmean(values), stdev(values) if len(values) > 1 else None)
