"""The last stage of a run: evaluates its sets and the baselines, and writes results.json."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.files import content_key, write_json
from limbeck.core.folders import size_of
from limbeck.core.memory import peak_memory
from limbeck.core.record_files import read_record
from limbeck.core.records import (
    DataName,
    ExpertsRecord,
    MemoryLine,
    PeakMemory,
    ProtocolLine,
    ResultBytes,
    ResultLine,
    ResultRow,
    ResultsRecord,
    StageLine,
)
from limbeck.core.rng import derive_seed
from limbeck.evaluation.baselines import count_missing_baselines, evaluate_baselines
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.regression import RegressionConfig, random_targets, regression_rows
from limbeck.evaluation.run import evaluate_distilled
from limbeck.evaluation.training import make_training
from limbeck.evaluation.trials import best_lr
from limbeck.jobs.job import Job
from limbeck.jobs.record import RESULTS
from limbeck.synthetic.distilled import DistilledSet, load
from limbeck.synthetic.recipe import CHOSEN_LR
from limbeck.task import Task


def evaluation_key(task: Task, config: EvalConfig, steps: int) -> str:
    """A key of the protocol, the conditions and the outer steps of the last set: rows of the log with one key agree."""
    return content_key(
        {
            "eval": config.model_dump(mode="json", exclude={"baselines"}),
            "computed": task.evaluation_conditions(),
            "steps": steps,
        }
    )


def evaluate_run(job: Job, listen: Listener) -> list[ResultRow]:
    """Compute the rows of results.json: last and chosen set, real images, full data. Only this uses the test part.

    Rows that are in the log already are read from there.
    """
    folder, config = job.folder, job.config
    sets = {which: _load_set(job, which) for which in ("last", "chosen")}
    key = evaluation_key(job.task, config.eval, sets["last"].provenance["step"])
    logged = {(line.set, line.which): line.row for line in folder.lines(ResultLine) if line.evaluation == key}
    make_training(job.task, config.eval, listen)  # so that teachers are stored
    networks = config.eval.networks * (1 if job.has_own_lr else 1 + len(config.eval.baseline_lrs))
    missing = {one.provenance["step"] for which, one in sets.items() if ("distilled", which) not in logged}
    ipc, fill = job.budget
    real = count_missing_baselines(job.task, ipc, config.eval, config.seed, fill)
    total = len(missing) * networks + real
    listen({"event": "stage", "name": "evaluate", "total": total, "unit": "network"})
    rows: list[ResultRow] = []
    for which, distilled in sets.items():
        row = logged.get(("distilled", which))
        same = rows[0] if rows and rows[0].step == distilled.provenance["step"] else None
        if not job.learns_lr:  # of a row in the log too: the file may have that of another evaluation since
            reference = row or same
            distilled = _with_lr(job, distilled, which, key, None if reference is None else reference.lr, listen)
        if row is None:
            if same is not None:  # the same set, so the same bits
                row = same.model_copy(update={"which": which})
            else:
                row = evaluate_distilled(job.task, distilled, config.eval, config.seed, which, listen)
            folder.line(ResultLine(**row.to_json(), evaluation=key))
        rows.append(row)
    rows += evaluate_baselines(job.task, ipc, config.eval, config.seed, listen, fill)
    return rows + _rows_by_targets(job, sets, key, listen)


def _load_set(job: Job, which: str) -> DistilledSet:
    """Load a set of the run, and update recipe and configuration in its file where those of the job differ."""
    path = job.path / f"set-{which}.safetensors"
    stored = load(path)
    if stored.provenance.get("step") is None:
        raise UserError(f"{path} is damaged: it does not say after how many outer steps it is; restore it.")
    current = replace(stored, recipe=job.recipe, provenance={**stored.provenance, "config": job.resolved})
    if (current.recipe, current.provenance) != (stored.recipe, stored.provenance):
        current.write(path)
    return current


def _with_lr(
    job: Job, distilled: DistilledSet, which: str, key: str, lr: float | None, listen: Listener
) -> DistilledSet:
    """The set, in its file too, with the step size that does best on validation, since its method learns none.

    key: of the evaluation that the step size is chosen for; lr: the step size where it is known already.
    """
    if distilled.provenance.get("lr_for") == key:
        return distilled
    if lr is None:
        pair = distilled.images.to(job.task.device), distilled.labels.to(job.task.device)
        advance = partial(listen, {"event": "advance", "text": f"step size for the {which} set"})
        lr = best_lr(job.task, lambda _seed: pair, job.config.eval, derive_seed(job.config.seed, "step size"), advance)
    distilled = replace(distilled, lr=lr, provenance={**distilled.provenance, "lr": CHOSEN_LR, "lr_for": key})
    distilled.write(job.path / f"set-{which}.safetensors")
    return distilled


def _rows_by_targets(job: Job, sets: dict[str, DistilledSet], key: str, listen: Listener) -> list[ResultRow]:
    """For sets with real-valued targets, the rows of their own protocol, beside random real images by the same.

    key: of this evaluation; rows of another one in the log are passed over.
    """
    folder, task, seed = job.folder, job.task, job.config.seed
    if sets["last"].targets is None:
        return []
    logged = {(line.set, line.which): line.rows for line in folder.lines(ProtocolLine) if line.evaluation == key}
    config = RegressionConfig(networks=job.config.eval.networks)
    listen({"event": "stage", "name": "own protocol", "total": 6 * config.networks, "unit": "network"})
    subjects: list[tuple[str, str | None, DistilledSet]] = [("distilled", which, sets[which]) for which in sets]
    images, targets = random_targets(task, *job.budget, seed)
    subjects.append(("random", None, replace(sets["last"], images=images, targets=targets)))
    rows = []
    for name, which, distilled in subjects:
        if (name, which) not in logged:
            advance = partial(listen, {"event": "advance", "text": f"{name}, by its own protocol"})
            computed = regression_rows(task, distilled, config, seed, which, advance)
            origin = {"set": name} if which else {"set": name, "step": None}
            logged[name, which] = [row.model_copy(update=origin) for row in computed]
            folder.line(ProtocolLine(set=name, which=which, rows=logged[name, which], evaluation=key))
        rows += logged[name, which]
    return rows


@contextmanager
def stage_timer(job: Job, stage: str) -> Iterator[None]:
    """Log the seconds of the `with` block as those of a stage, also where it is interrupted."""
    start = time.perf_counter()
    try:
        yield
    finally:
        job.folder.line(StageLine(name=stage, seconds=round(time.perf_counter() - start, 2)))


def stage_seconds(job: Job) -> dict[str, float]:
    """Seconds by stage, summed over all sessions of the run."""
    total: dict[str, float] = {}
    for line in job.folder.lines(StageLine):
        total[line.name] = round(total.get(line.name, 0.0) + line.seconds, 2)
    return total


def measure_memory(task: Task) -> MemoryLine:
    """The peak memory of this process so far, and on the task's GPU."""
    on_gpu = task.device.type == "cuda"
    return MemoryLine(process=peak_memory(), device=torch.cuda.max_memory_allocated(task.device) if on_gpu else None)


