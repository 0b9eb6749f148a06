"""A run folder and a study's file of today's versions: later versions read them, and go on with the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.core.errors import UserError
from limbeck.core.files import content_key
from limbeck.core.record_files import read_record
from limbeck.core.records import ExpertsRecord, ResultsRecord, StateHeader, StepLine, ValidationLine
from limbeck.core.tensors import read_tensors
from limbeck.jobs.record import RESULTS, STATE, RunFolder
from limbeck.progress.watch import look
from limbeck.report.page import write_report
from limbeck.studies.record import read_study_record, write_study_record

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS: dict[str, Any] = {
    "num_experts": 2,
    "model": {"width": 4},
    "expert": {"epochs": 2, "lr": 0.05},
    "iterations": 4,
    "syn_steps": 2,
    "max_start_epoch": 1,
    "expert_epochs": 1,
    "lr_img": 5.0,
    "lr_teacher": 0.05,
    "validate_every": 2,
    "validate_networks": 1,
    "validate_epochs": 2,
    "eval": {"epochs": 2, "networks": 1, "full_epochs": 1, "full_networks": 1, "baseline_lrs": (0.01,)},
}
"""tests/golden/run was made from digits by `limbeck distill` with these options, without its pictures and its page."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy, into which a command may write."""
    return Path(shutil.copytree(GOLDEN / "run", tmp_path / "run"))


def test_every_file_of_the_golden_run_is_read(run: Path) -> None:
    folder = RunFolder(run)
    record = folder.read()
    assert record.key == content_key(record.config)
    results = read_record(run / "results.json", ResultsRecord, RESULTS)
    names = ["distilled", "distilled", "random", "kmeans", "full"]
    assert [row.set for row in results.results] == names
    assert [row.n for row in results.results] == [1] * 5
    experts = read_record(run / "experts.json", ExpertsRecord, "limbeck-experts")
    assert experts.convexified_path is not None
    assert [line.step for line in folder.lines(StepLine)] == [1, 2, 3, 4]
    assert [line.step for line in folder.lines(ValidationLine)] == [0, 2, 4]
    assert look(run).state == "finished"


def test_the_golden_sets_and_state_are_read(run: Path) -> None:
    tensors, header = read_tensors(run / "state.safetensors", STATE)
    assert StateHeader.model_validate(header).step == 4
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    for which in ("last", "chosen"):
        distilled = limbeck.load(run / f"set-{which}.safetensors")
        assert distilled.images.shape == (10, 1, 8, 8)
        assert distilled.labels.tolist() == list(range(10))
        assert distilled.lr == pytest.approx(0.05, rel=0.1)
        assert bool(torch.isfinite(distilled.images).all())


def test_the_golden_run_is_finished_for_the_same_options(run: Path) -> None:
    assert limbeck.prepare("digits", out=run, **OPTIONS).is_finished


def test_the_golden_run_has_a_report(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")


def test_the_golden_study_is_read_and_written(tmp_path: Path) -> None:
    record = read_study_record(GOLDEN / "study.json")
    assert record is not None
    assert record.title == "Two methods"
    assert [row.cell for row in record.rows] == [{"method": "MTT"}, {"method": "MCT"}]
    assert [row.curve.steps for row in record.rows] == [[0, 2, 4]] * 2
    assert record.comparisons[0].cell == {"method": "MCT"}
    write_study_record(tmp_path / "study.json", record)
    assert read_study_record(tmp_path / "study.json") == record


@pytest.mark.parametrize(
    "change",
    [
        lambda study: study["rows"][0]["cell"].clear(),
        lambda study: study["comparisons"][0]["against"].clear(),
        lambda study: study["comparisons"][0].update(axis="nan"),
        lambda study: study["rows"][0]["curve"]["accuracy"].pop(),
        lambda study: study["rows"][0]["curve"]["loss_high"].append(1.0),
    ],
)
def test_a_study_whose_parts_do_not_fit_is_damaged(tmp_path: Path, change: Any) -> None:
    """Each was a traceback of the page or of the table."""
    study = json.loads((GOLDEN / "study.json").read_text())
    change(study)
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(UserError, match="damaged"):
        read_study_record(tmp_path / "study.json")
