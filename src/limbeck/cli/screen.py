"""Results as tables and lines for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from limbeck.core.evaluation_records import EvaluationRow, ScoreRow
from limbeck.core.records import TWO_CLASS_MEASURES
from limbeck.core.text import printable
from limbeck.report.heat_map import heat_map
from limbeck.report.robustness import robustness_tables
from limbeck.report.text import NONE, percent


def format_value(value: Any) -> str:
    """A value of a result as a person reads it.

    >>> format_value({"epochs": 15, "lr": 0.01, "model": {"name": "mlp", "depth": None}, "waypoints": [0, 15]})
    'epochs 15, lr 0.01, model (name mlp, depth –), waypoints (0, 15)'
    """
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_part(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_part, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else printable(str(value))


def _format_part(value: Any) -> str:
    return f"({format_value(value)})" if isinstance(value, dict | list | tuple) else format_value(value)


def results_title(result: Mapping[str, Any]) -> str:
    """What the rows of a command's result are of, as far as it says so: a file may lack any of it.

    >>> results_title({"data": {"name": "digits"}, "ipc": 1, "method": "mct"}), results_title({})
    ('digits, 1 per class, mct', 'test')
    """
    data, ipc = result.get("data"), result.get("ipc")
    name = data.get("name") if isinstance(data, dict) else data
    parts = (name, None if ipc is None else f"{ipc} per class", result.get("method"))
    return ", ".join(str(part) for part in parts if part) if "ipc" in result else "test"


def results_table(rows: Sequence[EvaluationRow], title: str) -> Table:
    """Results as a table: accuracy in percent as mean, standard deviation and n.

    Where rows of random images are among them there is a column of the points above these.
    """
    random = {(row.model, row.protocol): row.accuracy_mean for row in rows if row.set == "random"}
    table = Table(title=title)
    for name in ("set", "network", "n", "accuracy", "balanced", *(("over random",) if random else ())):
        table.add_column(name, justify="left" if name in ("set", "network") else "right")
    for row in rows:
        baseline = random.get((row.model, row.protocol))
        gain = "" if baseline is None or row.set == "random" else f"{100 * (row.accuracy_mean - baseline):+.1f}"
        table.add_row(
            (f"{row.set} ({row.which})" if row.which else row.set) + (f", {row.protocol}" if row.protocol else ""),
            row.model,
            str(row.n),
            percent(row.accuracy_mean, row.accuracy_std),
            percent(row.balanced_accuracy_mean, row.balanced_accuracy_std),
            *((gain,) if random else ()),
        )
    return table


def two_class_table(rows: Sequence[EvaluationRow]) -> Table | None:
    """Sensitivity, specificity and AUC in percent, for data of two classes; None for rows that have none."""
    scored = [row for row in rows if row.positive is not None]
    if not scored:
        return None
    table = Table(title=f"test, in %; sensitivity: the share of '{scored[0].positive}' that is recognised")
    for name in ("set", "network", "n", "sensitivity", "specificity", "AUC"):
        table.add_column(name, justify="left" if name in ("set", "network") else "right")
    for row in scored:
        name = (f"{row.set} ({row.which})" if row.which else row.set) + (f", {row.protocol}" if row.protocol else "")
        pairs = ((getattr(row, f"{name}_mean"), getattr(row, f"{name}_std")) for name in TWO_CLASS_MEASURES)
        table.add_row(name, row.model, str(row.n), *(percent(mean, std).removesuffix(" %") for mean, std in pairs))
    return table


def networks_table(rows: Sequence[EvaluationRow]) -> Table | None:
    """Accuracy in percent, n and step size on one line a set and in one column a network; None for a single cell.

    The title has the protocol where it is not the field's.
    """
    drawn = heat_map(rows)
    if drawn is None:
        return None
    protocols = dict.fromkeys(row.protocol for row in rows if row.protocol)
    table = Table(title=", ".join(["test", *protocols]), show_lines=True)
    table.add_column("set")
    for network in drawn.networks:
        table.add_column(network, justify="right", no_wrap=True)
    for name, cells in drawn.lines:
        table.add_row(name, *(NONE if cell is None else _cell_text(cell.row) for cell in cells))
    return table


def _cell_text(row: EvaluationRow) -> str:
    step_size = "" if row.lr is None else f", lr {row.lr:.2g}"
    return f"{percent(row.accuracy_mean, row.accuracy_std)}\nn {row.n}{step_size}"


def robustness_screen(rows: Sequence[EvaluationRow]) -> list[Table]:
    """Accuracies on perturbed test images in percent, without the single corruptions."""
    tables = []
    for drawn in robustness_tables(rows):
        table = Table(title=f"test, {drawn.images} images, perturbed: accuracy in %")
        for name in ("set", "network", "n", *drawn.brief.columns):
            table.add_column(name, justify="left" if name in ("set", "network") else "right")
        for line in drawn.brief.lines:
            cells = (cell.removesuffix(" %") for cell in line.cells)
            table.add_row(line.name.replace(" real images", ""), line.network, str(line.n), *cells)
        tables.append(table)
    return tables


def scores_table(rows: Sequence[ScoreRow]) -> Table:
    """DD-Ranking's scores of sets, as fractions."""
    protocols = dict.fromkeys(row.protocol for row in rows if row.protocol)
    table = Table(title=", ".join(["scores, as fractions", *protocols]))
    table.add_column("set")
    for name in ("HLR (less is better)", "IOR", "LRS", "ARS"):
        table.add_column(name, justify="right")
    for row in rows:
        name = f"{row.set} ({row.which})" if row.which else row.set
        table.add_row(name, *(f"{value:.3f}" for value in (row.hlr, row.ior, row.lrs, row.ars)))
    return table
