"""The whole job: data, experts, distillation, evaluation, report; each stage takes up what an earlier try left."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from limbeck.core.aliases import rename_keywords
from limbeck.core.errors import UserError
from limbeck.core.types import Listener, Trajectory
from limbeck.core.user_code import source_key
from limbeck.data import ImageData, load_data
from limbeck.data.sources import NAMES
from limbeck.experts.make import default_store, describe_experts, make_experts
from limbeck.experts.store import Expert, ExpertConfig, Kind, Store
from limbeck.jobs.config import JobConfig, checked
from limbeck.jobs.record import Run
from limbeck.jobs.rehearsal import refuse_impossible
from limbeck.jobs.stages import VALIDATION, Job, inspect_experts, judge, optimise, write_results
from limbeck.methods import DataFacts, Method, MethodInputs, find_method
from limbeck.networks.registry import MODELS
from limbeck.report.page import write_report
from limbeck.task import Task, kept_switches, make_task


def quiet(event: dict[str, Any]) -> None:
    """A listener that does nothing."""


@kept_switches()
def train_experts(
    data: str | Path | ImageData,
    *,
    out: str | Path | None = None,
    device: str = "cpu",
    resize: int | None = None,
    listen: Listener = quiet,
    **options: Any,
) -> Store:
    """Train the experts that a store lacks and return the store.

    out: the store's folder; by default one named by its content, so that the same settings find it again.
    options: fields of `JobConfig` (count, seed, model, expert, preprocess, augment).
    Raises UserError for input that cannot work and for a store made from something else.
    """
    config = checked(JobConfig, rename_keywords(options, JobConfig.model_fields))
    task = make_task(
        _load(data, config.seed, resize), config.model, config.preprocess, config.augment, device, config.precision
    )
    store = _begin_store(task, config, None if out is None else Path(out))
    count = config.count or DEFAULT_COUNT
    work = Work(task, config.model_copy(update={"count": count}))
    _begin(work, store.path, listen)
    make_experts(task, config.expert, count, config.seed, store, listen)
    return store


def _load(data: str | Path | ImageData, seed: int, resize: int | None) -> ImageData:
    images = load_data(data, seed=seed, resize=resize)
    if not len(images.validation):
        raise UserError(f"{images.name} has no validation images to choose by; give it more images per class.")
    return images


def _begin_store(task: Task, config: JobConfig, out: Path | None) -> Store:
    config.expert.waypoint_epochs()
    description = describe_experts(task, config.expert, config.seed)
    return Store.create(out or default_store(description), description)


DEFAULT_COUNT = 10


class Found(NamedTuple):
    """Experts of a run: the store, which of it, and what was read."""

    store: Store
    indices: Sequence[int]
    experts: list[Expert]


class Work(NamedTuple):
    """What is to be done, read and checked and nothing of it written. A listener hears of it when it begins.

    method, options: with every default resolved; None where only experts are trained. given: those of a named store.
    config.count: experts there are to be, None where the method has none.
    """

    task: Task
    config: JobConfig
    method: Method | None = None
    options: Any = None
    given: Found | None = None


def _begin(work: Work, path: Path, listen: Listener) -> None:
    """Announce the job, and how its derivatives are computed."""
    choice = work.task.choice
    if choice.reason:
        listen({"event": "warning" if choice.could_be_faster else "note", "text": choice.reason})
    listen({"event": "begin", "work": work, "path": path})


def _read(store: Store, count: int | None, kind: Kind) -> Found:
    """The store's first `count` experts (None: all of them), each with a trajectory of `kind`."""
    indices = store.indices()[:count]
    if not indices:
        raise UserError(f"the store {store.path} holds no finished experts; run 'limbeck experts' first.")
    if count is not None and len(indices) < count:
        raise UserError(f"the store {store.path} holds {len(indices)} experts, fewer than --count {count}.")
    experts = [store.read(index, lazy=True) for index in indices]
    if any(expert.trajectory(kind) is None for expert in experts):
        how = "'limbeck convexify' it" if kind == "convex" else "train with '--keep recorded'"
        raise UserError(f"the store {store.path} holds no {kind} trajectories; {how}.")
    return Found(store, indices, experts)


