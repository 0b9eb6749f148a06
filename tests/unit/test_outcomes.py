"""Confusion, calibration and paired comparison, against scikit-learn, scipy and closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score

import limbeck
from limbeck import ModelConfig, UserError
from limbeck.core.rng import make_generator
from limbeck.evaluation.compare import paired_difference, prepare_comparison, run_comparison
from limbeck.evaluation.outcome import area_under_curve, calibration_error, describe_two_classes, measure
from limbeck.evaluation.record import make_record, merge_record
from limbeck.evaluation.run import run_evaluations, run_on_networks
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.report.text import FEWEST_FOR_INTERVAL
from limbeck.task import Task

pytestmark = pytest.mark.usefixtures("home")


def test_an_outcome_is_what_scikit_learn_says(task: Task) -> None:
    """On uneven classes."""
    images, labels = task.test
    rows = torch.cat([(labels == label).nonzero().flatten()[: 3 * label + 2] for label in range(9)])
    theta = task.model.init(1)
    outcome = measure(task.logits, theta, images[rows], labels[rows], 10)
    truth, predictions = labels[rows].numpy(), task.logits(theta, images[rows]).argmax(1).numpy()
    assert outcome.accuracy == pytest.approx(accuracy_score(truth, predictions))
    present = np.isin(predictions, np.unique(truth))
    assert present.any()
    assert outcome.balanced == pytest.approx(
        np.mean([np.mean(predictions[truth == label] == label) for label in np.unique(truth)])
    )
    if present.all():
        assert outcome.balanced == pytest.approx(balanced_accuracy_score(truth, predictions))
    assert np.array_equal(outcome.confusion.numpy(), confusion_matrix(truth, predictions, labels=range(10)))
    assert outcome.confusion.sum(1)[9] == 0


def test_the_calibration_error_is_that_of_a_loop_over_bins() -> None:
    generator = make_generator(0, "logits")
    logits = 3 * torch.randn(500, 4, generator=generator)
    labels = torch.randint(4, (500,), generator=generator)
    probabilities = logits.double().softmax(1)
    confidence, predictions = probabilities.max(1)
    expected = 0.0
    for place in range(15):
        low, high = place / 15, (place + 1) / 15
        members = [i for i in range(500) if low < confidence[i] <= high]
        if members:
            hits = fmean(float(predictions[i] == labels[i]) for i in members)
            expected += len(members) / 500 * abs(fmean(float(confidence[i]) for i in members) - hits)
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-9)
    assert expected > 0.1


def test_two_classes_have_sensitivity_specificity_and_auc() -> None:
    """By scikit-learn, with the second class as the positive one; other numbers of classes have none of it."""
    generator = make_generator(0, "logits")
    outcomes, expected = [], []
    for _network in range(2):
        labels = (torch.arange(60) % 3 == 0).long()
        logits = torch.randn(60, 2, generator=generator) + torch.stack([-labels, labels], 1)
        outcome = measure(lambda theta, images, logits=logits: logits, torch.zeros(1), torch.zeros(60, 1), labels, 2)
        predictions = logits.argmax(1)
        expected.append(recall_score(labels, predictions))
        assert outcome.specificity == pytest.approx(recall_score(labels, predictions, pos_label=0))
        assert outcome.auc == pytest.approx(roc_auc_score(labels, logits.softmax(1)[:, 1]))
        outcomes.append(outcome)
    fields = describe_two_classes(outcomes, ("normal", "ill"))
    assert fields["positive"] == "ill"
    assert fields["sensitivity_mean"] == pytest.approx(fmean(expected))
    assert fields["sensitivity_std"] == pytest.approx(stdev(expected))
    assert expected[0] != pytest.approx(outcomes[0].specificity)
    assert describe_two_classes(outcomes, ("a", "b", "c")) == {}
    assert isnan(area_under_curve(torch.zeros(3, 2), torch.ones(3, dtype=torch.int64))), "one class has no curve"


CLOSED_FORMS = [(0.8, 8, 0.0), (0.8, 3, 0.5), (1.0, 10, 0.0), (0.6, 10, 0.4)]


@pytest.mark.parametrize(("confidence", "hits", "error"), CLOSED_FORMS)
def test_the_calibration_error_in_closed_form(confidence: float, hits: int, error: float) -> None:
    logits = torch.tensor([[confidence, 1 - confidence]], dtype=torch.float64).log().expand(10, 2)
    labels = torch.tensor([0] * hits + [1] * (10 - hits))
    assert calibration_error(logits, labels) == pytest.approx(error, abs=1e-9)


def test_a_network_that_diverged_has_no_confusion(task: Task) -> None:
    outcome = measure(task.logits, torch.full((task.model.layout.count,), torch.nan), *task.test, 10)
    assert outcome[:2] == (0.0, 0.0)
    assert int(outcome.confusion.sum()) == 0
    assert isnan(outcome.calibration_error)


def test_a_row_has_the_confusion_of_all_its_networks(run: Path) -> None:
    (evaluation,) = prepare_evaluation(run / "set-last.safetensors", changes={"networks": 3})
    (row,) = run_evaluations([evaluation])
    task = evaluation.task
    assert row.confusion is not None
    assert row.accuracies is not None
    confusion = torch.tensor(row.confusion)
    assert confusion.sum(1).tolist() == [3 * count for count in task.data.test.counts(10)]
    assert float(confusion.trace() / confusion.sum()) == pytest.approx(row.accuracy_mean)
    assert row.class_accuracy is not None
    shares = [value for value in row.class_accuracy if value is not None]
    assert fmean(shares) == pytest.approx(row.balanced_accuracy_mean)
    assert row.calibration_error_mean is not None
    assert 0 < row.calibration_error_mean < 1
    assert json.dumps(row.to_json(), allow_nan=False)


def test_diverged_networks_are_a_warning_and_leave_numbers_that_json_has(run: Path) -> None:
    (evaluation,) = prepare_evaluation(run / "set-last.safetensors")
    distilled, events = replace(evaluation.distilled, lr=1e30), list[Any]()
    (row,) = run_evaluations([evaluation._replace(distilled=distilled)], listen=events.append)
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    count = evaluation.config.networks
    assert f"{count} of {count} networks trained on " in warning
    assert "diverged at the step size 1e+30, and count with an accuracy of 0" in warning
    assert row.accuracy_mean == 0
    assert row.calibration_error_mean is None
    assert row.class_accuracy == [None] * 10
    assert json.dumps(row.to_json(), allow_nan=False)


def test_a_plain_evaluation_leaves_the_real_images_of_a_wider_one_in_the_record(run: Path, tmp_path: Path) -> None:
    """Both are of one protocol and seed; before, the rows of a network replaced all of that network."""
    evaluations = prepare_evaluation(run, networks=["convnet"])
    for rows in run_on_networks(evaluations):
        merge_record(tmp_path, make_record(evaluations, rows, 0))
    plain = prepare_evaluation(run)
    merge_record(tmp_path, make_record(plain, run_evaluations(plain), 0))
    wide = prepare_evaluation(run, model=ModelConfig(name="same", width=8))
    merge_record(tmp_path, make_record(wide, run_evaluations(wide), 0))
    first, second = json.loads((tmp_path / "evaluations.json").read_text())["evaluations"]
    assert [row["set"] for row in first["rows"]] == ["distilled", "distilled", "random", "kmeans", "full"]
    assert second["computed"]["convnet"]["model"]["width"] == 8


# --- comparison


def test_a_paired_difference_is_that_of_the_paired_t_test() -> None:
    values, others = [0.71, 0.69, 0.74, 0.7, 0.66], [0.68, 0.69, 0.7, 0.64, 0.66]
    result = paired_difference(values, others)
    differences = np.array(values) - np.array(others)
    assert result.mean == pytest.approx(differences.mean())
    assert result.standard_error == pytest.approx(stdev(differences) / sqrt(5))
    t = scipy.stats.ttest_rel(values, others).statistic
    assert result.standard_error is not None
    assert result.mean / result.standard_error == pytest.approx(t)


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    generator = make_generator(1, "accuracies")
    values = (0.7 + 0.03 * torch.randn(12, generator=generator)).tolist()
    others = (0.66 + 0.03 * torch.randn(12, generator=generator)).tolist()
    result = paired_difference(values, others)
    differences = (np.array(values) - np.array(others),)
    interval = scipy.stats.bootstrap(
        differences, np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    width = interval.high - interval.low
    assert result.low == pytest.approx(interval.low, abs=0.03 * width)
    assert result.high == pytest.approx(interval.high, abs=0.03 * width)
    assert paired_difference(values, others) == result
    assert paired_difference(values, others, seed=1) != result


@pytest.mark.parametrize(("n", "coverage"), [(2, 0.51), (3, 0.75), (5, 0.85), (10, 0.90)])
def test_intervals_of_few_pairs_are_as_narrow_as_the_page_says(n: int, coverage: float) -> None:
    """docs/studies.md; 300 draws have a standard error of 3 points or less."""
    draws = torch.randn(300, n, generator=make_generator(n, "coverage"), dtype=torch.float64).tolist()
    results = [paired_difference(values, [0.0] * n) for values in draws]
    ends = [(one.low, one.high) for one in results if one.low is not None and one.high is not None]
    assert sum(low <= 0 <= high for low, high in ends) / len(ends) == pytest.approx(coverage, abs=0.07)
    if n < FEWEST_FOR_INTERVAL:
        assert ends == [pytest.approx((min(values), max(values))) for values in draws]


def test_one_network_has_no_interval() -> None:
    assert paired_difference([0.5], [0.25]) == (0.25, None, None, None, 1)
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([0.5, 0.6], [0.5])


@pytest.fixture(scope="module")
def worse(run: Path, shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's chosen set with a step size that is far too small."""
    path = tmp_path_factory.mktemp("worse") / "set.safetensors"
    chosen = limbeck.load(run)
    replace(chosen, lr=chosen.lr / 1000).save(path)
    return path


