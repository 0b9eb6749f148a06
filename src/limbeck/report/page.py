"""One self-contained HTML page for a run, or for several side by side; made from records only, without torch."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.core.errors import UserError
from limbeck.report.plots import Line, Plot, mean_with_range, plot
from limbeck.report.records import Result, Run, items, mapping, number, read_run, text, whole
from limbeck.report.text import NONE, count, duration, percent, points, size


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run folder to `out` (a file or a folder) or into the run folder; returns where it is."""
    page = render_page("report.html", view=_view(read_run(Path(run))))
    return write_page(page, Path(run) / "report.html" if out is None else Path(out))


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page that puts several run folders side by side, and return where it is."""
    if not runs:
        raise UserError("there is nothing to compare: give at least one run folder.")
    read = [read_run(Path(run)) for run in runs]
    names = [run.name for run in read]
    if len(set(names)) < len(names):
        names = [f"{index}: {name}" for index, name in enumerate(names, 1)]
    return write_page(render_page("comparison.html", **_comparison(read, names)), Path(out))


def render_page(template: str, **values: object) -> str:
    """One of the package\'s page templates with these values; everything from files is escaped."""
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
    environment.filters["svg"] = lambda drawn: Markup(drawn.svg)
    return environment.get_template(template).render(dash=NONE, **values)


def write_page(page: str, out: Path) -> Path:
    """Whole or not at all: to a temporary name, then renamed."""
    out = out / "report.html" if out.is_dir() else out
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # A file may hold half a surrogate pair, which JSON can say and UTF-8 cannot.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write the report to {str(out)!r}: {error.strerror or error}.") from error
    return out


def _view(run: Run) -> dict[str, Any]:
    """Everything the template shows, in plain values."""
    data = mapping(run.meta.get("data"))
    chosen = _chosen_step(run)
    models = {row.model for row in run.results}
    config = mapping(run.meta.get("config"))
    kept = "lr_net" in config and "iterations" not in config  # a coreset, which takes no steps
    return {
        "name": run.name,
        "headline": _headline(run),
        "facts": _facts(run),
        "kept": kept,
        "tiles": whole(config.get("factor")) if config.get("factor") != 1 else None,
        "missing": run.missing,
        "pictures": [p for p in run.pictures if p.name == "chosen"] if kept else run.pictures,
        "rows": [(row, _describe(row), _gain(run, row)) for row in run.results if not (kept and row.which == "last")],
        "balanced": any(row.balanced_mean is not None for row in run.results),
        "splits": sorted({row.split or NONE for row in run.results}),
        "several_models": len(models) > 1,
        "has_random": any(row.set == "random" for row in run.results),
        "protocol": text(run.summary.get("protocol")),
        "paper": _chose_on_test(run),
        "chosen_step": chosen,
        "curves": _curves(run, chosen),
        "expert_plot": _expert_plot(run),
        "expert_ends": _expert_ends(run),
        "experts": _experts(run),
        "alone": config.get("experts") == "none",
        "storage": _storage(run),
        "stages": _stages(run),
        "classes": _class_rows(data),
        "totals": _totals(data),
        "shape": " × ".join(count(number(n)) for n in items(data.get("shape"))) or NONE,
        "data_name": text(data.get("name")) or NONE,
        "fingerprint": text(data.get("fingerprint")) or NONE,
        "notes": [text(note) for note in items(data.get("notes"))],
        "command": text(run.meta.get("command")) or NONE,
        "config": json.dumps(mapping(run.meta.get("config")), indent=2, ensure_ascii=False),
        "versions": [(text(k), text(v)) for k, v in mapping(run.meta.get("versions")).items()],
        "machine": [(key.capitalize(), text(run.meta.get(key)) or NONE) for key in ("device", "threads", "created")],
    }


def _best(run: Run) -> Result | None:
    """The row a reader asks for first: the distilled set on test, chosen rather than last."""
    own = [r for r in run.results if r.set not in ("random", "full") and r.mean is not None and not r.protocol]
    own.sort(key=lambda row: (row.set != "distilled", row.split != "test", row.which != "chosen"))
    return own[0] if own else None


def _other(run: Run, row: Result, name: str) -> Result | None:
    """The row of another set that is comparable with this one: same network, same images."""
    alike = (name, row.model, row.split, row.protocol)
    return next((r for r in run.results if (r.set, r.model, r.split, r.protocol) == alike), None)


def _gain(run: Run, row: Result) -> float | None:
    random = _other(run, row, "random")
    if random is None or row.set == "random" or random.mean is None or row.mean is None:
        return None
    return row.mean - random.mean


def _images_per_class(run: Run) -> int | None:
    stated = whole(run.summary.get("ipc"))
    if stated is not None:
        return stated
    settings = _flat(mapping(run.meta.get("config")))
    return next((n for key, value in settings.items() if key.split(".")[-1] == "ipc" and (n := whole(value))), None)


