"""The conditions of results (implementation, precision, threads, versions): what continues under others, what not."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import EVAL, MINIMAL, Interrupted, distill_minimal, interrupt_in, read_json

import limbeck
from limbeck import ModelConfig, UserError
from limbeck.core import files
from limbeck.jobs.inspection import inspect_store
from limbeck.task import Task, make_task

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


CONDITIONS = {
    "numerics": 0,
    "device": "other",
    "implementation": "other",
    "precision": "other",
    "torch": "0",
    "threads": 7,
}


@pytest.fixture(params=CONDITIONS)
def other_condition(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(name, value, change) of one condition: `change()` gives the condition of every task this value."""
    name, value, conditions = request.param, CONDITIONS[request.param], Task.conditions

    def change() -> None:
        monkeypatch.setattr(Task, "conditions", lambda task: {**conditions(task), name: value})

    return name, value, change


def test_conditions_of_a_task() -> None:
    data = limbeck.load_data("digits")
    mlp = make_task(data, ModelConfig(name="mlp", width=4))
    assert set(mlp.conditions()) == set(CONDITIONS)
    assert (mlp.conditions()["implementation"], mlp.conditions()["threads"]) == ("autograd", torch.get_num_threads())
    wide = make_task(data, ModelConfig(width=32))
    if wide.implementation == "compiled":
        assert "threads" not in wide.conditions()
    assert json.loads(json.dumps(wide.conditions())) == wide.conditions()
    lower = make_task(data, ModelConfig(width=32), precision="bfloat16")
    assert lower.conditions()["precision"] == "bfloat16"


def test_an_unfinished_run_is_not_continued_under_other_conditions(other_condition: Any, tmp_path: Path) -> None:
    name, value, change = other_condition
    out = tmp_path / "run"
    for stage, at in (("distill", 2), ("evaluate", 1)):
        with suppress(Interrupted):
            distill_minimal(out, listen=interrupt_in(stage, at))
        recorded = read_json(out / "run.json")["computed"].get(name)
        with pytest.MonkeyPatch.context() as patch:
            conditions = Task.conditions
            patch.setattr(Task, "conditions", lambda task: {**conditions(task), name: value})  # noqa: B023
            with pytest.raises(
                UserError, match=f"{name} {re.escape(str(recorded))}, and would go on with {name} {value}.*--out"
            ):
                distill_minimal(out)
    distill_minimal(out)
    change()
    before = (out / "results.json").read_bytes()
    distill_minimal(out)  # it is finished, so that nothing is computed
    assert (out / "results.json").read_bytes() == before
    assert limbeck.evaluate(out, num_networks=1)[0].n == 1
    with pytest.raises(UserError, match=f"{name} {re.escape(str(recorded))}, and would go on"):
        distill_minimal(out, iterations=8)
    distill_minimal(out, eval=EVAL.model_copy(update={"networks": 2}))  # all rows under the other condition
    assert read_json(out / "results.json")["computed"][name] == value
    assert read_json(out / "run.json")["computed"].get(name) == recorded


def test_stores_and_baselines_are_separate_for_other_conditions(
    other_condition: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value, change = other_condition
    home = tmp_path / "home"
    monkeypatch.setenv("LIMBECK_HOME", str(home))
    distill_minimal(tmp_path / "here")
    change()
    there = distill_minimal(tmp_path / "there")
    stores = [files.read_json(path / "store.json", "limbeck-store") for path in (home / "experts").iterdir()]
    assert len(stores) == len({store["key"] for store in stores}) == 2
    assert sorted(store["computed"].get(name) == value for store in stores) == [False, True]
    assert len(list((home / "baselines").iterdir())) == 4
    assert read_json(there / "experts.json")["computed"][name] == value


def test_a_store_is_read_but_not_extended_under_other_conditions(other_condition: Any, tmp_path: Path) -> None:
    name, value, change = other_condition
    options = {key: MINIMAL[key] for key in ("model", "expert")}
    store = limbeck.train_experts("digits", out=tmp_path / "store", num_experts=2, **options)
    recorded = store.header.computed.get(name)
    change()
    assert limbeck.train_experts("digits", out=store.path, num_experts=2, **options).indices() == [0, 1]
    path = distill_minimal(tmp_path / "run", experts=store.path)
    assert read_json(path / "experts.json")["computed"] == store.header.computed
    assert read_json(path / "run.json")["computed"][name] == value
    with pytest.raises(UserError, match=f"{name} {re.escape(str(recorded))}, and would go on with {name} {value}"):
        limbeck.train_experts("digits", out=store.path, num_experts=3, **options)
    assert store.indices() == [0, 1]


def test_files_without_conditions_are_read_and_not_continued(run: Path, tmp_path: Path) -> None:
    head = read_json(run / "run.json")
    del head["computed"], head["validation"]
    (run / "run.json").write_text(json.dumps(head))
    distill_minimal(run)
    assert limbeck.evaluate(run, num_networks=1)
    distill_minimal(run, eval=EVAL.model_copy(update={"networks": 2}))
    with pytest.raises(UserError, match="does not say under which conditions"):
        distill_minimal(run, iterations=8)
    golden = Path(__file__).parents[1] / "golden" / "store"
    store = limbeck.Store.open(golden)
    assert store.read(0).test == 0.8125
    with pytest.raises(UserError, match="does not say under which conditions"):
        store.require_conditions({"numerics": 1})
    inspect_store(golden, tmp_path / "inspection")
    assert store.convexify(tmp_path / "convex", waypoints=2).indices() == [0]
