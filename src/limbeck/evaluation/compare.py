"""Comparison of sets by networks of the same seeds: the difference, its standard error, and a bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import torch

from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import ComparisonRow
from limbeck.core.events import Listener
from limbeck.core.rng import make_generator
from limbeck.data import ImageData
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.run import run_evaluations
from limbeck.evaluation.sets import FOR_BASELINES, Evaluation, prepare_evaluation
from limbeck.networks.registry import ModelConfig

RESAMPLES, LEVEL = 10_000, 0.95


class PairedDifference(NamedTuple):
    """The mean of n differences; the standard error and the ends of the interval are None where n is 1."""

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int


def paired_difference(values: Sequence[float], others: Sequence[float], seed: int = 0) -> PairedDifference:
    """Compare two sequences of the same length, pair by pair: values less others.

    The interval has the 2.5 and 97.5 % quantiles of the means of 10,000 resamples of the differences (the percentile
    bootstrap of Efron 1979). seed: of the resamples.

    >>> paired_difference([0.5, 0.75], [0.25, 0.5])
    PairedDifference(mean=0.25, standard_error=0.0, low=0.25, high=0.25, n=2)
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    n, mean = len(differences), fmean(differences)
    if n == 1:
        return PairedDifference(mean, None, None, None, n)
    rows = torch.randint(n, (RESAMPLES, n), generator=make_generator(seed, "bootstrap"))
    means = torch.tensor(differences, dtype=torch.float64)[rows].mean(1)
    ends = means.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64))
    low, high = ends.tolist()
    return PairedDifference(mean, stdev(differences) / sqrt(n), low, high, n)


def prepare_comparison(
    runs: Sequence[str | Path],
    which: Literal["chosen", "last"] = "chosen",
    *,
    data: str | Path | ImageData | None = None,
    protocol: str | EvalConfig | None = None,
    changes: Mapping[str, Any] | None = None,
    model: ModelConfig | None = None,
    device: str = "cpu",
) -> list[Evaluation]:
    """One evaluation a run folder, or file of a set; all train the same networks by the same protocol on the same data.

    Raises UserError for fewer than two, and where network, augmentation, protocol or data of two of them differ.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two sets; name two or more run folders.")
    evaluations: list[Evaluation] = []
    for run in runs:
        images = evaluations[0].task.data if evaluations else data
        both = prepare_evaluation(run, data=images, protocol=protocol, changes=changes, model=model, device=device)
        evaluation = next((one for one in both if one.which == which), both[0])
        evaluations.append(evaluation)
        first, own = _conditions(evaluations[0]), _conditions(evaluation)
        names = [name for name in own if own[name] != first.get(name)]
        if names:
            values = ", ".join(f"{name} {first.get(name)} and {own[name]}" for name in names[:3])
            raise UserError(
                f"networks are not trained alike on {runs[0]} and on {run}: {values}; give --protocol, --num-networks "
                "or --model.name for both."
            )
    return evaluations


def _conditions(evaluation: Evaluation) -> dict[str, Any]:
    """What has to be the same for two sets: network, augmentation, and protocol."""
    task = evaluation.task
    network = {f"model.{name}": value for name, value in task.model_config.model_dump().items()}
    return {**network, "augment": task.augment.strategy, **evaluation.config.model_dump(exclude={*FOR_BASELINES})}


def run_comparison(
    runs: Sequence[str | Path],
    evaluations: Sequence[Evaluation],
    seed: int = 0,
    listen: Listener = lambda event: None,
) -> list[ComparisonRow]:
    """Compare every set but the first with the first, by the test accuracies of networks of the same seeds.

    runs: Names of the sets, as many as evaluations.
    """
    rows = run_evaluations(evaluations, seed, listen)
    comparisons = []
    for run, row in zip(runs[1:], rows[1:]):
        difference = paired_difference(row.accuracies or [], rows[0].accuracies or [], seed)
        comparisons.append(
            ComparisonRow(
                run=str(run),
                against=str(runs[0]),
                which=row.which,
                model=row.model,
                protocol=row.protocol,
                accuracy=row.accuracy_mean,
                against_accuracy=rows[0].accuracy_mean,
                difference=difference.mean,
                standard_error=difference.standard_error,
                low=difference.low,
                high=difference.high,
                n=difference.n,
            )
        )
    return comparisons
