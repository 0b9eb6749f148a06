"""The command line: parse, then one library call."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Literal, cast

os.environ.setdefault("PYDANTIC_ERRORS_INCLUDE_URL", "0")
# Both before torch is loaded. Threads that wait for each other by spinning cost 100 steps of a tiny network 29 s
# instead of 0.3 s where other processes want the same cores (docs/LOG.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
import tyro
from pydantic import Field, create_model
from rich.console import Console
from safetensors import SafetensorError

from limbeck import cli_estimate, cli_interop, cli_methods, cli_presets
from limbeck.cli_common import Command, Common, Data, Listener, Run
from limbeck.config import JobConfig
from limbeck.data.preprocess import Name
from limbeck.errors import UserError
from limbeck.evaluation import evaluate
from limbeck.info import describe
from limbeck.inspection import inspect_store
from limbeck.job import distill, train_experts
from limbeck.methods import find_method
from limbeck.models import ModelConfig
from limbeck.presets import preset_arguments
from limbeck.report import write_comparison, write_report
from limbeck.report_table import write_table
from limbeck.screen import Screen, results_table
from limbeck.task import Precision
from limbeck.trajectory.store import ExpertConfig, Store


class Distill(Run):
    """Distil a data set: experts, distillation, evaluation, report."""


class Experts(ExpertConfig, Data):
    """Train experts into a store; those it has are kept."""

    out: str | None = None
    """the store's folder; by default one named by its content"""
    count: int = Field(default=10, ge=1)
    """experts"""
    seed: int = 0
    """of everything random"""
    preprocess: Name = "normalise"
    """per-channel mean and deviation, or ZCA whitening, fitted on train; cifar, imagenet: the authors' constants"""
    augment: str | None = None
    """DSA families joined by '_', or none"""
    precision: Precision = "float32"
    """of activations in training; tf32 and bfloat16 are for GPUs: on processors float32 is faster and exact"""
    model: ModelConfig = ModelConfig()


class Convexify(Common):
    """Recorded experts to convexified ones."""

    store: tyro.conf.Positional[str]
    """a store made with '--keep recorded' or '--keep both'"""
    out: str
    """the new store's folder"""
    waypoints: int = Field(default=2, ge=2)
    """points of each trajectory to keep"""
    waypoint_at: tuple[int, ...] = ()
    """epochs of the waypoints, instead of equally spaced ones"""
    smoothing: str = "none"
    """none, mct or mct-older"""
    schedule: str = "arc"
    """arc, uniform, decreasing, decreasing-authors or projected"""
    form: Literal["convex", "bezier"] = "convex"
    """straight lines between waypoints, or one quadratic Bezier curve"""
    dtype: Literal["float32", "float16"] = "float32"
    """storage type"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


SAME = ModelConfig(name="same")


class Evaluate(Common):
    """Train fresh networks on a distilled set and test them."""

    what: tyro.conf.Positional[str]
    """a run folder or a set file"""
    data: str | None = None
    """the data to test on; by default where the set came from"""
    resize: int | None = None
    """resize every image to this many pixels a side"""
    seed: int = 0
    """of the networks"""
    model: ModelConfig = SAME
    """another network than the one the set was distilled with, which is called 'same' here"""
    networks: int | None = Field(default=None, ge=1)
    """fresh networks"""
    epochs: int | None = Field(default=None, ge=1)
    """passes over the set"""
    precision: Precision = "float32"
    """of activations in training; tf32 and bfloat16 are for GPUs: on processors float32 is faster and exact"""


class Inspect(Common):
    """Analyse experts: accuracy along paths, update directions, plane, straightness, storage."""

    store: tyro.conf.Positional[str]
    """a store of experts"""
    out: str
    """the folder for inspect.json and inspect.html"""
    data: str | None = None
    """the images they were trained on, for accuracies"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


class Report(Common):
    """Write report.html; of several runs, a comparison."""

    runs: tyro.conf.Positional[list[str]]
    """run folders"""
    out: str | None = None
    """the file; by default report.html in the run folder, or comparison.html here"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


class Table(Common):
    """One Markdown table from many finished runs."""

    runs: tyro.conf.Positional[list[str]]
    """run folders"""
    out: str = "results.md"
    """the file to write"""
    note: str = ""
    """a paragraph to put above the table"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


