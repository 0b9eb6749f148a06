"""Files say their version: a newer one is refused with what to do, one without a version is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.core.errors import NewerError, UserError
from limbeck.core.evaluation_records import EvaluationsRecord
from limbeck.core.record_files import read_record
from limbeck.core.records import ResultsRecord
from limbeck.core.tensors import read_tensors, write_tensors
from limbeck.experts import Store
from limbeck.jobs.record import RunFolder
from limbeck.report.page import write_report
from limbeck.studies.record import read_study_record

GOLDEN = Path(__file__).parents[1] / "golden"
Read = Callable[[Path], object]
RECORDS: dict[str, tuple[str, Read]] = {
    "run.json": ("limbeck-run", lambda path: RunFolder(path.parent).read()),
    "results.json": ("limbeck-results", lambda path: read_record(path, ResultsRecord, "limbeck-results")),
    "evaluations.json": (
        "limbeck-evaluations",
        lambda path: read_record(path, EvaluationsRecord, "limbeck-evaluations"),
    ),
    "store.json": ("limbeck-store", lambda path: Store.open(path.parent)),
    "study.json": ("limbeck-study", read_study_record),
}
TENSORS: dict[str, Read] = {
    "limbeck-set": limbeck.load,
    "limbeck-state": lambda path: read_tensors(path, "limbeck-state"),
    "limbeck-expert": lambda path: read_tensors(path, "limbeck-expert"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_a_newer_version_is_refused(name: str, tmp_path: Path) -> None:
    kind, read = RECORDS[name]
    (tmp_path / name).write_text(json.dumps({"format": kind, "version": 99}))
    with pytest.raises(NewerError, match=r"version 99.*upgrade limbeck"):
        read(tmp_path / name)


@pytest.mark.parametrize("version", ["1", None, 0, -1, 1.5, True])
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_with_an_odd_version_is_damaged(name: str, version: object, tmp_path: Path) -> None:
    kind, read = RECORDS[name]
    (tmp_path / name).write_text(json.dumps({"format": kind, "version": version}))
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_a_newer_version_are_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.zeros(1)}, {"format": kind, "version": 99})
    with pytest.raises(NewerError, match=r"version 99.*upgrade limbeck"):
        TENSORS[kind](path)


def test_a_report_refuses_a_newer_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": "limbeck-run", "version": 99}))
    with pytest.raises(UserError, match="upgrade limbeck"):
        write_report(tmp_path)


def test_the_golden_set_is_read() -> None:
    assert len(limbeck.load(GOLDEN / "set.safetensors").images) > 0
