"""How long a job will take, how much memory and disk: a few of its real steps are timed, and nothing is written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count as numbers
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.files import read_header
from limbeck.core.rng import derive_seed, make_generator
from limbeck.data import Split
from limbeck.evaluation.baselines import kept_row, real_images
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.regression import RegressionConfig, fit_targets
from limbeck.experts.make import default_store, describe_experts
from limbeck.experts.store import DTYPES, ExpertConfig, Store
from limbeck.jobs.checkpoint import Stateful
from limbeck.jobs.job import Work
from limbeck.jobs.record import Run
from limbeck.jobs.rehearsal import fewer, images_to_start, stand_ins
from limbeck.jobs.stages import evaluation_key
from limbeck.jobs.stopwatch import Estimate, Make, Piece, bytes_of, device_peak, measure, peak
from limbeck.methods import MethodInputs, Plan
from limbeck.networks.flat import lecun_normal
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.loop import Hook
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training.plain import GradientRule, Gsam, Schedule, last, score, train

REPORT = 1.5  # seconds that report.html took on one core of 2 GHz
REPORT_BYTES = 75_000  # of it, without the images


@dataclass
class Account:
    """What a job is made of: pieces that are timed, and seconds that are known."""

    task: Task
    pieces: dict[tuple[str, int], Piece] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, name: str, make: Make, times: float, jobs: int = 1, groups: float = 1) -> None:
        """A piece that each of `jobs` does `times` times, all of that `groups` times; jobs work at the same time."""
        if times * jobs * groups <= 0:
            return
        most = torch.get_num_threads() if self.task.max_workers is None else self.task.max_workers
        workers = min(jobs, most)
        piece = self.pieces.get((name, workers)) or Piece(make, workers, self.task.device)
        self.pieces[name, workers] = piece
        piece.uses[stage] = piece.uses.get(stage, 0.0) + times * groups * -(-jobs // workers)

    def train(
        self,
        stage: str,
        name: str,
        pair: tuple[Tensor, Tensor],
        schedule: Schedule,
        jobs: int,
        groups: float = 1,
        rule: GradientRule | None = None,
    ) -> None:
        """Networks trained on `pair`: whole batches, and the last of every epoch."""
        images, labels = pair
        theta = self.task.model.fresh(0, "estimate").to(self.task.device)

        def steps(length: int) -> Make:
            def make() -> Callable[[], Tensor]:
                endless = schedule._replace(epochs=sys.maxsize, drop=None)
                path = train(self.task.loss, theta, images[:length], labels[:length], endless, 0, rule)
                next(path)
                return lambda: next(path)

            return make

        whole, rest = divmod(len(images), schedule.batch_size)
        self.add(stage, f"{name}, {whole > 0}", steps(schedule.batch_size), schedule.epochs * whole, jobs, groups)
        self.add(stage, f"{name}, {rest}", steps(rest), schedule.epochs * (rest > 0), jobs, groups)

    def score(self, stage: str, split: Split, times: float, jobs: int, groups: float = 1) -> None:
        """Networks scored on a split: the time of up to 500 images of the validation part."""
        images, labels = (tensor[:500] for tensor in self.task.validation)
        theta = self.task.model.fresh(0, "estimate").to(self.task.device)
        part = len(split) / len(images)

        def once() -> object:
            return score(self.task.logits, theta, images, labels)

        self.add(stage, "score", same(once), times * part, jobs, groups)

    def seconds(self) -> dict[str, float]:
        """By stage, from what was measured so far."""
        total = dict(self.known)
        for piece in self.pieces.values():
            for stage, times in piece.uses.items():
                total[stage] = total.get(stage, 0.0) + times * piece.once()
        return total

    def measure(self) -> dict[str, float]:
        """Time the pieces, after a step on two images, as the first of all loads for a second; seconds by stage."""
        images, labels = self.task.train
        last(train(self.task.loss, self.task.model.fresh(0).to(images), images[:2], labels[:2], Schedule(1, 0.01), 0))
        measure(self.pieces.values(), lambda: sum(self.seconds().values()))
        return self.seconds()


# --- the stages


def missing_experts(work: Work, store: Path | None = None) -> int:
    """How many experts are yet to be trained."""
    if work.given is not None or work.config.count is None:
        return 0
    path = store or default_store(describe_experts(work.task, work.config.expert, work.config.seed))
    have = Store.open(path).indices() if (path / "store.json").exists() else []
    return len(set(range(work.config.count)) - set(have))


def expert_bytes(task: Task, config: ExpertConfig) -> int:
    """Bytes of one expert's file: waypoints and beta, every epoch's parameters, or both; and its header."""
    parameters, number = task.model.layout.count, DTYPES[config.dtype].itemsize
    waypoints = 3 if config.form == "bezier" else len(config.waypoint_epochs())
    convex = waypoints * parameters * number + 4 * config.epochs * len(task.model.layout.names)
    recorded = (config.epochs + 1) * parameters * number
    header = len(json.dumps(describe_experts(task, config, 0))) + 22 * config.epochs + 600
    return header + convex * (config.keep != "recorded") + recorded * (config.keep != "convex")


def add_experts(account: Account, config: ExpertConfig, missing: int) -> None:
    """Train and watch those that are missing."""
    task = account.task
    rule = Gsam(config.sam_rho, config.sam_alpha, config.sam_adaptive) if config.sam_rho else None
    schedule = Schedule(config.epochs, config.lr, config.batch_size, config.momentum, config.weight_decay)
    account.train("experts", "expert", task.train, schedule, missing, rule=rule)
    account.score("experts", task.data.validation, config.epochs + 1, missing)
    account.score("experts", task.data.test, 1, missing)


def build(work: Work, limit: float) -> tuple[Plan, float, float]:
    """A plan to try steps on, seconds that the job takes to build its own, and how much larger its own is.

    Where that takes longer than `limit` seconds, the plan is of fewer real images.
    """
    assert work.method is not None
    task, options, config = work.task, work.options, work.config
    end = config.expert.epochs if work.given is None else work.given.store.config.epochs
    most = 2 * max(images_to_start(options, config.ipc), getattr(options, "batch_real", 0), 16)
    scale = 1.0
    for each in (fewer(task, most), task):
        paths = [] if config.count is None else stand_ins(task, end, config.seed)
        start = time.perf_counter()
        plan = work.method.plan(options, MethodInputs(each, paths, config.ipc, config.seed))
        stop = time.perf_counter()
        took = stop - start
        if paths and paths[0].first_use and paths[1].first_use:  # the method goes through all of them
            took += (stop - paths[1].first_use) * max(0, (config.count or 0) - 2)
        scale = len(task.data.train) / len(each.data.train)
        if took * scale > limit:
            break
    return plan, took * scale, scale


def add_distill(account: Account, plan: Plan, scale: float, seed: int, left: int) -> None:
    """Outer steps and hooks; scale: how many more real images the job has than the plan."""
    numbered = numbers()

    def outer() -> None:
        for optimiser in plan.optimisers:
            optimiser.zero_grad()
        plan.objective(plan.synthetic, next(numbered), seed).backward()

    def at(hook: Hook, step: int, every: int) -> Callable[[], None]:
        steps = numbers(step, every)
        return lambda: hook(plan.synthetic, next(steps), 1.0)

    account.add("distill", "step", same(outer), left)
    for number, hook in enumerate(plan.hooks):
        every = rhythm(hook)
        rare, often = at(hook, every, every), at(hook, 1, 1 if every == 1 else every)
        account.add("distill", f"hook {number}, rare", same(rare), scale * left / every)
        account.add("distill", f"hook {number}", same(often), left - left / every)


def same(call: Callable[[], object]) -> Make:
    """Of a call that only one makes at a time."""
    return lambda: call


def rhythm(hook: Hook) -> int:
    """Every how many steps a hook does more than at the others."""
    every, interval = getattr(hook, "every", 1), getattr(hook, "interval", None)
    return max(1, min(every, interval or every))


def add_validation(account: Account, work: Work, shown: SyntheticSet, done: int, iterations: int) -> None:
    """Validations that are left, the one before the first step included."""
    config = work.config
    every = config.validate_every or max(1, iterations // 10)
    rounds = len({*range(every, iterations + 1, every), iterations} - set(range(done + 1))) + (done == 0)
    schedule = config.eval.schedule(float(shown.lr), config.validate_epochs)
    account.train("distill", "set", shown.training_pair(), schedule, config.validate_networks, rounds)
    account.score("distill", work.task.data.validation, 1, config.validate_networks, rounds)


def add_evaluation(account: Account, work: Work, plan: Plan, shown: SyntheticSet, held: set[Any]) -> None:
    """The last and the chosen set, by the common protocol and by their own; held: rows that are there."""
    assert work.method is not None
    config, data = work.config.eval, work.task.data
    which = [name for name in ("last", "chosen") if ("distilled", name) not in held]
    sets = min(len(which), 1.5 if plan.iterations else 1.0)  # where they are the same, one is judged
    schedule = config.schedule(float(shown.lr))
    if "log_lr" not in work.method.learns:
        tries = config.networks * len(config.baseline_lrs)
        account.train("evaluate", "set", shown.training_pair(), schedule, tries, sets)
        account.score("evaluate", data.validation, 1, tries, sets)
    account.train("evaluate", "set", shown.training_pair(), schedule, config.networks, sets)
    account.score("evaluate", data.test, 1, config.networks, sets)
    if "targets" in shown.extra:
        _add_regression(account, shown, bool(getattr(work.options, "flip", False)), config.networks)


def _add_regression(account: Account, shown: SyntheticSet, flip: bool, networks: int) -> None:
    """The protocol of `regression.py`, one network after the other: last, chosen and random, augmented and not."""
    task, config = account.task, RegressionConfig(networks=networks)
    options = ModelConfig(name="widening", width=config.width).resolved(task.data.size)
    model = flat_model(options, task.data.shape, task.data.num_classes)
    theta = lecun_normal(model.layout, make_generator(0, "estimate")).to(task.device)
    images, targets = (torch.cat([part] * (1 + flip)) for part in (shown.images, shown.extra["targets"]))
    some = config.model_copy(update={"steps": config.steps // 50})  # the first of them makes what Adam remembers
    for augment in (None, task.augment):

        def fit(augment: Any = augment) -> Tensor:
            return fit_targets(model, theta, images, targets, some, 0, augment)

        account.add("evaluate", f"regression, {augment is not None}", same(fit), 3 * networks * 50)
    account.score("evaluate", task.data.test, 6 * networks, 1)


def add_baselines(account: Account, work: Work) -> None:
    """Random, k-means and full data, where their rows are not kept."""
    config, task, ipc = work.config.eval, work.task, work.config.ipc

    def row(name: str) -> Path:
        return kept_row(task, name, ipc, config, work.config.seed)[0]

    if config.full_networks and not row("full").exists():
        once = config.full_epochs, 0.01, config.full_batch_size, config.momentum, config.weight_decay
        account.train("evaluate", "full", task.train, Schedule(*once), config.full_networks)
        account.score("evaluate", task.data.test, 1, config.full_networks)
    tries = config.networks * len(config.baseline_lrs)
    for name in ("random", "kmeans"):
        if row(name).exists():
            continue
        choose, scale = _chooser(task, name, ipc)
        account.add("evaluate", f"choose {name}", same(choose), scale * (tries + config.networks))
        pair = real_images(task, "random", ipc)(work.config.seed)
        for jobs, split in ((tries, task.data.validation), (config.networks, task.data.test)):
            account.train("evaluate", "real", pair, config.schedule(0.01), jobs)
            account.score("evaluate", split, 1, jobs)


def _chooser(task: Task, name: str, ipc: int) -> tuple[Callable[[], object], float]:
    """A call that chooses real images, from fewer of them where there are many; and how much larger the job's is."""
    part = task if len(task.data.train) <= 3000 else fewer(task, max(100, 2 * ipc))
    seeds, make = numbers(), real_images(part, name, ipc)
    return lambda: make(derive_seed(next(seeds), "estimate")), len(task.data.train) / len(part.data.train)


