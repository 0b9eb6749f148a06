"""The values that the page of one run shows, from its records."""

from __future__ import annotations

import json
import re
from math import sqrt
from typing import Any

from limbeck.core.records import DataRecord, PathAccuracy
from limbeck.core.text import counted
from limbeck.report.classes import class_table, confusion_of
from limbeck.report.gallery import Frame
from limbeck.report.heat_map import heat_maps
from limbeck.report.plots import Line, Plot, Values, mean_with_range, plot
from limbeck.report.records import Run, finite
from limbeck.report.robustness import robustness_tables
from limbeck.report.text import NONE, count, count_sides, duration, per_class, percent, size
from limbeck.report.verdict import (
    describe_row,
    gain_of,
    headline,
    headline_row,
    images_per_class,
    split_totals,
    test_error,
    verdicts,
)

BEFORE_AND_AFTER = ("initial", "last")


def view_run(run: Run) -> dict[str, Any]:
    """The values that the template of a report shows."""
    meta, data, config, rows = run.meta, run.meta.data, run.meta.config, run.summary.results
    chosen, best, totals = _chosen_step(run), headline_row(run), split_totals(data)
    is_coreset = "lr_net" in config and "iterations" not in config  # it takes no steps
    table = [row for row in rows if not (is_coreset and row.which == "last")]
    machine = {"Device": meta.device, "Threads": count(meta.threads), "Created": meta.created}
    return {
        "name": run.name,
        "headline": headline(run),
        "verdicts": verdicts(run),
        "test_error": test_error(best, totals["test"]) if best and best.split == "test" else "",
        "facts": _facts(run),
        "is_coreset": is_coreset,
        "tiles": config["factor"] if config.get("factor") not in (None, 1) else None,
        "is_canvas": count_sides(config, "canvas") > 1,
        "missing": run.missing,
        "pictures": [(p.title, p) for p in run.pictures if not (is_coreset and p.name in BEFORE_AND_AFTER)],
        "before_and_after": [(p.title, p) for p in run.pictures if not is_coreset and p.name in BEFORE_AND_AFTER],
        "frames": _frames(run),
        "rows": [(row, describe_row(row), gain_of(run, row)) for row in table],
        "balanced": any(row.balanced_accuracy_mean is not None for row in rows),
        "positive": next((row.positive for row in rows if row.positive), None),
        "chosen_by": "balanced " if _chooses_by_balance(config) else "",
        "splits": sorted({row.split or NONE for row in rows}),
        "several_models": len({row.model for row in rows}) > 1,
        "has_random": any(row.set == "random" for row in rows),
        "protocol": re.sub(r"augmentation (\w+_\w+)", _spell_out, run.summary.protocol),
        "class_table": class_table(run),
        "confusion": confusion_of(run),
        "confused": describe_row(best) if best else "",
        "heat_maps": heat_maps(run.evaluations.evaluations),
        "robustness": [
            (table, evaluation.protocol)
            for evaluation in run.evaluations.evaluations
            for table in robustness_tables(evaluation.rows)
        ],
        "scores": [score for evaluation in run.evaluations.evaluations for score in evaluation.scores or ()],
        "chosen_step": chosen,
        "curves": _curves(run, chosen),
        "expert_plots": _expert_plots(run),
        "expert_ends": _expert_ends(run),
        "experts": _experts(run),
        "alone": config.get("experts") == "none",
        "storage": _storage(run),
        "stages": [(name, duration(seconds)) for name, seconds in run.summary.seconds.items()],
        "memory": memory_of(run),
        "classes": _class_rows(data),
        "totals": totals,
        "shape": " × ".join(map(count, data.shape)) or NONE,
        "data_name": data.name or NONE,
        "fingerprint": data.fingerprint or NONE,
        "notes": data.notes,
        "command": _how_to_repeat(run),
        "config": json.dumps(config, indent=2, ensure_ascii=False),
        "versions": list(meta.versions.items()),
        "machine": [(name, value or NONE) for name, value in machine.items()],
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    data = run.meta.data
    ipc, train, classes = images_per_class(run), split_totals(data)["train"], len(data.classes)
    facts = [
        ("Method", run.summary.method),
        ("Data", data.name),
        ("Images per class", per_class(ipc, run.meta.config) if ipc else ""),
    ]
    if ipc and train and classes:
        sides = count_sides(run.meta.config, "canvas")
        ratio = train / (ipc * classes * sides**2)
        words = "times fewer pixels" if sides > 1 else "times fewer"
        facts.append(("Reduction", f"{ratio:,.1f} {words}" if ratio < 10 else f"{ratio:,.0f} {words}"))
    totals = split_totals(data)
    facts.append(("Validation images", count(totals["validation"]) if totals["validation"] else ""))
    if test := totals["test"]:
        facts.append(("Tested on", f"{counted(test, 'image')}, to ± {50 / sqrt(test):.1f} points at most"))
    facts.append(("Total time", duration(total_seconds(run)) if run.summary.seconds else ""))
    facts.append(("Created", run.meta.created[:16].replace("T", " ")))
    return [(name, value) for name, value in facts if value]


def total_seconds(run: Run) -> float | None:
    """Seconds of all stages of a run; None where none is recorded."""
    return sum(run.summary.seconds.values()) if run.summary.seconds else None


def _chooses_by_balance(config: dict[str, Any]) -> bool:
    protocol = config.get("eval")
    return isinstance(protocol, dict) and protocol.get("choose_by") == "balanced"


FROM_PYTHON = """import json, pathlib, limbeck

config = json.loads(pathlib.Path("run.json").read_text())["config"]  # of this folder
options = {name: value for name, value in config.items() if name not in ("method", "data", "experts", "code")}
"""


def _how_to_repeat(run: Run) -> str:
    """The command of a run, or where it was called from Python, code that does the same."""
    if run.meta.command and run.meta.command != "(from Python)":
        return run.meta.command
    if not run.meta.config or run.meta.config.get("code"):  # a method of the user's own has to be there first
        return run.meta.command or NONE
    reading = {name: value for name, value in run.meta.reading.items() if value is not None and name.isidentifier()}
    source = f"{run.meta.source!r}" if run.meta.source else "data"
    arguments = ", ".join([source, *(f"{name}={value!r}" for name, value in reading.items())])
    experts = f"experts={run.experts.store!r}, " if run.meta.config.get("experts") not in (None, "none") else ""
    call = f'limbeck.distill(data, {experts}method=config["method"], out="runs/again", **options)'
    return f"{FROM_PYTHON}data = limbeck.load_data({arguments})\n{call}"


def _spell_out(match: re.Match[str]) -> str:
    return f"augmentation by {', '.join(match[1].split('_'))}"


def memory_of(run: Run) -> str:
    """The peak memory of the run's processes, and on the GPU, in words; a dash where it is not recorded."""
    memory = run.summary.memory
    if memory.process is None and memory.device is None:
        return NONE
    return size(memory.process) + ("" if memory.device is None else f", {size(memory.device)} on the GPU")


def _frames(run: Run) -> list[tuple[Frame, str]]:
    """The pictures along the distillation, and what validation said of each."""
    lines = {line.step: line for line in run.validations.get("distilled", [])}
    return [
        (frame, percent(line.accuracy_mean, line.accuracy_std) if (line := lines.get(frame.step)) else "")
        for frame in run.frames
    ]


def _chosen_step(run: Run) -> int | None:
    rows = [row for row in run.summary.results if row.set == "distilled" and row.which == "chosen"]
    return next((row.step for row in rows if row.step is not None), None)


def _curves(run: Run, chosen: int | None) -> list[Plot]:
    steps = list(run.steps)
    marks = [] if chosen is None else [chosen]
    loss = Line("loss", steps, [finite(line.loss) for line in run.steps.values()])
    rate = Line("learned step size", steps, [finite(line.lr) for line in run.steps.values()], colour=2)
    plots = [
        plot("Loss", [loss], "step", salt="loss", marks=marks),
        plot("Learned step size", [rate], "step", salt="rate", marks=marks) if len(set(rate.y)) > 1 else None,
        plot("Validation accuracy (%)", _validation_lines(run), "step", salt="validation", marks=marks),
    ]
    gaps = sum(value is None for value in loss.y)
    if plots[0] is not None and gaps:
        plots[0].notes.append(f"The loss was not a finite number at {gaps:,} of {len(steps):,} steps.")
    return [plot for plot in plots if plot is not None]


def _validation_lines(run: Run) -> list[Line]:
    lines = []
    for colour, (which, validations) in enumerate(run.validations.items()):
        low = [100 * (line.accuracy_mean - (line.accuracy_std or 0)) for line in validations]
        high = [100 * (line.accuracy_mean + (line.accuracy_std or 0)) for line in validations]
        mean = [100 * line.accuracy_mean for line in validations]
        lines.append(Line(which or NONE, [line.step for line in validations], mean, low, high, colour))
    return lines


def _paths(run: Run) -> list[tuple[str, list[float], list[list[float | None]]]]:
    """(name, epochs, accuracy in percent per expert) of the recorded and of the convexified path."""
    recorded = run.experts.recorded_path or PathAccuracy(accuracy=run.experts.validation_per_epoch)
    paths = []
    for name, path in (("recorded", recorded), ("convexified", run.experts.convexified_path)):
        if path is None:
            continue
        rows = [[finite(value) for value in row] for row in path.accuracy]
        longest = max(map(len, rows), default=0)
        epochs = [t for t in path.t or map(float, range(longest)) if t is not None]
        if longest and len(epochs) == len(path.t or epochs):
            percents = [[None if value is None else 100 * value for value in row[: len(epochs)]] for row in rows]
            paths.append((name, epochs[:longest], percents))
    return paths


def _expert_plots(run: Run) -> list[Plot]:
    """Accuracy along the experts' paths, and how far the paths are from their starts."""
    lines = [
        Line(name, epochs, *mean_with_range(rows), 0 if name == "convexified" else 1)
        for name, epochs, rows in _paths(run)
    ]
    distances = {"recorded": run.experts.recorded_distance, "convexified": run.experts.convexified_distance}
    away = [
        Line(name, [t for t in path.t if t is not None], *_percents(path.share), 0 if name == "convexified" else 1)
        for name, path in distances.items()
        if path is not None and None not in path.t and len(path.t) == max(map(len, path.share), default=0)
    ]
    plots = [
        plot("Accuracy of the experts (%)", lines, "epoch of the expert", salt="experts"),
        plot("Distance from the start (% of that of the end)", away, "epoch of the expert", salt="distance"),
    ]
    return [plot for plot in plots if plot is not None]


def _percents(rows: list[list[float | None]]) -> tuple[Values, Values, Values]:
    values = [[None if (share := finite(value)) is None else 100 * share for value in row] for row in rows]
    return mean_with_range(values)


def _expert_ends(run: Run) -> str:
    ends = []
    for name, _, rows in _paths(run):
        mean = mean_with_range(rows)[0]
        if mean and mean[-1] is not None:
            ends.append(f"{name} {mean[-1]:.1f} %")
    return "; ".join(ends)


def _experts(run: Run) -> list[tuple[str, str]]:
    """Number of experts, their epochs, and the waypoints that are stored of them."""
    experts = run.experts
    numbers = {
        "Experts": experts.count,
        "Epochs per expert": experts.epochs,
        "Waypoints per expert": experts.waypoints,
    }
    return [(name, count(number)) for name, number in numbers.items() if number is not None]


def _storage(run: Run) -> list[tuple[str, str, str]]:
    """One (name, size, remark) for everything that the run stored."""
    expert_bytes = run.experts.bytes.experts or run.summary.bytes.experts
    recorded = run.experts.bytes.recorded_would_be
    rows = []
    if expert_bytes is not None:
        forms = {"recorded": ", every epoch", "both": ", every epoch and convexified"}
        ratio = recorded / expert_bytes if recorded and expert_bytes > 0 else 0.0
        remark = f"{ratio:,.1f} times less than every epoch of every expert" if ratio > 1.5 else ""
        rows.append((f"Experts{forms.get(run.experts.kept, ', convexified')}", size(expert_bytes), remark))
    if recorded is not None and run.experts.kept in ("", "convex"):
        rows.append(("Experts, if every epoch were recorded", size(recorded), "not stored, for comparison"))
    if run.summary.bytes.set is not None:
        rows.append(("Distilled set", size(run.summary.bytes.set), "images, labels and learned step size"))
    return rows + [(name, size(length), "file") for name, length in run.sets]


def _class_rows(data: DataRecord) -> list[tuple[str, list[str]]]:
    """(class, images in train, validation and test)."""
    splits = [data.counts.get(split, []) for split in ("train", "validation", "test")]
    return [
        (name, [count(split[label]) if label < len(split) else NONE for split in splits])
        for label, name in enumerate(data.classes)
    ]
