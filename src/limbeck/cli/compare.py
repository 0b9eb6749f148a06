"""The command that compares sets by networks of the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from limbeck.cli.common import DATA, Command, Device, Options, WithEstimate, announce
from limbeck.cli.records import RUNS
from limbeck.core.evaluation_records import ComparisonRow
from limbeck.core.events import Listener
from limbeck.core.ranges import Count, Seed, Size
from limbeck.core.text import counted
from limbeck.evaluation.compare import prepare_comparison, run_comparison
from limbeck.evaluation.protocol import ProtocolName
from limbeck.evaluation.sets import OWN_NETWORK, Evaluation
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.networks.registry import ModelConfig
from limbeck.progress.screen import PlainConsole
from limbeck.report.text import describe_interval, points


class Compare(Device, Options, WithEstimate):
    """Compare the sets of runs by networks of the same seeds: the difference, its standard error and an interval."""

    runs: Annotated[Positional[list[str]], RUNS]
    """Run folders, or files of sets; every one is compared with the first."""
    data: Annotated[str | None, DATA] = None
    """The data to test on; the default is where the first set came from."""
    which: Literal["chosen", "last"] = "chosen"
    """The set of a run."""
    num_networks: Size | None = None
    """How many networks to train on each set; the default is as many as when the sets were made."""
    protocol: ProtocolName | None = None
    """How networks are trained and scored; the default is as when the sets were made."""
    epochs: Count | None = None
    """Passes over the set; the default is as many as the protocol says."""
    seed: Seed = 0
    """The seed of the networks."""
    model: ModelConfig = OWN_NETWORK
    """The network to train; 'same' is the one that the sets were distilled with, changed by the options given."""


def run_compare(args: Compare, listen: Listener) -> Any:
    """Prepare the comparison, say how long it will take, and run it; returns it with --json, else prints sentences."""
    evaluations = prepare_comparison(
        args.runs,
        args.which,
        data=args.data,
        protocol=args.protocol,
        changes={"networks": args.num_networks, "epochs": args.epochs},
        model=args.model,
        device=args.device,
    )
    if args.estimate:
        announce(lambda: estimate_evaluation(evaluations), listen)
    rows = run_comparison(args.runs, evaluations, args.seed, listen)
    if args.as_json:
        return {"comparisons": [row.to_json() for row in rows]}
    for text in (*map(sentence, rows), *describe_budgets(args.runs, evaluations)):
        PlainConsole(highlight=False).print(text, soft_wrap=True, markup=False)
    return {}


def describe_budgets(runs: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    """A sentence on how many images each set stores, and trains on, where that is not the same for all."""
    numbers = [(len(one.distilled.stored_pair[0]), len(one.distilled.images)) for one in evaluations]
    if len(set(numbers)) == 1:
        return []
    words = [
        f"{run} {counted(stored, 'stored image')}" + (f", cut into {trained}" if trained != stored else "")
        for run, (stored, trained) in zip(runs, numbers)
    ]
    return [f"not of the same size: {'; '.join(words)}"]


def sentence(row: ComparisonRow) -> str:
    """A comparison in words.

    >>> numbers = {"accuracy": 0.7, "against_accuracy": 0.65, "difference": 0.05, "n": 5}
    >>> names = {"run": "a", "against": "b", "which": "chosen", "model": "convnet", "protocol": None}
    >>> sentence(ComparisonRow(**names, **numbers, standard_error=0.01, low=0.03, high=0.07))
    'a less b on convnet: +5.0 points (70.0 % and 65.0 %), standard error 1.0, 95 % interval +3.0 to +7.0, n = 5'
    """
    text = f"{row.run} less {row.against} on {row.model}: {points(row.difference)} points "
    text += f"({100 * row.accuracy:.1f} % and {100 * row.against_accuracy:.1f} %)"
    if row.standard_error is not None:
        text += f", standard error {100 * row.standard_error:.1f}"
        text += f", {describe_interval(row.low, row.high, row.n)}"
    return f"{text}, n = {row.n}" + (f"; {row.protocol}" if row.protocol else "")


COMMANDS = {
    "compare": Command(Compare, run_compare, ("limbeck compare runs/mct runs/mtt --num-networks 10",)),
}
