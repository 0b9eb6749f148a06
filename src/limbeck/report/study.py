"""Tables of a study, from its record: one line a cell, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from limbeck.core.records import ResultRow
from limbeck.core.study_records import StudyComparison, StudyRecord, StudyRow, cell_name
from limbeck.report.table import MEASURES, UNEVEN, Cell, pool_runs
from limbeck.report.text import NONE, duration, percent, points, size

SETS = (("distilled", "chosen"), ("distilled", "last"), ("random", None), ("kmeans", None), ("full", None))
HEAD = ("n", "chosen", "last", "random", "k-means", "all images")
COSTS = ("distillation", "set", "experts", "peak memory")


@dataclass(frozen=True)
class Line:
    """A line of the table: the values of the axes, measure and protocol in words, seeds, accuracies, and costs.

    accuracies: Of chosen, last, random, k-means and all images; None where there are none.
    """

    values: list[str]
    measure: str
    seeds: int
    accuracies: list[Cell | None]
    costs: list[str]

    @property
    def words(self) -> list[str]:
        """Numbers of the line as text, as `HEAD` names them; n is said again where it is another one."""
        numbers = [count_networks(cell) for cell in self.accuracies if cell is not None]
        n = numbers[0] if numbers else str(self.seeds)
        return [n, *(NONE if cell is None else format_cell(cell, n) for cell in self.accuracies)]


def row_sentence(row: StudyRow) -> str:
    """A finished run in words."""
    result = find_result(row, "distilled", "chosen", None) or find_result(row, "distilled", "last", None)
    time = duration(sum(row.seconds.values()))
    if result is None:
        return f"no result in {time}"
    return f"{percent(result.accuracy_mean, result.accuracy_std)} (n = {result.n}) in {time}"


def find_result(row: StudyRow, name: str, which: str | None, protocol: str | None) -> ResultRow | None:
    """The result of a set by a protocol; None where the run has none."""
    return next((one for one in row.results if (one.set, one.which, one.protocol) == (name, which, protocol)), None)


def count_networks(cell: Cell) -> str:
    """The number of networks as text: seeds x networks of each."""
    return f"{cell.runs} × {cell.networks}"


def format_cell(cell: Cell, n: str) -> str:
    """Accuracies of several seeds as text: mean and standard deviation, and n where it is not the one of the line.

    >>> format_cell(Cell(0.5, 0.02, 5, 3), "3 × 5"), format_cell(Cell(0.5, 0.02, 1, 3), "3 × 5")
    ('50.0 ± 2.0', '50.0 ± 2.0 (n = 3 × 1)')
    """
    std = NONE if cell.std is None else f"{100 * cell.std:.1f}"
    number = count_networks(cell)
    return f"{100 * cell.mean:.1f} ± {std}" + ("" if number == n else f" (n = {number})")


def group_rows(record: StudyRecord) -> list[list[StudyRow]]:
    """The rows of every cell."""
    groups: dict[tuple[str, ...], list[StudyRow]] = {}
    for row in record.rows:
        groups.setdefault(tuple(row.cell.values()), []).append(row)
    return list(groups.values())


def table_lines(record: StudyRecord) -> list[Line]:
    """The lines of the table: one for every cell and protocol, and one for balanced accuracy where that differs."""
    lines = []
    groups = group_rows(record)
    results = [result for row in record.rows for result in row.results]
    uneven = any(
        abs(result.balanced_accuracy_mean - result.accuracy_mean) > UNEVEN
        for result in results
        if result.balanced_accuracy_mean is not None
    )
    for rows in groups:
        protocols = list(dict.fromkeys(result.protocol for row in rows for result in row.results))
        for protocol in protocols:
            for measure, label in MEASURES.items():
                if measure != "accuracy" and not uneven:
                    continue
                words = "; ".join(part for part in (label.strip(" ()"), protocol) if part)
                cells = [_pool(rows, name, which, protocol, measure) for name, which in SETS]
                lines.append(Line(list(rows[0].cell.values()), words, len(rows), cells, _costs(rows)))
    return lines


def _pool(rows: Sequence[StudyRow], name: str, which: str | None, protocol: str | None, measure: str) -> Cell | None:
    results = [result for row in rows if (result := find_result(row, name, which, protocol)) is not None]
    if any(getattr(result, f"{measure}_mean") is None for result in results):
        return None
    return pool_runs(results, measure) if results else None


def _costs(rows: Sequence[StudyRow]) -> list[str]:
    """Means over seeds: seconds of the outer steps, bytes of the set and of its experts; the largest peak memory."""
    seconds = [row.curve.seconds[-1] for row in rows if row.curve.seconds]
    sets = [(row.bytes.images or 0) + (row.bytes.labels or 0) for row in rows]
    experts = [row.bytes.experts for row in rows if row.bytes.experts is not None]
    memory = [row.peak_memory for row in rows if row.peak_memory is not None]
    return [
        duration(fmean(seconds) if seconds else None),
        size(fmean(sets)),
        size(fmean(experts)) if experts else NONE,
        size(max(memory, default=None)),
    ]


def comparison_sentence(row: StudyComparison) -> str:
    """A comparison in words.

    >>> values = {"accuracy": 0.7, "against_accuracy": 0.65, "difference": 0.05, "n": 3, "over": "seeds"}
    >>> cells = {"axis": "method", "cell": {"method": "MCT"}, "against": {"method": "MTT"}, "which": "chosen"}
    >>> comparison_sentence(StudyComparison(**cells, **values, standard_error=0.01, low=0.03, high=0.07))
    'MCT less MTT, chosen: +5.0 points (70.0 % and 65.0 %), standard error 1.0, 95 % interval +3.0 to +7.0, n = 3 seeds'
    """
    measure = "" if row.measure == "accuracy" else ", balanced accuracy"
    text = f"{cell_name(row.cell)} less {row.against[row.axis]}, {row.which}{measure}: {points(row.difference)} points "
    text += f"({100 * row.accuracy:.1f} % and {100 * row.against_accuracy:.1f} %)"
    if row.standard_error is not None:
        text += f", standard error {100 * row.standard_error:.1f}"
        text += f", 95 % interval {points(row.low)} to {points(row.high)}"
    return f"{text}, n = {row.n} {row.over if row.n != 1 else row.over[:-1]}"


def reach_sentence(row: StudyComparison) -> str | None:
    """In words, how soon the cell reached the final validation accuracy of the other one; None without curves.

    Steps are means over the seeds in which both reached it.
    """
    if not row.reach:
        return None
    both = [one for one in row.reach if one.step is not None and one.against_step is not None]
    against = row.against[row.axis]
    words = f"{cell_name(row.cell)} reached {against}'s final validation accuracy with {len(both)} of {len(row.reach)} "
    words += "seeds"
    if not both:
        return words
    steps = [fmean(one.step for one in both if one.step is not None)]
    steps.append(fmean(one.against_step for one in both if one.against_step is not None))
    seconds = [fmean(one.seconds or 0.0 for one in both), fmean(one.against_seconds or 0.0 for one in both)]
    return (
        f"{words}, after {steps[0]:.0f} steps and {duration(seconds[0])}; {against} itself after {steps[1]:.0f} steps "
        f"and {duration(seconds[1])}"
    )
