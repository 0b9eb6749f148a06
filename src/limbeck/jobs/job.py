"""One job: `prepare` reads, checks and resolves it, so that `estimate` can time it and `run` can do it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from limbeck.core.aliases import rename_keywords
from limbeck.core.distributed import SINGLE, Ranks
from limbeck.core.errors import UserError
from limbeck.core.files import content_key, require_writable
from limbeck.core.records import DataRecord, RunRecord
from limbeck.core.short_repr import short_repr
from limbeck.core.types import Trajectory
from limbeck.core.user_code import source_key
from limbeck.data import READING, DataSource, load_data
from limbeck.evaluation.counts import match_pixels
from limbeck.evaluation.protocol import ADDED
from limbeck.experts.config import ExpertConfig
from limbeck.experts.handle import Experts
from limbeck.jobs.config import JobConfig, check_options
from limbeck.jobs.memory import fit_memory
from limbeck.jobs.ranks import share_draws
from limbeck.jobs.record import RunFolder, versions
from limbeck.jobs.rehearsal import check_plan
from limbeck.methods import DataFacts, Method, MethodInputs, Plan, find_method, name_methods_with
from limbeck.methods.initial import find_own_selector
from limbeck.networks.registry import find_network
from limbeck.select import FillName
from limbeck.task import Task, make_task, restore_switches

DEFAULT_NUM_EXPERTS = 10
VALIDATION = {"batch_size", "momentum", "weight_decay", "choose_by"}
"""Fields of `EvalConfig` by which sets are validated while they are distilled, too."""


@dataclass(frozen=True, eq=False)
class Job:
    """One distillation, read, checked and resolved; nothing of it is written yet.

    task:    data, network, preprocessing and augmentation on a device.
    method:  the method, and `options`, its options without any default left open.
    config:  the options beside the method's own, resolved; `num_experts` is None where the method needs none.
    experts: a handle of the experts; None where the method needs none. They are trained by `run`.
    path:    the run folder.

    >>> job = prepare("digits", method="dm", ipc=1, iterations=100)
    >>> job.method.name, job.experts, job.options.iterations, job.config.validate_every
    ('dm', None, 100, 10)
    """

    __repr__ = short_repr

    task: Task
    method: Method
    options: Any
    config: JobConfig
    experts: Experts | None
    path: Path

    @property
    def folder(self) -> RunFolder:
        """The run folder as a record to read and to write."""
        return RunFolder(self.path)

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """All that determines the result, JSON-able: options, data, experts, and the user's own code."""
        config = self.config.model_dump(mode="json")
        resolved = {"method": self.method.name, **self.options.recorded(), **config}
        resolved |= {"data": self.task.data.fingerprint, "experts": None}
        if self.experts is None:
            resolved = {name: value for name, value in resolved.items() if name not in ("expert", "num_experts")}
            resolved["experts"] = "none"
        elif self.experts.is_user_store:
            resolved["experts"] = self.experts.store.header.key
        if self.config.fill == "none":  # as runs were recorded before there was the option
            del resolved["fill"]
        if not self.config.balanced:
            del resolved["balanced"]
        if not self.config.ema_decay and not self.method.ema_decay:
            del resolved["ema_decay"]
        network = find_network(self.config.model.name)
        selector = find_own_selector(self.options)
        code = source_key(self.method.plan, self.method.resolve, self.method.config, network, selector)
        resolved = {**resolved, "code": code} if code else resolved
        return cast("dict[str, Any]", json.loads(json.dumps(resolved)))  # as a file holds it

    @property
    def is_finished(self) -> bool:
        """Whether the run folder holds results of exactly this job."""
        return self.folder.is_finished(self.resolved)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe in the header of a set: how a network is trained on it."""
        recipe = self.config.eval.model_dump(include={"networks", "epochs", *VALIDATION, *ADDED})
        return {**recipe, "augment": self.task.augment.strategy, "model": self.task.model_config.model_dump()}

    @property
    def learns_lr(self) -> bool:
        """Whether the method learns the step size; otherwise one is chosen on validation, as for real images."""
        return "log_lr" in self.method.learns

    @property
    def has_own_lr(self) -> bool:
        """Whether networks are evaluated with the step size that is learned: by SGD, with which it is."""
        return self.learns_lr and self.config.eval.optimiser == "sgd"

    @property
    def budget(self) -> tuple[int, FillName]:
        """Real images per class that the set is compared with, and how classes that have fewer are filled up."""
        return match_pixels(self.config.ipc, getattr(self.options, "canvas", 1), self.config.fill)

    def record(self) -> RunRecord:
        """The content of run.json for this job."""
        task = self.task
        reading = task.data.origin.describe()
        source = reading.pop("source")
        threads = {"threads": torch.get_num_threads()} if self.method.depends_on_threads(self.options) else {}
        is_command = Path(sys.argv[0]).name == "limbeck"
        return RunRecord(
            format="limbeck-run",
            version=1,
            config=self.resolved,
            key=content_key(self.resolved),
            versions=versions(),
            command=shlex.join(["limbeck", *sys.argv[1:]]) if is_command else "(from Python)",
            data=DataRecord.model_validate(task.data.describe()),
            source=source,
            reading=reading,
            device=str(task.device),
            threads=torch.get_num_threads(),
            implementation_because=task.choice.reason,
            computed=task.conditions() | threads,
            validation=self.config.eval.model_dump(mode="json", include=VALIDATION),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def plan(self, trajectories: list[Trajectory]) -> Plan:
        """The method composed for these trajectories, with the average of the set if there is one."""
        config = self.config
        inputs = MethodInputs(self.task, trajectories, config.ipc, config.seed, config.fill, config.balanced)
        plan = self.method.plan(self.options, inputs)
        if not config.ema_decay:
            return plan
        return plan.with_average(config.ema_decay, unbiased=self.method.ema_unbiased)


@restore_switches()
def prepare(
    data: DataSource,
    *,
    method: str | Method = "mct",
    out: str | Path | None = None,
    experts: str | Path | None = None,
    device: str = "cpu",
    ranks: Ranks = SINGLE,
    **options: Any,
) -> Job:
    """Read and check a job, resolve every default, and try its plan on a stand-in for the experts.

    The arguments are those of `distill`. Nothing is written. Raises UserError for input that cannot work, and where
    the run folder holds something else.

    ranks: the processes that share the job, of which rank 0 prepares it first; see `limbeck.core.distributed`.

    >>> job = prepare("digits", ipc=1, iterations=100)
    >>> job.path.name, job.experts.count, job.config.model.depth, job.is_finished
    ('digits-mct-ipc1-seed0', 10, 2, False)
    """
    return ranks.in_turn(lambda: _prepare(data, method, out, experts, device, ranks, options))


def _prepare(
    data: DataSource,
    method: str | Method,
    out: str | Path | None,
    experts: str | Path | None,
    device: str,
    ranks: Ranks,
    options: dict[str, Any],
) -> Job:
    chosen = find_method(method)
    reading, options = _split_reading(options)
    options = rename_keywords(options, {*chosen.config.model_fields, *JobConfig.model_fields})
    options = share_draws(chosen, ranks, options)
    own = {key: value for key, value in options.items() if key in chosen.config.model_fields}
    others = {key: value for key, value in options.items() if key not in own}
    for name in others:
        if name not in JobConfig.model_fields and (methods := name_methods_with(name)):
            raise UserError(f"there is no option {name} of the method {chosen.name}; it is one of {methods}.")
    config = check_options(JobConfig, others, chosen.config.model_fields)
    requested = check_options(chosen.config, own)
    task = _make_task(data, config, device, reading, ranks)
    _check_ipc(task, config)

    handle = _experts(config, chosen, task, experts)
    expert = config.expert if handle is None else handle.config
    requested, handle = fit_memory(requested, task, handle, config.ipc)
    resolved_options = chosen.resolve_options(requested, DataFacts(len(task.data.train), config.ipc, expert))
    name = f"{task.data.name}-{chosen.name}-ipc{config.ipc}-seed{config.seed}"
    path = Path(out) if out is not None else Path("runs") / name
    require_writable(path)
    recorded = RunFolder(path).config()
    every = config.validate_every or recorded.get("validate_every")
    if every is None and "iterations" in type(resolved_options).model_fields:
        every = max(1, resolved_options.iterations // 10)
    config = config.model_copy(
        update={
            "model": task.model_config,
            "augment": task.augment.strategy,
            "expert": expert,
            "num_experts": None if handle is None else handle.count,
            "ema_decay": _ema_decay(config, chosen),
            "validate_every": every,
        }
    )
    if not recorded:
        epochs = None if handle is None else expert.epochs
        check_plan(chosen, resolved_options, task, config.ipc, config.seed, epochs, config.fill)
    job = Job(task, chosen, resolved_options, config, handle, path)
    job.folder.check(job.record())
    return job


@restore_switches()
def prepare_experts(
    data: DataSource,
    *,
    out: str | Path | None = None,
    device: str = "cpu",
    ranks: Ranks = SINGLE,
    **options: Any,
) -> Experts:
    """Read and check experts that are to be trained; the arguments are those of `train_experts`."""
    reading, options = _split_reading(options)
    config = check_options(JobConfig, rename_keywords(options, JobConfig.model_fields))
    task = ranks.in_turn(lambda: _make_task(data, config, device, reading, ranks))
    count = config.num_experts or DEFAULT_NUM_EXPERTS
    return Experts.to_train(task, _expert_config(config), count, config.seed, path=None if out is None else Path(out))


def _split_reading(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of `load_data`, and all others."""
    reading = {name: value for name, value in options.items() if name in READING}
    return reading, {name: value for name, value in options.items() if name not in READING}


