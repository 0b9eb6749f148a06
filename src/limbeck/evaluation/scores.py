"""DD-Ranking's scores on any data: what of an accuracy is the set's, and what that of labels and augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from math import e, exp

from limbeck.core.evaluation_records import ScoreRow
from limbeck.core.events import Listener
from limbeck.evaluation.baselines import baseline_row
from limbeck.evaluation.counts import budget, without_repeats
from limbeck.evaluation.protocol import EvalConfig
from limbeck.evaluation.run import evaluate_sets
from limbeck.evaluation.sets import Evaluation
from limbeck.task import restore_switches


def hard_label_recovery(full: float, hard: float) -> float:
    """HLR, less is better: accuracy of all real images less that of the set, both trained on with hard labels."""
    return full - hard


def improvement_over_random(accuracy: float, random: float) -> float:
    """IOR, more is better: accuracy of the set less that of random images at its budget, by the same recipe."""
    return accuracy - random


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """LRS in [0, 1], more is better: weight IOR less (1 - weight) HLR, normalised. Accuracies are fractions.

    >>> label_robust_score(1, -1), round(label_robust_score(-1, 1), 9)
    (0.0, 1.0)
    """
    return _normalise(weight * ior - (1 - weight) * hlr)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """ARS in [0, 1], more is better: IOR with augmentation and without, weighted and normalised.

    >>> augmentation_robust_score(-1, -1), round(augmentation_robust_score(1, 1), 9)
    (0.0, 1.0)
    """
    return _normalise(weight * augmented + (1 - weight) * plain)


def _normalise(value: float) -> float:
    """From [-1, 1] to [0, 1] by the exponential function, as DD-Ranking does."""
    return (exp(value) - exp(-1)) / (e - exp(-1))


def score_protocols(config: EvalConfig) -> dict[str, EvalConfig]:
    """The protocols by which accuracies for the scores of a protocol are measured.

    own: as it is; hard: on hard labels; augmented, plain: with augmentation and without.
    """
    config = config.model_copy(update={"full_networks": max(1, config.full_networks)})
    hard = config.model_copy(update={"labels": "hard", "teachers": 1, "temperature": 1.0})
    variants = {"own": config, "hard": hard}
    return variants | {
        name: config.model_copy(update={"dsa": dsa}) for name, dsa in (("augmented", "set"), ("plain", "none"))
    }


@restore_switches()
def run_scores(
    evaluations: Sequence[Evaluation], seed: int = 0, listen: Listener = lambda event: None
) -> list[ScoreRow]:
    """The scores of prepared sets on one network, and of k-means images at the same budget.

    Where labels are hard already, and where the protocol augments already, the same networks are not trained again.
    Accuracies of real images are stored for reuse.
    """
    task, first = evaluations[0].task, evaluations[0]
    ipc, fill = budget(first.distilled)
    protocols = score_protocols(first.config)

    for_real = {name: _for_hard_labels(config) for name, config in protocols.items()}
    distinct = len({config.model_dump_json() for config in for_real.values()})
    per_row = first.config.networks * (1 + len(first.config.baseline_lrs))
    total = 2 * distinct * per_row + protocols["own"].full_networks
    listen({"event": "stage", "name": "real images", "total": total, "unit": "network"})

    def real(name: str, variant: str) -> float:
        return baseline_row(task, name, ipc, for_real[variant], seed, listen, fill).accuracy_mean

    random = {variant: real("random", variant) for variant in ("own", "augmented", "plain")}
    kmeans = {variant: real("kmeans", variant) for variant in protocols}
    full = real("full", "own")
    rows = []
    for evaluation in without_repeats(evaluations):
        is_hard = not evaluation.distilled.labels.is_floating_point()
        accuracies: dict[str, float] = {}
        for variant, config in protocols.items():
            same = next((name for name in accuracies if _train_alike(protocols[name], config, is_hard)), None)
            if same is None:
                (row,) = evaluate_sets([evaluation._replace(config=config)], seed, listen)
                accuracies[variant] = row.accuracy_mean
            else:
                accuracies[variant] = accuracies[same]
        rows.append(_row("distilled", evaluation.which, evaluation, accuracies, random, full))
    return [*rows, _row("kmeans", None, first, kmeans, random, full)]


def _train_alike(config: EvalConfig, other: EvalConfig, is_hard: bool) -> bool:
    """Whether two protocols are the same for a set; the set's own labels are hard ones where `is_hard`."""
    return config == other or (is_hard and _for_hard_labels(config) == _for_hard_labels(other))


def _for_hard_labels(config: EvalConfig) -> EvalConfig:
    """The same protocol for images whose own labels are hard."""
    return config.model_copy(update={"labels": "set"}) if config.labels == "hard" else config


def _row(
    name: str,
    which: str | None,
    evaluation: Evaluation,
    accuracies: dict[str, float],
    random: dict[str, float],
    full: float,
) -> ScoreRow:
    hlr = hard_label_recovery(full, accuracies["hard"])
    ior = improvement_over_random(accuracies["own"], random["own"])
    gains = [improvement_over_random(accuracies[variant], random[variant]) for variant in ("augmented", "plain")]
    return ScoreRow(
        set=name,
        which=which,
        model=evaluation.task.model_config.name,
        protocol=evaluation.config.label,
        hlr=hlr,
        ior=ior,
        lrs=label_robust_score(hlr, ior),
        ars=augmentation_robust_score(*gains),
        accuracies=accuracies,
        random=random,
        full=full,
        n=evaluation.config.networks,
    )
