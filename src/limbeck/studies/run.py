"""A study from its file to its record, which is written after every finished run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import content_key, require_writable
from limbeck.core.folders import home_folder
from limbeck.core.study_records import FORMAT, StudyFailure, StudyRecord, StudyRow
from limbeck.report.study import row_sentence
from limbeck.report.text import duration
from limbeck.studies.cells import Cell, make_cells
from limbeck.studies.compare import compare_cells
from limbeck.studies.config import Study, read_study
from limbeck.studies.plan import PlannedRun, estimate_runs, plan_runs
from limbeck.studies.pool import Pool, make_units
from limbeck.studies.record import read_row, read_study_record, write_study_record

STATUS_SECONDS = 60.0
"""Seconds between two notes about the runs at work."""


@dataclass(frozen=True)
class OpenStudy:
    """A study whose runs are planned.

    path:   The study file; its record lies beside it, with the ending .json, and its page, with .html.
    work:   The folder of the run folders.
    plan:   All runs, in the order in which they are computed.
    rows:   The finished ones, by key; earlier: rows that the study file asks for no more.
    """

    path: Path
    work: Path
    study: Study
    content: dict[str, Any]
    cells: list[Cell]
    plan: list[PlannedRun]
    rows: dict[str, StudyRow]
    earlier: list[StudyRow]

    @property
    def record_path(self) -> Path:
        """The file of the record."""
        return self.path.with_suffix(".json")

    @property
    def left(self) -> list[PlannedRun]:
        """The runs that have no row yet."""
        return [run for run in self.plan if run.key not in self.rows]

    def record(self, failures: Sequence[StudyFailure] = ()) -> StudyRecord:
        """The record as it is now; rows stand in the order of the grid."""
        order = [run for cell in self.cells for run in self.plan if run.cell is cell]
        rows = [self.rows[run.key] for run in order if run.key in self.rows]
        return StudyRecord(
            format=FORMAT,
            version=1,
            title=self.study.title,
            text=self.study.text,
            axes={axis: list(values) for axis, values in self.study.axes.items()},
            seeds=list(dict.fromkeys(seed for cell in self.cells for seed in cell.seeds)),
            study=self.content,
            planned=len(self.plan),
            rows=rows,
            comparisons=compare_cells(rows, self.study.compare),
            failures=list(failures),
            earlier=self.earlier,
        )

    def add(self, run: PlannedRun) -> StudyRow:
        """Read the row of a finished run from its folder."""
        self.rows[run.key] = read_row(run)
        return self.rows[run.key]


def plan_study(
    path: str | Path,
    *,
    work: str | Path | None = None,
    threads: int = 1,
    listen: Listener = lambda event: None,
) -> OpenStudy:
    """Read a study file and its record, and plan every run; the arguments are those of `run_study`.

    Raises UserError for a study file or options that do not work. Nothing is written.
    """
    with _threads(threads):
        return _plan(Path(path), home_folder() / "studies" if work is None else Path(work), listen)


def _plan(path: Path, work: Path, listen: Listener) -> OpenStudy:
    if path.suffix in (".json", ".html"):
        raise UserError(f"{path}: a study file ends in .toml; its record and page would overwrite this one.")
    study, content = read_study(path)
    cells = make_cells(study)
    record = read_study_record(path.with_suffix(".json"))
    require_writable(path.with_suffix(".json"), "copy the study file to a folder that can be written to")
    plan = plan_runs(cells, path.parent, work.absolute(), listen)
    recorded = {} if record is None else {row.key: row for row in (*record.earlier, *record.rows)}
    by_key = {run.key: run for run in plan}
    rows = {
        key: row.model_copy(update={"cell": by_key[key].cell.values}) for key, row in recorded.items() if key in by_key
    }
    earlier = [row for key, row in recorded.items() if key not in by_key]
    return OpenStudy(path, work.absolute(), study, content, cells, plan, rows, earlier)


def run_study(
    path: str | Path,
    *,
    work: str | Path | None = None,
    jobs: int | None = None,
    threads: int = 1,
    tell_cost: bool = True,
    listen: Listener = lambda event: None,
) -> StudyRecord:
    """Compute the runs of a study that are left, and return its record, which is written after every one of them.

    path:      The study file; see `limbeck.studies.config.Study`.
    work:      The folder of the run folders, in which interrupted runs are resumed; by default in limbeck's cache
               folder, where studies share runs that are the same.
    jobs:      Runs at a time, each a process of its own; by default as many as torch has threads, and 1 on a GPU.
    threads:   Of each run.
    tell_cost: Estimate first how long the runs will take.
    Raises UserError as `plan_study` does, and where another process is at work on the same study.
    """
    cores = torch.get_num_threads()
    with _lock(Path(path), Path(work) if work is not None else home_folder() / "studies"):
        opened = plan_study(path, work=work, threads=threads, listen=listen)
        jobs = default_jobs(opened.plan, cores, threads) if jobs is None else jobs
        with _threads(threads):
            return _compute(opened, jobs, threads, tell_cost, listen)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Jobs are prepared as the child processes prepare them: with as many threads, on which bits may depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _lock(path: Path, work: Path) -> Iterator[None]:
    """Lock the study against other processes on this machine, which would write the same record."""
    require_writable(work, "name another folder with --work")
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / f".{content_key({'study': str(path.absolute())})}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is at work on {path}; wait for it.") from None
    try:
        yield
    finally:
        lock.release()


def default_jobs(plan: Sequence[PlannedRun], cores: int, threads: int) -> int:
    """How many runs of `threads` threads fit the cores; one where a run needs a GPU."""
    if any(not run.device.startswith("cpu") for run in plan):
        return 1
    return max(1, cores // threads)


def _compute(opened: OpenStudy, jobs: int, threads: int, tell_cost: bool, listen: Listener) -> StudyRecord:
    for run in opened.left:
        if run.is_finished:
            opened.add(run)
    write_study_record(opened.record_path, opened.record())
    left = opened.left
    listen({"event": "note", "text": describe_plan(opened)})
    if not left:
        return opened.record()
    seconds = estimate_runs(left, opened.rows.values(), listen) if tell_cost else {}
    clock = Clock(seconds, jobs)
    if clock.left(left):
        listen({"event": "note", "text": f"about {duration(clock.left(left))} with {jobs} at a time"})
    failures: list[StudyFailure] = []
    listen({"event": "stage", "name": "study", "total": len(opened.plan), "done": len(opened.rows), "unit": "run"})
    pool, last = Pool(jobs, threads, opened.work / "errors"), time.perf_counter()
    for ended in pool.run(make_units(left)):
        if ended is None:
            if time.perf_counter() - last > STATUS_SECONDS:
                last = time.perf_counter()
                busy = "; ".join(child.progress for child in pool.children.values())
                listen({"event": "note", "text": f"  {busy}; {clock.sentence(opened.left)}"})
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
        return f"{len(runs)} of the runs left, about {duration(self.left(runs))}"


def describe_plan(opened: OpenStudy) -> str:
    """The plan in a sentence: runs, cells, seeds, what is done, and the experts to train."""
    cells, runs, done = len(opened.cells), len(opened.plan), len(opened.rows)
    stores = {run.store.path for run in opened.left if run.store is not None and run.store.missing}
    parts = [f"{runs} run{'s' * (runs != 1)} of {cells} cell{'s' * (cells != 1)}", f"{done} done"]
    if stores:
        parts.append(f"experts of {len(stores)} store{'s' * (len(stores) != 1)} to train")
    if opened.earlier:
        count = len(opened.earlier)
        parts.append(f"{count} row{'s' * (count != 1)} of earlier states of the study file stay in its record, apart")
    return f"{opened.study.title}: {'; '.join(parts)}"
