"""What hears of a job: the screen, small pictures, progress.json, trackers; and the default from Python."""

from __future__ import annotations

import io
import json
import re
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from small_runs import Interrupted, distill_minimal, interrupt_in, read_json

from limbeck.core.errors import UserError
from limbeck.core.events import Event
from limbeck.progress import ProgressFile, listening
from limbeck.progress.file import read_progress
from limbeck.progress.pictures import encode, find_protocol
from limbeck.progress.screen import Screen
from limbeck.progress.trackers import open_tracker

EVENTS: list[Event] = [
    {"event": "note", "text": "before anything"},
    {"event": "stage", "name": "experts", "total": 2, "unit": "epoch"},
    {"event": "advance", "text": "expert 1", "expert": 0, "epoch": 1, "validation": 0.25},
    {"event": "advance", "text": "expert 1", "expert": 0, "epoch": 2, "validation": 0.5},
    {"event": "stage", "name": "distill", "total": 2, "unit": "step"},
    {"event": "validate", "step": 0, "which": "distilled", "accuracy_mean": 0.5, "accuracy_std": None, "n": 1},
    {"event": "advance", "text": "loss 0.5", "step": 1, "loss": 0.5, "lr": 0.01},
    {"event": "advance", "text": "loss nan", "step": 2, "loss": float("nan"), "lr": 0.02},
    {"event": "result", "set": "distilled", "which": "chosen", "accuracy_mean": 0.75, "accuracy_std": 0.1, "n": 2},
]


@pytest.fixture
def preview(tmp_path: Path) -> Event:
    path = tmp_path / "step-000000.png"
    Image.new("RGBA", (9, 4), (200, 10, 10, 255)).save(path)
    return {"event": "preview", "step": 0, "path": str(path)}


# --- pictures in terminals


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2", "TERM": "xterm-256color"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM_PROGRAM": "vscode"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen", "LC_TERMINAL": "iTerm2"}, None),
        ({}, None),
    ],
)
def test_a_terminal_shows_pictures_only_where_it_says_so(environ: dict[str, str], protocol: str | None) -> None:
    assert find_protocol(environ) == protocol


def test_kittys_sequences_carry_the_whole_file_in_chunks() -> None:
    content = bytes(range(256)) * 40
    parts = encode("kitty", content, 3).split("\x1b\\")
    assert parts.pop() == ""
    assert len(parts) == 4
    assert parts[0].startswith("\x1b_Ga=T,f=100,q=2,r=3,m=1;")
    assert [part.partition(";")[0][-3:] for part in parts] == ["m=1", "m=1", "m=1", "m=0"]
    assert all(len(part.partition(";")[2]) <= 4096 for part in parts)
    assert "".join(part.partition(";")[2] for part in parts) == b64encode(content).decode()


