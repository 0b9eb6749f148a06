"""One table from many runs, in Markdown; made from results.json and run.json only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from limbeck.core.errors import UserError
from limbeck.report.text import NONE, deviation

MEASURES = {"accuracy": "", "balanced_accuracy": " (balanced accuracy)"}
UNEVEN = 0.005  # where test classes differ in size, so that the two measures differ by more than this, both are shown
SETS = (("distilled", "chosen"), ("distilled", "last"), ("random", None), ("kmeans", None), ("full", None))


@dataclass(frozen=True)
class Cell:
    """Accuracies of one kind of set: mean and standard deviation as fractions, networks per run, runs.

    std: None where there is one network in all.
    """

    mean: float
    std: float | None
    networks: int
    runs: int

    def __str__(self) -> str:
        std = NONE if self.std is None else f"{100 * self.std:.1f}"
        return f"{100 * self.mean:.1f} ± {std} (n = {self.networks})"


def pooled(rows: Sequence[dict[str, Any]], measure: str = "accuracy") -> Cell:
    """One cell from a row per run: the mean of means, and the deviation of one network of one run from it.

    Its variance is that within runs plus that between them. The means of n networks differ by within / n even where
    runs do not, so that between is what their variance has above that, or 0 (analysis of variance, one-way).

    >>> row = {"accuracy_mean": 0.5, "accuracy_std": 0.03, "n": 5}
    >>> pooled([row]).std, round(pooled([row, {**row, "accuracy_mean": 0.58}]).std, 4)
    (0.03, 0.0626)
    >>> str(pooled([{**row, "n": 1}]))
    '50.0 ± – (n = 1)'
    """
    means = [row[f"{measure}_mean"] for row in rows]
    networks = [row["n"] for row in rows]
    variances = [std**2 for row in rows if (std := deviation(row, measure)) is not None]
    within = fmean(variances) if variances else 0.0
    between = max(0.0, variance(means) - within * fmean(1 / n for n in networks)) if len(means) > 1 else 0.0
    std = sqrt(within + between) if variances or len(means) > 1 else None
    return Cell(fmean(means), std, min(networks), len(rows))


def _read(run: Path) -> dict[str, Any]:
    try:
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{run} is not a finished run ({error}); run its command again.") from None
    return {**results, "config": config}


def write_table(runs: Sequence[Path], out: Path, note: str = "") -> Path:
    """One line per (data, images per class, method, setting); runs that differ in their seed alone share a line.

    Accuracies are those of the first network on test. Raises UserError for no folders, and for one that is no finished
    run.
    """
    if not runs:
        raise UserError("a table needs runs; name the folders of one or more finished runs.")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        read = _read(Path(run))
        setting = {key: value for key, value in read["config"].items() if key not in ("seed", "data", "experts")}
        key = (read["data"]["name"], f"{read['ipc']:05d}", read["method"], json.dumps(setting, sort_keys=True))
        groups.setdefault(key, []).append(read)
    every = [(key[0], row) for key, members in groups.items() for member in members for row in member["results"]]
    uneven = {
        data
        for data, row in every
        if row.get("balanced_accuracy_mean") is not None
        and abs(row["balanced_accuracy_mean"] - row["accuracy_mean"]) > UNEVEN
    }
    lines = [
        "| data | images per class | method | setting | distillation seeds "
        "| chosen | last | random | k-means | full data |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, ipc, method, setting_text), members in sorted(groups.items()):
        alike = [json.loads(key[3]) for key in groups if key[:3] == (data, ipc, method)]
        said = _difference(json.loads(setting_text), alike)
        for measure, name in MEASURES.items():
            if measure != "accuracy" and data not in uneven:
                continue
            protocols = dict.fromkeys(row.get("protocol", "") for member in members for row in member["results"])
            for protocol in protocols:
                cells = [_cell(members, each[0], each[1], measure, protocol) for each in SETS]
                where, how = f"{data}{name}", "; ".join(part for part in (said, protocol) if part)
                lines.append(f"| {where} | {int(ipc)} | {method} | {how} | {len(members)} | {' | '.join(cells)} |")
    text = "\n".join([f"# Results\n\n{note}".rstrip(), "", *lines, "", CAPTION, ""])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)
    return out


def _difference(setting: dict[str, Any], alike: Sequence[dict[str, Any]]) -> str:
    """In what this setting differs from the others of its method, as option = value; nothing where it is the only one.

    >>> _difference({"a": 1, "b": 2}, [{"a": 1, "b": 2}, {"a": 1, "b": 3}])
    'b = 2'
    """
    names = [name for name in setting if any(other.get(name) != setting[name] for other in alike)]
    return ", ".join(f"{name} = {setting[name]}" for name in names)


def _cell(members: list[dict[str, Any]], name: str, which: str | None, measure: str, protocol: str) -> str:
    rows = []
    for member in members:
        held = [row for row in member["results"] if row.get("protocol", "") == protocol and row["split"] == "test"]
        rows += [row for row in held if (row["set"], row["which"]) == (name, which)][:1]
    return str(pooled(rows, measure)) if rows else NONE


CAPTION = """Accuracy in % on test, mean ± standard deviation of n fresh networks per distillation seed. With several
seeds the mean is over seeds, and the variance is that within seeds plus that between them (of which the scatter of the
means of n networks is no part); one network has no deviation (–). Chosen is the step that did
best on validation images, last the final one. Random and k-means are real images at the same budget; the test images
chose nothing."""
