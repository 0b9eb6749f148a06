"""The command that tests a distilled set."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from tyro.conf import Positional, arg

from limbeck.cli.common import DATA, Command, Device, Options, Reading, WithEstimate, announce, load_keywords
from limbeck.core.events import Listener
from limbeck.evaluation.sets import OWN_NETWORK, prepare_evaluation, run_evaluations
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.networks.registry import ModelConfig
from limbeck.task import Precision


class Evaluate(Reading, Device, Options, WithEstimate):
    """Train fresh networks on a distilled set and measure their test accuracy."""

    what: Annotated[Positional[str], arg(metavar="SET")]
    """A run folder or the file of a distilled set."""
    data: Annotated[str | None, DATA] = None
    """The data to test on; the default is where the set came from."""
    networks: int | None = Field(default=None, ge=1)
    """How many fresh networks to train; the default is as many as when the set was made."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the set; the default is as many as when the set was made."""
    seed: int = 0
    """The seed of the networks."""
    precision: Precision = "float32"
    """Number format of activations in training; tf32 and bfloat16 save time on GPUs, and only there."""
    model: ModelConfig = OWN_NETWORK
    """The network to train; 'same' is the one that the set was distilled with, changed by the options given."""


def run_evaluate(args: Evaluate, listen: Listener) -> Any:
    """Prepare the evaluation, say how long it will take, and run it; the result is its rows."""
    evaluations = prepare_evaluation(
        args.what,
        data=args.data,
        networks=args.networks,
        epochs=args.epochs,
        model=args.model,
        device=args.device,
        precision=args.precision,
        **load_keywords(args),
    )
    if args.estimate:
        announce(lambda: estimate_evaluation(evaluations), listen)
    return {"results": [row.to_json() for row in run_evaluations(evaluations, args.seed, listen)]}


COMMANDS = {
    "evaluate": Command(
        Evaluate,
        run_evaluate,
        ("limbeck evaluate runs/digits --networks 10", "limbeck evaluate runs/digits --model.name mlp"),
    )
}