def show(events: list[Event], environ: dict[str, str], terminal: bool, quiet: bool = False) -> str:
    """What a screen writes of events."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Screen(quiet, console, environ) as screen:
        for event in events:
            screen(event)
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;]*m", "", output)  # colours


def test_a_screen_draws_bars_loss_best_validation_and_pictures(preview: Event) -> None:
    text = show([*EVENTS, preview], {"TERM": "xterm-kitty"}, terminal=True)
    assert text.count("\x1b_Ga=T") == 1
    for words in ("loss nan, best validation 50.0 %", "2/2", "steps", "before anything", "step     0: validation 50.0"):
        assert words in text
    assert "\x1b_G" not in show([*EVENTS, preview], {}, terminal=True)
    assert "\x1b" not in show([*EVENTS, preview], {"TERM": "xterm-kitty"}, terminal=False)
    assert show([*EVENTS, preview], {"TERM": "xterm-kitty"}, terminal=True, quiet=True).replace("\n", "") == ""


def test_what_a_command_is_at_is_told_on_a_terminal_alone() -> None:
    """A file that gets standard error holds what is worth keeping."""
    event = {"event": "status", "text": "reading my [bold]photos"}
    assert "reading my [bold]photos" in show([event], {}, terminal=True)
    assert show([event], {}, terminal=False) == show([event], {}, terminal=True, quiet=True).strip() == ""


def test_a_picture_that_is_gone_is_passed_over(preview: Event) -> None:
    Path(preview["path"]).unlink()
    assert "\x1b_G" not in show([preview], {"TERM": "xterm-kitty"}, terminal=True)


# --- progress.json


def test_the_file_says_how_far_a_job_is(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    for event in EVENTS:
        file(event)
    file.end("interrupted")
    record = read_progress(tmp_path / "progress.json")
    assert record is not None
    assert (record.state, record.stage, record.unit, record.done, record.total) == (
        "interrupted",
        "distill",
        "step",
        2,
        2,
    )
    assert (record.best, record.validation and record.validation.step) == (0.5, 0)
    again = ProgressFile(tmp_path / "progress.json")
    assert (again.record.state, again.record.best, again.record.done) == ("running", 0.5, 0)
    (tmp_path / "progress.json").write_text("{")
    assert read_progress(tmp_path / "progress.json") is None


def test_a_file_that_cannot_be_written_stops_no_work(tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json")
    (tmp_path / "progress.json").unlink()
    (tmp_path / "progress.json").mkdir()
    for event in EVENTS:
        file(event)
    assert file.record.done == 2


def test_a_run_leaves_how_it_ended_what_it_cost_and_its_pictures(tmp_path: Path) -> None:
    run, events = tmp_path / "run", []
    with pytest.raises(Interrupted):
        distill_minimal(run, listen=interrupt_in("distill", 5))
    assert read_json(run / "progress.json")["state"] == "failed"
    distill_minimal(run, listen=events.append)
    progress = read_json(run / "progress.json")
    assert (progress["state"], progress["stage"], progress["done"]) == ("finished", "evaluate", progress["total"])
    texts = [event["text"] for event in events if event["event"] == "note"]
    assert any(text.startswith("the distillation goes on after step ") for text in texts)
    (cost,) = [text for text in texts if text.startswith("cost: ")]
    for words in ("experts ", "distill ", "evaluate ", "peak memory ", "B; ", f"stored in {run}", "of experts in "):
        assert words in cost
    results = read_json(run / "results.json")
    assert results["memory"]["process"] > 50e6
    previews = {path.name for path in (run / "previews").iterdir()}
    frames = {f"step-{step:06}.png" for step in (0, 2, 4)}
    assert previews == frames | {f"{name}.png" for name in ("initial", "chosen", "last", "random", "kmeans")}
    shown = [event["step"] for event in events if event["event"] == "preview"]
    assert shown == [4]
    row = results["results"][0]
    assert len(row["class_accuracy"]) == len(row["confusion"]) == 10
    hits = [line[label] for label, line in enumerate(row["confusion"])]
    assert sum(hits) / sum(map(sum, row["confusion"])) == pytest.approx(row["accuracy_mean"])
    kinds = [event["event"] for event in events]
    assert kinds.count("result") == len(results["results"])


def test_there_are_never_many_pictures_along_the_distillation(tmp_path: Path) -> None:
    """Which remain follows from the steps alone, so that a continued run has those of one that was not."""
    options: dict[str, Any] = {"validate_every": 1, "validate_epochs": 1}
    long, continued = tmp_path / "long", tmp_path / "continued"
    distill_minimal(long, iterations=27, **options)
    for iterations in (9, 27):
        distill_minimal(continued, iterations=iterations, **options)
    names = sorted(path.name for path in (long / "previews").glob("step-*"))
    assert names == [f"step-{step:06}.png" for step in (*range(0, 27, 4), 27)]
    assert names == sorted(path.name for path in (continued / "previews").glob("step-*"))
    for name in names:
        assert (long / "previews" / name).read_bytes() == (continued / "previews" / name).read_bytes()


# --- trackers


def track(name: Any, folder: Path, preview: Event) -> None:
    folder.mkdir(exist_ok=True)
    with open_tracker(name, folder, {"method": "mct", "ipc": 1}) as listen:
        for event in [*EVENTS, preview]:
            listen(event)


def test_jsonl_appends_every_event_from_the_first_stage_on(tmp_path: Path, preview: Event) -> None:
    for _ in range(2):
        track("jsonl", tmp_path / "run", preview)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == 2 * [event["event"] for event in [*EVENTS[1:], preview]]
    assert all(line.pop("time") > 1e9 for line in lines)
    assert lines[6] == {**EVENTS[7], "loss": None}


def test_tensorboard_has_the_numbers_and_pictures(tmp_path: Path, preview: Event) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path / "run", preview)
    content = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    content.Reload()
    scalars = {tag: [(line.step, line.value) for line in content.Scalars(tag)] for tag in content.Tags()["scalars"]}
    assert scalars["distill/loss"] == [(1, 0.5)]
    assert scalars["experts/validation_0"] == [(1, 0.25), (2, 0.5)]
    assert scalars["distill/validation"] == [(0, 0.5)]
    assert scalars["test/distilled_chosen"] == [(0, 0.75)]
    assert content.Tags()["images"] == ["distill/images"]


def test_trackio_has_the_numbers(tmp_path: Path, preview: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    track("trackio", tmp_path / "run", preview)
    files = [path for path in (tmp_path / "trackio").rglob("*.db*") if b"distill/loss" in path.read_bytes()]
    assert files


def test_wandb_writes_an_offline_run(
    tmp_path: Path, preview: Event, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    pytest.importorskip("wandb")
    track("wandb", tmp_path / "run", preview)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    summary = re.findall(r"wandb: +(.*)", capfd.readouterr().err)
    assert {"distill/loss 0.5", "experts/validation 0 0.5", "test/distilled chosen 0.75"} <= set(summary)


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_named_with_its_extra(name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'limbeck\[{name}\]'"):
        open_tracker(name, tmp_path)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    unknown: Any = "tensorbord"
    with pytest.raises(UserError, match="did you mean tensorboard"):
        open_tracker(unknown, tmp_path)


# --- from Python


def test_progress_is_drawn_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    for terminal, listen, progress, drawn in (
        (True, None, None, True),
        (False, None, None, False),
        (True, events.append, None, False),
        (True, events.append, True, True),
        (False, None, True, True),
        (True, None, False, False),
    ):
        monkeypatch.setattr("limbeck.progress.default.is_watched", lambda terminal=terminal: terminal)
        with listening(listen, progress) as hear:
            hear({"event": "note", "text": "at work"})
        assert ("at work" in capsys.readouterr().err) == drawn, (terminal, listen, progress)
    assert len(events) == 2
