"""evaluations.json in a run folder: what its sets reached on several networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from limbeck.core.evaluation_records import EvaluationRecord, EvaluationRow, EvaluationsRecord, ScoreRow
from limbeck.core.files import content_key, write_json
from limbeck.core.locks import locked
from limbeck.core.record_files import read_record
from limbeck.core.records import DataName
from limbeck.evaluation.counts import stored_per_class
from limbeck.evaluation.sets import Evaluation
from limbeck.synthetic.distilled import DistilledSet

FORMAT = "limbeck-evaluations"
FILE = "evaluations.json"


def make_record(
    evaluations: Sequence[Evaluation],
    rows: Sequence[EvaluationRow],
    seed: int,
    protocol: str | None = None,
    scores: Sequence[ScoreRow] | None = None,
) -> EvaluationRecord:
    """The record of rows of prepared evaluations; the key says which other rows they are comparable with.

    protocol: In words, where it is not that of the evaluations.
    """
    first = evaluations[0]
    data, config = first.task.data, first.config
    own = next((one for one in evaluations if one.is_own), None)
    description = {
        "model": own.task.model_config.model_dump() if own else first.distilled.recipe["model"],
        "sets": list(dict.fromkeys(_digest(one.distilled) for one in evaluations)),
        "protocol": protocol or config.model_dump(mode="json"),
        "augment": first.task.augment.strategy,
        "data": data.fingerprint,
        "seed": seed,
    }
    models = {row.model for row in rows}
    return EvaluationRecord(
        key=content_key(description),
        data=DataName(name=data.name, fingerprint=data.fingerprint),
        classes=list(data.classes),
        ipc=stored_per_class(first.distilled),
        seed=seed,
        protocol=protocol or config.describe(first.task.augment.strategy),
        computed={
            one.network: {"model": one.task.model_config.model_dump(), **one.task.evaluation_conditions()}
            for one in evaluations
            if one.network in models
        },
        rows=list(rows),
        **({} if scores is None else {"scores": list(scores)}),
    )


def _line(row: EvaluationRow) -> tuple[str | None, ...]:
    return row.model, row.set, row.which, row.lr_from, row.protocol


def _with_earlier_tests(row: EvaluationRow, earlier: EvaluationRow | None) -> EvaluationRow:
    """A row with the tests on perturbed images that the same row had before, but for those that it has itself."""
    if earlier is None or earlier.robustness is None:
        return row
    tests = {
        (test.perturbation, test.severity, test.epsilon, test.steps, test.images): test
        for test in (*earlier.robustness, *(row.robustness or ()))
    }
    return row.model_copy(update={"robustness": list(tests.values())})


def _digest(distilled: DistilledSet) -> str:
    """A digest of images, labels and step size."""
    content = hashlib.sha256(str(distilled.lr).encode())
    for tensor in (distilled.images, distilled.labels):
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()[:12]


def merge_record(folder: Path, record: EvaluationRecord) -> Path:
    """Add a record to evaluations.json in a run folder and return that file's path.

    Where there is one of the same key, its rows stay, but for those of the same set, network and kind of step size.
    Several processes may do so at once.
    """
    with locked(folder / f".{FILE}.lock", lambda other: None):
        return _merge(folder / FILE, record)


def _merge(path: Path, record: EvaluationRecord) -> Path:
    before = read_record(path, EvaluationsRecord, FORMAT).evaluations if path.exists() else []
    other = [evaluation for evaluation in before if evaluation.key != record.key]
    for same in (evaluation for evaluation in before if evaluation.key == record.key):
        rows = {_line(row): row for row in same.rows}
        rows |= {_line(row): _with_earlier_tests(row, rows.get(_line(row))) for row in record.rows}
        scores = record.scores or same.scores
        update = {"rows": list(rows.values()), "scores": scores, "computed": {**same.computed, **record.computed}}
        record = record.model_copy(update=update)
    evaluations = EvaluationsRecord(format=FORMAT, version=1, evaluations=[*other, record])
    write_json(path, evaluations.to_json())
    return path
