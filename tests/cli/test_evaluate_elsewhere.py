"""`limbeck evaluate --engine`: the rows of one process, whatever happens to the works. Ray itself: test_cluster.py."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from limbeck import UserError
from limbeck.core.events import Event
from limbeck.engines import ENGINES, LostError, Work, child
from limbeck.jobs.evaluation_works import evaluate

NETWORKS = ("--networks", "convnet,mlp:width=6,mlp")


class Elsewhere:
    """An engine of another machine, which is this process; works reach it as JSON.

    ends: By network: how its next works end: "lost", a sentence, or None.
    wait: By network: which other one has to be done before.
    """

    is_remote = True

    def __init__(self) -> None:
        self.ends: dict[str, list[str | None]] = {}
        self.wait: dict[str, str] = {}
        self.works: list[Work] = []
        self.done = {name: threading.Event() for name in ("convnet", "mlp:width=6", "mlp")}

    def look(self) -> None:
        """This process is there."""

    def capacity(self, threads: int, gpus: int) -> int:
        return 3

    def shares(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        return [(index,) for index in indices]

    def start(self, work: Work) -> Visit:
        self.works.append(work)
        ends = self.ends.get(work.name, [])
        return Visit(self, work, ends.pop(0) if ends else None)


class Visit:
    """A work on such an engine."""

    def __init__(self, engine: Elsewhere, work: Work, end: str | None):
        self.engine, self.work, self.end = engine, work, end

    def events(self) -> Iterator[Event]:
        if self.work.name in self.engine.wait:
            assert self.engine.done[self.engine.wait[self.work.name]].wait(60)
        events: list[Event] = []
        if self.end is None:
            child.carry_out(json.loads(json.dumps(self.work.message)), events.append)  # type: ignore[arg-type]
            self.engine.done[self.work.name].set()
        yield from (event for event in events if event["event"] != "advance")

    def failure(self) -> str | None:
        if self.end == "lost":
            raise LostError("its machine went away")
        return self.end

    def interrupt(self) -> None:
        """It cannot be."""

    def stop(self, seconds: float) -> None:
        """It has ended."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    engine = Elsewhere()
    monkeypatch.setitem(ENGINES, "ray", lambda address, jobs: nullcontext(engine))
    return engine


@pytest.fixture
def run(artifacts: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Copies of a run without evaluations, by name."""

    def copy(name: str) -> Path:
        path = tmp_path / "my runs" / name
        if not path.exists():
            shutil.copytree(artifacts["run"], path, ignore=shutil.ignore_patterns("evaluations.json"))
        return path

    return copy


@pytest.mark.parametrize(
    "options",
    [
        ("--num-networks", "2"),
        ("--which", "last", "--attack", "fgsm", "--robustness.images", "20", "--eval.baseline-lrs", "0.02", "0.05"),
        ("--eval.labels", "teacher", "--data", "digits", "--resize", "8", "--seed", "3"),
    ],
)
def test_an_engine_leaves_the_files_of_one_process(
    limbeck: Any, elsewhere: Elsewhere, run: Any, options: tuple[str, ...]
) -> None:
    """Also where a later network is done before an earlier one, and where a worker is lost."""
    words = (*NETWORKS, "--epochs", "2", *options, "--json")
    here = limbeck("evaluate", run("here"), *words).json
    elsewhere.ends, elsewhere.wait = {"mlp": ["lost"]}, {"convnet": "mlp:width=6", "mlp:width=6": "mlp"}
    there = limbeck("evaluate", run("there"), *words, "--engine", "ray").json
    assert [work.name for work in elsewhere.works] == ["convnet", "mlp:width=6", "mlp", "mlp"]
    assert there["results"] == here["results"]
    assert (run("there") / "evaluations.json").read_bytes() == (run("here") / "evaluations.json").read_bytes()
    assert "Other networks" in (run("there") / "report.html").read_text()


def test_the_rows_of_the_others_are_kept_where_a_network_fails(
    limbeck: Any, elsewhere: Elsewhere, run: Any, shared: Path
) -> None:
    words = ("evaluate", run("there"), *NETWORKS, "--epochs", "2", "--engine", "ray")
    elsewhere.ends = {"convnet": ["no memory."]}
    result = limbeck(*words, "--quiet")
    assert result.status == 2
    assert result.err.splitlines() == [
        "warning: convnet failed: no memory.",
        "limbeck: 1 of 3 failed, the first because no memory; the same command tries them again.",
    ]
    assert networks_of(run("there")) == ["mlp:width=6", "mlp"]
    assert limbeck(*words).status == 0
    assert sorted(networks_of(run("there"))) == ["convnet", "mlp", "mlp:width=6"]
    assert not [path for path in (shared / "home").iterdir() if path.name.startswith(".evaluation")]


def networks_of(run: Path) -> list[str]:
    (record,) = json.loads((run / "evaluations.json").read_text())["evaluations"]
    return list(dict.fromkeys(row["model"] for row in record["rows"]))


def test_a_set_outside_of_a_run_has_its_rows_too(
    limbeck: Any, elsewhere: Elsewhere, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(artifacts["run"] / "set-last.safetensors", tmp_path)
    words = ("evaluate", "set-last.safetensors", "--networks", "mlp", "--num-networks", "1", "--epochs", "1", "--json")
    assert limbeck(*words, "--engine", "ray").json == limbeck(*words).json
    (work,) = elsewhere.works
    assert work.order["options"]["distilled"] == str(tmp_path / "set-last.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["set-last.safetensors"]


def test_a_machine_that_rounds_differently_is_refused(limbeck: Any, elsewhere: Elsewhere, run: Any) -> None:
    words = ("evaluate", run("there"), "--networks", "mlp", "--num-networks", "1", "--epochs", "1")
    assert limbeck(*words, "--engine", "ray").status == 0
    order = dict(elsewhere.works[0].order)
    with pytest.raises(UserError, match=r"has torch .*, and the one of the command torch 0\.1: the two round"):
        evaluate({**order, "conditions": {**order["conditions"], "torch": "0.1"}}, lambda event: None)


def test_one_network_has_no_engine(refused: Any, artifacts: dict[str, Path]) -> None:
    assert "name several (--networks" in refused("evaluate", artifacts["run"], "--engine", "ray")
    assert "add --engine ray" in refused("evaluate", artifacts["run"], "--address", "host:1")