# --- all of it


def estimate(work: Work, path: Path) -> Estimate:
    """What is left of a job: of a run in the folder `path`, or of experts in that store. Nothing is written.

    Raises UserError where the method refuses its options.
    """
    if work.method is None:
        return _estimate_experts(work, path)
    task, config, run, account = work.task, work.config, Run(path), Account(work.task)
    missing = missing_experts(work)
    add_experts(account, config.expert, missing)
    if config.count is not None and work.method.experts != "recorded" and not (path / "experts.json").exists():
        account.score("experts", task.data.validation, 11 * min(5, config.count), 1)
    add_baselines(account, work)
    plan, building, scale = build(work, min(10.0, max(0.3, 0.03 * sum(account.measure().values()))))
    state = path / "state.safetensors"
    done = int(read_header(state)["step"]) if state.exists() else 0
    shown = plan.evaluated_set()
    account.known |= {"distill": building, "report": REPORT}
    add_distill(account, plan, scale, config.seed, plan.iterations - done)
    add_validation(account, work, shown, done, plan.iterations)
    key = evaluation_key(task, config.eval, plan.iterations)
    rows = {(row["set"], row["which"]) for row in run.lines("result") if row.get("evaluation") == key}
    add_evaluation(account, work, plan, shown, rows)
    seconds = account.measure()
    order = ("experts", "distill", "evaluate", "report")
    disk = missing * expert_bytes(task, config.expert) + run_bytes(work, plan, shown)
    held: dict[str, float] = {name: seconds[name] for name in order if name in seconds}
    return Estimate(held, peak(held_bytes(work, missing)), device_peak(task.device), disk)


