"""The whole job: data, experts, distillation, evaluation, report; each stage takes up what an earlier try left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limbeck.baselines import baselines, networks_to_train
from limbeck.config import JobConfig, checked
from limbeck.data import ImageData, load_data
from limbeck.distilled import DistilledSet, load
from limbeck.errors import UserError
from limbeck.evaluation import evaluate_distilled, evaluate_set
from limbeck.experts import default_store, describe_experts, make_experts, path_accuracy
from limbeck.files import size_of, write_json
from limbeck.loop import descend
from limbeck.methods import Material, Plan, find_method
from limbeck.pictures import image_grid, save_png
from limbeck.random import derive
from limbeck.record import Run
from limbeck.report import write_report
from limbeck.synthetic import SyntheticSet
from limbeck.task import Task, make_task
from limbeck.trajectory.store import Expert, Kind, Store
from limbeck.types import Listener
from limbeck.watch import Choose, Log, Save


def quiet(event: dict[str, Any]) -> None:
    """A listener that does nothing."""


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
    config = checked(JobConfig, options)
    task = make_task(
        load_data(data, seed=config.seed, resize=resize), config.model, config.preprocess, config.augment, device
    )
    return _own_store(task, config, None if out is None else Path(out), listen)


def _own_store(task: Task, config: JobConfig, out: Path | None, listen: Listener) -> Store:
    config.expert.waypoint_epochs()
    description = describe_experts(task, config.expert, config.seed)
    store = Store.create(out or default_store(description), description)
    make_experts(task, config.expert, config.count, config.seed, store, listen)
    return store


def _experts(
    task: Task, config: JobConfig, given: Path | None, kind: Kind, listen: Listener
) -> tuple[Store, list[Expert]]:
    """The store a run uses, its first `count` experts, all with a trajectory of `kind`."""
    if given is None:
        store = _own_store(task, config, None, listen)
    else:
        store = Store.open(given)
        store.require(task.describe())
    indices = store.indices()[: config.count]
    if not indices:
        raise UserError(f"the store {store.path} holds no finished experts; run 'limbeck experts' first.")
    experts = [store.read(index) for index in indices]
    if any(expert.trajectory(kind) is None for expert in experts):
        how = "'limbeck convexify' it" if kind == "convex" else "train with '--keep recorded'"
        raise UserError(f"the store {store.path} holds no {kind} trajectories; {how}.")
    return store, experts


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

    data:    what `load_data` takes: a name, a path, an `ImageData`.
    out:     the run folder; by default runs/DATA-METHOD-ipcN-seedS.
    experts: a store of experts; by default they are trained, or found again, in a store named by its content.
    options: fields of `JobConfig`, and of the method's own config (for MCT `limbeck.methods.mct.MCTConfig`).
    Raises UserError for input that cannot work, before anything is written.
    """
    chosen = find_method(method)
    own = {key: value for key, value in options.items() if key in chosen.config.model_fields}
    config = checked(JobConfig, {key: value for key, value in options.items() if key not in own})
    method_config = checked(chosen.config, own)
    images = load_data(data, seed=config.seed, resize=resize)
    task = make_task(images, config.model, config.preprocess, config.augment, device)
    task.check_ipc(config.ipc)
    config = config.model_copy(update={"model": task.model_config, "augment": task.augment.strategy})
    if experts is not None:
        Store.open(Path(experts)).require(task.describe())
    path = Path(out) if out is not None else Path("runs") / f"{images.name}-{method}-ipc{config.ipc}-seed{config.seed}"
    full = {"method": method, **method_config.model_dump(), **config.model_dump(mode="json")}
    full |= {
        "data": images.fingerprint,
        "experts": None if experts is None else Store.open(Path(experts)).header["key"],
    }
    run = Run.begin(path, full, _facts(task, data))
    seconds: dict[str, float] = {}

    store, found = _timed(
        seconds, "experts", lambda: _experts(task, config, _path(experts), chosen.experts or "convex", listen)
    )
    _timed(seconds, "inspect", lambda: _write_experts(run, task, store, found))
    trajectories = [found_one.trajectory(chosen.experts or "convex") for found_one in found]
    plan = chosen.plan(
        method_config, Material(task, [t for t in trajectories if t is not None], config.ipc, config.seed)
    )
    log = _timed(seconds, "distill", lambda: _optimise(run, task, plan, config, full, str(data), listen))
    seconds["distill"] = log.seconds()
    rows = _timed(seconds, "evaluate", lambda: _evaluate(run, task, config, listen))
    _write_results(run, task, config, method, rows, seconds, store, found)
    write_report(run.path)
    return run.path


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    seconds[name] = round(time.perf_counter() - start, 2)
    return result


def _facts(task: Task, source: object) -> dict[str, Any]:
    """What the record keeps beside the configuration."""
    return {
        "command": " ".join(["limbeck", *sys.argv[1:]]) if Path(sys.argv[0]).name == "limbeck" else "(from Python)",
        "data": task.data.describe(),
        "source": _source(source),
        "device": str(task.device),
        "threads": torch.get_num_threads(),
    }


def _source(source: object) -> str | None:
    """Where the data came from, so that a set can be evaluated again without saying so."""
    if isinstance(source, str | Path):
        return str(Path(source).resolve()) if Path(source).exists() else str(source)
    return None


