"""Estimates the time of a job from a few timed steps: of an expert, of the outer loop, of evaluation.

Each time is multiplied by how often the job does that step. A factor of two is good enough. Nothing is written.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from limbeck.core.parallel import Workers
from limbeck.core.record_files import parse_record
from limbeck.core.records import StateHeader
from limbeck.core.rng import derive_seed, make_generator
from limbeck.core.tensors import read_header
from limbeck.core.threads import number_of_threads
from limbeck.derivatives.autograd import Loss
from limbeck.evaluation.baselines import FULL_LR, baseline_names, baseline_path, real_images
from limbeck.evaluation.corruptions import SEVERITIES, corrupt
from limbeck.evaluation.counts import (
    budget,
    count_set_networks,
    count_tested_baselines,
    count_tested_networks,
    has_lr_for,
    without_repeats,
)
from limbeck.evaluation.outcome import measure
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.regression import RegressionConfig, fit_targets
from limbeck.evaluation.robustness import RobustnessConfig, RobustnessTest
from limbeck.evaluation.scores import score_protocols
from limbeck.evaluation.sets import Evaluation
from limbeck.evaluation.training import TrainedNetwork, stand_in_training, teacher_path
from limbeck.experts.config import DTYPES
from limbeck.experts.handle import Experts
from limbeck.experts.make import describe_experts
from limbeck.experts.store import Kind
from limbeck.experts.train import make_rule, make_schedule
from limbeck.jobs.cost import Estimate as Estimate
from limbeck.jobs.job import Job
from limbeck.jobs.rehearsal import stand_in, subset
from limbeck.methods import Plan
from limbeck.networks.flat import lecun_normal
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.select import FillName
from limbeck.synthetic.loop import StatefulHook
from limbeck.synthetic.set import SyntheticSet
from limbeck.task import Task
from limbeck.training.plain import GradientRule, Schedule, score, train

SHORT, LONG, PATIENCE = 0.3, 10.0, 3.0  # seconds
ALL_IMAGES = "all images"


def estimate(job: Job) -> Estimate:
    """Estimate the remaining work of a job, from the present state of its run folder and its store.

    >>> from limbeck.jobs.job import prepare
    >>> estimate(prepare("digits", method="random", ipc=1)).total > 0
    True
    """
    if job.is_finished:
        return Estimate({})
    seconds, store_bytes, step, left = {}, 0, 0.0, 0
    if job.folder.has_steps_left(job.resolved):
        if job.experts is not None:
            experts = estimate_experts(job.experts)
            seconds["experts"], store_bytes = experts.total, experts.store_bytes
        plan, building, scale = _rehearse(job)
        state = job.path / "state.safetensors"
        done = parse_record(state, StateHeader, read_header(state)).step if state.exists() else 0
        left = plan.iterations - done
        synthetic = plan.evaluated_set()
        step = _step_seconds(plan, scale, job.config.seed)
        seconds["distill"] = building + left * step
        seconds["distill"] += _validation_seconds(job, synthetic, left)
    else:
        synthetic = _rehearse(job)[0].synthetic
    config = job.config
    baselines = _baseline_seconds(job.task, config.eval, *job.budget, config.seed)
    seconds["evaluate"] = _evaluation_seconds(job, synthetic) + baselines
    return Estimate(seconds, store_bytes, baselines, step, left)


def estimate_experts(experts: Experts) -> Estimate:
    """Estimate the training of the experts that are missing."""
    task, config, missing = experts.task, experts.config, len(experts.missing())
    if not missing:
        return Estimate({"experts": 0.0})
    images = (config.epochs + 1) * len(task.data.validation) + len(task.data.test)
    rule, workers = make_rule(config), Workers(task.max_workers)
    schedule = make_schedule(config)
    seconds = _networks_seconds(task, task.train, schedule, missing, images, rule, workers=workers)
    return Estimate({"experts": seconds}, missing * expert_bytes(experts))


def estimate_evaluation(evaluations: Sequence[Evaluation], seed: int | None = None) -> Estimate:
    """Estimate the evaluation of sets.

    seed: That of the networks, where random, k-means and all images are evaluated beside the sets; None where not.
    The stages are then the networks, and `ALL_IMAGES` for all of them.
    """
    names = {evaluation.network: "evaluate" if seed is None else evaluation.network for evaluation in evaluations}
    seconds = dict.fromkeys(names.values(), 0.0)
    for evaluation in without_repeats(evaluations):
        task, config, distilled = evaluation.task, evaluation.config, evaluation.distilled
        pair = distilled.images.to(task.device), distilled.labels.to(task.device)
        chooses = 1 + len(config.baseline_lrs) * (not has_lr_for(distilled, config))
        networks = config.networks * chooses if seed is None else count_set_networks(evaluation)
        seconds[names[evaluation.network]] += _evaluated_seconds(task, pair, config, networks)
    for first in {evaluation.task: evaluation for evaluation in evaluations}.values():
        name, task, config = names[first.network], first.task, first.config
        seconds[name] += _teacher_seconds(task, config)
        seconds[name] += _tested_seconds([one for one in evaluations if one.task is task], seed)
        if seed is not None:
            ipc, fill = budget(first.distilled)
            seconds[name] += _coreset_seconds(task, config, ipc, fill, seed)
            seconds[ALL_IMAGES] = seconds.get(ALL_IMAGES, 0.0) + _full_seconds(task, config, ipc, seed)
    return Estimate(seconds)


def estimate_scores(evaluations: Sequence[Evaluation], seed: int | None = None) -> Estimate:
    """Estimate `run_scores` on the sets, and the evaluation before it."""
    variants = score_protocols(evaluations[0].config).values()
    parts = [[one._replace(config=config) for one in evaluations] for config in variants]
    return Estimate({"evaluate": sum(estimate_evaluation(part, seed).total for part in parts)})


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a few calls after one that warms up; of that one alone where it takes as long as `LONG`.

    Of three calls at least, so that one which another process interrupts does not count a thousand times; of one where
    it takes `PATIENCE`.
    """
    first = _time(call, device)
    times: list[float] = []
    while first < LONG and (len(times) < 3 or (len(times) < 6 and sum(times) < SHORT)):
        times.append(_time(call, device))
        if min(first, *times) * len(times) >= PATIENCE:
            break
    return median(times or [first])


