"""The command that tests a distilled set."""

from __future__ import annotations

from typing import Any

import tyro
from pydantic import Field

from limbeck.cli.common import Command, Common, Foretell, Listener
from limbeck.data import ImageData, load_data
from limbeck.evaluation.protocol import (
    OWN_NETWORK,
    EvalConfig,
    evaluate,
    evaluated_network,
    require_same_data,
    sets_of,
)
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.jobs.stopwatch import Estimate
from limbeck.networks.registry import ModelConfig
from limbeck.task import Precision, make_task


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
    model: ModelConfig = OWN_NETWORK
    """the network to train: 'same' is the one that the set was distilled with, changed by the options given"""
    networks: int | None = Field(default=None, ge=1)
    """fresh networks"""
    epochs: int | None = Field(default=None, ge=1)
    """passes over the set"""
    precision: Precision = "float32"
    """of activations in training; tf32 and bfloat16 are for GPUs: on processors float32 is faster and exact"""


def run_evaluate(args: Evaluate, listen: Listener) -> Any:
    """Call `limbeck.evaluate`; the result is its rows."""
    rows = evaluate(
        args.what,
        data=foretell_evaluation(args, listen),
        model=args.model,
        seed=args.seed,
        device=args.device,
        resize=args.resize,
        listen=listen,
        networks=args.networks,
        epochs=args.epochs,
        precision=args.precision,
    )
    return {"results": rows}


def foretell_evaluation(args: Evaluate, listen: Listener) -> ImageData | str | None:
    """Tell how long 'limbeck evaluate' will take; the data, which need not be loaded again once it was."""
    if not isinstance(listen, Foretell):
        return args.data
    loaded: list[ImageData] = []

    def estimate() -> Estimate:
        sets = [distilled for _, distilled in sets_of(args.what)]
        recipe, origin = dict(sets[0].recipe), sets[0].provenance.get("data", {})
        seed = sets[0].provenance.get("config", {}).get("seed", 0)
        source = origin["source"] if args.data is None else args.data
        loaded.append(load_data(source, seed=seed, resize=args.resize or origin.get("resize")))
        for distilled in sets:
            require_same_data(loaded[0], distilled)
        network, augment = evaluated_network(recipe.pop("model"), args.model), recipe.pop("augment")
        task = make_task(loaded[0], network, sets[0].preprocess, augment, args.device, args.precision)
        changed = {name: getattr(args, name) for name in ("networks", "epochs") if getattr(args, name) is not None}
        return estimate_evaluation(task, sets, EvalConfig(**{**recipe, **changed}))

    listen.tell(estimate)
    return loaded[0] if loaded else args.data


COMMANDS = {"evaluate": Command(Evaluate, run_evaluate)}