def _write_experts(run: Run, task: Task, store: Store, experts: list[Expert]) -> None:
    """experts.json: what was stored, and how good it is along the way; kept from an earlier try."""
    if (run.path / "experts.json").exists():
        return
    count, parameters = len(experts), task.model.layout.count
    indices = store.indices()[:count]
    value = {
        "format": "limbeck-experts",
        "version": 1,
        "store": str(store.path),
        "count": count,
        "epochs": store.config.epochs,
        "waypoints": store.config.waypoints,
        "parameters": parameters,
        "test_accuracy": [expert.test for expert in experts],
        "bytes": {
            "experts": store.bytes_of(indices),
            "recorded_would_be": 4 * count * parameters * (store.config.epochs + 1),
        },
        **path_accuracy(task, experts[:5]),
    }
    write_json(run.path / "experts.json", value)


def _optimise(
    run: Run, task: Task, plan: Plan, config: JobConfig, full: dict[str, Any], source: str, listen: Listener
) -> Log:
    """The outer loop from where it stood; leaves set-last, set-chosen and their previews in the run folder."""
    every = config.validate_every or max(1, plan.iterations // 10)

    def measure(synthetic: SyntheticSet) -> tuple[float, float, int]:
        images, labels = synthetic.training_pair()
        schedule = config.eval.schedule(float(synthetic.lr), config.validate_epochs)
        summary = evaluate_set(
            task,
            lambda _seed: (images, labels),
            schedule,
            config.validate_networks,
            task.validation,
            derive(config.seed, "validate"),
        )
        return summary.accuracy_mean, summary.accuracy_std, summary.n

    def keep(which: str) -> Callable[[SyntheticSet, int], None]:
        return lambda synthetic, step: _write_set(run, task, config, full, source, synthetic, which, step)

    chooser = Choose(run, every, plan.iterations, measure, keep("chosen"), listen)
    log = Log(run, listen)
    save = Save(run, plan.optimisers, chooser, log)
    done, more = run.load_state(plan.synthetic, plan.optimisers)
    if more:
        chooser.best, chooser.step, log.before = more["best"], more["best_step"], more["seconds"]
    listen({"event": "stage", "name": "distill", "total": plan.iterations, "done": done, "unit": "step"})
    if done == 0:
        keep("initial")(plan.synthetic.snapshot(), 0)
        chooser(plan.synthetic, 0)
    hooks = [*plan.hooks, log, chooser, save]
    descend(
        plan.objective, plan.synthetic, plan.optimisers, range(done, plan.iterations), config.seed, plan.accept, hooks
    )
    if (plan.iterations and done < plan.iterations) or not (run.path / "set-last.safetensors").exists():
        keep("last")(plan.synthetic.snapshot(), plan.iterations)
    return log


def _write_set(
    run: Run,
    task: Task,
    config: JobConfig,
    full: dict[str, Any],
    source: str,
    synthetic: SyntheticSet,
    which: str,
    step: int,
) -> None:
    """The set at one outer step as a file (not for the initial one, which is real images), and its picture."""
    images, labels = synthetic.training_pair()
    recipe = config.eval.model_dump(include={"epochs", "batch_size", "momentum", "weight_decay"})
    recipe |= {"augment": task.augment.strategy, "model": task.model_config.model_dump()}
    provenance = {
        "method": full["method"],
        "config": full,
        "data": {"name": task.data.name, "fingerprint": task.data.fingerprint, "source": _source(source)},
        "which": which,
        "step": step,
    }
    made = DistilledSet(
        images.cpu(),
        labels.cpu(),
        float(synthetic.lr),
        task.preprocess.to("cpu"),
        task.data.classes,
        recipe,
        provenance,
    )
    if which != "initial":
        made.save(run.path / f"set-{which}.safetensors")
    picture = image_grid(made.pictures(), made.hard_labels(), list(made.classes))
    save_png(picture, run.path / "previews" / f"{which}.png")


def _evaluate(run: Run, task: Task, config: JobConfig, listen: Listener) -> list[dict[str, Any]]:
    """Rows of results.json: last and chosen, real images, full data; test is looked at here and nowhere else."""
    held = {(row["set"], row["which"]): row for row in run.lines("result")}
    total = 2 * config.eval.networks + networks_to_train(config.eval)
    listen({"event": "stage", "name": "evaluate", "total": total, "unit": "network"})
    rows = []
    for which in ("last", "chosen"):
        row = held.get(("distilled", which))
        if row is None:
            made = load(run.path / f"set-{which}.safetensors")
            row = evaluate_distilled(task, made, config.eval, config.seed, which, listen)
            run.line("result", **row)
        rows.append({key: value for key, value in row.items() if key != "event"})
    return rows + baselines(task, config.ipc, config.eval, config.seed, listen)


def _write_results(
    run: Run,
    task: Task,
    config: JobConfig,
    method_name: str,
    rows: list[dict[str, Any]],
    seconds: dict[str, float],
    store: Store,
    experts: list[Expert],
) -> None:
    e = config.eval
    value = {
        "format": "limbeck-results",
        "version": 1,
        "method": method_name,
        "data": {"name": task.data.name, "fingerprint": task.data.fingerprint},
        "ipc": config.ipc,
        "protocol": f"{e.epochs} epochs of SGD with momentum {e.momentum}, weight decay {e.weight_decay}, batch "
        f"{e.batch_size}, step size x 0.1 after half of them, augmentation {task.augment.strategy}; std is the sample "
        "standard deviation over networks",
        "results": rows,
        "seconds": seconds,
        "bytes": {
            "experts": store.bytes_of(store.indices()[: len(experts)]),
            "set": size_of(run.path / "set-chosen.safetensors"),
        },
    }
    write_json(run.path / "results.json", value)
