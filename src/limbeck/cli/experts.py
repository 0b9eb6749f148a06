"""The commands about a store of experts: train one, convexify one, analyse one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import Field

from limbeck.cli.common import Command, Common, Data, Listener, announce
from limbeck.cli.info import describe
from limbeck.data.preprocess import Name
from limbeck.experts.store import ExpertConfig, Store
from limbeck.jobs.estimate import estimate_experts
from limbeck.jobs.inspection import inspect_store
from limbeck.jobs.job import prepare_experts
from limbeck.networks.registry import ModelConfig
from limbeck.task import Precision


class Experts(ExpertConfig, Data):
    """Train experts into a store; those it has are kept."""

    out: str | None = None
    """the store's folder; by default one named by its content"""
    num_experts: int = Field(default=10, ge=1)
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


class Inspect(Common):
    """Analyse experts: accuracy along paths, update directions, plane, straightness, storage."""

    store: tyro.conf.Positional[str]
    """a store of experts"""
    out: str
    """the folder for inspect.json and inspect.html"""
    data: str | None = None
    """the images they were trained on, for accuracies"""
    resize: int | None = Field(default=None, ge=1)
    """resize every image to this many pixels a side; by default to the size the experts were trained on"""
    seed: int = 0
    """accepted by every command; nothing here is random"""


def run_experts(args: Experts, listen: Listener) -> Any:
    """Train the experts that the store lacks; the result describes the store."""
    expert = ExpertConfig(**{name: getattr(args, name) for name in ExpertConfig.model_fields})
    options = {
        name: getattr(args, name) for name in ("num_experts", "seed", "preprocess", "augment", "precision", "model")
    }
    experts = prepare_experts(args.data, out=args.out, device=args.device, resize=args.resize, expert=expert, **options)
    if args.estimate:
        announce(lambda: estimate_experts(experts), listen)
    store = experts.train(listen)
    return {**describe(str(store.path)), "store": str(store.path)}


def run_convexify(args: Convexify, listen: Listener) -> Any:
    """Call `Store.convexified`; the result describes the new store."""
    how = ("waypoints", "waypoint_at", "smoothing", "schedule", "form", "dtype")
    store = Store.open(Path(args.store)).convexified(Path(args.out), **{name: getattr(args, name) for name in how})
    return {**describe(str(store.path)), "store": str(store.path)}


def run_inspect(args: Inspect, listen: Listener) -> Any:
    """Call `limbeck.jobs.inspection.inspect_store`."""
    page = inspect_store(args.store, args.out, data=args.data, resize=args.resize, device=args.device, listen=listen)
    return {"report": str(page)}


COMMANDS = {
    "experts": Command(Experts, run_experts),
    "convexify": Command(Convexify, run_convexify),
    "inspect": Command(Inspect, run_inspect),
}
