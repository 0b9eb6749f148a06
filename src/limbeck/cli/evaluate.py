"""The command that tests a distilled set."""

from __future__ import annotations

from typing import Any

import tyro
from pydantic import Field

from limbeck.cli.common import Command, Common, Listener, announce
from limbeck.evaluation.protocol import OWN_NETWORK, prepare_evaluation, run_evaluations
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.networks.registry import ModelConfig
from limbeck.task import Precision


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
    """Prepare the evaluation, say how long it will take, and run it; the result is its rows."""
    evaluations = prepare_evaluation(
        args.what,
        data=args.data,
        networks=args.networks,
        epochs=args.epochs,
        model=args.model,
        device=args.device,
        resize=args.resize,
        precision=args.precision,
    )
    if args.estimate:
        announce(lambda: estimate_evaluation(evaluations), listen)
    return {"results": run_evaluations(evaluations, args.seed, listen)}


COMMANDS = {"evaluate": Command(Evaluate, run_evaluate)}
