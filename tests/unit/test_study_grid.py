"""The grid of a study, its curves, and its comparisons."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from small_studies import STUDY, write_file

from limbeck import UserError
from limbeck.core.records import ResultRow, StepLine, ValidationLine
from limbeck.core.study_records import Curve, StudyRecord, StudyRow
from limbeck.engines import Local
from limbeck.jobs.estimate import Estimate
from limbeck.report.study import stability_table
from limbeck.studies.cells import by_seed, make_cells
from limbeck.studies.compare import compare_cells
from limbeck.studies.config import Comparison, Study
from limbeck.studies.opened import plan_study
from limbeck.studies.plan import estimate_runs
from limbeck.studies.record import read_curve
from limbeck.studies.run import run_study
from limbeck.studies.units import make_units

pytestmark = pytest.mark.usefixtures("home")


GRID: dict[str, Any] = {
    "title": "A grid",
    "options": {"data": "digits", "model": {"width": 4}, "ipc": 1},
    "axes": {
        "method": {"MTT": {"method": "mtt"}, "MCT": {"method": "mct", "seeds": [5]}},
        "size": {"small": {}, "large": {"model": {"depth": 2}, "ipc": 2}},
    },
}


def test_cells_are_the_product_of_the_axes_without_what_is_skipped() -> None:
    cells = make_cells(Study(**GRID, seeds=(0, 1), skip=[{"method": "MTT", "size": "large"}]))
    assert [cell.values for cell in cells] == [
        {"method": "MTT", "size": "small"},
        {"method": "MCT", "size": "small"},
        {"method": "MCT", "size": "large"},
    ]
    assert [cell.seeds for cell in cells] == [(0, 1), (5,), (5,)]
    assert cells[2].options == {"data": "digits", "model": {"width": 4, "depth": 2}, "ipc": 2, "method": "mct"}


def test_overrides_win_over_axes_in_the_cells_that_they_name() -> None:
    override = {"where": {"method": "MCT", "size": "large"}, "options": {"ipc": 7, "model": {"width": 9}}}
    cells = make_cells(Study(**GRID, overrides=[override]))
    assert [cell.options["ipc"] for cell in cells] == [1, 2, 1, 7]
    assert cells[3].options["model"] == {"width": 9, "depth": 2}


def test_runs_are_ordered_seed_by_seed() -> None:
    """A study that is stopped half way has every cell."""
    runs = [(cell.values["size"], seed) for cell, seed in by_seed(make_cells(Study(**GRID, seeds=(0, 1))))]
    assert runs[:4] == [("small", 0), ("large", 0), ("small", 5), ("large", 5)]
    assert runs[4:] == [("small", 1), ("large", 1)]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("title =", "titel ="), "title: field required"),
        (('axis = "method"', 'axis = "methods"'), "there is no axis methods; the axes are method"),
        (('against = "MTT"', 'against = "DM"'), "the axis method has no value DM; it has MTT, MCT"),
        (("num_experts = 1", "num_experts = 1\nseed = 3"), "seed is no option of a study; seeds says it"),
        (("seeds = [0]", "seeds = [0, 0]"), "seed stands twice"),
        (("seeds = [0]", "seeds = [0"), "is not TOML"),
        (('data = "digits"', ""), 'method=MTT, seed 0: the study names no data; say it under [options], as data = "'),
        (('"mct"', '"mct"\nzoom = 2'), "method=MCT, seed 0: there is no option zoom"),
        (('method = "mct"', 'method = "mtt"'), "method=MTT, seed 0 and method=MCT, seed 0 are the same run"),
    ],
)
def test_a_study_that_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    path = write_file(tmp_path, STUDY.replace(*change))
    with pytest.raises(UserError) as error:
        run_study(path, work=tmp_path / "work")
    assert sentence in str(error.value)
    assert [file.name for file in tmp_path.iterdir() if file.name != "work"] == ["study.toml"]


def test_a_path_is_relative_to_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "readme.txt").write_text("no images")
    path = write_file(tmp_path, STUDY.replace('"digits"', '"photos"'))
    with pytest.raises(UserError, match=str(tmp_path / "photos")):
        plan_study(path)


def test_a_store_is_trained_once_for_the_run_that_needs_most(tmp_path: Path) -> None:
    text = STUDY.replace("[axes.method.MCT]", "[axes.method.MCT]\nnum_experts = 3").replace("[0]", "[0, 1]")
    plan = plan_study(write_file(tmp_path, text.replace("epochs = 2,", "epochs = 3,")), work=tmp_path).plan
    units = make_units(plan, Local().shares)
    assert [(unit.kind, unit.run.cell.values["method"], unit.run.seed) for unit in units] == [
        ("experts", "MCT", 0),
        ("run", "MTT", 0),
        ("run", "MCT", 0),
        ("experts", "MCT", 1),
        ("run", "MTT", 1),
        ("run", "MCT", 1),
    ]
    assert len({unit.store for unit in units if unit.store}) == 2
    assert [unit.indices for unit in units if unit.store] == [(0, 1, 2)] * 2
    apart = make_units(plan, lambda indices: [(index,) for index in indices])
    assert [unit.indices for unit in apart if unit.store] == [(0,), (1,), (2,)] * 2, "as on several machines"
    assert [len(unit.needs) for unit in apart if unit.kind == "run"] == [3] * 4
    assert len({unit.key for unit in apart}) == len(apart)


def test_experts_and_baselines_are_estimated_once_for_the_runs_that_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = STUDY.replace("seeds = [0]", "seeds = [0, 1]").replace("epochs = 2, lr", "epochs = 4, lr")
    plan = plan_study(write_file(tmp_path, text), work=tmp_path).plan
    one = Estimate({"experts": 100.0, "distill": 10.0, "evaluate": 7.0}, baselines=5.0)
    monkeypatch.setattr("limbeck.studies.plan.estimate", lambda job: one)
    seconds = estimate_runs(plan, [], lambda event: None)
    assert [seconds[run.key] for run in plan] == [117.0, 12.0, 117.0, 12.0], "each seed has experts and real images"
    row = make_row("MTT", "small", 0, [0.5]).model_copy(update={"cell": plan[0].cell.values, "key": plan[0].key})
    rows = [row.model_copy(update={"seconds": {"experts": 0.0, "distill": 20.0, "evaluate": 3.0}})]
    seconds = estimate_runs(plan, rows, lambda event: None)  # a finished run of the cell is the better clock
    assert [seconds[run.key] for run in plan[1:]] == [117.0, 123.0, 17.0], (
        "a finished run of the cell is the better clock"
    )


def test_a_curve_counts_no_validation_and_no_step_twice() -> None:
    steps = [StepLine(step=step, loss=loss, lr=0.1, seconds=step * 1.0) for step, loss in ((1, 5.0), (2, 4.0))]
    steps += [StepLine(step=2, loss=3.0, lr=0.1, seconds=2.0), StepLine(step=3, loss=None, lr=0.1, seconds=13.0)]
    steps += [StepLine(step=4, loss=float("nan"), lr=0.1, seconds=14.0)]
    validations = [ValidationLine(step=step, accuracy_mean=0.5, n=1, seconds=10.0) for step in (2, 2, 4)]
    curve = read_curve(steps, validations)
    assert curve.seconds == [2.0, 4.0]
    assert curve.loss_steps == [1, 2, 3, 4]
    assert curve.loss == [5.0, 3.0, None, None]
    assert curve.loss_change == pytest.approx(math.log(5 / 3), rel=1e-4)


def test_a_long_curve_is_thinned_to_stretches_with_their_extremes() -> None:
    losses = [float(step % 7) for step in range(1, 251)]
    curve = read_curve([StepLine(step=s, loss=y, lr=None) for s, y in enumerate(losses, 1)], [])
    assert curve.loss_steps[:2] == [3, 6]
    assert curve.loss_steps[-1] == 250
    assert (curve.loss[0], curve.loss_low[0], curve.loss_high[0]) == (2.0, 1.0, 3.0)


def make_row(method: str, size: str, seed: int, accuracies: list[float], curve: list[float] = ()) -> StudyRow:  # type: ignore[assignment]
    result = {"set": "distilled", "model": "convnet", "split": "test", "n": len(accuracies), "accuracies": accuracies}
    result |= {"accuracy_mean": fmean(accuracies), "accuracy_std": stdev(accuracies) if len(accuracies) > 1 else None}
    rows = [ResultRow(**result, which=which) for which in ("last", "chosen")]
    steps = [10 * place for place in range(len(curve))]
    shape = Curve(steps=steps, accuracy=list(curve), std=[None] * len(steps), seconds=[0.5 * step for step in steps])
    cell = {"method": method, "size": size}
    return StudyRow(cell=cell, seed=seed, key=f"{method}{size}{seed}", results=rows, curve=shape)


def test_steadiness_is_measured_on_the_validations_of_the_second_half() -> None:
    accuracies = [0.1, 0.9, 0.5, 0.6, 0.5, 0.6]
    row = make_row("MTT", "small", 0, [0.5], accuracies)
    other = make_row("MTT", "small", 1, [0.5], [0.1, 0.2, 0.3, 0.3, 0.3, 0.3])
    rows = [row.model_copy(update={"curve": row.curve.model_copy(update={"loss_change": 0.25})}), other]
    axes = {"method": ["MTT"], "size": ["small"]}
    record = StudyRecord(
        format="limbeck-study", version=1, title="A", axes=axes, seeds=[0, 1], study={}, planned=2, rows=rows
    )
    head, lines = stability_table(record)
    assert head == ["method", "size", "seeds", "best less last", "between validations", "loss from step to step"]
    assert lines == [["MTT", "small", "2", "15.0", "5.0", "25.0"]], "means of 30 and 0, and of 10 and 0"


def test_differences_are_paired_by_seed_with_the_other_axes_equal() -> None:
    rows = [
        *(make_row("MTT", "small", seed, [value, value + 0.02]) for seed, value in ((0, 0.50), (1, 0.60), (3, 0.9))),
        *(make_row("MCT", "small", seed, [value, value + 0.02]) for seed, value in ((1, 0.63), (0, 0.51), (2, 0.1))),
        make_row("MTT", "large", 0, [0.7, 0.8]),
        make_row("MCT", "large", 0, [0.8, 0.7]),
    ]
    small, _, large, _ = compare_cells(rows, [Comparison(axis="method", against="MTT")])
    differences = [0.51 - 0.50, 0.63 - 0.60]
    assert (small.cell, small.against["method"], small.n, small.over) == (rows[3].cell, "MTT", 2, "seeds")
    assert small.difference == pytest.approx(fmean(differences))
    assert small.standard_error == pytest.approx(stdev(differences) / 2**0.5)
    assert (small.low, small.high) == (pytest.approx(min(differences)), pytest.approx(max(differences)))
    assert small.accuracy == pytest.approx((0.52 + 0.64) / 2)
    assert (large.n, large.over, large.difference) == (2, "networks", pytest.approx(0.0))
    assert large.standard_error == pytest.approx(stdev([0.1, -0.1]) / 2**0.5), "networks of the same seed are pairs"


def test_the_first_step_at_the_other_ones_final_accuracy() -> None:
    rows = [
        make_row("MTT", "small", 0, [0.5], [0.1, 0.45, 0.3, 0.4]),
        make_row("MCT", "small", 0, [0.5], [0.1, 0.2, 0.4]),
    ]
    reach = compare_cells(rows, [Comparison(axis="method", against="MTT")])[0].reach[0]
    assert (reach.target, reach.step, reach.seconds, reach.against_step) == (0.4, 20, 10.0, 10)
    rows[1] = make_row("MCT", "small", 0, [0.5], [0.1, 0.2, 0.3])
    assert compare_cells(rows, [Comparison(axis="method", against="MTT")])[0].reach[0].step is None
