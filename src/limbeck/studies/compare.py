"""Cells of a study compared in pairs of runs of the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from limbeck.core.records import ResultRow
from limbeck.core.study_records import CellValues, Curve, Reach, StudyComparison, StudyRow
from limbeck.evaluation.compare import paired_difference
from limbeck.report.table import UNEVEN
from limbeck.studies.config import Comparison

Which = Literal["chosen", "last"]
Measure = Literal["accuracy", "balanced_accuracy"]


def compare_cells(rows: Sequence[StudyRow], comparisons: Sequence[Comparison]) -> list[StudyComparison]:
    """Every comparison of every cell with the one that has the value `against` on its axis and the others in common.

    Cells are compared on the chosen set and on the last one, over the seeds that both have.
    """
    results: list[StudyComparison] = []
    cells: list[CellValues] = []
    for row in rows:
        if row.cell not in cells:
            cells.append(row.cell)
    for comparison in comparisons:
        for cell in cells:
            if cell[comparison.axis] == comparison.against:
                continue
            against = {**cell, comparison.axis: comparison.against}
            pairs = _pairs(rows, cell, against)
            for which in WHICH:
                results += _compare(comparison.axis, cell, against, pairs, which)
    return results


WHICH: tuple[Which, ...] = ("chosen", "last")


def _pairs(rows: Sequence[StudyRow], cell: CellValues, against: CellValues) -> list[tuple[StudyRow, StudyRow]]:
    """The runs of both cells by seed, where both have one."""
    others = {row.seed: row for row in rows if row.cell == against}
    return [(row, others[row.seed]) for row in rows if row.cell == cell and row.seed in others]


def distilled_row(row: StudyRow, which: str) -> ResultRow | None:
    """The row of the last or the chosen set by the common protocol; None where there is none."""
    rows = [line for line in row.results if line.set == "distilled" and line.which == which and line.protocol is None]
    rows += [line for line in row.results if line.set == "distilled" and line.which == which and line not in rows]
    return rows[0] if rows else None


def _compare(
    axis: str, cell: CellValues, against: CellValues, pairs: list[tuple[StudyRow, StudyRow]], which: Which
) -> Iterator[StudyComparison]:
    tests = [(distilled_row(row, which), distilled_row(other, which)) for row, other in pairs]
    lines = [(one, two) for one, two in tests if one is not None and two is not None]
    if not lines:
        return
    measures: list[Measure] = ["accuracy"]
    if any(_is_uneven(line) for pair in lines for line in pair):
        measures.append("balanced_accuracy")
    for measure in measures:
        values, others = ([_mean(pair[side], measure) for pair in lines] for side in (0, 1))
        over: Literal["seeds", "networks"] = "seeds"
        single, other_single = (row.accuracies or [] for row in lines[0])
        if len(lines) == 1 and measure == "accuracy" and single and len(single) == len(other_single):
            values, others, over = single, other_single, "networks"
        difference = paired_difference(values, others)
        yield StudyComparison(
            axis=axis,
            cell=cell,
            against=against,
            which=which,
            measure=measure,
            accuracy=sum(values) / len(values),
            against_accuracy=sum(others) / len(others),
            difference=difference.mean,
            standard_error=difference.standard_error,
            low=difference.low,
            high=difference.high,
            n=difference.n,
            over=over,
            reach=[find_reach(row, other) for row, other in pairs if row.curve.steps and len(other.curve.steps) > 1],
        )


def _mean(row: ResultRow, measure: Measure) -> float:
    value = row.accuracy_mean if measure == "accuracy" else row.balanced_accuracy_mean
    return row.accuracy_mean if value is None else value


def _is_uneven(row: ResultRow) -> bool:
    balanced = row.balanced_accuracy_mean
    return balanced is not None and abs(balanced - row.accuracy_mean) > UNEVEN


def find_reach(row: StudyRow, other: StudyRow) -> Reach:
    """When the curves of two runs first reach the final validation accuracy of the second one.

    >>> run = {"cell": {}, "seed": 0, "key": "", "results": []}
    >>> steps = {"steps": [0, 5, 10], "std": [None, None, None]}
    >>> fast = StudyRow(**run, curve=Curve(**steps, accuracy=[0.1, 0.6, 0.7], seconds=[0.0, 1.0, 2.0]))
    >>> slow = StudyRow(**run, curve=Curve(**steps, accuracy=[0.1, 0.3, 0.5], seconds=[0.0, 2.0, 4.0]))
    >>> reach = find_reach(fast, slow)
    >>> reach.target, reach.step, reach.seconds, reach.against_step, find_reach(slow, fast).step
    (0.5, 5, 1.0, 10, None)
    """
    target = other.curve.accuracy[-1]
    step, seconds = _first(row.curve, target)
    against_step, against_seconds = _first(other.curve, target)
    return Reach(
        seed=row.seed,
        target=target,
        step=step,
        seconds=seconds,
        against_step=against_step,
        against_seconds=against_seconds,
    )


def _first(curve: Curve, target: float) -> tuple[int | None, float | None]:
    for step, accuracy, seconds in zip(curve.steps, curve.accuracy, curve.seconds):
        if accuracy >= target:
            return step, seconds
    return None, None
