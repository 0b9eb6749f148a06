"""The stages of a run after its experts: look at them, optimise, judge, write down. Each takes up what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch

from limbeck.core.files import content_key, read_json, write_json
from limbeck.core.folders import size_of
from limbeck.core.rng import derive_seed
from limbeck.core.types import Listener
from limbeck.evaluation.baselines import baselines, networks_to_train, real_images
from limbeck.evaluation.protocol import EvalConfig, best_lr, evaluate_distilled, evaluate_set
from limbeck.evaluation.regression import RegressionConfig, regression_rows
from limbeck.experts.make import path_accuracy
from limbeck.experts.store import Expert, Store
from limbeck.jobs.checkpoint import Choose, Log, Save
from limbeck.jobs.config import JobConfig
from limbeck.jobs.record import RESULTS, Run
from limbeck.methods import Plan
from limbeck.synthetic.distilled import DistilledSet, load
from limbeck.synthetic.grids import image_grid, image_strip, save_png
from limbeck.synthetic.hooks import StudentMonitor
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task


@dataclass(frozen=True, eq=False)
class Job:
    """What every stage of one run is handed.

    resolved: the whole configuration, JSON-able; source: where the data lies and how it was read, for the set's own
    record; learns: names of what the method optimises.
    """

    run: Run
    task: Task
    config: JobConfig
    resolved: dict[str, Any]
    source: dict[str, Any]
    listen: Listener
    learns: tuple[str, ...]

    @property
    def lr_learned(self) -> bool:
        """Whether the step size comes with the set; else one is chosen on validation, as for real images."""
        return "log_lr" in self.learns

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add what this stage takes to the log, also when it is cut short."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.run.line("stage", name=stage, seconds=round(time.perf_counter() - start, 2))

    def seconds(self) -> dict[str, float]:
        """Time spent per stage, earlier tries included."""
        total: dict[str, float] = {}
        for line in self.run.lines("stage"):
            total[line["name"]] = round(total.get(line["name"], 0.0) + line["seconds"], 2)
        return total


def inspect_experts(job: Job, store: Store, indices: Sequence[int], experts: list[Expert]) -> None:
    """experts.json: what was stored, and how good it is along the way."""
    path = job.run.path / "experts.json"
    if path.exists():
        return
    count, parameters = len(experts), job.task.model.layout.count
    value = {
        "format": "limbeck-experts",
        "version": 1,
        "store": str(store.path),
        "computed": store.header.get("computed"),
        "count": count,
        "epochs": store.config.epochs,
        "waypoints": store.config.waypoints,
        "kept": store.config.keep,
        "parameters": parameters,
        "test_accuracy": [expert.test for expert in experts],
        "bytes": {
            "experts": store.bytes_of(indices),
            "recorded_would_be": 4 * count * parameters * (store.config.epochs + 1),
        },
        **path_accuracy(job.task, experts[:5]),
    }
    write_json(path, value)


def optimise(job: Job, plan: Plan) -> None:
    """The outer loop from where it stood; leaves set-last, set-chosen and their previews in the run folder."""
    run, config = job.run, job.config

    def keep(which: str) -> Callable[[SyntheticSet, int], None]:
        return lambda synthetic, step: write_set(job, synthetic, which, step)

    every = config.validate_every or max(1, plan.iterations // 10)
    chooser = Choose(
        run, every, plan.iterations, lambda made: _validate(job, made), keep("chosen"), job.listen, plan.evaluated_set
    )
    log = Log(run, job.listen)
    monitors = [StudentMonitor(partial(_warn, job))] if job.lr_learned and _has_experts(job) else []
    hooks = [*plan.hooks, *monitors]
    save = Save(run, plan.optimisers, hooks, chooser, log)
    done = save.restore(plan.synthetic)
    job.listen({"event": "stage", "name": "distill", "total": plan.iterations, "done": done, "unit": "step"})
    if done == 0:
        keep("initial")(plan.synthetic.snapshot(), 0)
        chooser(plan.synthetic, 0)
        _warn_of_weak_experts(job, chooser.best)
    steps = range(done, plan.iterations)
    hooks += [log, chooser, save]
    outer_loop(plan.objective, plan.synthetic, plan.optimisers, steps, config.seed, plan.accept, hooks)
    keep("last")(plan.evaluated_set(), plan.iterations)


def _has_experts(job: Job) -> bool:
    return (job.run.path / "experts.json").exists()


def _warn(job: Job, text: str) -> None:
    job.run.line("warning", text=text)
    job.listen({"event": "warning", "text": text})


def _warn_of_weak_experts(job: Job, start: float) -> None:
    """A set that follows experts can hardly get past them: say so where they are no better than what it starts from."""
    if not _has_experts(job):
        return
    paths = read_json(job.run.path / "experts.json", "limbeck-experts")["validation_per_epoch"]
    ends = fmean(path[-1] for path in paths)
    if ends <= start:
        _warn(
            job,
            f"the experts reach {100 * ends:.1f} % on validation, networks trained on the images that the set starts "
            f"from {100 * start:.1f} %: train the experts longer, or with a larger step size.",
        )


def _validate(job: Job, synthetic: SyntheticSet) -> tuple[float, float | None, int]:
    """Mean, standard deviation and n of fresh networks on the validation part; the same networks at every step."""
    config, pair = job.config, synthetic.training_pair()
    summary = evaluate_set(
        job.task,
        lambda _seed: pair,
        config.eval.schedule(float(synthetic.lr), config.validate_epochs),
        config.validate_networks,
        job.task.validation,
        derive_seed(config.seed, "validate"),
    )
    return summary.accuracy_mean, summary.accuracy_std, summary.n


def write_set(job: Job, synthetic: SyntheticSet, which: str, step: int) -> None:
    """The set at one outer step as a file (but for the initial one, which is real images), and its picture."""
    task = job.task
    images, labels = synthetic.training_pair()
    made = DistilledSet(
        images.cpu(),
        labels.cpu(),
        float(synthetic.lr),
        task.preprocess.to("cpu"),
        task.data.classes,
        _recipe(job),
        {
            "method": job.resolved["method"],
            "config": job.resolved,
            "data": {"name": task.data.name, "fingerprint": task.data.fingerprint, **job.source},
            "which": which,
            "step": step,
        },
        None if "targets" not in synthetic.extra else synthetic.extra["targets"].cpu(),
    )
    draw = image_strip if job.config.ipc == 1 else image_grid
    picture = draw(made.pictures(), made.hard_labels(), list(made.classes))
    save_png(picture, job.run.path / "previews" / f"{which}.png")  # first: where there is a set there is its picture
    if which != "initial":
        made.save(job.run.path / f"set-{which}.safetensors")


def _recipe(job: Job) -> dict[str, Any]:
    """How a set of this job is meant to be trained on, as its file says."""
    recipe = job.config.eval.model_dump(include={"networks", "epochs", *VALIDATION})
    return {**recipe, "augment": job.task.augment.strategy, "model": job.task.model_config.model_dump()}


VALIDATION = {"batch_size", "momentum", "weight_decay"}
"""Fields of `EvalConfig` by which sets are validated while they are distilled, too."""


def _stored(job: Job, which: str) -> DistilledSet:
    """The set in its file, which is told the configuration of this job where it was made before that was changed."""
    path = job.run.path / f"set-{which}.safetensors"
    stored = load(path)
    current = replace(stored, recipe=_recipe(job), provenance={**stored.provenance, "config": job.resolved})
    if (current.recipe, current.provenance) != (stored.recipe, stored.provenance):
        current.save(path)
    return current


def evaluation_key(task: Task, config: EvalConfig, steps: int) -> str:
    """What rows of the log belong together: the protocol, the conditions, and the outer steps of the last set."""
    return content_key({"eval": config.model_dump(mode="json"), "computed": task.computed(), "steps": steps})


def judge(job: Job) -> list[dict[str, Any]]:
    """Rows of results.json: last and chosen, real images, full data; test is looked at here and nowhere else."""
    run, config = job.run, job.config
    sets = {which: _stored(job, which) for which in ("last", "chosen")}
    key = evaluation_key(job.task, config.eval, sets["last"].provenance["step"])
    held = {(row["set"], row["which"]): row for row in run.lines("result") if row.get("evaluation") == key}
    each = config.eval.networks * (1 if job.lr_learned else 1 + len(config.eval.baseline_lrs))
    total = 2 * each + networks_to_train(config.eval)
    job.listen({"event": "stage", "name": "evaluate", "total": total, "unit": "network"})
    rows: list[dict[str, Any]] = []
    for which, made in sets.items():
        row = held.get(("distilled", which))
        if row is None:
            same = rows[0] if rows and rows[0]["step"] == made.provenance["step"] else None
            if not job.lr_learned:
                made = _with_lr(job, made, which, key, None if same is None else same["lr"])
            if same is not None:  # the same set, so the same bits
                row = {**same, "which": which}
            else:
                row = evaluate_distilled(job.task, made, config.eval, config.seed, which, job.listen)
            run.line("result", **{**row, "evaluation": key})
        rows.append({name: value for name, value in row.items() if name not in ("event", "evaluation")})
    return rows + baselines(job.task, config.ipc, config.eval, config.seed, job.listen) + _by_targets(job, key)


def _by_targets(job: Job, key: str) -> list[dict[str, Any]]:
    """For a set with real-valued targets, the rows of its own protocol, beside random real images by the same.

    key: of this evaluation; rows of another one in the log are passed over.
    """
    run, task, seed = job.run, job.task, job.config.seed
    found = {which: load(run.path / f"set-{which}.safetensors") for which in ("last", "chosen")}
    if found["last"].targets is None:
        return []
    held: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for line in run.lines("own protocol"):
        if line.get("evaluation") == key:
            held[line["set"], line["which"]] = line["rows"]
    config = RegressionConfig(networks=job.config.eval.networks)
    job.listen({"event": "stage", "name": "own protocol", "total": 6 * config.networks, "unit": "network"})
    images, labels = real_images(task, "random", job.config.ipc)(derive_seed(seed, "regression", "random"))
    one_hot = torch.eye(task.data.num_classes, device=labels.device)[labels] - 1 / task.data.num_classes
    judged: list[tuple[str, str | None, DistilledSet]] = [("distilled", which, made) for which, made in found.items()]
    judged.append(("random", None, replace(found["last"], images=images, targets=one_hot)))
    rows = []
    for name, which, made in judged:
        if (name, which) not in held:
            tell = partial(job.listen, {"event": "advance", "text": f"{name}, by its own protocol"})
            new = regression_rows(task, made, config, seed, which, tell)
            held[name, which] = [{**row, "set": name, "step": row["step"] if which else None} for row in new]
            run.line("own protocol", set=name, which=which, rows=held[name, which], evaluation=key)
        rows += held[name, which]
    return rows


def _with_lr(job: Job, made: DistilledSet, which: str, key: str, known: float | None) -> DistilledSet:
    """The set, in its file too, with the step size that does best on validation, as its own was not learned.

    key: of the evaluation that the step size is chosen for.
    """
    if made.provenance.get("lr_for") == key:
        return made
    pair = made.images.to(job.task.device), made.labels.to(job.task.device)
    tell = {"event": "advance", "text": f"step size for the {which} set"}
    seed = derive_seed(job.config.seed, "step size")
    lr = known or best_lr(job.task, lambda _seed: pair, job.config.eval, seed, lambda: job.listen(tell))
    made = replace(made, lr=lr, provenance={**made.provenance, "lr": CHOSEN_LR, "lr_for": key})
    made.save(job.run.path / f"set-{which}.safetensors")
    return made


CHOSEN_LR = "chosen on validation"


def write_results(job: Job, rows: list[dict[str, Any]]) -> None:
    """results.json, then the configuration that it is of in run.json; a report of other results is removed before."""
    e, task, experts = job.config.eval, job.task, job.run.path / "experts.json"
    stored = {"experts": read_json(experts, "limbeck-experts")["bytes"]["experts"]} if experts.exists() else {}
    value = {
        "format": RESULTS,
        "version": 1,
        "key": content_key(job.resolved),
        "computed": task.computed(),
        "method": job.resolved["method"],
        "data": {"name": task.data.name, "fingerprint": task.data.fingerprint},
        "ipc": job.config.ipc,
        "protocol": f"{e.epochs} epochs of SGD with momentum {e.momentum}, weight decay {e.weight_decay}, batch "
        f"{e.batch_size}, step size x 0.1 after half of them, augmentation {task.augment.strategy}; std is the sample "
        "standard deviation over networks",
        "results": rows,
        "seconds": job.seconds(),
        "bytes": {**stored, "set": size_of(job.run.path / "set-chosen.safetensors")},
    }
    (job.run.path / "report.html").unlink(missing_ok=True)
    write_json(job.run.path / "results.json", value)
    job.run.record(job.resolved)