def _headline(run: Run) -> str:
    data = mapping(run.meta.get("data"))
    name, ipc, classes = text(data.get("name")) or "the data", _images_per_class(run), len(items(data.get("classes")))
    best = _best(run)
    if best is None:
        checks = [c for c in run.validations.get("distilled", []) if c.mean is not None]
        last = f"step {max(run.steps):,} is the last logged" if run.steps else "no step is logged"
        seen = [f"; validation accuracy was {percent(c.mean, c.std)} at step {c.step:,}" for c in checks[-1:]]
        return f"No result yet for {name}: {last}{''.join(seen)}."
    many = f"{ipc * classes:,}" if ipc and classes else ""
    kind = {"distilled": "", "kmeans": "k-means"}.get(best.set, best.set)
    each = f" ({ipc:,} per class)" if ipc else ""
    noun = "image trains" if many == "1" else "images train"
    subject = " ".join(word for word in (many, kind, noun.split()[0]) if word)
    spread = percent(best.mean, best.std) + (f" (n = {best.n})" if best.n is not None else "")
    model = best.model or "network"
    article = "an" if model[:1].lower() in "aeio" or model == "mlp" else "a"
    where = {"test": "on test", "validation": "on validation (not test)"}.get(best.split, f"on {best.split or NONE}")
    parts = [f"{subject}{each} of {name} {noun.split()[1]} {article} {model} to {spread} {where}"]
    if (random := _other(run, best, "random")) and random.mean is not None:
        parts.append(f"{many + ' ' if many else ''}random real images {percent(random.mean, random.std)}")
    if (full := _other(run, best, "full")) and full.mean is not None:
        total = _totals(data)["train"]
        parts.append(f"all {count(total) + ' ' if total else ''}training images {percent(full.mean, full.std)}")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def _facts(run: Run) -> list[tuple[str, str]]:
    data = mapping(run.meta.get("data"))
    ipc, train, classes = _images_per_class(run), _totals(data)["train"], len(items(data.get("classes")))
    facts = [("Method", text(run.summary.get("method"))), ("Data", text(data.get("name")))]
    facts.append(("Images per class", count(ipc) if ipc else ""))
    if ipc and train and classes:
        fewer = train / (ipc * classes)
        facts.append(("Reduction", f"{fewer:,.1f} times fewer" if fewer < 10 else f"{fewer:,.0f} times fewer"))
    stages = [s for value in mapping(run.summary.get("seconds")).values() if (s := number(value)) is not None]
    facts.append(("Time in all", duration(sum(stages)) if stages else ""))
    facts.append(("Made", text(run.meta.get("created"))[:16].replace("T", " ")))
    return [(key, value) for key, value in facts if value]


def _describe(row: Result) -> str:
    names = {"distilled": "distilled", "random": "random real images", "kmeans": "k-means real images"}
    names["full"] = "all training images"
    return names.get(row.set, row.set or NONE) + (f", {row.protocol}" if row.protocol else "")


def _chose_on_test(run: Run) -> bool:
    return "paper" in text(run.summary.get("protocol")).lower()


def _chosen_step(run: Run) -> int | None:
    return next(
        (r.step for r in run.results if r.set == "distilled" and r.which == "chosen" and r.step is not None), None
    )


def _curves(run: Run, chosen: int | None) -> list[Plot]:
    steps = list(run.steps)
    marks = [] if chosen is None else [chosen]
    loss = Line("loss", steps, [run.steps[s][0] for s in steps])
    rate = Line("learned step size", steps, [run.steps[s][1] for s in steps], colour=2)
    plots = [
        plot("Loss", [loss], "step", salt="loss", marks=marks),
        plot("Learned step size", [rate], "step", salt="rate", marks=marks) if len(set(rate.y)) > 1 else None,
        plot("Validation accuracy (%)", _validation_lines(run), "step", salt="validation", marks=marks),
    ]
    lost = sum(not _drawn(value) for value, _ in run.steps.values())
    if plots[0] is not None and lost:
        plots[0].notes.append(f"The loss was not a finite number at {lost:,} of {len(steps):,} steps.")
    return [drawn for drawn in plots if drawn is not None]


def _drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _validation_lines(run: Run) -> list[Line]:
    lines = []
    for colour, (which, checks) in enumerate(run.validations.items()):
        low = [None if c.mean is None else 100 * (c.mean - (c.std or 0)) for c in checks]
        high = [None if c.mean is None else 100 * (c.mean + (c.std or 0)) for c in checks]
        mean = [None if c.mean is None else 100 * c.mean for c in checks]
        lines.append(Line(which or NONE, [c.step for c in checks], mean, low, high, colour))
    return lines


def _paths(run: Run) -> list[tuple[str, list[float], list[list[float | None]]]]:
    """(name, epochs, accuracy in percent per expert) of the recorded and the convexified path, where there are any."""
    paths = []
    per_epoch = items(run.experts.get("validation_per_epoch"))
    recorded = mapping(run.experts.get("recorded_path")) or {"accuracy": per_epoch}
    for name, path in (("recorded", recorded), ("convexified", mapping(run.experts.get("convexified_path")))):
        rows = [[number(v) for v in items(row)] for row in items(path.get("accuracy"))]
        longest = max((len(row) for row in rows), default=0)
        t = [number(v) for v in items(path.get("t"))] or [float(i) for i in range(longest)]
        epochs = [v for v in t if v is not None]
        if longest and len(epochs) == len(t):
            cut = [[None if v is None else 100 * v for v in row[: len(epochs)]] for row in rows]
            paths.append((name, epochs[:longest], cut))
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
    """How many experts, how long each trained, how many waypoints are kept."""
    names = (("count", "Experts"), ("epochs", "Epochs each"), ("waypoints", "Waypoints kept of each"))
    return [(label, count(n)) for key, label in names if (n := number(run.experts.get(key))) is not None]


