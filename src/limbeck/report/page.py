"""The report of a run, and the comparison of several: one self-contained HTML page from records, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from math import sqrt
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.core.aliases import rename_configs
from limbeck.core.errors import UserError
from limbeck.core.files import write_atomically
from limbeck.core.records import DataRecord, PathAccuracy, ResultRow
from limbeck.report.heat_map import heat_maps
from limbeck.report.plots import Line, Plot, mean_with_range, plot
from limbeck.report.records import Run, finite, read_run
from limbeck.report.robustness import robustness_tables
from limbeck.report.text import NONE, count, duration, percent, points, size


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder and return its path; `out` is a file or a folder, the default the run folder.

    Raises UserError for a folder that is no run, and where the page cannot be written.

    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "run.json").write_text(json.dumps({"format": "limbeck-run", "version": 1}))
    ...     write_report(Path(folder)).name
    'report.html'
    """
    page = render_page("report.html", view=_view(read_run(Path(run))))
    return write_page(page, Path(run) / "report.html" if out is None else Path(out))


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page that compares several run folders, and return its path.

    Raises UserError for no folders, for one that is no run, and where the page cannot be written.
    """
    if not runs:
        raise UserError("there is nothing to compare: give at least one run folder.")
    contents = [read_run(Path(run)) for run in runs]
    names = [run.name for run in contents]
    if len(set(names)) < len(names):
        names = [f"{index}: {name}" for index, name in enumerate(names, 1)]
    return write_page(render_page("comparison.html", **_comparison(contents, names)), Path(out))


def render_page(template: str, **values: object) -> str:
    """Render a template of report/templates with these values; all text from files is escaped."""
    pages = resources.files("limbeck.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: pages.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, size=size, duration=duration, count=count)
    environment.filters["tie"] = lambda line: line.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
    # The SVG is our own drawing: no text from a file enters it, so it may skip the escaping.
    environment.filters["svg"] = lambda plot: Markup(plot.svg)
    return environment.get_template(template).render(dash=NONE, **values)


def write_page(page: str, out: Path) -> Path:
    """Write a page, whole or not at all, and return its path; into a folder it goes as report.html.

    Raises UserError where it cannot be written.
    """
    out = out / "report.html" if out.is_dir() else out
    content = page.encode(errors="replace")  # JSON can have half a surrogate pair, and UTF-8 cannot
    try:
        write_atomically(out, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise UserError(f"cannot write the report to {str(out)!r}: {error.strerror or error}.") from error
    return out


def _view(run: Run) -> dict[str, Any]:
    """The values that the template of a report shows."""
    meta, data, config, rows = run.meta, run.meta.data, run.meta.config, run.summary.results
    chosen = _chosen_step(run)
    is_coreset = "lr_net" in config and "iterations" not in config  # it takes no steps
    table = [row for row in rows if not (is_coreset and row.which == "last")]
    machine = {"Device": meta.device, "Threads": count(meta.threads), "Created": meta.created}
    return {
        "name": run.name,
        "headline": _headline(run),
        "facts": _facts(run),
        "is_coreset": is_coreset,
        "tiles": config["factor"] if config.get("factor") not in (None, 1) else None,
        "missing": run.missing,
        "pictures": [picture for picture in run.pictures if not is_coreset or picture.name == "chosen"],
        "rows": [(row, _describe(row), _gain(run, row)) for row in table],
        "balanced": any(row.balanced_accuracy_mean is not None for row in rows),
        "positive": next((row.positive for row in rows if row.positive), None),
        "chosen_by": "balanced " if _chooses_by_balance(config) else "",
        "splits": sorted({row.split or NONE for row in rows}),
        "several_models": len({row.model for row in rows}) > 1,
        "has_random": any(row.set == "random" for row in rows),
        "protocol": run.summary.protocol,
        "heat_maps": heat_maps(run.evaluations.evaluations),
        "robustness": [
            (table, evaluation.protocol)
            for evaluation in run.evaluations.evaluations
            for table in robustness_tables(evaluation.rows)
        ],
        "scores": [score for evaluation in run.evaluations.evaluations for score in evaluation.scores or ()],
        "chosen_step": chosen,
        "curves": _curves(run, chosen),
        "expert_plot": _expert_plot(run),
        "expert_ends": _expert_ends(run),
        "experts": _experts(run),
        "alone": config.get("experts") == "none",
        "storage": _storage(run),
        "stages": [(name, duration(seconds)) for name, seconds in run.summary.seconds.items()],
        "classes": _class_rows(data),
        "totals": _totals(data),
        "shape": " × ".join(map(count, data.shape)) or NONE,
        "data_name": data.name or NONE,
        "fingerprint": data.fingerprint or NONE,
        "notes": data.notes,
        "command": meta.command or NONE,
        "config": json.dumps(config, indent=2, ensure_ascii=False),
        "versions": list(meta.versions.items()),
        "machine": [(name, value or NONE) for name, value in machine.items()],
    }


def _headline_row(run: Run) -> ResultRow | None:
    """The row of the headline: the distilled set on test, at the chosen step rather than the last.

    A row by the field's protocol comes before others.
    """
    rows = [row for row in run.summary.results if row.set not in ("random", "full")]
    rows.sort(key=lambda row: (bool(row.protocol), row.set != "distilled", row.split != "test", row.which != "chosen"))
    return rows[0] if rows else None


def _comparable_row(run: Run, row: ResultRow, name: str) -> ResultRow | None:
    """The row of the set `name` with the network, the images and the protocol of `row`; None where there is none."""
    key = (name, row.model, row.split, row.protocol)
    return next((other for other in run.summary.results if _key(other) == key), None)


def _key(row: ResultRow) -> tuple[str, str, str, str | None]:
    return row.set, row.model, row.split, row.protocol


def _gain(run: Run, row: ResultRow) -> float | None:
    random = _comparable_row(run, row, "random")
    return None if random is None or row.set == "random" else row.accuracy_mean - random.accuracy_mean


def _images_per_class(run: Run) -> int | None:
    ipc = run.meta.config.get("ipc") if run.summary.ipc is None else run.summary.ipc
    return ipc if isinstance(ipc, int) else None


def _accuracy(row: ResultRow) -> str:
    return percent(row.accuracy_mean, row.accuracy_std)


def _headline(run: Run) -> str:
    data = run.meta.data
    name, ipc, classes = data.name or "the data", _images_per_class(run), len(data.classes)
    best = _headline_row(run)
    if best is None:
        validations = run.validations.get("distilled", [])
        step = f"step {max(run.steps):,} is the last logged" if run.steps else "no step is logged"
        progress = [
            f"; validation accuracy was {percent(line.accuracy_mean, line.accuracy_std)} at step {line.step:,}"
            for line in validations[-1:]
        ]
        return f"No result yet for {name}: {step}{''.join(progress)}."
    number = f"{ipc * classes:,}" if ipc and classes else ""
    kind = {"distilled": "", "kmeans": "k-means"}.get(best.set, best.set)
    per_class = f" ({ipc:,} per class)" if ipc else ""
    noun, verb = ("image", "trains") if number == "1" else ("images", "train")
    subject = " ".join(word for word in (number, kind, noun) if word)
    model = best.model or "network"
    article = "an" if model[:1].lower() in "aeio" or model == "mlp" else "a"
    where = {"test": "on test", "validation": "on validation (not test)"}.get(best.split, f"on {best.split or NONE}")
    result = f"{verb} {article} {model} to {_accuracy(best)} (n = {best.n})"
    parts = [f"{subject}{per_class} of {name} {result} {where}"]
    if random := _comparable_row(run, best, "random"):
        parts.append(f"{number + ' ' if number else ''}random real images {_accuracy(random)}")
    if full := _comparable_row(run, best, "full"):
        total = _totals(data)["train"]
        parts.append(f"all {count(total) + ' ' if total else ''}training images {_accuracy(full)}")
    sentence = "; ".join(parts) + (f" (protocol: {best.protocol})." if best.protocol else ".")
    return sentence[0].upper() + sentence[1:]


def _facts(run: Run) -> list[tuple[str, str]]:
    data = run.meta.data
    ipc, train, classes = _images_per_class(run), _totals(data)["train"], len(data.classes)
    facts = [("Method", run.summary.method), ("Data", data.name), ("Images per class", count(ipc) if ipc else "")]
    if ipc and train and classes:
        ratio = train / (ipc * classes)
        facts.append(("Reduction", f"{ratio:,.1f} times fewer" if ratio < 10 else f"{ratio:,.0f} times fewer"))
    if test := _totals(data)["test"]:
        facts.append(("Tested on", f"{count(test)} images, to ± {50 / sqrt(test):.1f} points at most"))
    facts.append(("Total time", duration(_total_seconds(run)) if run.summary.seconds else ""))
    facts.append(("Created", run.meta.created[:16].replace("T", " ")))
    return [(name, value) for name, value in facts if value]


def _total_seconds(run: Run) -> float | None:
    return sum(run.summary.seconds.values()) if run.summary.seconds else None


def _chooses_by_balance(config: dict[str, Any]) -> bool:
    protocol = config.get("eval")
    return isinstance(protocol, dict) and protocol.get("choose_by") == "balanced"


def _describe(row: ResultRow) -> str:
    names = {"random": "random real images", "kmeans": "k-means real images", "full": "all training images"}
    return names.get(row.set, row.set or NONE) + (f", {row.protocol}" if row.protocol else "")


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


def _expert_plot(run: Run) -> Plot | None:
    lines = [
        Line(name, epochs, *mean_with_range(rows), 0 if name == "convexified" else 1)
        for name, epochs, rows in _paths(run)
    ]
    return plot("Expert accuracy (%) along the path", lines, "epoch of the expert", salt="experts")


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


def _totals(data: DataRecord) -> dict[str, int | None]:
    counts = {split: data.counts.get(split) for split in ("train", "validation", "test")}
    return {split: sum(numbers) if numbers else None for split, numbers in counts.items()}


def _class_rows(data: DataRecord) -> list[tuple[str, list[str]]]:
    """(class, images in train, validation and test)."""
    splits = [data.counts.get(split, []) for split in ("train", "validation", "test")]
    return [
        (name, [count(split[label]) if label < len(split) else NONE for split in splits])
        for label, name in enumerate(data.classes)
    ]


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner})
    return flat


def _comparison(runs: list[Run], names: list[str]) -> dict[str, Any]:
    views = [_view(run) for run in runs]
    flats = [_flatten(config) for config in rename_configs([run.meta.config for run in runs])]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    settings = [(key, [_setting(flat[key]) if key in flat else NONE for flat in flats]) for key in keys]
    return {
        "views": [{**view, "name": name} for view, name in zip(views, names)],
        "rows": [_comparison_row(run, name) for run, name in zip(runs, names)],
        "differ": [(key, values) for key, values in settings if len(set(values)) > 1],
        "same_data": len({run.meta.data.fingerprint for run in runs}) == 1,
        "splits": sorted({best.split or NONE for run in runs if (best := _headline_row(run))}),
        "curves": _overlays(runs, names),
    }


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparison_row(run: Run, name: str) -> dict[str, Any]:
    best = _headline_row(run)
    random, full = (_comparable_row(run, best, "random"), _comparable_row(run, best, "full")) if best else (None, None)
    return {
        "name": name,
        "method": run.summary.method or NONE,
        "data": run.meta.data.name or NONE,
        "ipc": count(_images_per_class(run)),
        "best": best,
        "accuracy": _accuracy(best) if best else NONE,
        "gain": _gain(run, best) if best else None,
        "random": _accuracy(random) if random else NONE,
        "full": _accuracy(full) if full else NONE,
        "experts": size(run.experts.bytes.experts),
        "time": duration(_total_seconds(run)),
    }


def _overlays(runs: list[Run], names: list[str]) -> list[Plot]:
    loss, rate, accuracy = [], [], []
    for colour, (run, name) in enumerate(zip(runs, names)):
        steps, validations = list(run.steps), run.validations.get("distilled", [])
        loss.append(Line(name, steps, [finite(line.loss) for line in run.steps.values()], colour=colour))
        rate.append(Line(name, steps, [finite(line.lr) for line in run.steps.values()], colour=colour))
        mean = [100 * line.accuracy_mean for line in validations]
        accuracy.append(Line(name, [line.step for line in validations], mean, colour=colour))
    plots = [
        plot("Loss", loss, "step", salt="loss"),
        plot("Learned step size", rate, "step", salt="rate"),
        plot("Validation accuracy of the distilled set (%)", accuracy, "step", salt="validation"),
    ]
    return [plot for plot in plots if plot is not None]
