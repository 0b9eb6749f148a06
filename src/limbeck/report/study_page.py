"""The page of a study: tables, differences, curves with bands over seeds, and costs, from its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from limbeck.core.study_records import CellValues, StudyComparison, StudyRecord, StudyRow, cell_name
from limbeck.report.page import render_page, write_page
from limbeck.report.plots import Line, Plot, mean_with_range, plot
from limbeck.report.study import COSTS, HEAD, comparison_sentence, group_rows, reach_sentence, table_lines
from limbeck.report.text import NONE, count, duration, size


def write_study_page(record: StudyRecord, out: Path) -> Path:
    """Write the page of a study and return its path.

    Raises UserError where it cannot be written.
    """
    lines = table_lines(record)
    groups = group_rows(record)
    page = render_page(
        "study.html",
        record=record,
        facts=_facts(record),
        head=HEAD,
        costs=COSTS,
        lines=lines,
        has_measures=any(line.measure for line in lines),
        comparisons=[(row, cell_name(row.cell), comparison_sentence(row)) for row in record.comparisons],
        reaches=[text for row in record.comparisons if _is_main(row) and (text := reach_sentence(row))],
        panels=_panels(record, groups),
        spending=[_spending(rows) for rows in groups],
        stages=_stages(record),
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


def _spending(rows: Sequence[StudyRow]) -> dict[str, Any]:
    """What the runs of a cell need: bytes and memory, and mean seconds by stage."""
    stages = {name: fmean(row.seconds.get(name, 0.0) for row in rows) for row in rows for name in row.seconds}

    def mean_size(name: str) -> str:
        values = [value for row in rows if (value := getattr(row.bytes, name)) is not None]
        return size(fmean(values)) if values else NONE

    memory = [row.peak_memory for row in rows if row.peak_memory is not None]
    device = [row.device_memory for row in rows if row.device_memory is not None]
    return {
        "name": cell_name(rows[0].cell),
        "bytes": [mean_size(name) for name in ("images", "labels", "experts", "stored")],
        "stages": stages,
        "memory": size(max(memory, default=None)),
        "device": size(max(device, default=None)),
    }


def _stages(record: StudyRecord) -> list[str]:
    return list(dict.fromkeys(name for row in record.rows for name in row.seconds))
