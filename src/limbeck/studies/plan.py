"""The plan of a study: every run prepared and checked before the first one is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import content_key
from limbeck.core.study_records import StudyRow
from limbeck.data import ImageData
from limbeck.evaluation.baselines import baseline_path
from limbeck.jobs.estimate import Estimate, estimate, expert_bytes
from limbeck.jobs.job import Job
from limbeck.studies.calls import Call
from limbeck.studies.cells import Cell, by_seed


@dataclass(frozen=True)
class StoreNeed:
    """The experts that a run needs: their store, how many, and which of these are not trained yet.

    bytes: Of these experts in the form that the run matches.
    """

    path: Path
    count: int
    missing: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, prepared once and checked; the job itself is prepared again by the process that runs it.

    key:       The content key of the job's whole resolved configuration.
    path:      The run folder, named by the key and by the conditions of computation.
    store:     None for a method without experts.
    is_finished: Whether the run folder holds the results.
    depends_on_threads: Whether the bits do, so that its experts are trained on as many.
    baselines: Where the row of random images is stored, which runs share.
    """

    cell: Cell
    seed: int
    call: Call
    key: str
    path: Path
    store: StoreNeed | None
    is_finished: bool
    device: str
    depends_on_threads: bool
    baselines: Path

    @property
    def has_experts_to_train(self) -> bool:
        """Whether a store lacks experts that the run needs."""
        return self.store is not None and bool(self.store.missing)

    @property
    def name(self) -> str:
        """The run as a message names it."""
        return f"{self.cell.name}, seed {self.seed}"


def plan_runs(cells: list[Cell], folder: Path, work: Path, listen: Listener) -> list[PlannedRun]:
    """Prepare every run of the cells, in the order in which they are computed.

    folder: Of the study file; work: of the run folders.
    Raises UserError that names the cell for options that do not work, and where two cells are the same run.
    """
    plan: list[PlannedRun] = []
    runs = list(by_seed(cells))
    names: dict[str, str] = {}
    listen({"event": "stage", "name": "plan", "total": len(runs), "unit": "run"})
    images: tuple[tuple[Any, ...], ImageData] | None = None
    for cell, seed in runs:
        try:
            call = Call.of(cell.options, seed, folder)
            if images is None or images[0] != call.reading_key:
                images = (call.reading_key, call.load())
            run = _plan_run(cell, seed, call, work, images[1])
        except UserError as error:
            raise UserError(f"{cell.name}, seed {seed}: {error}") from None
        if run.key in names:
            raise UserError(
                f"{names[run.key]} and {run.name} are the same run, with the same options; correct an axis, or skip "
                "one of them."
            )
        names[run.key] = run.name
        plan.append(run)
        listen({"event": "advance", "text": run.name})
    return plan


def plan_trial(cell: Cell, seed: int, folder: Path, work: Path) -> PlannedRun:
    """Prepare one run; the arguments are those of `plan_runs`.

    Raises UserError that names the cell for options that do not work.
    """
    try:
        call = Call.of(cell.options, seed, folder)
        return _plan_run(cell, seed, call, work, call.load())
    except UserError as error:
        raise UserError(f"{cell.name}, seed {seed}: {error}") from None


def _plan_run(cell: Cell, seed: int, call: Call, work: Path, data: ImageData) -> PlannedRun:
    job = call.prepare(work / "new", data)
    record = job.record()
    path = work / f"{record.key}-{content_key({'computed': record.computed})[:6]}"
    job, config = replace(job, path=path), job.config
    ipc, fill = job.budget
    return PlannedRun(
        cell=cell,
        seed=seed,
        call=call,
        key=record.key,
        path=path,
        store=_store_need(job),
        is_finished=job.is_finished,
        device=str(job.task.device),
        depends_on_threads="threads" in (record.computed or {}),
        baselines=baseline_path(job.task, "random", ipc, config.eval, config.seed, fill)[0],
    )


def _store_need(job: Job) -> StoreNeed | None:
    experts = job.experts
    if experts is None:
        return None
    size = experts.count * expert_bytes(experts, experts.kind)
    return StoreNeed(experts.path, experts.count, tuple(experts.missing()), size)


def estimate_trials(probes: Sequence[PlannedRun], listen: Listener) -> dict[str, float]:
    """Seconds of one trial by the name of its cell, without experts; an estimate that fails counts nothing."""
    listen({"event": "stage", "name": "estimate", "total": len(probes), "unit": "cell"})
    seconds = {}
    for run in probes:
        seconds[run.cell.name] = _estimate(run).seconds.get("distill", 0.0)
        listen({"event": "advance", "text": run.cell.name})
    return seconds


def _estimate(run: PlannedRun) -> Estimate:
    """The estimate of a run; an empty one where it fails, since it must not stop the work."""
    try:
        return estimate(run.call.prepare(run.path))
    except Exception:  # the run itself will say what is wrong, if it matters
        return Estimate({})


def estimate_runs(plan: Sequence[PlannedRun], rows: Iterable[StudyRow], listen: Listener) -> dict[str, float]:
    """Seconds of the runs that are left, by their keys: those of a finished run of the same cell, else timed ones.

    One run of a cell is timed, in a few of its steps. Experts and the rows of real images are counted with the first of
    the runs that share them.
    """
    rows = list(rows)
    done = {row.key for row in rows}
    left = [run for run in plan if run.key not in done]
    measured = {Cell(row.cell, {}, ()).name: row.seconds for row in rows}
    first: dict[str, PlannedRun] = {}
    for run in left:
        if run.cell.name not in measured or run.has_experts_to_train:
            first.setdefault(run.cell.name, run)
    if first:
        listen({"event": "stage", "name": "estimate", "total": len(first), "unit": "cell"})
    timed: dict[str, Estimate] = {}
    for name, run in first.items():
        timed[name] = _estimate(run)
        listen({"event": "advance", "text": name})
    shared: set[Path] = set()

    def once(path: Path, seconds: float) -> float:
        """The seconds the first time that something shared is counted, then 0."""
        is_new = path not in shared
        shared.add(path)
        return seconds if is_new else 0.0

    seconds = {}
    for run in left:
        estimated = timed.get(run.cell.name, Estimate({}))
        if run.cell.name in measured:
            own = {stage: value for stage, value in measured[run.cell.name].items() if stage != "experts"}
            seconds[run.key] = sum(own.values())
        else:
            own = {stage: value for stage, value in estimated.seconds.items() if stage != "experts"}
            seconds[run.key] = sum(own.values()) - estimated.baselines + once(run.baselines, estimated.baselines)
        if run.store is not None and run.has_experts_to_train:
            seconds[run.key] += once(run.store.path, estimated.seconds.get("experts", 0.0))
    return seconds
