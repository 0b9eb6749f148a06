"""Studies: what is computed once and what is resumed, the record, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from small_runs import set_bytes
from small_studies import STUDY, read_record, start_here, write_file

import limbeck
from limbeck import UserError
from limbeck.core.records import StepLine, ValidationLine
from limbeck.engines import Local
from limbeck.jobs.record import RunFolder
from limbeck.report.study_page import write_study_page
from limbeck.studies.config import read_study
from limbeck.studies.opened import plan_study
from limbeck.studies.record import read_curve, write_study_record
from limbeck.studies.run import run_study
from limbeck.studies.units import make_units

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def study(shared_home: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study whose first run lost its parent in the middle, and that was then finished."""
    path = write_file(tmp_path_factory.mktemp("study"))
    work = path.parent / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared_home))
        patch.setenv("OMP_NUM_THREADS", "1")
        units = make_units(plan_study(path, work=work).plan, Local().shares)
        unit = next(unit for unit in units if unit.kind == "run")
        process = Local().start(unit.work(1, tmp_path_factory.mktemp("errors")))
        events = process.events()
        assert any(event.get("name") == "distill" for event in events)
        assert process.process.stdin is not None
        process.process.stdin.close()  # as where its parent was killed
        assert process.process.wait(60) == 1, "it ends with its parent"
        assert (unit.run.path / "log.jsonl").exists()
        assert not (unit.run.path / "results.json").exists()
        patch.setattr(Local, "start", start_here([]))
        run_study(path, work=work, tell_cost=False)
    return path


def test_an_interrupted_study_holds_what_distill_gives_bit_for_bit(study: Path, tmp_path: Path) -> None:
    record, options = read_record(study), read_study(study)[0].options
    assert [row.cell["method"] for row in record.rows] == ["MTT", "MCT"]
    for row in record.rows:
        method = {"method": row.cell["method"].lower(), "syn_steps": 2, "max_start_epoch": 1, "expert_epochs": 1}
        run = limbeck.distill(out=tmp_path / row.cell["method"], **method, **options)
        results = json.loads((run / "results.json").read_text())
        of_classes = {"class_accuracy", "confusion"}  # which a study leaves out
        rows = [{name: value for name, value in row.items() if name not in of_classes} for row in results["results"]]
        assert [result.to_json() for result in row.results] == rows
        assert row.key == json.loads((run / "run.json").read_text())["key"]
        lines = RunFolder(run)
        curve = read_curve(lines.lines(StepLine), lines.lines(ValidationLine))
        times = {"seconds": row.curve.seconds}
        assert row.curve == curve.model_copy(update=times)
        (folder,) = (study.parent / "work").glob(f"{row.key}-*")
        assert set_bytes(folder) == set_bytes(run)
        assert row.bytes.images == limbeck.load(run).images.numel() * 4
        assert row.peak_memory is not None
        assert 50e6 < row.peak_memory < 4e9


def test_the_record_has_curves_bytes_and_single_networks(study: Path) -> None:
    record = read_record(study)
    assert [row.cell["method"] for row in record.rows] == ["MTT", "MCT"]
    for row in record.rows:
        assert row.curve.steps == [0, 2, 4]
        assert row.curve.loss_steps == [1, 2, 3, 4]
        assert row.curve.seconds == sorted(row.curve.seconds)
        for result in row.results:
            assert result.accuracies is not None
            assert fmean(result.accuracies) == pytest.approx(result.accuracy_mean)
        assert set(row.seconds) == {"experts", "distill", "evaluate"}
        assert row.paths["recorded"].t == [0, 1, 2]
        assert row.paths["recorded"].mean == row.paths["recorded"].low, "one expert"
        assert row.paths["convexified"].mean[-1] == row.paths["recorded"].mean[-1], "both end in the same network"
    mtt, mct = (row.bytes.experts or 0 for row in record.rows)
    folder = next(path for path in (study.parent / "work").glob(f"{record.rows[0].key}-*"))
    parameters = json.loads((folder / "experts.json").read_text())["parameters"]
    assert 0 < 4 * parameters - (mtt - mct) < 200, "three recorded epochs; two waypoints, and beta by epoch and layer"
    assert record.rows[0].bytes.stored == record.rows[1].bytes.stored, "one store of both forms"


