"""The command that says what is wrong before hours are spent."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from limbeck.cli.common import Command, load_keywords
from limbeck.cli.distill import EVERYDAY, RunOptions, choose_defaults, prepare_job
from limbeck.core.errors import UserError
from limbeck.core.events import Listener
from limbeck.core.findings import Finding
from limbeck.data import load_data
from limbeck.data.sources import DATA_NAMES
from limbeck.experts.store import Store
from limbeck.jobs.doctor import examine_data, examine_job, examine_run, examine_store
from limbeck.jobs.estimate import estimate


class Doctor(RunOptions):
    """Say what is wrong with images and a job on them, a store of experts or a run: one finding a line."""

    data: Annotated[Positional[str], arg(metavar="DATA|STORE|RUN")]
    """Images as 'limbeck distill' takes them, with its options for the job; a store of experts; or a run folder. Status
    1 says that something was found."""
    near_duplicates: Literal["auto", "yes", "no"] = "auto"
    """Look for images that nearly equal one of another split; auto: among at most 200,000."""


def run_doctor(args: Any, listen: Listener) -> dict[str, Any]:
    """Print a line a finding, or return them with --json; "findings" is their number or they themselves."""
    result: dict[str, Any] = {}
    findings = list(_examine(args, listen, result))
    if args.as_json:
        return {"findings": [finding._asdict() for finding in findings], **result}
    console = Console(highlight=False)
    for finding in findings:
        console.print(f"- {finding.line}", soft_wrap=True, markup=False)
    return {"findings": len(findings), **result}


def _examine(args: Any, listen: Listener, result: dict[str, Any]) -> list[Finding]:
    """The findings; `result` gets what was examined, and the estimate of a job."""
    path = Path(args.data)
    if (path / "store.json").exists():
        result["examined"] = "store of experts"
        return examine_store(Store.open(path))
    if (path / "run.json").exists():
        result["examined"] = "run"
        return examine_run(path)
    result["examined"] = "data set"
    try:
        data = load_data(args.data, seed=args.seed, listen=listen, **load_keywords(args))
    except UserError as error:
        if args.data in DATA_NAMES or path.exists():  # what is there and cannot be read is what was to be found
            return [Finding(str(error), "")]
        raise
    near = {"auto": None, "yes": True, "no": False}[args.near_duplicates]
    findings = examine_data(data, near=near, listen=listen)
    try:
        job = prepare_job(args, data)
        cost = estimate(job)
    except UserError as error:
        return [*findings, Finding(str(error), "")]
    result["estimate"] = cost.text
    return [*findings, *examine_job(job, cost)]


COMMANDS = {
    "doctor": Command(
        Doctor,
        run_doctor,
        ("limbeck doctor digits --ipc 10 --method mtt", "limbeck doctor runs/digits"),
        partial(choose_defaults, Doctor),
        lambda result: int(bool(result["findings"])),
        EVERYDAY,
    )
}