def _make_task(
    data: DataSource, config: JobConfig, device: str, reading: dict[str, Any], ranks: Ranks = SINGLE
) -> Task:
    images = load_data(data, seed=config.seed, **reading)
    if not len(images.validation):
        raise UserError(f"{images.name} has no validation images to choose by; give it more images per class.")
    return make_task(
        images, config.model, config.preprocess, config.augment, ranks.device(device), config.precision, ranks
    )


def _check_ipc(task: Task, config: JobConfig) -> None:
    """Raise UserError where a class has too few images and is not to be filled up, or with nothing to vary it by."""
    task.check_ipc(config.ipc, allow_fewer=config.fill != "none")
    if config.fill == "augment" and not task.augment.families:
        raise UserError("--fill augment needs an augmentation, and --augment is none; use --fill repeat or noise.")


def _ema_decay(config: JobConfig, method: Method) -> float:
    """The decay of the average, by default the method's; UserError for an average of what takes no outer steps."""
    if config.ema_decay and not method.learns:
        raise UserError(f"{method.name} takes no outer steps, over which to average; leave out --ema-decay.")
    return method.ema_decay if config.ema_decay is None else config.ema_decay


def _expert_config(config: JobConfig) -> ExpertConfig:
    """How experts are to be trained: on balanced batches where the job asks for balanced batches in general."""
    return config.expert.model_copy(update={"balanced": True}) if config.balanced else config.expert


def _experts(config: JobConfig, method: Method, task: Task, store: str | Path | None) -> Experts | None:
    """The experts that the method needs: of the store that was named, else to be trained; None where it needs none."""
    kind = method.experts or "any"
    if store is not None:
        experts = Experts.of_store(task, Path(store), config.num_experts, config.seed, kind)
        if config.balanced and not experts.config.balanced:
            raise UserError(
                f"the experts of {store} were trained on batches that are not balanced; train others with 'limbeck "
                "experts --balanced', or leave out --balanced."
            )
        return experts
    if config.balanced and method.experts is None and not method.learns:
        raise UserError(
            f"{method.name} takes no batches of real images, which could be balanced; leave out --balanced."
        )
    if method.experts is None:
        return None
    explicit = config.expert.model_fields_set
    defaults = {name: value for name, value in method.expert_defaults.items() if name not in explicit}
    expert = _expert_config(config).model_copy(update=defaults)
    return Experts.to_train(task, expert, config.num_experts or DEFAULT_NUM_EXPERTS, config.seed, kind)
