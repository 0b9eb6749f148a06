"""What prepared evaluations share, and how many networks they will train: known before any of them is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from limbeck.evaluation.baselines import baseline_names, count_missing, count_networks
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.sets import Evaluation
from limbeck.select import FillName
from limbeck.synthetic.distilled import DistilledSet
from limbeck.synthetic.recipe import CHOSEN_LR, lr_optimiser


def has_learned_lr(distilled: DistilledSet) -> bool:
    """Whether the set brought its step size, so that it was not chosen on validation for the set's own network."""
    return distilled.provenance.get("lr") != CHOSEN_LR


def has_lr_for(distilled: DistilledSet, config: EvalConfig) -> bool:
    """Whether a set's step size is for the optimiser by which its networks are trained; else one has to be chosen."""
    return lr_optimiser(distilled) == config.optimiser


def stored_per_class(distilled: DistilledSet) -> int:
    """Images per class as a set stores them: mosaics, where training images are tiles."""
    ipc: int | None = distilled.provenance.get("config", {}).get("ipc")
    return ipc or max(1, len(distilled.stored_pair[0]) // len(distilled.classes))


def match_pixels(ipc: int, canvas: int, fill: FillName) -> tuple[int, FillName]:
    """Real images per class with as many pixels as `ipc` canvases, and how classes with fewer are filled up.

    canvas: A canvas is so many image sides high and wide; 1 for images of the data's size. Canvases may start from
        noise where a class has fewer real images than have their pixels: it gives all that it has, repeated.

    >>> match_pixels(10, 1, "none"), match_pixels(10, 2, "none")
    ((10, 'none'), (40, 'repeat'))
    """
    return (ipc, fill) if canvas == 1 else (ipc * canvas**2, "repeat" if fill == "none" else fill)


def budget(distilled: DistilledSet) -> tuple[int, FillName]:
    """Real images per class that a set is compared with, and how classes that have fewer are filled up."""
    config = distilled.provenance.get("config", {})
    return match_pixels(stored_per_class(distilled), config.get("canvas") or 1, config.get("fill", "none"))


def by_task(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """The evaluations of one task after the other: those of a network, in general."""
    return [list(group) for _, group in groupby(evaluations, key=lambda evaluation: evaluation.task)]


def without_repeats(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations without the second one of a run whose last set is the chosen one too."""
    return [one for place, one in enumerate(evaluations) if not (place and train_alike(one, evaluations[place - 1]))]


def train_alike(evaluation: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations train the same networks on the same tensors."""
    one, two = evaluation.distilled, other.distilled
    return (
        (evaluation.task is other.task and evaluation.config == other.config and one.lr == two.lr)
        and torch.equal(one.images, two.images)
        and torch.equal(one.labels, two.labels)
    )


def count_on_network(sets: Sequence[Evaluation]) -> int:
    """How many networks `run_on_network` trains at most, and tests on perturbed images."""
    total = sum(map(count_set_networks, without_repeats(sets))) + count_networks(sets[0].config)
    return total + count_tested_networks(sets, baseline_names(sets[0].config))


def count_set_networks(evaluation: Evaluation) -> int:
    """How many networks `run_on_networks` trains on a set."""
    config, distilled = evaluation.config, evaluation.distilled
    if not has_lr_for(distilled, config):
        return config.networks * (1 + len(config.baseline_lrs))
    if evaluation.is_own:
        return config.networks
    return config.networks * (1 + len(config.baseline_lrs) + has_learned_lr(distilled))


def count_set_rows(evaluation: Evaluation) -> int:
    """How many rows `run_on_networks` has of a set."""
    config, distilled = evaluation.config, evaluation.distilled
    return 1 + (not evaluation.is_own and has_lr_for(distilled, config) and has_learned_lr(distilled))


def count_tested_networks(evaluations: Sequence[Evaluation], names: Sequence[str] = ()) -> int:
    """How many networks of sets, and of real images of these names, are tested on perturbed images."""
    first = evaluations[0]
    if first.robustness is None:
        return 0
    rows = sum(map(count_set_rows, without_repeats(evaluations)))
    real = sum(first.config.full_networks if name == "full" else first.config.networks for name in names)
    return rows * first.config.networks + real


def count_tested_baselines(evaluation: Evaluation, names: Sequence[str], seed: int) -> list[tuple[int, int]]:
    """How many networks are trained on real images for a step size, and how many for tests, as rows are not stored."""
    if evaluation.robustness is None:
        return []
    ipc, fill = budget(evaluation.distilled)
    arguments = evaluation.task, ipc, evaluation.config, seed, fill, evaluation.robustness
    return [count_missing(name, *arguments) for name in names]