def _time(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _evaluated_seconds(task: Task, pair: tuple[Tensor, Tensor], config: EvalConfig, networks: int) -> float:
    """Seconds to train networks on images and labels, and to score them on test, as a protocol says."""
    tests = 1 + (config.epochs // config.test_every if config.test_every else 0)
    training, scored = stand_in_training(task, config), tests * len(task.data.test)
    loss = training.loss_and_network()[0]
    return _networks_seconds(task, pair, config.schedule(0.01), networks, scored, loss=loss, workers=training.workers)


def _teacher_seconds(task: Task, config: EvalConfig) -> float:
    """Seconds of the teachers that are not stored yet."""
    if config.labels != "teacher":
        return 0.0
    missing = sum(not teacher_path(task, config, index)[0].exists() for index in range(config.teachers))
    return missing and _networks_seconds(
        task, task.train, config.plain.full_schedule(FULL_LR), missing, 0, workers=Workers(1)
    )


def _tested_seconds(evaluations: Sequence[Evaluation], seed: int | None) -> float:
    """Seconds to test networks on perturbed images, and to train those on real images whose plain rows are stored."""
    seconds = 0.0
    for task in {one.task: None for one in evaluations}:
        sets = [one for one in evaluations if one.task is task]
        first = sets[0]
        if first.robustness is None:
            continue
        names = first.config.baselines if seed is None else baseline_names(first.config)
        counts = count_tested_baselines(first, names, seed or 0)
        pair = first.distilled.images.to(task.device), first.distilled.labels.to(task.device)
        for name, (tuning, tested) in zip(names, counts):
            if name != "full" and tested and (seed is None or not tuning):
                seconds += _evaluated_seconds(task, pair, first.config, tuning + tested)
        networks = count_tested_networks(sets) + sum(tested for _, tested in counts)
        seconds += networks * _test_seconds(task, first.robustness)
    return seconds


def _test_seconds(task: Task, config: RobustnessConfig) -> float:
    """Seconds to test one network on perturbed images."""
    theta = task.model.init(0, "estimate").to(task.device)
    few = RobustnessTest(task, config.model_copy(update={"images": 50}), 0)
    logits = task.loss_and_network()[1]
    images, labels = (tensor[:500] for tensor in task.validation)
    network = TrainedNetwork(logits, theta, measure(logits, theta, images, labels, task.data.num_classes))
    forward, gradients = config.passes
    pixels, _ = few.images
    seconds = forward * _seconds(lambda: score(logits, theta, images, labels), task.device) / len(images)
    if gradients:
        seconds += gradients * _seconds(lambda: few.attack(network, "fgsm"), task.device) / len(pixels)
    for name in config.corruptions:
        seconds += len(SEVERITIES) * _seconds(lambda: corrupt(name, pixels, 3, 0), task.device) / len(pixels)  # noqa: B023
    return seconds * len(RobustnessTest(task, config, 0).images[1])


def _networks_seconds(
    task: Task,
    pair: tuple[Tensor, Tensor],
    schedule: Schedule,
    networks: int,
    scored: int,
    rule: GradientRule | None = None,
    loss: Loss | None = None,
    workers: Workers | None = None,
) -> float:
    """Seconds to train `networks` networks on images and labels and to score each on `scored` images.

    workers: How they are trained at the same time; by default as networks are evaluated.
    """
    workers = workers or task.workers
    images, labels = pair
    theta = task.model.init(0, "estimate").to(task.device)
    length = min(len(images), schedule.batch_size)
    endless = schedule._replace(epochs=sys.maxsize, drop=None)
    path = train(loss or task.loss, theta, images[:length], labels[:length], endless, 0, rule)
    some = tuple(tensor[:500] for tensor in task.validation)
    share = workers.threads_each or max(1, torch.get_num_threads() // workers.at_once)
    with number_of_threads(share):
        next(path)
        step = _seconds(lambda: next(path), task.device)
        scoring = _seconds(lambda: score(task.logits, theta, *some), task.device) / len(some[0])
    once = schedule.epochs * len(images) / length * step + scored * scoring
    return once * math.ceil(networks / workers.at_once)


def _rehearse(job: Job) -> tuple[Plan, float, float]:
    """Build a plan on few real images and stand-ins: (plan, seconds to build the job's own, ratio of their images)."""
    task, options, config = job.task, job.options, job.config
    paths = [] if job.experts is None else [stand_in(task, job.experts.config.epochs, config.seed)]
    most = 2 * max(options.initial_images(config.ipc), options.real_images_per_step(), 16)
    part = subset(task, most)
    start, worked = time.perf_counter(), time.process_time()
    plan = replace(job, task=part).plan([*paths])
    scale = len(task.data.train) / len(part.data.train)
    # One call, which `scale` multiplies: processor time, where it is less, does not count what others did meanwhile.
    building = min(time.perf_counter() - start, time.process_time() - worked)
    return plan, building * scale, scale


def _step_seconds(plan: Plan, scale: float, seed: int) -> float:
    """Seconds of one outer step and its hooks.

    A hook's expensive work is divided by its cycle, and multiplied by `scale`: how many more images the job has.
    """
    if not plan.iterations:
        return 0.0
    steps = iter(range(sys.maxsize))
    device = plan.synthetic.images.device

    def step() -> None:
        for optimiser in plan.optimisers:
            optimiser.zero_grad()
        plan.objective(plan.synthetic, next(steps), seed).backward()

    seconds = _seconds(step, device)
    for hook in plan.hooks:
        cycle = hook.cycle if isinstance(hook, StatefulHook) else 1
        seconds += scale / cycle * _seconds(lambda: hook(plan.synthetic, cycle, 1.0), device)  # noqa: B023
        if cycle > 1:
            seconds += _seconds(lambda: hook(plan.synthetic, 1, 1.0), device)  # noqa: B023
    return seconds


def _validation_seconds(job: Job, synthetic: SyntheticSet, left: int) -> float:
    """Seconds of the validations in the `left` outer steps."""
    config = job.config
    rounds = 1 + left // (config.validate_every or max(1, left))
    schedule = config.eval.plain.schedule(float(synthetic.lr), config.validate_epochs)
    scored = len(job.task.data.validation)
    return rounds * _networks_seconds(job.task, synthetic.training_pair(), schedule, config.validate_networks, scored)


def _evaluation_seconds(job: Job, synthetic: SyntheticSet) -> float:
    """Seconds to evaluate the last and the chosen set, by the common protocol and by their own."""
    task, config, pair = job.task, job.config.eval, synthetic.training_pair()
    networks = config.networks * (1 if job.has_own_lr else 1 + len(config.baseline_lrs))
    seconds = 2 * _evaluated_seconds(task, pair, config, networks) + _teacher_seconds(task, config)
    if "targets" in synthetic.extra:
        regression = RegressionConfig(networks=config.networks)
        options = ModelConfig(name="widening", width=regression.width).resolved(task.data.size)
        model = flat_model(options, task.data.shape, task.data.num_classes)
        theta = lecun_normal(model.layout, make_generator(0, "estimate")).to(task.device)
        few = regression.model_copy(update={"steps": 20})
        images, targets = synthetic.images, synthetic.extra["targets"]
        fit = _seconds(lambda: fit_targets(model, theta, images, targets, few, 0, task.augment), task.device)
        seconds += 6 * config.networks * fit * regression.steps / few.steps
    return seconds


def _baseline_seconds(task: Task, config: EvalConfig, ipc: int, fill: FillName, seed: int) -> float:
    """Seconds of the baselines whose rows are not stored yet."""
    return _coreset_seconds(task, config, ipc, fill, seed) + _full_seconds(task, config, ipc, seed)


def _coreset_seconds(task: Task, config: EvalConfig, ipc: int, fill: FillName, seed: int) -> float:
    """Seconds of random and k-means images, where their rows are not stored yet."""
    seconds = 0.0
    networks = config.networks * (1 + len(config.baseline_lrs))
    missing = [n for n in config.baselines if not baseline_path(task, n, ipc, config, seed, fill)[0].exists()]
    part = subset(task, max(100, 2 * ipc))
    for name in missing:
        draw_set = real_images(part, name, ipc, fill)
        select = _seconds(lambda: draw_set(derive_seed(seed, "estimate")), task.device)  # noqa: B023
        seconds += networks * select * len(task.data.train) / len(part.data.train)
    if missing:  # networks take as long on the images of any selector
        pair = real_images(part, "random", ipc, fill)(seed)
        seconds += len(missing) * _evaluated_seconds(task, pair, config, networks)
    return seconds


def _full_seconds(task: Task, config: EvalConfig, ipc: int, seed: int) -> float:
    """Seconds of the networks that are trained on all images, where their row is not stored yet."""
    if not config.full_networks or baseline_path(task, "full", ipc, config, seed)[0].exists():
        return 0.0
    return _networks_seconds(task, task.train, config.full_schedule(FULL_LR), config.full_networks, len(task.data.test))


def expert_bytes(experts: Experts, kind: Kind = "any") -> int:
    """Bytes of one expert's file: waypoints and beta, every epoch's parameters, or both; and its header.

    kind: of the trajectories that are stored; "any" stands for what the experts' configuration says.
    """
    task, config = experts.task, experts.config
    keep = config.keep if kind == "any" else kind
    numbers, layers = task.model.layout.count * DTYPES[config.dtype].itemsize, len(task.model.layout.names)
    convex = len(config.waypoint_epochs()) * numbers + 4 * config.epochs * layers
    recorded = (config.epochs + 1) * numbers
    header = len(json.dumps(describe_experts(task, config, 0))) + 22 * config.epochs + 600
    return header + convex * (keep != "recorded") + recorded * (keep != "convex")
