"""`limbeck watch`, before, while and after a run works, and --tracker."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from command_line import EXPERTS, TINY
from filelock import FileLock

from limbeck.core.files import write_json
from limbeck.progress import ProgressFile
from limbeck.progress.watch import look


def test_a_finished_run(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    result = limbeck("watch", artifacts["run"])
    assert result.status == 0
    assert result.out.startswith(f"run: {artifacts['run']}: finished: evaluate ")
    assert "validation " in result.out
    value = limbeck("watch", artifacts["run"], "--json").json
    assert (value["state"], value["seconds_left"], value["progress"]["state"]) == ("finished", None, "finished")


def test_before_a_run_begins(limbeck: Any, tmp_path: Path) -> None:
    result = limbeck("watch", tmp_path / "none", "--once")
    assert (result.status, result.out) == (0, f"run: {tmp_path / 'none'}: the run has not begun\nstate: absent\n")
    (tmp_path / "file").write_text("")
    assert limbeck("watch", tmp_path / "file").status == 2


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "run.json", {"format": "limbeck-run", "version": 1})
    return tmp_path / "run"


@pytest.mark.parametrize(("state", "status"), [("finished", 0), ("interrupted", 130), ("failed", 1)])
def test_it_follows_a_run_to_its_end(limbeck: Any, run: Path, state: Any, status: int) -> None:
    """Another thread stands for the process at work: it holds the lock, and tells of its steps."""
    started = threading.Event()

    def work() -> None:
        with FileLock(run / ".lock"):
            file = ProgressFile(run / "progress.json")
            file({"event": "stage", "name": "distill", "total": 40, "unit": "step"})
            for step in range(1, 4):
                file({"event": "advance", "text": f"loss {step}"})
                file._update()
            started.set()
            ending.wait(5)
            file.end(state, "it broke")

    ending = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    started.wait(5)
    sight = look(run)
    assert sight.state == "running"
    assert sight.text().startswith("running: distill 3/40 steps; about ")
    assert "loss 3" in sight.text()
    threading.Timer(0.2, ending.set).start()
    result = limbeck("watch", run, "--interval", 0.05)
    thread.join()
    assert result.status == status
    assert f"{state}: distill 3/40 steps" in result.out
    assert ("it broke" in result.out) == (state == "failed")
    assert "running: distill 3/40 steps" in result.err


def test_a_process_that_was_killed(limbeck: Any, run: Path) -> None:
    ProgressFile(run / "progress.json")({"event": "stage", "name": "distill", "total": 9, "unit": "step"})
    (run / ".lock").touch()
    result = limbeck("watch", run)
    assert (result.status, "killed: distill 0/9 steps" in result.out) == (1, True)


def test_runs_of_before(limbeck: Any, run: Path) -> None:
    """They have no progress.json."""
    assert look(run).state == "killed"
    write_json(run / "results.json", {})
    assert look(run).state == "finished"


def test_a_new_session_is_not_taken_for_the_one_before(run: Path) -> None:
    ProgressFile(run / "progress.json").end("interrupted")
    lock = FileLock(run / ".lock", thread_local=False)
    with lock:
        sight = look(run)
    assert (sight.state, sight.text()) == ("running", "running")


def test_trackers_write_beside_a_run_and_a_store(limbeck: Any, tmp_path: Path) -> None:
    run, store = tmp_path / "run", tmp_path / "store"
    assert limbeck("distill", "digits", *TINY, "--out", run, "--tracker", "jsonl").status == 0
    assert limbeck("experts", "digits", *EXPERTS, "--out", store, "--tracker", "jsonl").status == 0
    for folder, kinds in (
        (run, {"stage", "advance", "validate", "preview", "result", "note", "warning"}),
        (store, {"stage", "advance"}),
    ):
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert {event["event"] for event in events} >= kinds - {"warning"}
        assert {event["event"] for event in events} <= kinds
    assert limbeck("distill", "digits", *TINY, "--out", tmp_path / "x", "--tracker", "nope").status == 2
