"""Studies: the grid, what is computed once and what is resumed, the record, and comparisons."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from filelock import FileLock
from small_runs import set_bytes

import limbeck
from limbeck import UserError
from limbeck.core.records import ResultRow, StepLine, ValidationLine
from limbeck.core.study_records import Curve, StudyRecord, StudyRow, Trial
from limbeck.jobs.record import RunFolder
from limbeck.report.study_page import write_study_page
from limbeck.studies import child, pool
from limbeck.studies.cells import Cell, by_seed, make_cells
from limbeck.studies.compare import compare_cells
from limbeck.studies.config import Comparison, Range, Search, Study, read_study
from limbeck.studies.opened import describe_plan, plan_study
from limbeck.studies.pool import make_units
from limbeck.studies.record import read_curve
from limbeck.studies.run import run_study
from limbeck.studies.search import STARTUP, OpenSearch

pytestmark = pytest.mark.usefixtures("home")

STUDY = """
title = "Two methods"
seeds = [0]

[options]
data = "digits"
num_experts = 1
iterations = 4
validate_every = 2
validate_networks = 1
validate_epochs = 2
model = { width = 4 }
expert = { epochs = 2, lr = 0.05, batch_size = 64, keep = "both" }
eval = { networks = 2, epochs = 3, baseline_lrs = [0.01], full_networks = 0 }

[axes.method.MTT]
method = "mtt"
syn_steps = 2
max_start_epoch = 1
expert_epochs = 1
[axes.method.MCT]
method = "mct"
syn_steps = 2
max_start_epoch = 1
expert_epochs = 1

[compare]
axis = "method"
against = "MTT"
"""


def write_file(folder: Path, text: str = STUDY, name: str = "study.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def begin_here(begun: list[dict[str, Any]]) -> Callable[..., None]:
    """Carries out orders in this process, which spares child processes to import torch; `begun` gets the orders."""

    def begin(self: pool.Pool, unit: pool.Unit, slots: int) -> None:
        begun.append({**unit.order(slots), "name": unit.name})
        number, sentence = len(begun), None
        process = subprocess.Popen([sys.executable, "-S", "-c", ""], stdin=subprocess.DEVNULL, text=True)
        try:
            child.carry_out(unit.order(slots), lambda event: None)
        except UserError as error:
            sentence = str(error)
        self.children[number] = pool.Child(unit, process, slots, self.errors)
        self.events.put((number, {"event": "end", "sentence": sentence}))
        self.events.put((number, None))

    return begin


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The orders of a study's child processes, which are carried out in this process."""
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(pool.Pool, "_begin", begin_here(begun))
    return begun


# --- the grid


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
    units = make_units(plan)
    assert [(unit.kind, unit.run.cell.values["method"], unit.run.seed) for unit in units] == [
        ("experts", "MCT", 0),
        ("run", "MTT", 0),
        ("run", "MCT", 0),
        ("experts", "MCT", 1),
        ("run", "MTT", 1),
        ("run", "MCT", 1),
    ]
    assert len({unit.store for unit in units if unit.store}) == 2


# --- computing


PARENT = """
import sys
from limbeck.studies.run import run_study
from limbeck.studies.search import STARTUP, OpenSearch
run_study(sys.argv[1], work=sys.argv[2], jobs=1, tell_cost=False)
"""