def prepare(
    data: str | Path | ImageData,
    *,
    method: str = "mct",
    experts: str | Path | None = None,
    device: str = "cpu",
    resize: int | None = None,
    **options: Any,
) -> Work:
    """Read and check what `distill` is asked for, which takes the same arguments, and resolve every default.

    Raises UserError for input that cannot work.
    """
    chosen = find_method(method)
    options = rename_keywords(options, {*chosen.config.model_fields, *JobConfig.model_fields})
    own = {key: value for key, value in options.items() if key in chosen.config.model_fields}
    config = checked(JobConfig, {key: value for key, value in options.items() if key not in own})
    asked = checked(chosen.config, own)
    images = _load(data, config.seed, resize)
    task = make_task(images, config.model, config.preprocess, config.augment, device, config.precision)
    task.check_ipc(config.ipc)

    config, given = _with_experts(config, chosen, task, experts)
    expert = config.expert if given is None else given.store.config
    options_of_method = chosen.resolve_options(asked, DataFacts(len(images.train), config.ipc, expert))
    config = config.model_copy(update={"model": task.model_config, "augment": task.augment.strategy, "expert": expert})
    return Work(task, config, chosen, options_of_method, given)


def run_folder(work: Work, out: str | Path | None) -> Path:
    """The folder of a run: the one that was named, or runs/DATA-METHOD-ipcN-seedS."""
    assert work.method is not None
    name = f"{work.task.data.name}-{work.method.name}-ipc{work.config.ipc}-seed{work.config.seed}"
    return Path(out) if out is not None else Path("runs") / name


def is_finished(work: Work, path: Path) -> bool:
    """Whether the run in the folder `path` is finished and has exactly the configuration of `work`."""
    run = Run(path)
    return run.is_finished(_resolved(work._replace(config=_with_rhythm(work, run.config()))))


@kept_switches()
def distill(
    data: str | Path | ImageData,
    *,
    method: str = "mct",
    out: str | Path | None = None,
    experts: str | Path | None = None,
    device: str = "cpu",
    resize: int | None = None,
    listen: Listener = quiet,
    **options: Any,
) -> Path:
    """Distil `data` by `method` into a run folder and return its path; an interrupted run is taken up where it was.

    A finished run is left alone, continued where more iterations are asked for, and evaluated again where `eval` is
    another.

    data:    what `load_data` takes: a name, a path, an `ImageData`.
    out:     the run folder; by default runs/DATA-METHOD-ipcN-seedS.
    experts: a store of experts; by default they are trained, or found again, in a store named by its content.
    options: fields of `JobConfig`, and of the method's own config (for MCT `limbeck.methods.mct.MCTConfig`).
    Raises UserError for input that cannot work, before anything is written.
    """
    work = prepare(data, method=method, experts=experts, device=device, resize=resize, **options)
    run = Run(run_folder(work, out))
    work = work._replace(config=_with_rhythm(work, run.config()))
    assert work.method is not None
    resolved, facts = _resolved(work), _facts(work, data)
    if not run.has_begun():
        epochs = None if work.config.count is None else work.config.expert.epochs
        refuse_impossible(work.method, work.options, work.task, work.config.ipc, work.config.seed, epochs)
        Run.begin(run.path, resolved, facts)
    with run.alone():
        run.take_up(resolved, facts)
        if run.is_finished(resolved):
            run.record(resolved)
            listen({"event": "note", "text": f"{run.path} is finished; nothing was done."})
        else:
            _begin(work, run.path, listen)
            source = {"source": _source(data), "resize": resize}
            _work(Job(run, work.task, work.config, resolved, source, listen, work.method.learns), work)
        if not (run.path / "report.html").exists():
            write_report(run.path)
    return run.path