def test_sets_are_compared_by_networks_of_the_same_seeds(run: Path, worse: Path) -> None:
    changes = {"networks": 3, "epochs": 20}
    evaluations = prepare_comparison([worse, run, worse], changes=changes)
    better, same = run_comparison(["worse", "run", "again"], evaluations, seed=4)
    assert (better.run, better.against, better.n) == ("run", "worse", 3)
    assert better.difference == pytest.approx(better.accuracy - better.against_accuracy)
    assert better.difference > 0.05
    assert better.standard_error is not None
    assert better.low is not None
    assert better.high is not None
    assert better.low < better.difference < better.high
    assert (same.difference, same.standard_error, same.low, same.high) == (0, 0, 0, 0)  # pairs share their seeds
    rows = [limbeck.evaluate(one, num_networks=3, epochs=20, seed=4)[-1] for one in (run, worse)]
    assert [row.accuracy_mean for row in rows] == [better.accuracy, better.against_accuracy]


def test_sets_that_are_not_trained_alike_are_not_compared(run: Path, worse: Path, tmp_path: Path) -> None:
    other = limbeck.load(run)
    other = replace(other, recipe={**other.recipe, "epochs": 7, "model": {**other.recipe["model"], "width": 8}})
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"not trained alike .*model.width 4 and 8, epochs 5 and 7"):
        prepare_comparison([run, tmp_path / "other.safetensors"])
    model = ModelConfig(name="mlp")
    assert len(prepare_comparison([run, tmp_path / "other.safetensors"], changes={"epochs": 7}, model=model)) == 2
    with pytest.raises(UserError, match="needs two sets"):
        prepare_comparison([run])


def test_sets_of_other_data_are_not_compared(run: Path, tmp_path: Path) -> None:
    chosen = limbeck.load(run)
    data = {**chosen.provenance["data"], "fingerprint": "0123456789abcdef"}
    replace(chosen, provenance={**chosen.provenance, "data": data}).save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="the set was distilled from '0123456789abcdef'"):
        prepare_comparison([run, tmp_path / "other.safetensors"])