class Info(Common):
    """Say what a file or folder is: data set, store, set or run."""

    what: tyro.conf.Positional[str]
    """any file, folder or data set name"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


def run_distill(args: Any, listen: Listener) -> Any:
    """Call `limbeck.distill`; the result is results.json with the paths of run and report."""
    own = set(find_method(args.method).config.model_fields)
    options = {name: getattr(args, name) for name in own | set(JobConfig.model_fields)}
    path = distill(
        args.data,
        method=args.method,
        out=args.out,
        experts=args.experts,
        device=args.device,
        resize=args.resize,
        listen=listen,
        **options,
    )
    return {**json.loads((path / "results.json").read_text()), "run": str(path), "report": str(path / "report.html")}


def run_experts(args: Experts, listen: Listener) -> Any:
    """Call `limbeck.train_experts`; the result describes the store."""
    expert = ExpertConfig(**{name: getattr(args, name) for name in ExpertConfig.model_fields})
    options = {name: getattr(args, name) for name in ("count", "seed", "preprocess", "augment", "precision", "model")}
    store = train_experts(
        args.data, out=args.out, device=args.device, resize=args.resize, listen=listen, expert=expert, **options
    )
    return {**describe(str(store.path)), "store": str(store.path)}


def run_convexify(args: Convexify, listen: Listener) -> Any:
    """Call `Store.convexified`; the result describes the new store."""
    how = ("waypoints", "waypoint_at", "smoothing", "schedule", "form", "dtype")
    store = Store.open(Path(args.store)).convexified(Path(args.out), **{name: getattr(args, name) for name in how})
    return {**describe(str(store.path)), "store": str(store.path)}


def run_evaluate(args: Evaluate, listen: Listener) -> Any:
    """Call `limbeck.evaluate`; the result is its rows."""
    model = None if args.model == SAME else args.model
    rows = evaluate(
        args.what,
        data=cli_estimate.foretell_evaluation(args, model, listen),
        model=model,
        seed=args.seed,
        device=args.device,
        resize=args.resize,
        listen=listen,
        networks=args.networks,
        epochs=args.epochs,
        precision=args.precision,
    )
    return {"results": rows}


def run_inspect(args: Inspect, listen: Listener) -> Any:
    """Call `limbeck.inspection.inspect_store`."""
    return {"report": str(inspect_store(args.store, args.out, data=args.data, device=args.device, listen=listen))}


def run_report(args: Report, listen: Listener) -> Any:
    """Write one run's report, or a comparison of several."""
    runs = [Path(run) for run in args.runs]
    if len(runs) == 1:
        return {"report": str(write_report(runs[0], None if args.out is None else Path(args.out)))}
    return {"report": str(write_comparison(runs, Path(args.out or "comparison.html")))}


def run_table(args: Table, listen: Listener) -> Any:
    """Call `limbeck.report_table.write_table`."""
    return {"table": str(write_table([Path(run) for run in args.runs], Path(args.out), args.note))}


def run_info(args: Info, listen: Listener) -> Any:
    """Call `limbeck.info.describe`."""
    return describe(args.what)


COMMANDS = {
    "distill": Command(Distill, run_distill),
    **cli_estimate.COMMANDS,
    **cli_methods.COMMANDS,
    "experts": Command(Experts, run_experts),
    "convexify": Command(Convexify, run_convexify),
    "evaluate": Command(Evaluate, run_evaluate),
    "inspect": Command(Inspect, run_inspect),
    "report": Command(Report, run_report),
    "table": Command(Table, run_table),
    "info": Command(Info, run_info),
    **cli_interop.COMMANDS,
    **cli_presets.COMMANDS,
}


OF_A_RUN = ("distill", "estimate")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.options.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: limbeck COMMAND ...", "", *lines, "", "limbeck COMMAND --help tells the options."])


def _given(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag, before the arguments are parsed; the last one counts."""
    found = None
    for word, after in zip(arguments, [*arguments[1:], ""]):
        if word.split("=")[0] == flag:
            found = word.split("=", 1)[1] if "=" in word else after
    return found


def _options(command: str, arguments: list[str]) -> type[Common]:
    """The options of a command; those of distill and estimate depend on the method."""
    if command not in OF_A_RUN:
        return COMMANDS[command].options
    method = find_method(_given("--method", arguments) or "mct")
    bases: Any = (method.config, JobConfig, COMMANDS[command].options)
    expert = ExpertConfig(**method.expert_defaults)
    made: Any = create_model(command, __base__=bases, expert=(ExpertConfig, expert))
    made.__doc__ = COMMANDS[command].options.__doc__
    return cast("type[Common]", made)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
        return
    console = Console()
    rows = result.get("results")
    if rows:
        data = result.get("data")
        data = data["name"] if isinstance(data, dict) else data
        name = f"{data}, {result['ipc']} per class, {result['method']}" if "ipc" in result else "test"
        console.print(results_table(rows, name))
    for key, value in result.items():
        if key not in ("results", "format", "version", "protocol", "seconds", "bytes", "data") or not rows:
            console.print(f"{key}: {value}", soft_wrap=True, highlight=False, markup=False)


def main(argv: list[str] | None = None) -> None:
    """Entry point: exit status 0, 2 for a user's mistake, 1 for ours or the machine's, 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["--version"]:
        from limbeck import __version__

        print(f"limbeck {__version__}")
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    debug = "--debug" in arguments
    try:
        sys.exit(_run(arguments[0], arguments[1:]))
    except UserError as error:
        _fail(f"limbeck: {error}", 2, debug)
    except KeyboardInterrupt:
        _fail("limbeck: interrupted; the same command goes on where it stopped.", 130, debug)
    except (NotADirectoryError, FileExistsError) as error:
        _fail(f"limbeck: {error}; name another folder.", 2, debug)
    except (OSError, SafetensorError) as error:  # the second is how a full disk looks while tensors are written
        _fail(f"limbeck: {error}", 1, debug)


def _fail(message: str, status: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    sys.exit(status)


def _run(command: str, arguments: list[str]) -> int:
    if command not in COMMANDS:
        raise UserError(f"there is no command '{command}'; choose one of {', '.join(COMMANDS)}.")
    preset = _given("--preset", arguments) if command in OF_A_RUN else None
    if preset is not None:
        arguments = [*preset_arguments(preset), *arguments]
    args: Any = tyro.cli(_options(command, arguments), prog=f"limbeck {command}", args=arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with Screen() as screen:
        result = COMMANDS[command].run(args, cli_estimate.Foretell(screen) if args.estimate else screen)
    _show(result, args.as_json)
    return 0


if __name__ == "__main__":
    main()
