"""The commands about a store of experts: train one, convexify one, analyse one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tyro.conf import OmitArgPrefixes, Positional

from limbeck.cli.common import (
    DATA,
    PATH,
    STORE,
    Command,
    Data,
    Device,
    Options,
    Reading,
    Threads,
    WithEngine,
    WithEstimate,
    WithTracker,
    announce,
    load_keywords,
    tracking,
)
from limbeck.cli.info import describe
from limbeck.core.distributed import Ranks, join_ranks
from limbeck.core.events import Listener
from limbeck.core.ranges import CountOrZero, Seed, Size
from limbeck.data import load_data
from limbeck.data.preprocess import PreprocessName
from limbeck.engines import ENGINES, Engine
from limbeck.experts.config import ExpertConfig
from limbeck.experts.store import Store
from limbeck.jobs.estimate import estimate_experts
from limbeck.jobs.expert_works import scatter_experts
from limbeck.jobs.inspection import inspect_store
from limbeck.jobs.job import prepare_experts
from limbeck.networks.registry import ModelConfig
from limbeck.task import Precision, announce_task


class Experts(Data, Device, Options, WithTracker, WithEstimate, WithEngine):
    """Train experts into a store; it keeps those it has."""

    out: Annotated[str | None, PATH] = None
    """The folder of the store; the default is one named by its content."""
    num_experts: Size = 10
    """How many experts the store is to hold."""
    seed: Seed = 0
    """The seed of everything random."""
    preprocess: PreprocessName = "normalise"
    """Mean and deviation per channel, or ZCA whitening, fitted on train; cifar and so on: the authors' constants."""
    augment: str | None = None
    """DSA families joined by '_', or none; the default is all, without flip where mirror images are wrong."""
    precision: Precision = "float32"
    """Number format of activations in training; tf32 and bfloat16 save time on GPUs, and only there."""
    expert: Annotated[ExpertConfig, OmitArgPrefixes] = ExpertConfig()
    model: ModelConfig = ModelConfig()


class Convexify(Threads, Options):
    """Convexify recorded experts into a new store."""

    store: Annotated[Positional[str], STORE]
    """A store made with '--keep recorded' or '--keep both'."""
    out: Annotated[str, PATH]
    """The folder of the new store."""
    waypoints: Annotated[Size, Field(ge=2)] | None = None
    """How many equally spaced points of each trajectory to keep; the default are those that the store names."""
    waypoint_at: tuple[CountOrZero, ...] = ()
    """Epochs of the waypoints, where they are to be others."""
    smoothing: str | None = None
    """The averages around waypoints, where there are more than two: none, mct or mct-older."""
    schedule: str = "arc"
    """How beta goes along a segment: arc, uniform or decreasing."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the stored parameters."""


class Inspect(Reading, Device, Options):
    """Analyse the experts of a store: accuracy along paths, update directions, straightness, storage."""

    store: Annotated[Positional[str], STORE]
    """A store of experts."""
    out: Annotated[str, PATH]
    """The folder for inspect.json and inspect.html."""
    data: Annotated[str | None, DATA] = None
    """The images they were trained on, for accuracies; by default they are resized as for the experts."""


def run_experts(args: Experts, listen: Listener) -> Any:
    """Train the experts that the store lacks; the result describes the store."""
    with ENGINES[args.engine](args.address, None) as engine, join_ranks(args.device) as ranks:
        return _train(args, engine, ranks, listen)


def _train(args: Experts, engine: Engine, ranks: Ranks, listen: Listener) -> dict[str, Any]:
    reading = {"source": args.data, "seed": args.seed, **load_keywords(args)}
    options: dict[str, Any] = {
        **{name: getattr(args, name) for name in ("device", "num_experts", "seed", "preprocess", "augment")},
        "precision": args.precision,
        "model": args.model.model_dump(mode="json", exclude_unset=True),
        "expert": args.expert.model_dump(mode="json", exclude_unset=True),
    }
    experts = prepare_experts(load_data(**reading, listen=listen), out=args.out, ranks=ranks, **options)
    if args.estimate and ranks.size == 1 and not engine.is_remote:
        announce(lambda: estimate_experts(experts), listen)
    announce_task(experts.task, listen)
    with tracking(args.tracker, experts.path, experts.config.model_dump(), listen) as hear:
        if engine.is_remote:
            scatter_experts(engine, experts, reading, options, args.threads, hear)
        store = experts.train(hear)
    return {**describe(str(store.path)), "store": str(store.path)}


def run_convexify(args: Convexify, listen: Listener) -> Any:
    """Call `Store.convexify`; the result describes the new store."""
    options = {"waypoints": args.waypoints, "waypoint_at": args.waypoint_at or None, "smoothing": args.smoothing}
    store = Store.open(Path(args.store)).convexify(
        Path(args.out),
        **{name: value for name, value in options.items() if value is not None},
        schedule=args.schedule,
        dtype=args.dtype,
    )
    return {**describe(str(store.path)), "store": str(store.path)}


def run_inspect(args: Inspect, listen: Listener) -> Any:
    """Call `limbeck.jobs.inspection.inspect_store`."""
    page = inspect_store(args.store, args.out, data=args.data, device=args.device, listen=listen, **load_keywords(args))
    return {"report": str(page)}


COMMANDS = {
    "experts": Command(
        Experts,
        run_experts,
        ("limbeck experts digits --num-experts 5 --keep recorded --out experts/digits",),
        everyday=(
            *("out", "num-experts", "epochs", "lr", "batch-size", "keep", "seed", "resize"),
            *("device", "threads", "quiet"),
        ),
        is_shareable=True,
    ),
    "convexify": Command(
        Convexify, run_convexify, ("limbeck convexify experts/digits --out experts/convex --waypoints 4",)
    ),
    "inspect": Command(Inspect, run_inspect, ("limbeck inspect experts/digits --data digits --out inspection",)),
}