def _estimate_experts(work: Work, path: Path) -> Estimate:
    account, missing = Account(work.task), missing_experts(work, path)
    add_experts(account, work.config.expert, missing)
    seconds, disk = account.measure(), missing * expert_bytes(work.task, work.config.expert)
    return Estimate(seconds, peak(training_bytes(work, missing)), device_peak(work.task.device), disk)


def estimate_evaluation(task: Task, sets: list[DistilledSet], config: EvalConfig) -> Estimate:
    """What `limbeck.evaluate` takes for these sets."""
    account = Account(task)
    for number, made in enumerate(sets):
        pair = made.images.to(task.device), made.labels.to(task.device)
        account.train("evaluate", f"set {number}", pair, config.schedule(made.lr), config.networks)
        account.score("evaluate", task.data.test, 1, config.networks)
    return Estimate(account.measure(), peak(0), device_peak(task.device), 0)


def training_bytes(work: Work, missing: int) -> int:
    """What experts in training keep in memory: all their epochs, and once more when they are put together."""
    config, task = work.config.expert, work.task
    if not missing or (config.keep == "convex" and not config.whole_path()):
        return 0
    max_workers = min(missing, torch.get_num_threads() if task.max_workers is None else task.max_workers)
    return 2 * max_workers * 4 * (config.epochs + 1) * task.model.layout.count


