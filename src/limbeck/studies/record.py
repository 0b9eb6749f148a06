"""The rows of a study from its run folders, and the study's file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from limbeck.core.files import write_atomically
from limbeck.core.record_files import read_record
from limbeck.core.records import ExpertsRecord, MemoryLine, ResultRow, ResultsRecord, StepLine, ValidationLine
from limbeck.core.study_records import FORMAT, Curve, ExpertPath, RunBytes, StudyRecord, StudyRow
from limbeck.jobs.record import RESULTS, RunFolder
from limbeck.report.plots import mean_with_range
from limbeck.studies.plan import PlannedRun
from limbeck.synthetic.distilled import load

STRETCHES = 100
DIGITS = 5  # of a loss, significant ones


def read_row(run: PlannedRun) -> StudyRow:
    """The row of a finished run, from its folder."""
    folder = RunFolder(run.path)
    results = read_record(run.path / "results.json", ResultsRecord, RESULTS)
    record = folder.read()
    distilled = load(run.path / "set-chosen.safetensors")
    memory = folder.lines(MemoryLine)
    stored = None if run.store is None else results.bytes.experts
    experts = None if run.store is None else run.store.bytes
    images, labels = (tensor.numel() * tensor.element_size() for tensor in distilled.stored_pair)
    return StudyRow(
        cell=run.cell.values,
        seed=run.seed,
        key=run.key,
        results=[_without_classes(row) for row in results.results],
        curve=read_curve(folder.lines(StepLine), folder.lines(ValidationLine)),
        paths=read_paths(run.path / "experts.json"),
        seconds=results.seconds,
        bytes=RunBytes(images=images, labels=labels, experts=experts, stored=stored),
        peak_memory=max((line.process for line in memory if line.process is not None), default=None),
        device_memory=max((line.device for line in memory if line.device is not None), default=None),
        searched=run.cell.searched,
        trials=run.cell.trials,
        computed=record.computed or {},
        threads=record.threads,
        versions=record.versions,
        data=results.data.name,
        ipc=results.ipc,
        created=record.created,
    )


def _without_classes(row: ResultRow) -> ResultRow:
    """The row without its confusion of classes, which a study has no use for."""
    return ResultRow(**row.model_dump(exclude_unset=True, exclude={"class_accuracy", "confusion"}))


def read_curve(steps: Sequence[StepLine], validations: Sequence[ValidationLine]) -> Curve:
    """The curve of a log, in which a step that was repeated after an interruption counts once.

    >>> steps = [StepLine(step=n, loss=1 / n, lr=0.1, seconds=2.0 * n + (n > 1)) for n in (1, 2)]
    >>> values = [ValidationLine(step=n, accuracy_mean=n / 4, n=1, seconds=1.0) for n in (1, 2)]
    >>> curve = read_curve(steps, values)
    >>> curve.steps, curve.accuracy, curve.seconds, curve.loss
    ([1, 2], [0.25, 0.5], [2.0, 4.0], [1.0, 0.5])
    """
    by_step = {line.step: line for line in steps}
    lines = [line for _, line in sorted({line.step: line for line in validations}.items())]
    seconds, validating = [], 0.0
    for line in lines:
        so_far = by_step[line.step].seconds if line.step in by_step else 0.0
        seconds.append(round(max(0.0, so_far - validating), 2))
        validating += line.seconds or 0.0
    stretches = _stretches(sorted(by_step), STRETCHES)
    losses = [[_finite(by_step[step].loss) for step in stretch] for stretch in stretches]
    finite = [[value for value in stretch if value is not None] for stretch in losses]
    return Curve(
        steps=[line.step for line in lines],
        accuracy=[line.accuracy_mean for line in lines],
        std=[line.accuracy_std for line in lines],
        seconds=seconds,
        loss_change=_change([by_step[step].loss for step in sorted(by_step)]),
        loss_steps=[stretch[-1] for stretch in stretches],
        loss=[_round(median(values)) if values else None for values in finite],
        loss_low=[_round(min(values)) if values else None for values in finite],
        loss_high=[_round(max(values)) if values else None for values in finite],
    )


def read_paths(file: Path) -> dict[str, ExpertPath]:
    """The accuracies along the paths of a run's experts, from its experts.json; empty without experts."""
    if not file.exists():
        return {}
    record = read_record(file, ExpertsRecord, "limbeck-experts")
    paths = {"recorded": record.recorded_path, "convexified": record.convexified_path}
    bands = {name: (path, mean_with_range(path.accuracy)) for name, path in paths.items() if path is not None}
    return {
        name: ExpertPath(t=[t for t in path.t if t is not None], mean=mean, low=low, high=high)
        for name, (path, (mean, low, high)) in bands.items()
    }


def _change(losses: Sequence[float | None]) -> float | None:
    """The mean of |log(loss / loss before)|.

    >>> _change([1.0, 2.0, None, 2.0, 1.0]), _change([0.0, 1.0])
    (0.69315, None)
    """
    usable = [value if value is not None and math.isfinite(value) and value > 0 else None for value in losses]
    pairs = [(one, two) for one, two in pairwise(usable) if one is not None and two is not None]
    return _round(fmean(abs(math.log(two / one)) for one, two in pairs)) if pairs else None


def _stretches(steps: list[int], most: int) -> list[list[int]]:
    size = max(1, math.ceil(len(steps) / most))
    return [steps[start : start + size] for start in range(0, len(steps), size)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def read_study_record(path: Path) -> StudyRecord | None:
    """The file of a study; None where there is none yet. Raises UserError where it is damaged."""
    return read_record(path, StudyRecord, FORMAT) if path.exists() else None


def write_study_record(path: Path, record: StudyRecord) -> None:
    """Write the file of a study atomically: JSON with one line for every row, so that its versions can be compared."""
    fields = []
    for name, value in record.to_json().items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n    ".join(json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n    {rows}\n  ]"
        else:
            text = json.dumps(value, allow_nan=False)
        fields.append(f"  {json.dumps(name)}: {text}")
    content = "{\n" + ",\n".join(fields) + "\n}\n"
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
