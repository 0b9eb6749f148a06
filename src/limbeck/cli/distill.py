"""The commands about a run: distil, and say beforehand how long that will take."""

from __future__ import annotations

import json
from typing import Any, cast

from pydantic import create_model
from rich.console import Console

from limbeck.cli.common import Command, Data, Listener, Options, announce
from limbeck.experts.store import ExpertConfig
from limbeck.jobs.config import JobConfig
from limbeck.jobs.estimate import estimate
from limbeck.jobs.job import Job, prepare
from limbeck.jobs.presets import preset_arguments
from limbeck.jobs.stages import run
from limbeck.methods import find_method


class Run(Data):
    """Options of commands that are about a run."""

    method: str = "mct"
    """which method, see 'limbeck methods'"""
    out: str | None = None
    """the run folder; by default runs/DATA-METHOD-ipcN-seedS"""
    experts: str | None = None
    """a store of experts; by default they are trained once and found again"""
    preset: str | None = None
    """a paper's setting, see 'limbeck presets'; options given beside it win"""


class Distill(Run):
    """Distil a data set: experts, distillation, evaluation, report."""


class Before(Run):
    """Say how long 'limbeck distill' would take, and how much memory and disk, from a few timed steps."""


def with_method(options: Options, arguments: list[str]) -> tuple[Options, list[str]]:
    """The options of the method that the arguments name, and the arguments with those of their preset before them."""
    preset = _value_of("--preset", arguments)
    if preset is not None:
        arguments = [*preset_arguments(preset), *arguments]
    method = find_method(_value_of("--method", arguments) or "mct")
    bases: Any = (method.config, JobConfig, options)
    expert = ExpertConfig(**method.expert_defaults)
    combined: Any = create_model(options.__name__, __base__=bases, expert=(ExpertConfig, expert))
    combined.__doc__ = options.__doc__
    return cast("Options", combined), arguments


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag, before the arguments are parsed; the last one counts."""
    value = None
    for word, after in zip(arguments, [*arguments[1:], ""]):
        if word.split("=")[0] == flag:
            value = word.split("=", 1)[1] if "=" in word else after
    return value


def _job_options(args: Any) -> dict[str, Any]:
    """The fields of the method's config and of `JobConfig`."""
    own = set(find_method(args.method).config.model_fields)
    return {name: getattr(args, name) for name in own | set(JobConfig.model_fields)}


def _prepare(args: Any) -> Job:
    return prepare(
        args.data,
        method=args.method,
        out=args.out,
        experts=args.experts,
        device=args.device,
        resize=args.resize,
        **_job_options(args),
    )


def run_distill(args: Any, listen: Listener) -> Any:
    """Prepare the job, say how long it will take, and run it; returns results.json with the paths of run and report."""
    job = _prepare(args)
    if args.estimate and not job.is_finished:
        announce(lambda: estimate(job), listen)
    path = run(job, listen)
    return {**json.loads((path / "results.json").read_text()), "run": str(path), "report": str(path / "report.html")}


def run_estimate(args: Any, listen: Listener) -> Any:
    """Prepare the job and call `limbeck.estimate`; returns its numbers with --json, else prints a sentence."""
    result = estimate(_prepare(args))
    if args.as_json:
        return result.to_json()
    Console(highlight=False).print(result.text, soft_wrap=True)
    return {}


COMMANDS = {
    "distill": Command(Distill, run_distill, with_method),
    "estimate": Command(Before, run_estimate, with_method),
}
