"""Runs that are killed or interrupted: they are continued and end with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from small_runs import FILES, LimitedWrites, distill_with_baselines, result_rows, set_bytes

from limbeck import UserError
from limbeck.core.records import StepLine
from limbeck.jobs.record import RunFolder

pytestmark = pytest.mark.usefixtures("home")


def test_a_truncated_log_line_loses_no_other_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.line(StepLine(step=1, loss=0.0, lr=0.1))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    run.line(StepLine(step=2, loss=0.0, lr=0.1))
    run.line(StepLine(step=3, loss=0.0, lr=0.1))
    assert [line.step for line in run.lines(StepLine)] == [1, 2, 3]


CHILD = """
import json, os, signal, sys, time
import limbeck, limbeck.jobs.checkpoint
from small_runs import WITH_BASELINES

def distill(out, stage="", kind="", count=0, pause=0.0, save_seconds=0.0):
    # kills itself at the event of this number, of its kind and in its stage
    limbeck.jobs.checkpoint.SAVE_SECONDS = save_seconds
    stages, events = [""], []

    def listen(event):
        stages.append(event.get("name", stages[-1]))
        events.append((stages[-1], event["event"]))
        time.sleep(pause)
        if events[-1] == (stage, kind) and events.count((stage, kind)) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    limbeck.distill("digits", out=out, listen=listen, **WITH_BASELINES)

"""
# This process forks for every kill, since imports take longer than the run.
KILLED = (
    CHILD
    + """
out, moments = sys.argv[1], json.loads(sys.argv[2])
limbeck.prepare("digits", out=out, **WITH_BASELINES)  # imports what every child needs; writes nothing
for moment in moments:
    child = os.fork()
    if child == 0:
        distill(out, *moment)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, moment
    assert not os.path.exists(os.path.join(out, "results.json")), moment
"""
)
SLOW = CHILD + "distill(sys.argv[1], pause=0.1, save_seconds=0.1)"


def start_child(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "PYTHONPATH": path})


def test_a_run_killed_in_every_stage_gives_the_same_bits(run: Path, own_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moments = [
        ("experts", "advance", 3),  # the second expert has begun
        ("distill", "advance", 3),  # step 3 is logged, its state not saved
        ("distill", "validate", 2),  # step 4 was validated, its set and its state not saved
        ("evaluate", "advance", 3),  # the row of the last set is there, that of the chosen one half done
    ]
    assert start_child(KILLED, str(out), json.dumps(moments)).wait(100) == 0
    assert distill_with_baselines(out) == out
    assert set_bytes(out) == set_bytes(run)
    assert result_rows(out) == result_rows(run)
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def test_a_run_killed_by_another_process_gives_the_same_bits(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_child(SLOW, str(out))
    log = out / "log.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count('"step"') < 5):
        time.sleep(0.01)
    process.kill()
    assert process.wait(10) == -9
    assert not (out / "set-last.safetensors").exists()
    distill_with_baselines(out)
    assert set_bytes(out) == set_bytes(run)
    assert result_rows(out) == result_rows(run)


def test_a_run_interrupted_at_any_write_gives_the_same_bits(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every n, the n-th file is not written any more, and the next call continues from there."""
    monkeypatch.setattr("limbeck.jobs.stages.write_report", lambda path: None)
    writes, options = LimitedWrites(monkeypatch, KeyboardInterrupt), {"iterations": 2, "validate_every": 1}
    whole = distill_with_baselines(tmp_path / "whole", **options)
    is_interrupted, limit = True, 0
    while is_interrupted:
        limit += 1
        out = tmp_path / str(limit)
        with suppress(KeyboardInterrupt), writes.limit(limit):
            distill_with_baselines(out, **options)
        is_interrupted = writes.count >= limit
        distill_with_baselines(out, **options)
        assert set_bytes(out) == set_bytes(whole)
        assert result_rows(out) == result_rows(whole)
        assert len(list((out / "previews").iterdir())) == 5 + 3  # sets and real images, and steps 0, 2 and 4
    assert limit > 10


def test_a_run_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    """Both would write the same files; the second one is refused and changes nothing."""
    out = tmp_path / "run"
    distill_with_baselines(out)
    (out / "results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code = f"import time\nfrom filelock import FileLock\nlock = FileLock({str(out / '.lock')!r})\nlock.acquire()\n"
    with subprocess.Popen([sys.executable, "-c", code + "print(flush=True); time.sleep(60)"], stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="is at work on"):
            distill_with_baselines(out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        other.kill()
    assert (distill_with_baselines(out) / "results.json").exists()
