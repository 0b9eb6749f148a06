"""One Markdown table of many runs, from their results.json and run.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, NamedTuple

from pydantic import JsonValue

from limbeck.core.aliases import rename_configs
from limbeck.core.disk import make_folder
from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import EvaluationRow, EvaluationsRecord
from limbeck.core.files import write_atomically
from limbeck.core.record_files import read_record
from limbeck.core.records import DataRecord, ResultRow, ResultsRecord, RunRecord
from limbeck.core.text import printable
from limbeck.report.text import NONE, per_class

MEASURES = {"accuracy": "", "balanced_accuracy": " (balanced accuracy)"}
MEASURES |= {"sensitivity": " (sensitivity)", "specificity": " (specificity)", "auc": " (AUC)"}
UNEVEN = 0.005  # a table shows both measures where they differ by more: classes of the test part differ in size
SETS = (("distilled", "chosen"), ("distilled", "last"), ("random", None), ("kmeans", None), ("full", None))


@dataclass(frozen=True)
class Cell:
    """Accuracies of one kind of set: mean and standard deviation as fractions, networks per run, runs.

    std: None where there is one network in all.
    within, between: The standard deviations of networks of one run, and of the means of runs; None where there is one.
    """

    mean: float
    std: float | None
    networks: int
    runs: int
    within: float | None = None
    between: float | None = None

    def __str__(self) -> str:
        std = "" if self.std is None else f" ± {100 * self.std:.1f}"
        return f"{100 * self.mean:.1f}{std} (n = {self.networks})"


def pool_runs(rows: Sequence[ResultRow], measure: str = "accuracy") -> Cell:
    """Pool one row of each run: the mean of their means, and the standard deviation of one network of one run.

    The variance is the sum of that within runs and that between runs (one-way analysis of variance). The means of n
    networks differ by within / n even where runs do not, so between is their variance less within / n, at least 0.

    >>> row = ResultRow(set="random", model="convnet", split="test", accuracy_mean=0.5, accuracy_std=0.03, n=5)
    >>> pool_runs([row]).std, round(pool_runs([row, row.model_copy(update={"accuracy_mean": 0.58})]).std, 4)
    (0.03, 0.0626)
    >>> str(pool_runs([row.model_copy(update={"n": 1, "accuracy_std": None})]))
    '50.0 (n = 1)'
    """
    means = [getattr(row, f"{measure}_mean") for row in rows]
    networks = [row.n for row in rows]
    variances = [std**2 for row in rows if (std := getattr(row, f"{measure}_std")) is not None]
    within = fmean(variances) if variances else 0.0
    between = max(0.0, variance(means) - within * fmean(1 / n for n in networks)) if len(means) > 1 else 0.0
    std = sqrt(within + between) if variances or len(means) > 1 else None
    spread = (sqrt(within) if variances else None, stdev(means) if len(means) > 1 else None)
    return Cell(fmean(means), std, min(networks), len(rows), *spread)


class FinishedRun(NamedTuple):
    """The results of a run, its configuration and data, and its evaluations on several networks."""

    results: ResultsRecord
    config: dict[str, JsonValue]
    data: DataRecord
    evaluations: EvaluationsRecord


def _read(run: Path) -> FinishedRun:
    try:
        results = read_record(run / "results.json", ResultsRecord, "limbeck-results")
        record = read_record(run / "run.json", RunRecord, "limbeck-run")
        path = run / "evaluations.json"
        evaluations = EvaluationsRecord()
        if path.exists():
            evaluations = read_record(path, EvaluationsRecord, "limbeck-evaluations")
        return FinishedRun(results, record.config, record.data, evaluations)
    except UserError as error:
        raise UserError(f"{run} is not a finished run ({str(error).rstrip('.')}); run its command again.") from None


def write_table(runs: Sequence[Path], out: Path, note: str = "") -> Path:
    """Write one line per data set, images per class, method and setting; runs that differ only in their seed share it.

    The size of the images, and how many there are for training, belong to the setting: they say how the data was read.
    Accuracies are those of the first network on test. A second table has one line for each network, where runs were
    evaluated on several. Returns `out`. Raises UserError for no folders, and for a folder
    that is no finished run.
    """
    if not runs:
        raise UserError("a table needs runs; name the folders of one or more finished runs.")
    groups: dict[tuple[str, ...], list[ResultsRecord]] = {}
    evaluations: dict[tuple[str, ...], list[EvaluationsRecord]] = {}
    finished = [_read(Path(run)) for run in runs]
    for run, key in zip(finished, _keys(finished)):
        groups.setdefault(key, []).append(run.results)
        evaluations.setdefault(key, []).append(run.evaluations)
    uneven = {results.data.name for members in groups.values() for results in members if _is_uneven(results)}
    lines = [
        "| data | images per class | method | setting | distillation seeds "
        "| chosen | last | random | k-means | full data |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, ipc, method, setting_text), members in sorted(groups.items()):
        settings = [json.loads(key[3]) for key in groups if key[:3] == (data, ipc, method)]
        difference = _difference(json.loads(setting_text), settings)
        images = per_class(int(ipc), json.loads(setting_text))
        protocols = dict.fromkeys(row.protocol for member in members for row in member.results)
        for measure, label in MEASURES.items():
            is_shown = data in uneven if measure == "balanced_accuracy" else _has(members, measure)
            if not is_shown:
                continue
            for protocol in protocols:
                cells = [_cell(members, name, which, measure, protocol) for name, which in SETS]
                where, how = f"{data}{label}", "; ".join(part for part in (difference, protocol) if part)
                lines.append(_line(where, images, method, how, len(members), *cells))
    by_network = [line for key in sorted(groups) for line in _network_lines(key, list(groups), evaluations[key])]
    if by_network:
        lines += ["", *NETWORKS_HEAD, *by_network]
    text = "\n".join([f"# Results\n\n{note}".rstrip(), "", *lines, "", CAPTION, ""])
    make_folder(out.parent)
    write_atomically(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return out


def _keys(runs: Sequence[FinishedRun]) -> list[tuple[str, ...]]:
    """Data set, images per class, method and setting of every run; runs of one key differ in their seed alone.

    Another seed splits data without splits of its own in another way, so that the fingerprint of the images tells runs
    apart only where their seed is the same; so does the store of experts.
    """
    settings: list[dict[str, JsonValue]] = []
    for run, config in zip(runs, rename_configs([run.config for run in runs])):
        read = {"image": "x".join(map(str, run.data.shape)), "training images": sum(run.data.counts.get("train", []))}
        settings.append({name: value for name, value in config.items() if name not in ("seed", *APART)} | read)
    for name in APART:
        keys = list(map(_key, runs, settings))
        seeds = [(key, str(run.config.get("seed"))) for run, key in zip(runs, keys)]
        for run, setting, seed in zip(runs, settings, seeds):
            if len({str(one.config.get(name)) for one, other in zip(runs, seeds) if other == seed}) > 1:
                setting[name] = run.config.get(name)
    return list(map(_key, runs, settings))


APART = ("data", "experts")
"""Options that tell apart runs of the same seed alone: the fingerprint of the images, and the store of experts."""


def _key(run: FinishedRun, setting: dict[str, JsonValue]) -> tuple[str, ...]:
    results = run.results
    return results.data.name, f"{results.ipc or 0:05d}", results.method, json.dumps(setting, sort_keys=True)


NETWORK_COLUMNS = (
    ("chosen, its own step size", "distilled", "chosen", "set"),
    ("chosen, step size by validation", "distilled", "chosen", "validation"),
    ("last, its own step size", "distilled", "last", "set"),
    ("last, step size by validation", "distilled", "last", "validation"),
    ("random", "random", None, "validation"),
    ("k-means", "kmeans", None, "validation"),
    ("full data", "full", None, "protocol"),
)
"""Name of the column, set, which of a distilled one, and where its step size comes from."""
NETWORKS_HEAD = [
    "| data | images per class | method | setting | network | distillation seeds | "
    + " | ".join(column[0] for column in NETWORK_COLUMNS)
    + " |",
    "|---" * (6 + len(NETWORK_COLUMNS)) + "|",
]


def _network_lines(
    key: tuple[str, ...], keys: Sequence[tuple[str, ...]], members: Sequence[EvaluationsRecord]
) -> Iterator[str]:
    """The lines of one group of runs in the table of networks; of evaluations of one protocol the newest counts."""
    data, ipc, method, setting = key
    settings = [json.loads(other[3]) for other in keys if other[:3] == key[:3]]
    newest = [{evaluation.protocol: evaluation.rows for evaluation in member.evaluations} for member in members]
    protocols = list(dict.fromkeys(protocol for by_protocol in newest for protocol in by_protocol))
    for protocol in protocols:
        runs = [by_protocol[protocol] for by_protocol in newest if protocol in by_protocol]
        how = [_difference(json.loads(setting), settings), protocol if len(protocols) > 1 else ""]
        for network in dict.fromkeys(row.model for rows in runs for row in rows):
            own = [[row for row in rows if row.model == network] for rows in runs]
            cells = [_network_cell(own, *column[1:]) for column in NETWORK_COLUMNS]
            head = (
                data,
                per_class(int(ipc), json.loads(setting)),
                method,
                "; ".join(filter(None, how)),
                network,
                sum(map(bool, own)),
            )
            yield _line(*head, *cells)


def _line(*cells: object) -> str:
    """A line of a Markdown table. Names come from files: a cell is one line of text, and has no bars of its own.

    >>> _line("cats | dogs\\n", 1)
    '| cats \\\\| dogs\\\\n | 1 |'
    """
    words = (printable(str(cell)).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(words)} |"


def _network_cell(runs: Sequence[Sequence[EvaluationRow]], name: str, which: str | None, origin: str) -> str:
    """The cell of one set on one network, from one row of each run."""
    key = (name, which, origin)
    rows = [row for run in runs for row in run if (row.set, row.which, row.lr_from) == key]
    return str(pool_runs(rows)) if rows else NONE


def _difference(setting: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    """The options in which a setting differs from others of its method, as "option = value"; "" for a single setting.

    >>> _difference({"a": 1, "b": 2}, [{"a": 1, "b": 2}, {"a": 1, "b": 3}])
    'b = 2'
    """
    names = [name for name in setting if any(other.get(name) != setting[name] for other in settings)]
    return ", ".join(f"{name} = {setting[name]}" for name in names)


def _has(members: Sequence[ResultsRecord], measure: str) -> bool:
    """Whether every row of these runs has the measure, as rows of runs of two classes have sensitivity."""
    return all(getattr(row, f"{measure}_mean") is not None for member in members for row in member.results)


def _is_uneven(results: ResultsRecord) -> bool:
    """Whether plain and balanced accuracy differ, as they do where classes of the test part differ in size."""
    return any(
        row.balanced_accuracy_mean is not None and abs(row.balanced_accuracy_mean - row.accuracy_mean) > UNEVEN
        for row in results.results
    )


def _cell(members: Sequence[ResultsRecord], name: str, which: str | None, measure: str, protocol: str | None) -> str:
    """The cell of one set, from one row of each run."""
    key = (name, which, protocol, "test")
    rows = []
    for member in members:
        rows += [row for row in member.results if (row.set, row.which, row.protocol, row.split) == key][:1]
    return str(pool_runs(rows, measure)) if rows else NONE


CAPTION = """Accuracy in % on test, mean ± standard deviation of n fresh networks per distillation seed. With several
seeds the mean is over seeds, and the variance is the sum of that within seeds and that between seeds (without the
scatter of the means of n networks); one network has no deviation (–). "Chosen" is the step with the best validation
accuracy, "last" the final one. "Random" and "k-means" are real images, as many as the set stores: an image of tiles
counts as one, though networks are trained on its tiles, and a canvas as the images whose pixels it has. The test images
chose nothing. Of two classes, sensitivity is the share of the second class's images that are classified as it,
specificity that of the first's, and AUC the area under the ROC curve."""
