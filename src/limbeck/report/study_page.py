"""The page of a study: tables, differences, curves with bands over seeds, and costs, from its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from limbeck.core.study_records import CellValues, StudyComparison, StudyRecord, StudyRow, cell_name
from limbeck.report.page import render_page, write_page
from limbeck.report.plots import Line, Plot, mean_with_range, plot
from limbeck.report.study import (
    costs_table,
    differences_table,
    find_result,
    group_rows,
    reach_sentence,
    results_table,
    searches_table,
    stability_table,
)
from limbeck.report.table import Cell, pool_runs
from limbeck.report.text import NONE, count, duration


def write_study_page(record: StudyRecord, out: Path) -> Path:
    """Write the page of a study and return its path.

    Raises UserError where it cannot be written.
    """
    sentences = [reach_sentence(row) for row in record.comparisons if _is_main(row)]
    page = render_page(
        "study.html",
        record=record,
        facts=_facts(record),
        axes=len(record.axes),
        results=results_table(record),
        differences=differences_table(record),
        reaches=[sentence for sentence in sentences if sentence is not None],
        panels=_panels(record, group_rows(record)),
        searches=searches_table(record),
        stability=stability_table(record),
        experts=[*_paths(record), *_storage(record)],
        costs=costs_table(record),
        failures=[(cell_name(row.cell), row) for row in record.failures],
        study=json.dumps(record.study, indent=2, ensure_ascii=False),
    )
    return write_page(page, out)


def _is_main(row: StudyComparison) -> bool:
    return row.which == "chosen" and row.measure == "accuracy"


def _facts(record: StudyRecord) -> list[tuple[str, str]]:
    rows = record.rows
    names = ", ".join(dict.fromkeys(row.data for row in rows))
    budgets = ", ".join(count(value) for value in dict.fromkeys(row.ipc for row in rows) if value is not None)
    total = sum(sum(row.seconds.values()) for row in rows)
    implementations = dict.fromkeys(str(row.computed.get("implementation", NONE)) for row in rows)
    versions = dict.fromkeys(f"torch {row.versions.get('torch', NONE)}" for row in rows)
    facts = {
        "Runs": f"{len(rows)} of {record.planned}",
        "Seeds": ", ".join(map(str, record.seeds)),
        "Data": names,
        "Images per class": budgets,
        "Time of all runs": duration(total) if rows else "",
        "Computed by": "; ".join([*implementations, *versions]),
    }
    return [(name, value) for name, value in facts.items() if value]


def _compared_axis(record: StudyRecord) -> str | None:
    """The axis of the first comparison, else the first axis; None without axes."""
    return next((row.axis for row in record.comparisons), next(iter(record.axes), None))


def _by_data(record: StudyRecord) -> dict[str, list[list[StudyRow]]]:
    """The rows of every cell, by data and budget."""
    groups: dict[str, list[list[StudyRow]]] = {}
    for rows in group_rows(record):
        groups.setdefault(f"{rows[0].data}, {count(rows[0].ipc)} per class", []).append(rows)
    return groups


def _paths(record: StudyRecord) -> list[Plot]:
    """Accuracy along the paths of the experts of one run, by data: of that with the most paths."""
    plots = []
    runs: dict[str, StudyRow] = {}
    for row in record.rows:
        if len(row.paths) > len(runs[row.data].paths if row.data in runs else {}):
            runs[row.data] = row
    for number, (data, row) in enumerate(runs.items()):
        lines = [
            Line(name, path.t, _percents(path.mean), _percents(path.low), _percents(path.high), colour)
            for colour, (name, path) in enumerate(row.paths.items())
        ]
        title = f"Experts' validation accuracy (%) along their paths, {data}"
        plots.append(plot(title, lines, "epoch of the expert", salt=f"paths{number}"))
    return [one for one in plots if one is not None]


def _storage(record: StudyRecord) -> list[Plot]:
    """Test accuracy against the bytes of the experts, by data, where these differ by a fifth."""
    axis = _compared_axis(record)
    plots = []
    for number, (data, groups) in enumerate(_by_data(record).items()):
        by_value: dict[str, list[tuple[float, Cell]]] = {}
        for rows in groups:
            results = [result for row in rows if (result := find_result(row, "distilled", "chosen", None)) is not None]
            sizes = [row.bytes.experts for row in rows if row.bytes.experts is not None]
            if results and sizes:
                label = rows[0].cell[axis] if axis is not None and len(record.axes) > 1 else "all cells"
                by_value.setdefault(label, []).append((fmean(sizes) / 1e6, pool_runs(results)))
        sizes_of_all = [size for points in by_value.values() for size, _ in points]
        if not sizes_of_all or max(sizes_of_all) < 1.2 * min(sizes_of_all):
            continue
        lines = []
        for colour, (label, cells) in enumerate(by_value.items()):
            cells.sort(key=lambda pair: pair[0])
            mean = [100 * cell.mean for _, cell in cells]
            half = [100 * (cell.std or 0.0) for _, cell in cells]
            low, high = ([y + sign * std for y, std in zip(mean, half)] for sign in (-1, 1))
            lines.append(Line(label, [size for size, _ in cells], mean, low, high, colour))
        title = f"Test accuracy (%) against the experts' bytes, {data}"
        plots.append(plot(title, lines, "MB of experts", salt=f"bytes{number}", log_x=True))
    return [one for one in plots if one is not None]


def _percents(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _panels(record: StudyRecord, groups: list[list[StudyRow]]) -> list[tuple[str, list[Plot]]]:
    """(name, plots) for every combination of the axes that are not compared."""
    axis = _compared_axis(record)
    panels: dict[str, list[list[StudyRow]]] = {}
    for rows in groups:
        others: CellValues = {name: value for name, value in rows[0].cell.items() if name != axis}
        panels.setdefault(", ".join(others.values()), []).append(rows)
    drawn = []
    values = [] if axis is None else record.axes[axis]  # a value has one colour in all panels
    for number, (name, members) in enumerate(panels.items()):
        labels = [cell_name(rows[0].cell) if axis is None else rows[0].cell[axis] for rows in members]
        colours = [values.index(label) if label in values else 0 for label in labels]
        plots = _curves(list(zip(labels, colours, members)), f"panel{number}")
        if plots:
            drawn.append((name, plots))
    return drawn


def _curves(members: Sequence[tuple[str, int, list[StudyRow]]], salt: str) -> list[Plot]:
    """Accuracy on validation against steps and against seconds, and the loss; lines are means over seeds.

    members: (label, colour, rows of a cell).
    """
    steps, seconds, losses = [], [], []
    for name, colour, rows in members:
        curves = [row.curve for row in rows if len(row.curve.steps) > 1]
        if not curves:
            continue
        longest = max(curves, key=lambda curve: len(curve.steps))
        alike = [curve for curve in curves if curve.steps == longest.steps[: len(curve.steps)]]
        label = f"{name} ({len(alike)} seed{'s' * (len(alike) != 1)})"
        mean, low, high = mean_with_range([[100 * value for value in curve.accuracy] for curve in alike])
        lower, upper = (low, high) if len(alike) > 1 else (None, None)
        steps.append(Line(label, longest.steps, mean, lower, upper, colour))
        times = mean_with_range([curve.seconds for curve in alike])[0]
        seconds.append(Line(label, [value or 0.0 for value in times], mean, lower, upper, colour))
        middle = mean_with_range([curve.loss for curve in alike])[0]
        lowest = mean_with_range([curve.loss_low for curve in alike])[1]
        highest = mean_with_range([curve.loss_high for curve in alike])[2]
        losses.append(Line(label, longest.loss_steps, middle, lowest, highest, colour))
    if not steps:
        return []
    plots = [
        plot("Validation accuracy (%) against outer steps", steps, "step", salt=f"{salt}steps"),
        plot("Validation accuracy (%) against seconds", seconds, "seconds of outer steps", salt=f"{salt}seconds"),
        plot("Loss", losses, "step", salt=f"{salt}loss"),
    ]
    return [one for one in plots if one is not None]
