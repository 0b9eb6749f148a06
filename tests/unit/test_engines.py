"""A pool on an engine: what is done once, what is done again, what waits, and what fails with which sentence."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from limbeck import UserError
from limbeck.core.events import Event
from limbeck.core.files import require_new_folder
from limbeck.core.unfinished import ERRORS
from limbeck.engines import ENGINES, Local, LostError, Pool, Work, pool, scatter
from limbeck.engines.local import Process
from limbeck.engines.work import EngineLostError, WorkError
from limbeck.jobs.expert_works import train


class Played:
    """A work that ends as it was told to: with events, a sentence, a lost worker, or a full disk."""

    def __init__(self, end: str | None, events: Sequence[Event] = ()):
        self.end, self.list, self.was_interrupted = end, list(events), False

    def events(self) -> Iterator[Event]:
        yield from self.list
        if self.end == "full disk":
            yield {"event": "end", "sentence": self.end, "is_mistake": False}

    def failure(self) -> str | None:
        if self.end == "lost":
            raise LostError("its machine went away")
        return self.end

    def interrupt(self) -> None:
        self.was_interrupted = True

    def stop(self, seconds: float) -> None:
        """It has ended."""


class Theatre:
    """An engine whose works end as `ends` says, by key and in this order; `started` has their keys."""

    is_remote = True

    def __init__(self, room: int = 2, **ends: list[str | None]):
        self.room, self.ends, self.started = room, ends, list[str]()
        self.most = self.active = 0
        self.on_start: Callable[[Work], None] = lambda work: None
        self.events: list[Event] = [
            {"event": "stage", "name": "experts", "total": 3},
            {"event": "advance", "done": 2},
        ]
        self.is_lost = False

    def look(self) -> None:
        if self.is_lost:
            raise EngineLostError("its head went away")

    def capacity(self, threads: int, gpus: int) -> int:
        return self.room

    def shares(self, indices: Sequence[int]) -> list[tuple[int, ...]]:
        return [(index,) for index in indices]

    def start(self, work: Work) -> Played:
        self.started.append(work.key)
        self.on_start(work)
        return Played(self.ends.get(work.key, [None]).pop(0), self.events)


def make_work(key: str, **fields: Any) -> Work:
    return Work(key, f"work {key}", "json:dumps", {}, 1, Path("errors.txt"), **fields)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "SEE_SECONDS"):
        monkeypatch.setattr(pool, name, 0.01)


def ends_of(engine: Theatre, works: list[Work], listen: Any = lambda event: None) -> dict[str, str | None]:
    return {ended.work.key: ended.sentence for ended in Pool(engine, listen).run(works) if ended is not None}


def test_a_lost_work_is_done_again_before_the_others_and_a_finished_one_never() -> None:
    engine = Theatre(room=1, a=["lost", None])
    notes: list[Event] = []
    assert ends_of(engine, [make_work("a"), make_work("b"), make_work("a")], notes.append) == {"a": None, "b": None}
    assert engine.started == ["a", "a", "b"]
    assert [note["text"] for note in notes] == ["work a: its machine went away; it is done again"]


def test_what_is_lost_again_and_again_fails() -> None:
    engine = Theatre(a=["lost"] * 9)
    assert ends_of(engine, [make_work("a")]) == {"a": "its machine went away, 3 times"}
    assert engine.started == ["a"] * 3


def test_a_failure_is_not_tried_again_and_those_that_need_it_have_its_sentence() -> None:
    engine = Theatre(a=["no images"])
    ends = ends_of(engine, [make_work("a"), make_work("b", needs=frozenset({"a"})), make_work("c")])
    assert ends == {"a": "no images", "b": "work a failed: no images", "c": None}
    assert engine.started == ["a", "c"]


def test_a_work_waits_for_what_it_needs() -> None:
    engine, done = Theatre(room=3), list[str]()
    for ended in Pool(engine).run([make_work("b", needs=frozenset({"a"})), make_work("a")]):
        assert "b" not in engine.started or done == ["a"]
        done += [] if ended is None else [ended.work.key]
    assert done == ["a", "b"]


def test_what_another_job_computes_is_left_to_it_and_done_here_where_it_gives_up() -> None:
    """The other job has claimed both; it finishes the first, and drops the second."""
    looks, engine = {"first": 0, "second": 0}, Theatre()

    def look(key: str) -> bool:
        looks[key] += 1
        return looks[key] < 4

    works = [
        make_work("first", is_claimed=lambda: True, is_done=lambda: not look("first")),
        make_work("second", is_claimed=lambda: look("second")),
        make_work("third"),
    ]
    assert ends_of(engine, works) == {"third": None, "first": None, "second": None}
    assert engine.started == ["third", "second"]


def test_a_result_that_is_not_seen_here_is_a_failure() -> None:
    (sentence,) = ends_of(Theatre(), [make_work("a", is_done=lambda: False)]).values()
    assert "not seen here" in (sentence or "")


def test_a_wide_work_has_all_the_room_where_it_is_alone() -> None:
    engine, threads = Theatre(room=4), list[int]()
    engine.on_start = lambda work: threads.append(work.threads)
    assert ends_of(engine, [make_work("a", is_wide=True), make_work("b", needs=frozenset({"a"}))])
    assert threads == [4, 1]


def test_works_are_interrupted_where_the_caller_stops() -> None:
    engine, works = Theatre(), list[Played]()
    start = engine.start
    engine.start = lambda work: works.append(start(work)) or works[-1]  # type: ignore[method-assign,func-returns-value]
    running = Pool(engine).run([make_work("a"), make_work("b")])
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert any(work.was_interrupted for work in works)


def test_progress_counts_every_unit_once_though_a_worker_is_lost() -> None:
    events: list[Event] = []
    engine = Theatre(room=1, a=["lost", None])
    works = [make_work("a", units=3), make_work("b", units=3)]
    done = list(scatter(engine, works, {"name": "experts", "unit": "epoch"}, events.append))
    assert [work.key for work in done] == ["a", "b"]
    assert events[0] == {"event": "stage", "name": "experts", "unit": "epoch", "total": 6}
    advances = [event["text"] for event in events if event["event"] == "advance"]
    assert len(advances) == 6
    assert advances[-1].startswith("2 of 2 done")


def test_the_first_failure_is_the_sentence_and_the_others_are_finished() -> None:
    engine = Theatre(room=1, a=["diverged."])
    done = scatter(engine, [make_work("a"), make_work("b")], {}, lambda event: None)
    assert next(done).key == "b"
    with pytest.raises(UserError, match="1 of 2 failed, the first because diverged; the same command"):
        next(done)
    assert engine.started == ["a", "b"]


def test_a_warning_of_a_work_is_heard_with_its_name() -> None:
    warnings: list[Event] = []
    engine = Theatre()
    engine.events = [{"event": "warning", "text": "1 of 2 networks diverged"}]
    assert list(scatter(engine, [make_work("a")], {}, warnings.append))
    assert {"event": "warning", "text": "work a: 1 of 2 networks diverged"} in warnings


def test_a_fault_of_a_machine_is_no_mistake_of_the_user() -> None:
    with pytest.raises(WorkError, match="1 of 2 failed, the first because full disk; the same command"):
        list(scatter(Theatre(a=["full disk"]), [make_work("a"), make_work("b")], {}, lambda event: None))


def test_nobody_is_asked_to_stop_where_the_engine_is_lost() -> None:
    engine, works = Theatre(), list[Played]()
    start = engine.start
    engine.start = lambda work: works.append(start(work)) or works[-1]  # type: ignore[method-assign,func-returns-value]
    running = Pool(engine).run([make_work("a"), make_work("b")])
    next(running)
    engine.is_lost = True
    with pytest.raises(EngineLostError, match="its head went away"):
        list(running)
    assert works
    assert not any(work.was_interrupted for work in works)


@pytest.mark.parametrize(("code", "sentence"), [("import os; os.kill(os.getpid(), 9)", "signal 9"), ("nope", "nope")])
def test_a_process_that_cannot_say_why_it_ended(
    code: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\n{code}\n")
    interpreter.chmod(0o700)
    monkeypatch.setattr("limbeck.engines.local.sys.executable", str(interpreter))
    work = Work("a", "work a", "json:dumps", {}, 1, tmp_path / "errors" / "a.txt")
    process = Local(jobs=1).start(work)
    assert isinstance(process, Process)
    assert list(process.events()) == []
    assert sentence in (process.failure() or "")
    process.stop(60)
    assert work.errors.exists() == (code == "nope")


def test_an_interrupted_process_leaves_no_file(tmp_path: Path) -> None:
    work = Work("a", "work a", "time:sleep", {}, 1, tmp_path / "errors" / "a.txt")
    process = Local(jobs=1).start(work)
    assert work.errors.exists()
    process.interrupt()
    assert list(process.events()) == []
    process.stop(60)
    assert not work.errors.exists()


def test_every_engine_is_refused_kindly_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="add --engine ray"), ENGINES["local"]("host:1", None):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'limbeck\[ray\]'"), ENGINES["ray"](None, None):
        pass


def test_a_machine_that_does_not_have_the_folder_of_the_command_trains_nothing(tmp_path: Path) -> None:
    """What the engine writes there before all else makes it no folder of another kind: with S3 it may be a store."""
    (tmp_path / ERRORS).mkdir()
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} is not the store of the command")):
        train({"options": {"out": str(tmp_path)}, "is_on_disk": True}, lambda event: None)
    require_new_folder(tmp_path, "a store of experts")
