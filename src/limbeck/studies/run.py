"""A study from its file to its record, which is written after every finished run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import content_key, require_writable
from limbeck.core.folders import home_folder
from limbeck.core.locks import Locked, locked
from limbeck.core.study_records import StudyFailure, StudyRecord
from limbeck.engines import Engine, Local, Pool
from limbeck.report.study import row_sentence, trial_sentence
from limbeck.report.text import duration
from limbeck.studies.opened import OpenStudy, describe_plan, plan_study, use_threads
from limbeck.studies.plan import PlannedRun, estimate_runs, estimate_trials
from limbeck.studies.record import write_study_record
from limbeck.studies.search import OpenSearch
from limbeck.studies.units import UnitPool, make_units

STATUS_SECONDS = 60.0
"""Seconds between two notes about the runs at work."""


def run_study(
    path: str | Path,
    *,
    work: str | Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    merge: Sequence[str | Path] = (),
    tell_cost: bool = True,
    engine: Engine | None = None,
    listen: Listener = lambda event: None,
) -> StudyRecord:
    """Compute the runs of a study that are left, and return its record, which is written after every one of them.

    path:      The study file; see `limbeck.studies.config.Study`.
    work:      The folder of the run folders, in which interrupted runs are resumed; by default in limbeck's cache
               folder, where studies share runs that are the same.
    jobs:      Runs at a time, each a process of its own; by default as many as torch has threads, and 1 on a GPU.
               An engine knows its own number.
    threads:   Of each run.
    merge:     Records of the same study from other machines, whose rows are taken over.
    tell_cost: Estimate first how long the runs will take.
    engine:    Where they are carried out; by default processes of this machine.
    Raises UserError as `plan_study` does, and where another process is at work on the same study.
    """
    engine = Local(jobs) if engine is None else engine
    with _lock(Path(path), Path(work) if work is not None else home_folder() / "studies"):
        opened = plan_study(path, work=work, threads=threads, merge=merge, listen=listen)
        with use_threads(threads):
            if opened.probes:
                _search(opened, engine, threads, tell_cost, listen)
                opened = plan_study(path, work=work, threads=threads, merge=merge, listen=listen)
            return _compute(opened, engine, threads, tell_cost, listen)


@contextmanager
def _lock(path: Path, work: Path) -> Iterator[None]:
    """Lock the study against other processes on this machine, which would write the same record."""
    require_writable(work, "name another folder with --work")
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(work / f".{content_key({'study': str(path.absolute())})}.lock"))
        except Locked as other:
            raise UserError(f"{other} is at work on {path}; wait for it.") from None
        yield


def _capacity(engine: Engine, plan: Sequence[PlannedRun], threads: int) -> int:
    """How many runs of `threads` threads the engine carries out at a time."""
    return engine.capacity(threads, any(not run.device.startswith("cpu") for run in plan))


def _compute(opened: OpenStudy, engine: Engine, threads: int, tell_cost: bool, listen: Listener) -> StudyRecord:
    opened.collect()
    write_study_record(opened.record_path, opened.record())
    left = opened.left
    listen({"event": "note", "text": describe_plan(opened)})
    if not left:
        return opened.record()
    seconds = estimate_runs(left, opened.rows.values(), listen) if tell_cost else {}
    jobs = _capacity(engine, left, threads)
    clock = Clock(seconds, jobs)
    if clock.left(left):
        listen({"event": "note", "text": f"about {duration(clock.left(left))} with {jobs} at a time"})
    failures: list[StudyFailure] = []
    listen({"event": "stage", "name": "study", "total": len(opened.plan), "done": len(opened.rows), "unit": "run"})
    pool, last = UnitPool(Pool(engine, listen), threads, opened.work / "errors"), time.perf_counter()
    for ended in pool.run(make_units(left, engine.shares)):
        if ended is None:
            if time.perf_counter() - last > STATUS_SECONDS:
                last = time.perf_counter()
                listen({"event": "note", "text": f"  {pool.progress}; {clock.sentence(opened.left)}"})
            continue
        unit, sentence = ended
        if sentence is not None and unit.kind == "run":
            run = unit.run
            failures.append(StudyFailure(cell=run.cell.values, seed=run.seed, key=run.key, sentence=sentence))
            listen({"event": "warning", "text": f"{unit.name} failed: {sentence}"})
        elif unit.kind == "run":
            row = opened.add(unit.run)
            clock.measure(unit.run, sum(row.seconds.values()))
            listen({"event": "note", "text": f"  {unit.name}: {row_sentence(row)}; {clock.sentence(opened.left)}"})
        if unit.kind == "run":
            write_study_record(opened.record_path, opened.record(failures))
            listen({"event": "advance", "text": unit.name})
    return opened.record(failures)


def _search(opened: OpenStudy, engine: Engine, threads: int, tell_cost: bool, listen: Listener) -> None:
    """Do the trials of all unfinished searches; the record is written after each."""
    listen({"event": "note", "text": describe_plan(opened)})
    searches = {search.cell.name: search for search in opened.searches if not search.is_finished}
    total, done = (sum(part) for part in zip(*((s.search.trials, len(s.trials)) for s in searches.values())))
    if tell_cost:
        seconds = estimate_trials(opened.probes, listen)
        left = sum((s.search.trials - len(s.trials)) * seconds[name] for name, s in searches.items())
        if left:
            jobs = _capacity(engine, opened.probes, threads)
            listen({"event": "note", "text": f"about {duration(left / jobs)} for the search"})
    pool = UnitPool(Pool(engine, listen), threads, opened.work / "errors")

    def begin(search: OpenSearch) -> None:
        for number in search.ready():
            search.begun.add(number)
            run = search.plan(number, opened.path.parent, opened.work)
            units = make_units([run], engine.shares)
            pool.add([replace(unit, kind="trial", number=number) if unit.kind == "run" else unit for unit in units])

    for search in searches.values():
        begin(search)
    listen({"event": "stage", "name": "search", "total": total, "done": done, "unit": "trial"})
    for ended in pool.run([]):
        if ended is None or ended[0].number is None:
            continue
        unit, sentence = ended
        search = searches[unit.run.cell.name]
        trial = search.finish(unit.number or 0, unit.run, sentence)
        listen({"event": "note", "text": f"  {unit.name}: {trial_sentence(trial)}"})
        listen({"event": "advance", "text": unit.name})
        write_study_record(opened.record_path, opened.record())
        begin(search)


class Clock:
    """The time that is left: of every run the seconds of a finished run of its cell, else those estimated.

    >>> Clock({}, 2).sentence([])
    'nothing left'
    """

    def __init__(self, seconds: dict[str, float], jobs: int):
        self.seconds, self.jobs, self.measured = seconds, jobs, dict[str, float]()

    def measure(self, run: PlannedRun, seconds: float) -> None:
        """Note how long a run took."""
        self.measured[run.cell.name] = seconds

    def left(self, runs: Sequence[PlannedRun]) -> float:
        """Seconds of these runs, as many at a time as there are jobs; 0 where nothing is known."""
        values = [self.measured.get(run.cell.name, self.seconds.get(run.key)) for run in runs]
        total = sum(value for value in values if value is not None)
        return total / max(1, min(self.jobs, len(runs)))

    def sentence(self, runs: Sequence[PlannedRun]) -> str:
        """The time that is left, in words."""
        if not runs:
            return "nothing left"
        seconds = self.left(runs)
        return f"{len(runs)} run{'s' * (len(runs) != 1)} left" + (f", about {duration(seconds)}" if seconds else "")
