"""The commands about a run: distill, and estimate, which says how long it would take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, cast

from pydantic import create_model
from rich.console import Console
from tyro.conf import OmitArgPrefixes, arg

from limbeck.cli.common import (
    PATH,
    STORE,
    Command,
    Data,
    Device,
    OptionGroup,
    Options,
    WithEstimate,
    WithTracker,
    announce,
    load_keywords,
    tracking,
)
from limbeck.cli.comparison import changed_options, compare_with_published
from limbeck.cli.parse import make_default, parse_known
from limbeck.core.distributed import SINGLE, Ranks, join_ranks
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.launch import Launch
from limbeck.core.ranges import Size
from limbeck.core.record_files import read_record
from limbeck.core.records import ResultsRecord
from limbeck.core.text import quote
from limbeck.data import ImageData, load_data
from limbeck.evaluation.protocol import EvalConfig, ProtocolName
from limbeck.experts.config import ExpertConfig
from limbeck.jobs.config import JobConfig
from limbeck.jobs.estimate import estimate
from limbeck.jobs.job import Job, prepare
from limbeck.jobs.memory import describe_memory
from limbeck.jobs.presets import preset_options
from limbeck.jobs.record import RESULTS
from limbeck.jobs.stages import run
from limbeck.methods import MethodConfig, find_method
from limbeck.networks.registry import ModelConfig


class ProtocolChoice(OptionGroup):
    """The option that decides the defaults of the others of evaluation."""

    protocol: ProtocolName | None = None


class MethodChoice(OptionGroup):
    """The options that decide which other options there are, and their defaults."""

    method: str | None = None
    preset: str | None = None
    experts: str | None = None
    eval: ProtocolChoice = ProtocolChoice()


class RunOptions(Data, JobConfig, Device, Options):
    """Options of commands that are about a run."""

    method: str = "mct"
    """The method; 'limbeck methods' lists them, '--method NAME --help-method' shows the options of one, and
    my_file:METHOD is one of your own."""
    preset: str | None = None
    """A published setting to start from; options beside it win, and 'limbeck presets' lists them."""
    ipc: Size = 1
    """Images per class of the synthetic set."""
    out: Annotated[str | None, PATH] = None
    """The run folder; the default is runs/DATA-METHOD-ipcN-seedS."""
    experts: Annotated[str | None, STORE] = None
    """A store of experts to match; the default is to train them once and find them again."""
    settings: MethodConfig
    """Options of the method."""


class Distill(RunOptions, WithTracker, WithEstimate):
    """Distil a data set: train experts, distil, evaluate, write a report."""


class Estimate(RunOptions):
    """Estimate how long 'limbeck distill' would take, and the size of its experts, from a few timed steps."""

    within: Annotated[str | None, arg(metavar="TIME")] = None
    """Say how many outer steps fit into this time on this machine, as 90min, 2h or 1h30min."""


def choose_defaults(options: type[RunOptions], prog: str, arguments: Sequence[str]) -> RunOptions:
    """The options of the method or the preset that the arguments name, and their values; the default is MCT."""
    choice = MethodChoice()
    if not any(word.startswith("--tyro-") for word in arguments[:1]):  # tyro's flags to write a completion script
        choice = parse_known(prog, MethodChoice, arguments)
    values = {} if choice.preset is None else preset_options(choice.preset)
    name = choice.method or values.get("method", "mct")
    method = find_method(name)
    if values and method.name != values["method"]:
        raise UserError(
            f"{quote(choice.preset)} is a setting of {values['method']}, not of {method.name}; leave out --method, or "
            "name another preset."
        )
    if choice.experts is not None:  # the store says how many there are
        values.pop("num_experts", None)
    job = {name: value for name, value in values.items() if name in JobConfig.model_fields}
    job["model"] = ModelConfig(**job.get("model", {}))
    job["expert"] = ExpertConfig(**{**method.expert_defaults, **job.get("expert", {})})
    job.setdefault("ema_decay", method.ema_decay)  # for the help; the job would take the same
    protocol = {} if choice.eval.protocol is None else {"protocol": choice.eval.protocol}
    job["eval"] = EvalConfig(**{**job.get("eval", {}), **protocol})
    chosen = {name: value for name, value in values.items() if name in method.config.model_fields}
    if (size := Launch.of_environment().size) > 1 and "grad_accum" in method.config.model_fields:
        chosen.setdefault("grad_accum", size)  # one segment a process of torchrun
    settings = method.config(**chosen)
    box = Annotated[MethodConfig, arg(name=method.name), OmitArgPrefixes]
    model: Any = create_model(options.__name__, __base__=options, settings=(box, ...), __doc__=options.__doc__)
    return cast("RunOptions", make_default(model, method=name, settings=settings, **job))


def _job_options(args: RunOptions) -> dict[str, Any]:
    """The fields of the method's config and of `JobConfig`."""
    return {**dict(args.settings), **{name: getattr(args, name) for name in JobConfig.model_fields}}


