"""DD-Ranking's scores: their formulas, and the accuracies that enter them."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F

import limbeck
from limbeck import EvalConfig
from limbeck.core.evaluation_records import ScoreRow
from limbeck.evaluation.baselines import baseline_row
from limbeck.evaluation.scores import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    run_scores,
    score_protocols,
)
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.jobs.estimate import estimate_scores

pytestmark = pytest.mark.usefixtures("home")
CONFIG = EvalConfig(networks=2, epochs=10, baseline_lrs=(0.01, 0.03), full_epochs=1, full_networks=1)


def test_the_formulas() -> None:
    """(e^a - e^-1) / (e - e^-1), with accuracies as fractions: DD-Ranking's own code puts percent into e^a."""
    hlr, ior = hard_label_recovery(0.9, 0.6), improvement_over_random(0.7, 0.5)
    assert (hlr, ior) == pytest.approx((0.3, 0.2))
    assert label_robust_score(hlr, ior) == pytest.approx((exp(-0.05) - exp(-1)) / (exp(1) - exp(-1)))
    assert label_robust_score(hlr, ior, weight=1) == pytest.approx((exp(0.2) - exp(-1)) / (exp(1) - exp(-1)))
    assert augmentation_robust_score(0.2, 0.1) == pytest.approx((exp(0.15) - exp(-1)) / (exp(1) - exp(-1)))
    assert augmentation_robust_score(0.2, 0.1, weight=1) == label_robust_score(0, 0.2, weight=1)


@pytest.mark.parametrize("low", [-1.0, -0.4, 0.0, 0.5])
def test_scores_rise_with_what_is_better_and_stay_between_0_and_1(low: float) -> None:
    assert 0 <= label_robust_score(0.3, low) < label_robust_score(0.3, low + 0.1) <= 1
    assert label_robust_score(low + 0.1, 0.2) < label_robust_score(low, 0.2)
    assert 0 <= augmentation_robust_score(low, 0) < augmentation_robust_score(low + 0.1, 0) <= 1


def test_the_variants_of_a_protocol() -> None:
    variants = score_protocols(EvalConfig(labels="teacher", temperature=4, full_networks=0))
    assert {name: (one.labels, one.temperature, one.dsa) for name, one in variants.items()} == {
        "own": ("teacher", 4, "set"),
        "hard": ("hard", 1, "set"),
        "augmented": ("teacher", 4, "set"),
        "plain": ("teacher", 4, "none"),
    }
    assert variants["own"].full_networks == 1


def scores_of(one: Any, config: EvalConfig, listen: Any = lambda event: None) -> list[ScoreRow]:
    return run_scores(prepare_evaluation(one, protocol=config), 3, listen)


def count_networks(events: list[dict[str, Any]]) -> list[int]:
    """Networks trained on the set, stage by stage."""
    return [event["total"] for event in events if event["event"] == "stage" and event["name"] == "evaluate"]


def test_the_accuracies_of_scores_are_those_of_evaluations(run: Path) -> None:
    distilled = limbeck.load(run)
    soft = replace(distilled, labels=F.one_hot(distilled.labels, 10).float() * 0.6 + 0.04)
    events: list[dict[str, Any]] = []
    own, kmeans = scores_of(soft, CONFIG, events.append)
    assert count_networks(events) == [2, 2, 2]  # own, hard, plain

    def accuracy(one: limbeck.DistilledSet, **options: Any) -> float:
        config = CONFIG.model_copy(update=options)
        return limbeck.evaluate(one, protocol=config, seed=3)[0].accuracy_mean

    assert own.accuracies == {
        "own": accuracy(soft),
        "hard": accuracy(distilled),
        "augmented": accuracy(soft),
        "plain": accuracy(soft, dsa="none"),
    }
    assert len(set(own.accuracies.values())) == 3
    task = prepare_evaluation(distilled)[0].task

    def real(name: str, **options: Any) -> float:
        config = CONFIG.model_copy(update=options)
        return baseline_row(task, name, 1, config, 3, lambda event: None).accuracy_mean

    assert own.random == {"own": real("random"), "augmented": real("random"), "plain": real("random", dsa="none")}
    assert own.full == real("full")
    assert own.hlr == pytest.approx(own.full - own.accuracies["hard"])
    assert own.ior == pytest.approx(own.accuracies["own"] - own.random["own"])
    assert own.lrs == label_robust_score(own.hlr, own.ior)
    gains = [own.accuracies[variant] - own.random[variant] for variant in ("augmented", "plain")]
    assert own.ars == pytest.approx(augmentation_robust_score(*gains))
    assert kmeans.accuracies["own"] == kmeans.accuracies["hard"]
    assert (kmeans.set, kmeans.which, kmeans.accuracies["own"]) == ("kmeans", None, real("kmeans"))
    assert kmeans.accuracies["plain"] == real("kmeans", dsa="none")


def test_hard_labels_are_trained_on_once(run: Path) -> None:
    events: list[dict[str, Any]] = []
    rows = scores_of(limbeck.load(run), CONFIG, events.append)
    assert count_networks(events) == [2, 2]  # own, plain
    assert rows[0].accuracies["own"] == rows[0].accuracies["hard"] == rows[0].accuracies["augmented"]
    assert estimate_scores(prepare_evaluation(run, protocol=CONFIG), 3).total > 0