def _with_rhythm(work: Work, recorded: dict[str, Any]) -> JobConfig:
    """The config with its steps between validations: as asked, as the run has had them, or a tenth of all."""
    every = work.config.validate_every or recorded.get("validate_every")
    if every is None and "iterations" in type(work.options).model_fields:
        every = max(1, work.options.iterations // 10)
    return work.config.model_copy(update={"validate_every": every})


def _resolved(work: Work) -> dict[str, Any]:
    """All that determines the result of a run, JSON-able: options, data, experts, and the user's own code."""
    assert work.method is not None
    method, config, given = work.method, work.config, work.given
    resolved = {"method": method.name, **work.options.model_dump(mode="json"), **config.model_dump(mode="json")}
    resolved |= {"data": work.task.data.fingerprint, "experts": None if given is None else given.store.header["key"]}
    if config.count is None:
        resolved = {name: value for name, value in resolved.items() if name not in ("expert", "count")}
        resolved["experts"] = "none"
    code = source_key(method.plan, method.resolve, method.config, MODELS[config.model.name])
    return {**resolved, "code": code} if code else resolved


def _work(job: Job, work: Work) -> None:
    """The stages of a run, each taking up what an earlier try left."""
    assert work.method is not None
    if job.run.steps_left(job.resolved):
        inputs = MethodInputs(job.task, _experts(job, work), job.config.ipc, job.config.seed)
        with job.timed("distill"):
            optimise(job, work.method.plan(work.options, inputs))
    with job.timed("evaluate"):
        rows = judge(job)
    write_results(job, rows)


def _experts(job: Job, work: Work) -> list[Trajectory]:
    """Trajectories of the kind that the method needs, trained where they are missing; none where it needs none."""
    assert work.method is not None
    if job.config.count is None:
        return []
    kind = work.method.experts or "any"
    with job.timed("experts"):
        store, indices, experts = work.given or _read(_own_store(job), job.config.count, kind)
    inspect_experts(job, store, indices, experts)
    return [path for expert in experts if (path := expert.trajectory(kind)) is not None]


def _own_store(job: Job) -> Store:
    """The store that is named by its content, with all experts that the run asks for."""
    store = _begin_store(job.task, job.config, None)
    make_experts(job.task, job.config.expert, job.config.count or DEFAULT_COUNT, job.config.seed, store, job.listen)
    return store


def _with_experts(
    config: JobConfig, method: Method, task: Task, experts: str | Path | None
) -> tuple[JobConfig, Found | None]:
    """The config with how many experts there are to be (None: none at all), and those of the store that was named."""
    if experts is not None:
        store = Store.open(Path(experts))
        store.require(task.describe())
        given = _read(store, config.count, method.experts or "any")
        return config.model_copy(update={"count": len(given.indices)}), given
    if method.experts is None:
        return config.model_copy(update={"count": None}), None
    given_expert = config.expert.model_fields_set
    missing = {name: value for name, value in method.expert_defaults.items() if name not in given_expert}
    expert = config.expert.model_copy(update=missing)
    _check_kept(expert, method.experts, method.name)
    return config.model_copy(update={"expert": expert, "count": config.count or DEFAULT_COUNT}), None


def _check_kept(expert: ExpertConfig, kind: Kind, method: str) -> None:
    expert.waypoint_epochs()
    if kind != "any" and expert.keep not in (kind, "both"):
        raise UserError(f"{method} needs {kind} trajectories; train its experts with '--expert.keep {kind}' or both.")


def _facts(work: Work, source: object) -> dict[str, Any]:
    """What the record keeps beside the configuration."""
    task = work.task
    sums_vary = work.method is not None and work.method.depends_on_threads(work.options)
    threads = {"threads": torch.get_num_threads()} if sums_vary else {}
    return {
        "command": shlex.join(["limbeck", *sys.argv[1:]]) if Path(sys.argv[0]).name == "limbeck" else "(from Python)",
        "data": task.data.describe(),
        "source": _source(source),
        "device": str(task.device),
        "threads": torch.get_num_threads(),
        "implementation_because": task.choice.reason,
        "computed": task.computed() | threads,
        "validation": work.config.eval.model_dump(include=VALIDATION),
    }


def _source(source: object) -> str | None:
    """Where the data came from, so that a set can be evaluated again without saying so.

    A data set that is known by name stays a name, though a folder, perhaps that of the run, has the same one.
    """
    if isinstance(source, str) and source in NAMES:
        return source
    if isinstance(source, str | Path):
        return str(Path(source).resolve()) if Path(source).exists() else str(source)
    return None
