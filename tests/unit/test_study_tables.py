"""The tables of a study: measures stand where a cell has them, and where they say more than accuracy."""

from __future__ import annotations

from typing import Any

from limbeck.core.study_records import StudyRecord
from limbeck.report.study import results_table


def make_row(data: str, **measures: float) -> dict[str, Any]:
    result: dict[str, Any] = {"set": "distilled", "which": "chosen", "model": "convnet", "split": "test", "n": 3}
    for name, value in measures.items():
        result |= {f"{name}_mean": value, f"{name}_std": 0.01}
    return {"cell": {"data": data}, "seed": 0, "key": data, "results": [result], "data": data, "ipc": 1}


def test_a_measure_has_a_line_only_in_cells_that_have_it() -> None:
    even, uneven = {"accuracy": 0.8, "balanced_accuracy": 0.801}, {"accuracy": 0.8, "balanced_accuracy": 0.7}
    rows = [make_row("even", **even), make_row("uneven", **uneven), make_row("two", **uneven, sensitivity=0.9, auc=0.9)]
    facts = {"format": "limbeck-study", "version": 1, "title": "t", "seeds": [0], "study": {}, "planned": 3}
    record = StudyRecord.model_validate({**facts, "axes": {"data": ["even", "uneven", "two"]}, "rows": rows})
    head, lines = results_table(record)
    assert head[:3] == ["data", "measure", "n"]
    assert [tuple(line[:2]) for line in lines] == [
        ("even", "accuracy"),
        ("uneven", "accuracy"),
        ("uneven", "balanced accuracy"),
        ("two", "accuracy"),
        ("two", "balanced accuracy"),
        ("two", "sensitivity"),
        ("two", "AUC"),
    ]
