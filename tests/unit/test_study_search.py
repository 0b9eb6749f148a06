"""The search of a study for options on validation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from small_studies import STUDY, write_file

from limbeck import UserError
from limbeck.core.records import ValidationLine
from limbeck.core.study_records import RANDOM_TRIALS, CellSearch, StudyRecord, Trial
from limbeck.jobs.record import RunFolder
from limbeck.report.study import searches_table
from limbeck.report.study_page import write_study_page
from limbeck.studies.calls import Call
from limbeck.studies.cells import Cell
from limbeck.studies.config import Range, Search
from limbeck.studies.opened import describe_plan, plan_study
from limbeck.studies.plan import PlannedRun
from limbeck.studies.run import run_study
from limbeck.studies.search import OpenSearch

pytestmark = pytest.mark.usefixtures("home")


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
    longer = write_file(tmp_path, SEARCH.replace("trials = 3", "trials = 4"))
    assert "2 trials of a search to do first" in describe_plan(plan_study(longer, work=work))


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
    assert search.ready() == list(range(RANDOM_TRIALS)), "random trials depend on none"
    for number in reversed(range(RANDOM_TRIALS)):
        tell(search, number)
    for number in range(RANDOM_TRIALS, 14):
        assert search.ready() == [number], "others come one after another"
        tell(search, number)
    assert search.ready() == []
    resumed = OpenSearch.of(search.cell, search.search, [search.record()])
    assert resumed.is_finished
    del resumed.trials[13]
    upside_down = make_search(14)
    for number in range(13):
        trial = search.trials[number]
        upside_down.trials[number] = trial.model_copy(update={"accuracy": 1 - (trial.accuracy or 0)})
    assert upside_down.suggest(13) != search.trials[13].options, "it learns from the trials before"
    assert resumed.suggest(13) == search.trials[13].options
    assert make_search(14, seed=1).suggest(0) != search.trials[0].options
    values = [trial.options for trial in search.trials.values()]
    assert all(0.01 <= value["lr_img"] <= 1 and value["syn_steps"] in range(2, 10) for value in values)
    assert {value["init"] for value in values} == {"random", "kmeans"}


def test_the_table_of_searches_says_how_much_a_method_depends_on_its_options(tmp_path: Path) -> None:
    accuracies = [0.5, 0.7, None, *[0.6] * 7, 0.9]  # random trials, one of which failed, and one that is not random
    trials = [
        Trial(number=number, options={"lr_img": number / 7}, key="", accuracy=accuracy, std=0.01)
        for number, accuracy in enumerate(accuracies)
    ]
    search = CellSearch(cell={"method": "MCT"}, seed=0, key="", space={}, trials=trials)
    record = StudyRecord(
        format="limbeck-study",
        version=1,
        title="A",
        axes={"method": ["MCT"]},
        seeds=[0],
        study={},
        planned=1,
        searches=[search, CellSearch(cell={"method": "MTT"}, seed=0, key="", space={})],
    )
    head, lines = searches_table(record)
    assert head[:2] == ["method", "trials"]
    assert lines == [["MCT", "11", "60.0 ± 5.0 (n = 9)", "50.0", "60.0", "70.0", "90.0 ± 1.0 %", "lr_img 1.43"]]
    assert "90.0 ± 1.0" in write_study_page(record, tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("choose_by", "step"), [("accuracy", 5), ("balanced", 10)])
def test_a_trial_is_chosen_by_what_its_run_chooses_by(tmp_path: Path, choose_by: str, step: int) -> None:
    folder = RunFolder(tmp_path)
    for at, accuracy, balanced in ((0, 0.5, 0.5), (5, 0.9, 0.5), (10, 0.8, 0.75)):
        folder.line(ValidationLine(step=at, accuracy_mean=accuracy, balanced_accuracy_mean=balanced, n=2, seconds=1.0))
    search = make_search(1)
    call = Call.of({"data": "digits", "eval": {"choose_by": choose_by}}, 0, tmp_path)
    planned = {"cell": search.cell, "key": "k", "path": tmp_path, "call": call}
    trial = search.finish(0, cast(PlannedRun, SimpleNamespace(**planned)), None)
    assert (trial.step, trial.accuracy) == (step, {"accuracy": 0.9, "balanced": 0.75}[choose_by])


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
