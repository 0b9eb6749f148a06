"""The page of a study: tables, differences, curves with bands over seeds, and costs, from its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from limbeck.core.study_records import CellValues, StudyComparison, StudyRecord, StudyRow, cell_name
from limbeck.report.page import render_page, write_page
from limbeck.report.plots import Line, Plot, mean_with_range, plot
from limbeck.report.study import costs_table, differences_table, group_rows, reach_sentence, results_table
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


def _panels(record: StudyRecord, groups: list[list[StudyRow]]) -> list[tuple[str, list[Plot]]]:
    """(name, plots) for every combination of the axes that are not compared."""
    axis = next((row.axis for row in record.comparisons), next(iter(record.axes), None))
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