def _storage(run: Run) -> list[tuple[str, str, str]]:
    """(what, size, remark) of everything the run stored."""
    stored = mapping(run.experts.get("bytes"))
    kept = number(stored.get("experts")) or number(mapping(run.summary.get("bytes")).get("experts"))
    every = number(stored.get("recorded_would_be"))
    rows = []
    if kept is not None:
        form = {"recorded": ", every epoch", "both": ", every epoch and convexified"}.get(
            text(run.experts.get("kept")), ", convexified"
        )
        less = every and kept > 0 and every / kept > 1.5
        remark = f"{every / kept:,.1f} times less than every epoch of every expert" if every and less else ""
        rows.append((f"Experts{form}", size(kept), remark))
    if every is not None and text(run.experts.get("kept")) in ("", "convex"):
        rows.append(("Experts, if every epoch were recorded", size(every), "not stored, for comparison"))
    if (one := number(stored.get("parameters"))) is not None:
        rows.append(("One copy of the network's parameters", size(one), ""))
    budget = number(mapping(run.summary.get("bytes")).get("set"))
    if budget is not None:
        rows.append(("Distilled set", size(budget), "images, labels and learned step size"))
    return rows + [(name, size(length), "file") for name, length in run.sets]


def _stages(run: Run) -> list[tuple[str, str]]:
    return [(text(name), duration(number(value))) for name, value in mapping(run.summary.get("seconds")).items()]


def _parts(data: dict[str, Any]) -> dict[str, list[float | None]]:
    counts = mapping(data.get("counts"))
    return {part: [number(n) for n in items(counts.get(part))] for part in ("train", "validation", "test")}


def _totals(data: dict[str, Any]) -> dict[str, float | None]:
    return {k: sum(n for n in v if n is not None) if v else None for k, v in _parts(data).items()}


def _class_rows(data: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(class, images in train, validation and test)."""
    parts = list(_parts(data).values())
    names = items(data.get("classes"))
    return [(text(c), [count(part[i]) if i < len(part) else NONE for part in parts]) for i, c in enumerate(names)]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner})
    return flat


def _comparison(runs: list[Run], names: list[str]) -> dict[str, Any]:
    views = [_view(run) for run in runs]
    flats = [_flat(mapping(run.meta.get("config"))) for run in runs]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    shown = [(key, [_setting(f[key]) if key in f else NONE for f in flats]) for key in keys]
    return {
        "views": [{**view, "name": name} for view, name in zip(views, names)],
        "rows": [_comparison_row(run, name) for run, name in zip(runs, names)],
        "differ": [(key, values) for key, values in shown if len(set(values)) > 1],
        "same_data": len({text(mapping(run.meta.get("data")).get("fingerprint")) for run in runs}) == 1,
        "splits": sorted({best.split or NONE for run in runs if (best := _best(run))}),
        "paper": [name for run, name in zip(runs, names) if _chose_on_test(run)],
        "curves": _overlays(runs, names),
    }


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparison_row(run: Run, name: str) -> dict[str, Any]:
    best = _best(run)
    random, full = (_other(run, best, "random"), _other(run, best, "full")) if best else (None, None)
    stages = [s for value in mapping(run.summary.get("seconds")).values() if (s := number(value)) is not None]
    return {
        "name": name,
        "method": text(run.summary.get("method")) or NONE,
        "data": text(mapping(run.meta.get("data")).get("name")) or NONE,
        "ipc": count(_images_per_class(run)),
        "best": best,
        "gain": _gain(run, best) if best else None,
        "random": random,
        "full": full,
        "experts": size(number(mapping(run.experts.get("bytes")).get("experts"))),
        "time": duration(sum(stages) if stages else None),
    }


def _overlays(runs: list[Run], names: list[str]) -> list[Plot]:
    loss, rate, accuracy = [], [], []
    for colour, (run, name) in enumerate(zip(runs, names)):
        steps = list(run.steps)
        loss.append(Line(name, steps, [run.steps[s][0] for s in steps], colour=colour))
        rate.append(Line(name, steps, [run.steps[s][1] for s in steps], colour=colour))
        checks = run.validations.get("distilled", [])
        mean = [None if c.mean is None else 100 * c.mean for c in checks]
        accuracy.append(Line(name, [c.step for c in checks], mean, colour=colour))
    plots = [
        plot("Loss", loss, "step", salt="loss"),
        plot("Learned step size", rate, "step", salt="rate"),
        plot("Validation accuracy of the distilled set (%)", accuracy, "step", salt="validation"),
    ]
    return [drawn for drawn in plots if drawn is not None]
