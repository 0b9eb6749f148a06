"""The values that the page of several runs side by side shows."""

from __future__ import annotations

import json
from typing import Any

from limbeck.core.aliases import rename_configs
from limbeck.report.classes import ClassTable, table_of
from limbeck.report.gallery import side_by_side
from limbeck.report.plots import Line, Plot, plot
from limbeck.report.records import Run, finite
from limbeck.report.text import NONE, count, duration, per_class, size
from limbeck.report.verdict import accuracy_of, comparable_row, gain_of, headline_row, images_per_class, split_totals
from limbeck.report.view import memory_of, total_seconds, view_run


def compare_runs(runs: list[Run], names: list[str]) -> dict[str, Any]:
    """The values that the template of a comparison shows."""
    views = [view_run(run) for run in runs]
    common, partial = _settings(runs)
    same_data = len({run.meta.data.fingerprint for run in runs}) == 1
    return {
        "views": [{**view, "name": name} for view, name in zip(views, names)],
        "side_by_side": side_by_side([(name, run.pictures) for name, run in zip(names, runs)]),
        "rows": [_row(run, name) for run, name in zip(runs, names)],
        "stages": list(dict.fromkeys(stage for run in runs for stage in run.summary.seconds)),
        "differ": common,
        "partial": partial,
        "same_data": same_data,
        "sizes": _sizes(runs) if same_data else "",
        "splits": sorted({best.split or NONE for run in runs if (best := headline_row(run))}),
        "curves": _overlays(runs, names),
        "class_table": _class_table(runs, names) if same_data else None,
    }


def _sizes(runs: list[Run]) -> str:
    totals = split_totals(runs[0].meta.data)
    validation, test = (totals[split] for split in ("validation", "test"))
    return f"{count(validation)} validation and {count(test)} test {'image' if test == 1 else 'images'}"


def _settings(runs: list[Run]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Settings that differ: those of all runs, and those that only some of the runs have."""
    flats = [_flatten(config) for config in rename_configs([run.meta.config for run in runs])]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    shared: list[tuple[str, list[str]]] = []
    partial: list[tuple[str, list[str]]] = []
    for key in keys:
        values = [describe_setting(flat[key]) if key in flat else NONE for flat in flats]
        if not all(key in flat for flat in flats):
            partial.append((key, values))
        elif len(set(values)) > 1:
            shared.append((key, values))
    return shared, partial


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner})
    return flat


def describe_setting(value: object) -> str:
    """A value of a configuration as a person reads it.

    >>> describe_setting(None), describe_setting([]), describe_setting([0.01, 0.03]), describe_setting(True)
    ('none', 'none', '0.01, 0.03', 'yes')
    """
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return ", ".join(map(describe_setting, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _row(run: Run, name: str) -> dict[str, Any]:
    best = headline_row(run)
    random, kmeans, full = (
        comparable_row(run, best, other) if best else None for other in ("random", "kmeans", "full")
    )
    return {
        "name": name,
        "method": run.summary.method or str(run.meta.config.get("method") or NONE),
        "data": run.meta.data.name or NONE,
        "ipc": per_class(images_per_class(run), run.meta.config),
        "best": best,
        "accuracy": accuracy_of(best) if best else NONE,
        "gain": gain_of(run, best) if best else None,
        "random": accuracy_of(random) if random else NONE,
        "kmeans": accuracy_of(kmeans) if kmeans else NONE,
        "full": accuracy_of(full) if full else NONE,
        "experts": size(run.experts.bytes.experts),
        "set": size(run.summary.bytes.set),
        "seconds": {stage: duration(seconds) for stage, seconds in run.summary.seconds.items()},
        "time": duration(total_seconds(run)),
        "memory": memory_of(run),
    }


def _class_table(runs: list[Run], names: list[str]) -> ClassTable | None:
    """Accuracy by class of every run's set; None where fewer than two have one."""
    bests = [(name, best) for name, run in zip(names, runs) if (best := headline_row(run))]
    table = table_of(bests, runs[0])
    return table if table is not None and len(table.sets) > 1 else None


def _overlays(runs: list[Run], names: list[str]) -> list[Plot]:
    loss, rate, accuracy = [], [], []
    for colour, (run, name) in enumerate(zip(runs, names)):
        steps, validations = list(run.steps), run.validations.get("distilled", [])
        loss.append(Line(name, steps, [finite(line.loss) for line in run.steps.values()], colour=colour))
        rate.append(Line(name, steps, [finite(line.lr) for line in run.steps.values()], colour=colour))
        mean = [100 * line.accuracy_mean for line in validations]
        low = [100 * (line.accuracy_mean - (line.accuracy_std or 0)) for line in validations]
        high = [100 * (line.accuracy_mean + (line.accuracy_std or 0)) for line in validations]
        accuracy.append(Line(name, [line.step for line in validations], mean, low, high, colour))
    plots = [
        plot("Loss", loss, "step", salt="loss"),
        plot("Learned step size", [line for line in rate if len(set(line.y)) > 1], "step", salt="rate"),
        plot("Validation accuracy (%)", accuracy, "step", salt="validation"),
    ]
    return [plot for plot in plots if plot is not None]
