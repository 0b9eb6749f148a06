"""Runs the stages of a job, from its experts to its results; a stage that was interrupted is resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import hypot
from pathlib import Path
from statistics import fmean
from typing import Any

from limbeck.core.events import Listener
from limbeck.core.files import write_json
from limbeck.core.interrupts import finish_step
from limbeck.core.records import ExpertBytes, ExpertsRecord, ResultRow, ValidationLine, WarningLine
from limbeck.core.rng import derive_seed
from limbeck.core.types import Trajectory
from limbeck.data import DataSource
from limbeck.evaluation.trials import Summary, evaluate_set
from limbeck.experts.handle import Experts
from limbeck.experts.make import measure_paths
from limbeck.experts.store import Store
from limbeck.jobs.checkpoint import MAX_LINES, Checkpoint, KeepBest, Log
from limbeck.jobs.doctor import find_small_splits, find_small_tiles
from limbeck.jobs.job import Job, prepare, prepare_experts
from limbeck.jobs.ranks import own_folder, require_same_job
from limbeck.jobs.record import RunFolder
from limbeck.jobs.results import evaluate_run, stage_timer, write_results
from limbeck.jobs.session import describe_cost, session
from limbeck.jobs.sets import write_frame, write_real_images, write_set
from limbeck.methods import Method, MethodConfig, Plan
from limbeck.progress import listening
from limbeck.report.page import write_report
from limbeck.synthetic.guard import Guard
from limbeck.synthetic.hooks import StudentMonitor
from limbeck.synthetic.loop import outer_loop
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import announce_task, restore_switches, set_switches


@restore_switches()
def run(job: Job, listen: Listener | None = None, evaluate: bool = True, *, progress: bool | None = None) -> Path:
    """Do a job and return its run folder; an interrupted run is resumed.

    A finished run is left alone, continued where more iterations are asked for, and evaluated again where `eval` is
    another. Raises UserError where the folder holds another job's run.

    listen:   hears of progress, see `limbeck.core.events.Listener`.
    progress: whether to draw progress on standard error; by default in a terminal or a notebook, where there is no
              `listen`.
    evaluate: False ends after the outer loop, before anything is measured on test; a later call goes on from there.

    >>> from tempfile import TemporaryDirectory
    >>> from limbeck import EvalConfig, prepare
    >>> quick = EvalConfig(networks=2, epochs=5, full_networks=0)
    >>> with TemporaryDirectory() as folder:
    ...     path = run(prepare("digits", method="random", ipc=1, out=f"{folder}/run", eval=quick, validate_epochs=5))
    ...     sorted(file.name for file in path.glob("*.json*"))
    ['log.jsonl', 'progress.json', 'results.json', 'run.json']
    """
    set_switches(job.task.device, job.task.precision)
    require_same_job(job.task, job.resolved, job.path)
    with listening(listen, progress) as hear, own_folder(job.task.ranks, job.path) as path:
        _run_in_folder(replace(job, path=path), hear, evaluate)
    return job.path


def _run_in_folder(job: Job, listen: Listener, evaluate: bool) -> None:
    """Do a job in its folder, which for ranks other than 0 is a copy of it."""
    folder, record = job.folder, job.record()
    with folder.lock():
        is_new = not folder.has_begun()
        if is_new:
            RunFolder.begin(job.path, record)
        folder.resume(record)
        if job.is_finished:
            folder.record(job.resolved)
            listen({"event": "note", "text": f"{job.path} is finished; nothing was done."})
        else:
            announce_task(job.task, listen)
            _announce_fill(job, listen)
            if is_new:
                tiles = find_small_tiles(job.options.model_dump(), job.task.data.size)
                for finding in (*find_small_splits(job.task.data), *tiles):
                    _warn(job, listen, f"{finding.line}.")
            with session(job, listen) as follow:
                _run_stages(job, follow, evaluate)
            if evaluate:
                listen({"event": "note", "text": describe_cost(job)})
        if evaluate and not (job.path / "report.html").exists():
            write_report(job.path)


def _run_stages(job: Job, listen: Listener, evaluate: bool) -> None:
    """Run the stages; a stage that was interrupted is resumed."""
    if job.folder.has_steps_left(job.resolved):
        trajectories: list[Trajectory] = []
        if job.experts is not None:
            with stage_timer(job, "experts"):
                job.experts.train(listen)
                trajectories = job.experts.trajectories()
            inspect_experts(job, job.experts)
        with stage_timer(job, "distill"):
            run_outer_loop(job, job.plan(trajectories), listen)
    if not evaluate:
        return
    with stage_timer(job, "evaluate"):
        rows = evaluate_run(job, listen)
        write_real_images(job)
        for row in rows:
            listen({"event": "result", **row.model_dump(exclude={"confusion", "class_accuracy"})})
    _warn_of_useless_set(rows, partial(_warn, job, listen))
    write_results(job, rows)


def distill(
    data: DataSource,
    *,
    method: str | Method = "mct",
    out: str | Path | None = None,
    experts: str | Path | None = None,
    device: str = "cpu",
    listen: Listener | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Path:
    """Distil `data` by `method` into a run folder and return its path: `run(prepare(...))`.

    data:    what `load_data` takes: a name, a path, an `ImageData`.
    method:  a name of `limbeck methods`, MODULE:NAME of your own, or a `Method`.
    out:     the run folder; by default runs/DATA-METHOD-ipcN-seedS.
    experts: a store of experts; by default they are trained, or found again, in a store named by its content.
    listen:  hears of progress, see `limbeck.core.events.Listener`.
    progress: whether to draw progress on standard error; by default in a terminal or a notebook, where there is no
             `listen`.
    options: fields of `JobConfig`, those of the method's own config (for MCT `limbeck.methods.mct.MCTConfig`), and how
             `load_data` reads: resize, resize_mode, pixel_range, follow_links, test, validation.

    The same call resumes an interrupted run where it stopped. Raises UserError for input that cannot work,
    before anything is written.

    >>> from tempfile import TemporaryDirectory
    >>> from limbeck import EvalConfig, load
    >>> quick = {"eval": EvalConfig(networks=2, epochs=5, full_networks=0), "validate_epochs": 5}
    >>> with TemporaryDirectory() as folder:
    ...     load(distill("digits", method="kmeans", ipc=2, out=f"{folder}/run", **quick)).images.shape
    torch.Size([20, 1, 8, 8])
    """
    with listening(listen, progress) as hear:
        job = prepare(data, method=method, out=out, experts=experts, device=device, **options)
        return run(job, hear)


@restore_switches()
def train_experts(
    data: DataSource,
    *,
    out: str | Path | None = None,
    device: str = "cpu",
    listen: Listener | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Store:
    """Train the experts that a store lacks and return the store.

    out:     the store's folder; by default one named by its content, so that the same settings find it again.
    listen, progress: as in `distill`.
    options: fields of `JobConfig` (num_experts, seed, model, expert, preprocess, augment), and how data is read, as in
             `distill`.
    Raises UserError for input that cannot work and for a store made from something else.

    >>> from tempfile import TemporaryDirectory
    >>> from limbeck import ExpertConfig, ModelConfig
    >>> small = {"model": ModelConfig(width=4), "expert": ExpertConfig(epochs=2)}
    >>> with TemporaryDirectory() as folder:
    ...     store = train_experts("digits", out=f"{folder}/store", num_experts=1, **small)
    ...     store.read(0).convex.end
    2
    """
    experts = prepare_experts(data, out=out, device=device, **options)
    with listening(listen, progress) as hear:
        announce_task(experts.task, hear)
        return experts.train(hear)


def _announce_fill(job: Job, listen: Listener) -> None:
    """Say which classes are filled up, where some are."""
    need, fill, data = job.options.initial_images(job.config.ipc), job.config.fill, job.task.data
    counts = zip(data.classes, data.train.counts(data.num_classes))
    scarce = [f"{name} ({count})" for name, count in counts if count < need]
    if fill != "none" and scarce:
        names = ", ".join(scarce[:5]) + (f" and {len(scarce) - 5} more" if scarce[5:] else "")
        text = f"classes with fewer than {need} training images are filled up (--fill {fill}): {names}"
        listen({"event": "note", "text": text})


def inspect_experts(job: Job, experts: Experts) -> None:
    """Write experts.json: what was stored, and the accuracy along the trajectories."""
    path = job.path / "experts.json"
    if path.exists():
        return
    store, count, parameters = experts.store, len(experts.loaded), job.task.model.layout.count
    every_epoch = 4 * count * parameters * (store.config.epochs + 1)
    record = ExpertsRecord(
        format="limbeck-experts",
        version=1,
        store=str(store.path),
        computed=store.header.computed,
        count=count,
        epochs=store.config.epochs,
        waypoints=len(store.config.waypoint_epochs()),
        kept=store.config.keep,
        parameters=parameters,
        test_accuracy=[expert.test for expert in experts.loaded],
        bytes=ExpertBytes(experts=store.bytes_of(experts.indices), recorded_would_be=every_epoch),
        **measure_paths(job.task, experts.loaded[:5]),
    )
    write_json(path, record.to_json())


def run_outer_loop(job: Job, plan: Plan, listen: Listener) -> None:
    """Run the outer loop from the saved step on; write set-last, set-chosen and their pictures to the run folder."""
    config, folder = job.config, job.folder
    every = config.validate_every or max(1, plan.iterations // 10)
    validate, keep = partial(_validate, job), partial(write_set, job, "chosen")
    choice = config.eval.choice
    chooser = KeepBest(folder, every, plan.iterations, validate, choice, keep, listen, plan.evaluated_set)
    log = Log(folder, listen, every=max(1, plan.iterations // MAX_LINES))
    warn = partial(_warn, job, listen)
    if plan.iterations:
        chooser.show = partial(write_frame, job, listen, every)
    monitors = [StudentMonitor(warn)] if job.learns_lr and job.experts is not None else []
    guard = Guard(plan.synthetic, plan.optimisers, warn, describe_smaller(job.options), plan.accept is None)
    hooks = [*plan.hooks, *monitors, guard]
    checkpoint = Checkpoint(folder, plan.optimisers, hooks, chooser, log)
    done = checkpoint.restore(plan.synthetic)
    if done:
        listen({"event": "note", "text": f"the distillation goes on after step {done}"})
    listen({"event": "stage", "name": "distill", "total": plan.iterations, "done": done, "unit": "step"})
    if done == 0:
        write_set(job, "initial", plan.synthetic.snapshot(), 0)
        chooser(plan.synthetic, 0)
        if plan.iterations:
            _warn_at_start(job, folder.lines(ValidationLine)[0].accuracy_mean, warn)
    hooks += [log, chooser, checkpoint]
    steps = range(done, plan.iterations)
    with finish_step() as checkpoint.pending:
        outer_loop(plan.objective, plan.synthetic, plan.optimisers, steps, config.seed, plan.accept, hooks, guard.admit)
    _warn_of_ties(job, chooser.step, warn)
    write_set(job, "last", plan.evaluated_set(), plan.iterations)


def describe_smaller(options: MethodConfig) -> str:
    """What to change where the outer loop diverges: the options of a method that make steps smaller, and their values.

    >>> from limbeck.methods.mct import MCTConfig
    >>> describe_smaller(MCTConfig(lr_img=5, lr_lr=0, syn_steps=20))
    'Run again in a new folder with smaller steps: --lr-img 0.5 (now 5) or --syn-steps 10 (now 20).'
    >>> describe_smaller(MCTConfig(lr_img=5, lr_lr=0, syn_steps=20, learn_labels=True))
    'Run again in a new folder with smaller steps: --lr-img 0.5 (now 5), --lr-y 0.5 (now 5) or --syn-steps 10 (now 20).'
    """
    labels = ("lr_y",) if getattr(options, "learn_labels", True) else ()
    values = {name: getattr(options, name, None) for name in ("lr_img", "lr_lr", *labels, "syn_steps")}
    smaller = {name: value // 2 if name == "syn_steps" else value / 10 for name, value in values.items() if value}
    changes = [f"--{name.replace('_', '-')} {new:g} (now {values[name]:g})" for name, new in smaller.items() if new]
    if not changes:
        return "Run again in a new folder with smaller steps."
    listed = " or ".join(filter(None, (", ".join(changes[:-1]), changes[-1])))
    return f"Run again in a new folder with smaller steps: {listed}."


def _warn(job: Job, listen: Listener, text: str) -> None:
    job.folder.line(WarningLine(text=text))
    listen({"event": "warning", "text": text})


def _warn_at_start(job: Job, initial_accuracy: float, warn: Callable[[str], None]) -> None:
    """Warn where validation leaves nothing to gain, or else where experts are no better than the initial images.

    A set that follows experts can hardly get past them.
    """
    if initial_accuracy == 1:
        warn(
            "networks trained on the images that the set starts from reach 100 % on validation, which leaves nothing "
            "to gain and cannot tell better sets from worse; use fewer images per class, or more validation images."
        )
    elif job.experts is not None:
        expert_accuracy = fmean(expert.validation[-1] for expert in job.experts.loaded)
        if expert_accuracy <= initial_accuracy:
            warn(
                f"the experts reach {100 * expert_accuracy:.1f} % on validation, networks trained on the images that "
                f"the set starts from {100 * initial_accuracy:.1f} %: train the experts longer, or with a larger step "
                "size."
            )


def _warn_of_ties(job: Job, chosen_step: int, warn: Callable[[str], None]) -> None:
    """Warn where several steps reach 100 % on validation, so that it did not choose between them."""
    accuracies = {line.step: line.accuracy_mean for line in job.folder.lines(ValidationLine)}
    count = sum(accuracy == 1 for accuracy in accuracies.values())
    if count > 1:
        warn(
            f"{count} of {len(accuracies)} validations, the one of step {chosen_step} the last, are at 100 %, between "
            "which nothing can choose: the chosen set is that of the last of these steps."
        )


def _warn_of_useless_set(rows: Sequence[ResultRow], warn: Callable[[str], None]) -> None:
    """Warn where random real images train better networks than the set that outer steps led to, beyond deviations."""
    common = [row for row in rows if row.protocol is None and row.accuracy_std is not None]
    chosen = next((row for row in common if row.which == "chosen"), None)
    real = next((row for row in common if row.set == "random"), None)
    if chosen is None or real is None or not chosen.step:
        return
    gap = real.accuracy_mean - chosen.accuracy_mean
    if gap > hypot(real.accuracy_std or 0, chosen.accuracy_std or 0):
        warn(
            f"networks trained on random real images reach {100 * gap:.1f} points more on test than those trained on "
            "this set, so that it is worse than no distillation: follow the warnings above, if any, or take more outer "
            "steps."
        )


def _validate(job: Job, synthetic: SyntheticSet) -> Summary:
    """Accuracies of fresh networks on the validation part; the same networks at every step."""
    config, pair = job.config, synthetic.training_pair()
    return evaluate_set(
        job.task,
        lambda _seed: pair,
        config.eval.plain.schedule(float(synthetic.lr), config.validate_epochs),
        config.validate_networks,
        job.task.validation,
        derive_seed(config.seed, "validate"),
    )