def held_bytes(work: Work, missing: int) -> int:
    """What a run keeps in memory that was not there while its steps were timed."""
    config = work.config.expert if work.given is None else work.given.store.config
    held = 0
    if work.given is None and work.config.count is not None and config.keep != "recorded":
        waypoints = 3 if config.form == "bezier" else len(config.waypoint_epochs())
        held = work.config.count * waypoints * work.task.model.layout.count * DTYPES[config.dtype].itemsize
    return max(held, training_bytes(work, missing))


def run_bytes(work: Work, plan: Plan, shown: SyntheticSet) -> int:
    """Bytes of a run folder: two sets, the state, three pictures, the log, and the report that holds some of these."""
    pair = [*shown.training_pair(), *(tensor for name, tensor in shown.extra.items() if name == "targets")]
    made = bytes_of(pair) + bytes_of(work.task.preprocess.state().values()) + 4000
    slots = 0
    for optimiser in plan.optimisers:
        adam = "betas" in optimiser.defaults
        parts = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        slots += (2 if adam else bool(optimiser.defaults.get("momentum"))) * bytes_of(parts)
    kept = [hook.state().values() for hook in plan.hooks if isinstance(hook, Stateful)]
    state = bytes_of(plan.synthetic.state().values()) + slots + sum(map(bytes_of, kept)) + 2000
    pictures = 500 * len(shown.images)
    return (
        2 * made + (state if plan.iterations else 0) + 3 * pictures + 2 * pictures + 90 * plan.iterations + REPORT_BYTES
    )