def most_memory(earlier: list[MemoryLine], now: MemoryLine) -> PeakMemory:
    """The largest peaks over the sessions of a run."""
    lines = [*earlier, now]
    return PeakMemory(
        process=max((line.process for line in lines if line.process is not None), default=None),
        device=max((line.device for line in lines if line.device is not None), default=None),
    )


def write_results(job: Job, rows: list[ResultRow]) -> None:
    """Remove the old report, write results.json, and then its configuration to run.json."""
    config, task = job.config.eval, job.task
    set_bytes, stored = size_of(job.path / "set-chosen.safetensors"), ResultBytes()
    if (job.path / "experts.json").exists():  # the store may be gone by now
        experts = read_record(job.path / "experts.json", ExpertsRecord, "limbeck-experts")
        stored = ResultBytes(experts=experts.bytes.experts)
    results = ResultsRecord(
        format=RESULTS,
        version=1,
        key=content_key(job.resolved),
        computed=task.evaluation_conditions(),
        method=job.method.name,
        data=DataName(name=task.data.name, fingerprint=task.data.fingerprint),
        ipc=job.config.ipc,
        protocol=config.describe(task.augment.strategy),
        results=rows,
        seconds=stage_seconds(job),
        bytes=stored.model_copy(update={"set": set_bytes}),
        memory=most_memory(job.folder.lines(MemoryLine), measure_memory(task)),
    )
    (job.path / "report.html").unlink(missing_ok=True)
    write_json(job.path / "results.json", results.to_json())
    job.folder.record(job.resolved)
