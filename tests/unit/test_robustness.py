"""Rows, records and tables of networks that are tested on perturbed images, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import result_rows

import limbeck
from limbeck import UserError
from limbeck.core.evaluation_records import CLEAN, EvaluationRow, EvaluationsRecord, RobustnessRow
from limbeck.core.record_files import read_record
from limbeck.evaluation.attacks import ATTACKS
from limbeck.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from limbeck.evaluation.record import make_record, merge_record
from limbeck.evaluation.robustness import (
    RobustnessConfig,
    RobustnessOptions,
    balanced_rows,
    make_robustness,
)
from limbeck.evaluation.run import run_evaluations
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.jobs.estimate import estimate_evaluation
from limbeck.report.robustness import robustness_tables

ALL = RobustnessConfig(attacks=tuple(ATTACKS), corruptions=tuple(CORRUPTIONS), images=40)


pytestmark = pytest.mark.usefixtures("home")


def test_images_are_balanced_and_in_order() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    rows = balanced_rows(labels, 3, 30, seed=0)
    assert torch.equal(rows, rows.unique())
    assert labels[rows].bincount().tolist() == [10, 3, 10]
    assert not torch.equal(rows, balanced_rows(labels, 3, 30, seed=1))
    assert torch.equal(balanced_rows(labels, 3, 1000, seed=0), torch.arange(73))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attack": "cw"}, "no attack called 'cw'; choose of: fgsm, pgd"),
        ({"corruptions": ["fog"]}, "no corruption called 'fog'"),
        ({"robustness": RobustnessOptions(epsilon=4)}, "add --attack pgd or --corruptions"),
        ({"attack": "pgd", "protocol": "regression"}, "regression"),
    ],
)
def test_what_cannot_be_tested_is_refused(run: Path, options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        limbeck.evaluate(run, **options)


QUICK: dict[str, Any] = {"attack": "fgsm", "corruptions": ["contrast"], "robustness": RobustnessOptions(images=50)}


def test_rows_of_the_set_and_of_real_images_have_tests(run: Path) -> None:
    events: list[dict[str, Any]] = []
    rows = limbeck.evaluate(run, listen=events.append, **QUICK)
    lines = [(row.set, row.which) for row in rows]
    assert lines == [("distilled", "last"), ("distilled", "chosen"), ("random", None), ("kmeans", None)]
    recorded = result_rows(run)[:4]
    for row, line in zip(rows, recorded):
        assert isinstance(row, EvaluationRow)
        assert row.result.to_json() == line, "the very networks of the run"
        assert row.robustness is not None
        names = [(test.perturbation, test.severity) for test in row.robustness]
        assert names == [(CLEAN, None), ("fgsm", None), *(("contrast", severity) for severity in SEVERITIES)]
        assert {(test.images, test.n) for test in row.robustness} == {(50, 2)}
    totals = [event["total"] for event in events if event["event"] == "stage"]
    assert sum(event["event"] == "advance" for event in events) == sum(totals)
    again = limbeck.evaluate(run, **QUICK)
    assert again == rows, "also those of real images, which are stored"


def test_nothing_is_trained_for_stored_rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = limbeck.evaluate(run, **QUICK)
    monkeypatch.setattr("limbeck.evaluation.baselines.make_real_trials", None)
    assert limbeck.evaluate(run, **QUICK)[2:] == first[2:]


def test_several_networks_are_tested(run: Path) -> None:
    rows = limbeck.evaluate(run, networks=["mlp"], num_networks=1, epochs=2, **QUICK)
    assert [row.set for row in rows][-3:] == ["random", "kmeans", "full"]
    assert all(isinstance(row, EvaluationRow) and row.robustness for row in rows)
    assert all(
        isinstance(row, EvaluationRow) and not row.robustness
        for row in limbeck.evaluate(run, networks=["mlp"], num_networks=1, epochs=2)
    )


def test_a_record_keeps_earlier_tests(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)

    def record(**options: Any) -> list[RobustnessRow]:
        evaluations = prepare_evaluation(copy, robustness=make_robustness(**options))
        merge_record(copy, make_record(evaluations, run_evaluations(evaluations), 0))
        (evaluation,) = read_record(copy / "evaluations.json", EvaluationsRecord, "limbeck-evaluations").evaluations
        return list(evaluation.rows[1].robustness or ())

    small = RobustnessOptions(images=30, steps=1)
    assert record() == []
    assert [test.perturbation for test in record(attack="fgsm", options=small)] == [CLEAN, "fgsm"]
    both = record(attack="pgd", options=small)
    assert [test.perturbation for test in both] == [CLEAN, "fgsm", "pgd"]
    assert record() == both
    page = limbeck.write_report(copy).read_text()
    assert "Robustness" in page
    assert f"{100 * both[2].accuracy_mean:.1f}" in page
    assert "pgd 8/255" in page


def test_an_estimate_says_what_tests_add(run: Path) -> None:
    plain = estimate_evaluation(prepare_evaluation(run)).total
    slow = RobustnessConfig(attacks=("pgd",), steps=2000)
    assert estimate_evaluation(prepare_evaluation(run, robustness=slow)).total > 20 * plain


def test_the_table_has_means_over_severities() -> None:
    def test(name: str, accuracies: list[float], **fields: Any) -> RobustnessRow:
        mean = sum(accuracies) / len(accuracies)
        return RobustnessRow(
            perturbation=name, images=10, accuracies=accuracies, accuracy_mean=mean, n=len(accuracies), **fields
        )

    tests = [
        test(CLEAN, [0.8, 0.6]),
        test("pgd", [0.1, 0.2], epsilon=8.0, steps=10),
        test("contrast", [0.5, 0.5], severity=1),
        test("contrast", [0.3, 0.1], severity=2),
        test("shot_noise", [0.4, 0.3], severity=1),
        test("shot_noise", [0.2, 0.1], severity=2),
    ]
    row = EvaluationRow(
        set="distilled", which="chosen", model="mlp", split="test", accuracy_mean=0.7, n=2, robustness=tests
    )
    (table,) = robustness_tables([row.model_copy(update={"which": "last"}), row])
    assert table.columns == [CLEAN, "pgd 8/255, 10 steps", "corrupted", "contrast", "shot noise"]
    (line,) = table.lines
    assert line.cells == ["70.0 ± 14.1 %", "15.0 ± 7.1 %", "30.0 ± 7.1 %", "35.0 ± 7.1 %", "25.0 ± 7.1 %"]
    assert table.brief.columns == table.columns[:3]
    assert table.brief.lines[0].cells == line.cells[:3]
    assert robustness_tables([row.model_copy(update={"robustness": None})]) == []