def test_rows_of_another_machine_are_taken_over(study: Path, tmp_path: Path, orders: list[dict[str, Any]]) -> None:
    path, work = write_file(tmp_path), tmp_path / "work"
    record = run_study(path, work=work, merge=[study.with_suffix(".json")])
    assert orders == []
    assert record.rows == read_record(path).rows == read_record(study).rows
    with pytest.raises(UserError, match=r"nothing\.json"):
        plan_study(path, merge=[tmp_path / "nothing.json"])


def test_what_is_done_is_not_done_again(study: Path, tmp_path: Path, orders: list[dict[str, Any]]) -> None:
    path = write_file(tmp_path)
    path.with_suffix(".json").write_bytes(study.with_suffix(".json").read_bytes())
    record = run_study(path, work=tmp_path / "work")
    assert orders == []
    assert record == read_record(study)
    reordered = STUDY.replace("MCT]", "ours]").replace('title = "Two methods"', 'title = "Another title"')
    record = run_study(write_file(tmp_path, reordered), work=tmp_path / "work")
    assert orders == []
    assert [row.cell["method"] for row in record.rows] == ["MTT", "ours"], "a row is known by what it computed"


def test_runs_of_another_record_are_taken_from_their_folders(
    study: Path, tmp_path: Path, orders: list[dict[str, Any]]
) -> None:
    path, work = write_file(tmp_path), study.parent / "work"
    assert run_study(path, work=work).rows == read_record(study).rows
    assert orders == []
    older = read_record(path)
    rows = [row.model_copy(update={"paths": {}}) for row in older.rows]
    elsewhere = rows[1].model_copy(update={"created": "on another day"})
    write_study_record(path.with_suffix(".json"), older.model_copy(update={"rows": [rows[0], elsewhere]}))
    rows = run_study(path, work=work).rows
    assert rows[0] == older.rows[0], "a row of an earlier version gets what it lacks"
    assert rows[1] == elsewhere, "a row of another machine stays as it is"


def test_a_changed_option_is_a_run_of_its_own_and_the_old_row_stays_apart(
    study: Path, tmp_path: Path, orders: list[dict[str, Any]]
) -> None:
    text = STUDY.replace('method = "mct"', 'method = "mct"\nlr_img = 0.5')
    path = write_file(tmp_path, text)
    path.with_suffix(".json").write_bytes(study.with_suffix(".json").read_bytes())
    plan = plan_study(path, work=tmp_path / "work")
    assert [run.cell.values["method"] for run in plan.left] == ["MCT"]
    assert [row.cell["method"] for row in plan.earlier] == ["MCT"]
    record = plan.record()
    assert [row.cell["method"] for row in record.rows] == ["MTT"]
    assert record.earlier == [row for row in read_record(study).rows if row.cell["method"] == "MCT"]


def test_a_failed_run_is_recorded_and_the_others_go_on(
    study: Path, tmp_path: Path, orders: list[dict[str, Any]]
) -> None:
    """The second run of a method finds a folder in its way; it is tried again by the next call."""
    path = write_file(tmp_path)
    work = tmp_path / "work"
    plan = plan_study(path, work=work).plan
    (plan[1].path / "in the way").mkdir(parents=True)
    for source in (study.parent / "work").glob(f"{plan[0].key}-*"):
        source_copy = work / source.name
        source_copy.symlink_to(source)
    record = run_study(path, work=work, tell_cost=False)
    assert [order["name"] for order in orders] == ["method=MCT, seed 0"]
    (failure,) = record.failures
    assert failure.cell == {"method": "MCT"}
    assert "exists and is not a run of limbeck" in failure.sentence
    assert [row.cell["method"] for row in record.rows] == ["MTT"]
    assert read_record(path).failures == [failure]


def test_the_page_shows_tables_differences_and_curves(study: Path, tmp_path: Path) -> None:
    page = write_study_page(read_record(study), tmp_path / "page.html").read_text()
    for text in ("Two methods", "MCT", "1 × 2", "against outer steps", "against seconds", "Differences"):
        assert text in page
    titles = ("Validation accuracy (%) against outer steps", "Validation accuracy (%) against seconds", "Loss")
    titles += ("Experts' validation accuracy (%) along their paths, digits",)
    titles += ("Test accuracy (%) against the experts' bytes, digits, 1 per class",)
    for title in titles:
        assert title.replace("'", "&#39;") in page
    assert page.count("<svg") == 5
    assert "http" not in page.replace("http-equiv", ""), "it reads nothing from elsewhere"
