"""Tables of a study, from its record: one line a cell, over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean, median, stdev

from limbeck.core.records import ResultRow
from limbeck.core.study_records import (
    RANDOM_TRIALS,
    CellSearch,
    StudyComparison,
    StudyRecord,
    StudyRow,
    Trial,
    cell_name,
)
from limbeck.report.table import MEASURES, UNEVEN, Cell, pool_runs
from limbeck.report.text import NONE, describe_interval, duration, percent, points, size

SETS = (("distilled", "chosen"), ("distilled", "last"), ("random", None), ("kmeans", None), ("full", None))
RESULTS = ("n", "chosen", "within seeds", "between seeds", "last", "random", "k-means", "all images")
COSTS = ("images", "labels", "experts", "stored", "outer steps", "memory")
STABILITY = ("seeds", "best less last", "between validations", "loss from step to step")
DIFFERENCES = ("less", "set", "measure", "difference", "standard error", "interval", "n")

SEARCHES = ("trials", "random trials", "worst", "median", "best", "best of all", "options of the best")

Table = tuple[list[str], list[list[str]]]
"""Headings and lines."""


def row_sentence(row: StudyRow) -> str:
    """A finished run in words."""
    result = find_result(row, "distilled", "chosen", None) or find_result(row, "distilled", "last", None)
    time = duration(sum(row.seconds.values()))
    if result is None:
        return f"no result in {time}"
    return f"{percent(result.accuracy_mean, result.accuracy_std)} (n = {result.n}) in {time}"


def trial_sentence(trial: Trial) -> str:
    """A trial of a search in words.

    >>> trial_sentence(Trial(number=0, options={"lr_img": 0.1}, key="", accuracy=0.5, std=0.01, n=3, step=10))
    'lr_img 0.1: 50.0 ± 1.0 % (n = 3) on validation at step 10'
    """
    values = format_options(trial)
    if trial.accuracy is None:
        return f"{values}: failed: {trial.sentence}"
    return f"{values}: {percent(trial.accuracy, trial.std)} (n = {trial.n}) on validation at step {trial.step}"


def format_options(trial: Trial) -> str:
    """The values that a trial tried.

    >>> format_options(Trial(number=0, options={"lr_img": 0.12345, "syn_steps": 20}, key="", accuracy=0.5))
    'lr_img 0.123, syn_steps 20'
    """
    parts = [(name, f"{value:.3g}" if isinstance(value, float) else value) for name, value in trial.options.items()]
    return ", ".join(f"{name} {value}" for name, value in parts)


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
    std = "" if cell.std is None else f" ± {100 * cell.std:.1f}"
    number = count_networks(cell)
    return f"{100 * cell.mean:.1f}{std}" + ("" if number == n else f" (n = {number})")


def group_rows(record: StudyRecord) -> list[list[StudyRow]]:
    """The rows of every cell."""
    groups: dict[tuple[str, ...], list[StudyRow]] = {}
    for row in record.rows:
        groups.setdefault(tuple(row.cell.values()), []).append(row)
    return list(groups.values())


def results_table(record: StudyRecord) -> Table:
    """Accuracies on test in percent, as mean and standard deviation: a line for every cell, measure and protocol.

    Balanced accuracy, sensitivity, specificity and AUC are there where the former differs from accuracy, and where a
    cell has them; measure and protocol have a column where there are several, and so has the number of trials of a
    search for options.
    """
    results = [result for row in record.rows for result in row.results]
    has_measures = is_uneven(results) or any(result.protocol for result in results)
    has_trials = any(row.trials for row in record.rows)
    lines = []
    for rows in group_rows(record):
        uneven = is_uneven([result for row in rows for result in row.results])
        for protocol in dict.fromkeys(result.protocol for row in rows for result in row.results):
            for measure, label in MEASURES.items():
                words = "; ".join(part for part in (label.strip(" ()") or measure, protocol) if part)
                cells = [_pool(rows, name, which, protocol, measure) for name, which in SETS]
                if measure != "accuracy" and not (uneven and any(cells)):
                    continue
                extra = [*([words] if has_measures else []), *([str(rows[0].trials)] if has_trials else [])]
                lines.append([*rows[0].cell.values(), *extra, *_numbers(cells)])
    extra = [*(["measure"] if has_measures else []), *(["trials"] if has_trials else [])]
    return [*record.axes, *extra, *RESULTS], lines


def is_uneven(results: Sequence[ResultRow]) -> bool:
    """Whether balanced accuracy differs from accuracy in some row by more than `UNEVEN`."""
    return any(
        abs(result.balanced_accuracy_mean - result.accuracy_mean) > UNEVEN
        for result in results
        if result.balanced_accuracy_mean is not None
    )


def _pool(rows: Sequence[StudyRow], name: str, which: str | None, protocol: str | None, measure: str) -> Cell | None:
    results = [result for row in rows if (result := find_result(row, name, which, protocol)) is not None]
    if any(getattr(result, f"{measure}_mean") is None for result in results):
        return None
    return pool_runs(results, measure) if results else None


def _numbers(cells: Sequence[Cell | None]) -> list[str]:
    """n, the chosen set with its two spreads, and the others; n is said again where it is another one."""
    numbers = [count_networks(cell) for cell in cells if cell is not None]
    n = numbers[0] if numbers else NONE
    words = [NONE if cell is None else format_cell(cell, n) for cell in cells]
    spreads = (None, None) if cells[0] is None else (cells[0].within, cells[0].between)
    return [n, words[0], *(NONE if std is None else f"{100 * std:.1f}" for std in spreads), *words[1:]]


def costs_table(record: StudyRecord) -> Table:
    """What a run of every cell needs: bytes and seconds as means over seeds, and the largest peak memory."""
    stages = list(dict.fromkeys(name for row in record.rows for name in row.seconds))
    lines = []
    for rows in group_rows(record):
        sizes = [_mean([getattr(row.bytes, name) for row in rows]) for name in COSTS[:4]]
        steps = _mean([row.curve.seconds[-1] for row in rows if row.curve.seconds])
        memory = [row.peak_memory for row in rows if row.peak_memory is not None]
        seconds = [steps, *(_mean([row.seconds.get(name) for row in rows]) for name in stages)]
        words = [*map(size, sizes), *map(duration, seconds), size(max(memory, default=None))]
        lines.append([*rows[0].cell.values(), *words])
    return [*record.axes, *COSTS[:5], *(f"{name} in all" for name in stages), COSTS[5]], lines


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def stability_table(record: StudyRecord) -> Table:
    """How steady distillation is in every cell: points of validation accuracy, and % of the loss; means over seeds.

    Best less last: of the validations. Between validations: the root mean square of the changes from one to the next,
    in the second half. Loss from step to step: the mean of its relative changes.
    """
    lines = []
    for rows in group_rows(record):
        curves = [row.curve for row in rows if len(row.curve.accuracy) > 2]
        if not curves:
            continue
        falls = _mean([max(curve.accuracy) - curve.accuracy[-1] for curve in curves])
        changes = _mean([_root_mean_square(curve.accuracy[len(curve.accuracy) // 2 :]) for curve in curves])
        losses = _mean([curve.loss_change for curve in curves])
        words = [NONE if value is None else f"{100 * value:.1f}" for value in (falls, changes, losses)]
        lines.append([*rows[0].cell.values(), str(len(curves)), *words])
    return [*record.axes, *STABILITY], lines


def _root_mean_square(values: Sequence[float]) -> float | None:
    """Of the differences of neighbours.

    >>> _root_mean_square([0.5, 0.6, 0.5]), _root_mean_square([0.5])
    (0.1, None)
    """
    squares = [(two - one) ** 2 for one, two in pairwise(values)]
    return round(sqrt(fmean(squares)), 12) if squares else None


def searches_table(record: StudyRecord) -> Table:
    """The searches for options: validation accuracies in percent of the random trials, and of the best of all.

    Random trials try the same number of values in every cell, so their spread says how much a method depends on its
    options. A failed trial counts in `trials` alone.
    """
    return [*record.axes, *SEARCHES], [_search_line(search) for search in record.searches if search.trials]


def _search_line(search: CellSearch) -> list[str]:
    drawn = [100 * trial.accuracy for trial in search.trials[:RANDOM_TRIALS] if trial.accuracy is not None]
    spread = f"{fmean(drawn):.1f} ± {stdev(drawn):.1f} (n = {len(drawn)})" if len(drawn) > 1 else NONE
    places = [f"{pick(drawn):.1f}" if drawn else NONE for pick in (min, median, max)]
    best = max(search.trials, key=lambda trial: trial.accuracy or 0.0)
    words = [percent(best.accuracy, best.std), format_options(best)]
    return [*search.cell.values(), str(len(search.trials)), spread, *places, *words]


def differences_table(record: StudyRecord) -> Table:
    """The comparisons, in points."""
    lines = []
    for row in record.comparisons:
        error = NONE if row.standard_error is None else f"{100 * row.standard_error:.1f}"
        interval = describe_interval(row.low, row.high, row.n)
        measure, n = row.measure.replace("_", " "), f"{row.n} {row.over if row.n != 1 else row.over[:-1]}"
        words = [row.against[row.axis], row.which, measure, points(row.difference), error, interval, n]
        lines.append([*row.cell.values(), *words])
    return [*record.axes, *DIFFERENCES], lines


def comparison_sentence(row: StudyComparison) -> str:
    """A comparison in words.

    >>> values = {"accuracy": 0.7, "against_accuracy": 0.65, "difference": 0.05, "n": 3, "over": "seeds"}
    >>> cells = {"axis": "method", "cell": {"method": "MCT"}, "against": {"method": "MTT"}, "which": "chosen"}
    >>> comparison_sentence(StudyComparison(**cells, **values, standard_error=0.01, low=0.03, high=0.07))
    'MCT less method MTT, chosen: +5.0 points (70.0 % and 65.0 %), standard error 1.0, all between +3.0 and +7.0, n = 3
    seeds'
    """
    measure = "" if row.measure == "accuracy" else ", balanced accuracy"
    text = f"{cell_name(row.cell)} less {against_name(row)}, {row.which}{measure}: {points(row.difference)} points "
    text += f"({100 * row.accuracy:.1f} % and {100 * row.against_accuracy:.1f} %)"
    if row.standard_error is not None:
        text += f", standard error {100 * row.standard_error:.1f}"
        text += f", {describe_interval(row.low, row.high, row.n)}"
    return f"{text}, n = {row.n} {row.over if row.n != 1 else row.over[:-1]}"


def against_name(row: StudyComparison) -> str:
    """What a cell is compared with: the axis in which that differs, and its value, which may be "none" or a number."""
    return f"{row.axis} {row.against[row.axis]}"


def reach_sentence(row: StudyComparison) -> str | None:
    """In words, how soon the cell reached the final validation accuracy of the other one; None without curves.

    Steps are means over the seeds in which both reached it.
    """
    if not row.reach:
        return None
    both = [one for one in row.reach if one.step is not None and one.against_step is not None]
    against = against_name(row)
    words = f"{cell_name(row.cell)} reached the final validation accuracy of {against} with {len(both)} of "
    words += f"{len(row.reach)} seeds"
    if not both:
        return words
    steps = [fmean(one.step for one in both if one.step is not None)]
    steps.append(fmean(one.against_step for one in both if one.against_step is not None))
    seconds = [fmean(one.seconds or 0.0 for one in both), fmean(one.against_seconds or 0.0 for one in both)]
    return (
        f"{words}, after {steps[0]:.0f} steps and {duration(seconds[0])}; {against} itself after {steps[1]:.0f} steps "
        f"and {duration(seconds[1])}"
    )