def prepare_job(args: Any, data: ImageData, ranks: Ranks = SINGLE) -> Job:
    """The job that the options of a command describe, on these images."""
    return prepare(
        data,
        method=args.method,
        out=args.out,
        experts=args.experts,
        device=args.device,
        ranks=ranks,
        **_job_options(args),
    )


def _prepare(args: Any, listen: Listener, ranks: Ranks = SINGLE) -> Job:
    listen({"event": "status", "text": f"reading {args.data}"})
    data = load_data(args.data, seed=args.seed, listen=listen, **load_keywords(args))
    listen({"event": "status", "text": "preparing the job"})
    return prepare_job(args, data, ranks)


def run_distill(args: Any, listen: Listener) -> Any:
    """Prepare the job, say how long it will take, and run it.

    Returns results.json with the paths of run and report, and with the published number of a preset.
    """
    with join_ranks(args.device) as ranks:
        job = _prepare(args, listen, ranks)
        if (choice := describe_memory(job.task, job.options, job.experts, job.config.ipc)) is not None:
            listen({"event": "note", "text": choice})
        if args.estimate and ranks.size == 1 and not job.is_finished:
            announce(lambda: estimate(job), listen)
        with tracking(args.tracker if ranks.is_first else None, job.path, job.resolved, listen) as hear:
            path = run(job, hear)
        if not ranks.is_first:  # rank 0 may still be writing
            return {}
    results = read_record(path / "results.json", ResultsRecord, RESULTS)
    published = {} if args.preset is None else _compare(args, args.preset, results)
    return {**results.to_json(), "run": str(path), "report": str(path / "report.html"), **published}


def run_estimate(args: Any, listen: Listener) -> Any:
    """Prepare the job and call `limbeck.estimate`; returns its numbers with --json, else prints a sentence."""
    seconds = None if args.within is None else parse_time(args.within)
    result = estimate(_prepare(args, listen))
    steps = {} if seconds is None else {"iterations": result.steps_within(seconds)}
    if args.as_json:
        return {**result.to_json(), **steps}
    Console(highlight=False).print(result.text, soft_wrap=True)
    return steps


TIME = re.compile(r"(?:(\d+(?:\.\d+)?) ?h)? ?(?:(\d+(?:\.\d+)?) ?min)? ?(?:(\d+(?:\.\d+)?) ?s)?")


def parse_time(text: str) -> float:
    """Seconds of a time in hours, minutes and seconds. Raises UserError for other text.

    >>> parse_time("2h"), parse_time("1h30min"), parse_time("90 s")
    (7200.0, 5400.0, 90.0)
    """
    match = TIME.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise UserError(f"--within is a time, as 90min, 2h or 1h30min, not {quote(text)}.")
    return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1)))


def _compare(args: RunOptions, name: str, results: ResultsRecord) -> dict[str, Any]:
    """The published number of the preset `name`, and the options that are not the preset's."""
    experts = [] if args.experts is None else ["--experts", args.experts]
    preset = choose_defaults(Distill, "limbeck distill", ["--preset", name, *experts])
    changes = changed_options(_job_options(args), _job_options(preset))
    changes |= load_keywords(args) | ({} if args.experts is None else {"experts": args.experts})
    return compare_with_published(name, results, changes)


EVERYDAY = ("method", "preset", "ipc", "out", "resize", "seed", "iterations", "device", "threads", "quiet")

COMMANDS = {
    "distill": Command(
        Distill,
        run_distill,
        (
            "limbeck distill digits --ipc 1 --out runs/digits",
            "limbeck distill path/to/images --resize 32 --preset mct/cifar10/ipc10 --iterations 100",
        ),
        partial(choose_defaults, Distill),
        everyday=EVERYDAY,
        is_shareable=True,
    ),
    "estimate": Command(
        Estimate,
        run_estimate,
        ("limbeck estimate digits --ipc 10 --method mtt", "limbeck estimate digits --within 30min"),
        partial(choose_defaults, Estimate),
        everyday=("within", *EVERYDAY),
    ),
}