@pytest.fixture(scope="module")
def study(shared_home: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a study whose process was killed in the middle of its first run, and that was then finished."""
    path = write_file(tmp_path_factory.mktemp("study"))
    work = path.parent / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared_home))
        patch.setenv("OMP_NUM_THREADS", "1")
        process = subprocess.Popen([sys.executable, "-c", PARENT, str(path), str(work)])
        while process.poll() is None and not list(work.glob("*/log.jsonl")):
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -9
        (folder,) = (file.parent for file in work.glob("*/log.jsonl"))
        with FileLock(folder / ".lock", timeout=60):  # the run ends with its parent, which it notices when it says more
            assert not (folder / "results.json").exists()
        assert read_record(path).rows == []
        patch.setattr(pool.Pool, "_begin", begin_here([]))
        run_study(path, work=work, jobs=2, tell_cost=False)
    return path


def read_record(path: Path) -> StudyRecord:
    return StudyRecord.model_validate_json(path.with_suffix(".json").read_text())


def test_an_interrupted_study_holds_what_distill_gives_bit_for_bit(study: Path, tmp_path: Path) -> None:
    record, options = read_record(study), read_study(study)[0].options
    assert [row.cell["method"] for row in record.rows] == ["MTT", "MCT"]
    for row in record.rows:
        method = {"method": row.cell["method"].lower(), "syn_steps": 2, "max_start_epoch": 1, "expert_epochs": 1}
        run = limbeck.distill(out=tmp_path / row.cell["method"], **method, **options)
        results = json.loads((run / "results.json").read_text())
        assert [result.to_json() for result in row.results] == results["results"]
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
    mtt, mct = (row.bytes.experts or 0 for row in record.rows)
    folder = next(path for path in (study.parent / "work").glob(f"{record.rows[0].key}-*"))
    parameters = json.loads((folder / "experts.json").read_text())["parameters"]
    assert 0 < 4 * parameters - (mtt - mct) < 200, "three recorded epochs; two waypoints, and beta by epoch and layer"
    assert record.rows[0].bytes.stored == record.rows[1].bytes.stored, "one store of both forms"


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
    record = run_study(write_file(tmp_path), work=study.parent / "work")
    assert orders == []
    assert record.rows == read_record(study).rows


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


# --- search


SEARCH = STUDY.replace(
    "[compare]", "[search]\ntrials = 3\n[search.options.lr_img]\nlow = 0.01\nhigh = 1.0\nlog = true\n\n[compare]"
)


def test_a_search_tries_the_same_number_of_options_in_every_cell_and_takes_the_best_on_validation(
    tmp_path: Path, orders: list[dict[str, Any]]
) -> None:
    pytest.importorskip("optuna")
    path, work = write_file(tmp_path, SEARCH), tmp_path / "work"
    record = run_study(path, work=work, tell_cost=False)
    trials = [order for order in orders if order["kind"] == "trial"]
    assert [order["name"].split(", ")[0] for order in trials] == ["method=MTT"] * 3 + ["method=MCT"] * 3
    assert len([order for order in orders if order["kind"] == "run"]) == 2
    mtt, mct = record.searches
    assert [trial.options for trial in mtt.trials] == [trial.options for trial in mct.trials], "the same random trials"
    for search, row in zip(record.searches, record.rows, strict=True):
        assert len({trial.options["lr_img"] for trial in search.trials}) == 3
        best = max(search.trials, key=lambda trial: trial.accuracy or 0.0)
        assert (row.cell, row.searched, row.trials, row.key) == (search.cell, best.options, 3, best.key)
        assert best.accuracy == max(row.curve.accuracy), "the run goes on from its trial"
        for trial in search.trials:
            (folder,) = work.glob(f"{trial.key}-*")
            assert (folder / "results.json").exists() == (trial.key == row.key), "test is for the best alone"
    begun = len(orders)
    assert run_study(path, work=tmp_path / "elsewhere") == record
    assert len(orders) == begun
    more = write_file(tmp_path, SEARCH.replace("trials = 3", "trials = 4"))
    assert "2 trials of a search to do first" in describe_plan(plan_study(more, work=work))


def make_search(trials: int, **values: Any) -> OpenSearch:
    space = {"lr_img": Range(low=0.01, high=1.0, log=True), "syn_steps": Range(low=2, high=9)}
    space["init"] = Range(choices=("random", "kmeans"))
    cell = Cell({"method": "MCT"}, {"method": "mct"}, (0,), space)
    return OpenSearch.of(cell, Search(trials=trials, **values), [])


def tell(search: OpenSearch, number: int) -> None:
    options = search.suggest(number)
    accuracy = 1 - abs(options["lr_img"] - 0.1)
    search.trials[number] = Trial(number=number, options=options, key="", accuracy=accuracy)


def test_a_trial_follows_from_the_seed_its_number_and_the_trials_before() -> None:
    pytest.importorskip("optuna")
    search = make_search(14)
    assert search.ready() == list(range(STARTUP)), "random trials depend on none"
    for number in reversed(range(STARTUP)):
        tell(search, number)
    for number in range(STARTUP, 14):
        assert search.ready() == [number], "others come one after another"
        tell(search, number)
    assert search.ready() == []
    resumed = OpenSearch.of(search.cell, search.search, [search.record()])
    assert resumed.is_finished
    del resumed.trials[13]
    assert resumed.suggest(13) == search.trials[13].options
    assert make_search(14, seed=1).suggest(0) != search.trials[0].options
    values = [trial.options for trial in search.trials.values()]
    assert all(0.01 <= value["lr_img"] <= 1 and value["syn_steps"] in range(2, 10) for value in values)
    assert {value["init"] for value in values} == {"random", "kmeans"}


def test_a_failed_trial_counts_and_never_wins() -> None:
    pytest.importorskip("optuna")
    search = make_search(2)
    tell(search, 0)
    search.trials[1] = Trial(number=1, options=search.suggest(1), key="", accuracy=None, sentence="it diverged.")
    assert search.best().number == 0
    search.trials[0] = search.trials[1]
    with pytest.raises(UserError, match="method=MCT: all trials failed, the first because it diverged"):
        search.best()


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ("low = 1.0\nhigh = 0.5", "from low to a larger high"),
        ("low = 0.0\nhigh = 0.5\nlog = true", "positive with log"),
        ('choices = ["one"]', "two choices or more"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(tmp_path: Path, space: str, sentence: str) -> None:
    text = SEARCH.replace("low = 0.01\nhigh = 1.0\nlog = true", space)
    with pytest.raises(UserError, match=sentence):
        plan_study(write_file(tmp_path, text))


# --- curves, comparisons, page


def test_a_curve_counts_no_validation_and_no_step_twice() -> None:
    steps = [StepLine(step=step, loss=loss, lr=0.1, seconds=step * 1.0) for step, loss in ((1, 5.0), (2, 4.0))]
    steps += [StepLine(step=2, loss=3.0, lr=0.1, seconds=2.0), StepLine(step=3, loss=None, lr=0.1, seconds=13.0)]
    steps += [StepLine(step=4, loss=float("nan"), lr=0.1, seconds=14.0)]
    validations = [ValidationLine(step=step, accuracy_mean=0.5, n=1, seconds=10.0) for step in (2, 2, 4)]
    curve = read_curve(steps, validations)
    assert curve.seconds == [2.0, 4.0]
    assert curve.loss_steps == [1, 2, 3, 4]
    assert curve.loss == [5.0, 3.0, None, None]


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


def test_the_page_shows_tables_differences_and_curves(study: Path, tmp_path: Path) -> None:
    page = write_study_page(read_record(study), tmp_path / "page.html").read_text()
    for text in ("Two methods", "MCT", "1 × 2", "against outer steps", "against seconds", "Differences"):
        assert text in page
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http-equiv", ""), "it reads nothing from elsewhere"
