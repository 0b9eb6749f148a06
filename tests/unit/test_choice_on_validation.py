"""What validation can choose and what it cannot: weak experts, a part that is too small or too easy, ties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import EVAL, distill_minimal, read_json
from torch.utils.data import TensorDataset

import limbeck
from limbeck.core.records import ResultRow, RunRecord, ValidationLine
from limbeck.data import ImageData, Split
from limbeck.evaluation.trials import Summary
from limbeck.jobs.checkpoint import KeepBest
from limbeck.jobs.doctor import find_small_splits
from limbeck.jobs.record import RunFolder
from limbeck.jobs.stages import _warn_of_useless_set
from limbeck.report.table import write_table
from limbeck.synthetic.set import SyntheticSet
from limbeck.training.plain import Score

SMALL = limbeck.EvalConfig(networks=1, epochs=2, full_networks=0)
QUICK: dict[str, Any] = {
    "eval": SMALL,
    "model": limbeck.ModelConfig(width=8),
    "validate_epochs": 60,
    "validate_networks": 2,
}


def warnings_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in events if event["event"] == "warning"]


def easy_data(count: int = 240) -> ImageData:
    """Half black, half white images: any network learns them from two images."""
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    pixels[::2, :, :4] = 255
    return limbeck.load_data(TensorDataset(pixels, torch.arange(count) % 2), name="easy", validation=0.6)


def split_of(*counts: int) -> Split:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Split(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels)


def test_experts_weaker_than_the_initial_set_cause_a_warning(tmp_path: Path) -> None:
    """An expert of one epoch with a tiny step size is worse than a network trained on the initial images."""
    events: list[dict[str, Any]] = []
    weak = limbeck.ExpertConfig(epochs=1, lr=1e-6)
    options = {"num_experts": 1, "iterations": 1, "syn_steps": 1, "validate_epochs": 60, "validate_networks": 2}
    small = limbeck.EvalConfig(networks=1, epochs=2, full_networks=0)
    run = limbeck.distill(
        "digits",
        out=tmp_path / "run",
        expert=weak,
        eval=small,
        model=limbeck.ModelConfig(width=8),
        listen=events.append,
        **options,
    )
    warning, far = (event["text"] for event in events if event["event"] == "warning")
    assert "the experts reach" in warning
    assert "train the experts longer" in warning
    assert "goes far past its target" in far  # the target is next to the start
    assert warning in (run / "log.jsonl").read_text()
    events.clear()
    good = limbeck.ExpertConfig(epochs=4, lr=0.05, batch_size=16)
    limbeck.distill(
        "digits",
        out=tmp_path / "good",
        expert=good,
        eval=small,
        model=limbeck.ModelConfig(width=8),
        listen=events.append,
        **{**options, "validate_epochs": 2},
    )
    assert not [event for event in events if event["event"] == "warning"]


@pytest.mark.parametrize("method", ["mct", "dm"])
def test_a_validation_part_with_nothing_to_gain_is_named_and_not_the_experts(method: str, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    options: dict[str, Any] = {**QUICK, "iterations": 2, "validate_every": 1}
    if method == "mct":
        options |= {"num_experts": 1, "syn_steps": 1, "lr_img": 1e-4, "lr_lr": 0.0}
        options["expert"] = limbeck.ExpertConfig(epochs=4, lr=0.05, batch_size=8)
    run = limbeck.distill(easy_data(), method=method, out=tmp_path / "run", listen=events.append, **options)
    first, last = (text for text in warnings_of(events) if "100 %" in text)
    assert "nothing to gain" in first
    assert "experts" not in first
    assert last.startswith("3 of 3 validations, the one of step 2 the last, are at 100 %")
    assert [row["step"] for row in read_json(run / "results.json")["results"][:2]] == [2, 2], "the last of all ties"


def test_a_coreset_has_no_steps_to_choose_from(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    limbeck.distill(easy_data(), method="random", out=tmp_path / "run", listen=events.append, **QUICK)
    assert not [text for text in warnings_of(events) if "100 %" in text]


@pytest.mark.parametrize(
    ("accuracies", "step"),
    [([0.5, 0.7, 0.6], 1), ([0.7, 0.7, 0.6], 1), ([0.7, 0.6, 0.7], 2), ([1.0, 1.0, 1.0], 2), ([0.0, 0.0, 0.0], 2)],
)
def test_of_equals_the_last_is_chosen(accuracies: list[float], step: int, tmp_path: Path) -> None:
    synthetic = SyntheticSet.from_images(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), 0.01)
    stored: list[int] = []
    run = RunFolder.begin(tmp_path, RunRecord(format="limbeck-run", version=1, config={}))
    chooser = KeepBest(
        run,
        1,
        len(accuracies) - 1,
        lambda candidate: Summary.of([Score(accuracies[len(run.lines(ValidationLine))], 0.0)]),
        limbeck.EvalConfig().choice,
        lambda candidate, at: stored.append(at),
        lambda event: None,
        synthetic.snapshot,
    )
    for at in range(len(accuracies)):
        chooser(synthetic, at)
    assert chooser.step == stored[-1] == step
    assert chooser.best == max(accuracies)


@pytest.mark.parametrize(("choose_by", "step"), [("accuracy", 1), ("balanced", 2)])
def test_the_step_is_chosen_by_the_accuracy_that_was_asked_for(choose_by: Any, step: int, tmp_path: Path) -> None:
    """Nine images in ten are of one class: calling everything that class is good by accuracy alone."""
    scores = [Score(0.5, 0.5), Score(0.9, 0.5), Score(0.8, 0.7), Score(0.7, 0.6)]
    synthetic = SyntheticSet.from_images(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), 0.01)
    run = RunFolder.begin(tmp_path, RunRecord(format="limbeck-run", version=1, config={}))
    chooser = KeepBest(
        run,
        1,
        len(scores) - 1,
        lambda candidate: Summary.of([scores[len(run.lines(ValidationLine))]]),
        limbeck.EvalConfig(choose_by=choose_by).choice,
        lambda candidate, at: None,
        lambda event: None,
        synthetic.snapshot,
    )
    for at in range(len(scores)):
        chooser(synthetic, at)
    assert chooser.step == step
    assert [line.balanced_accuracy_mean for line in run.lines(ValidationLine)] == [0.5, 0.5, 0.7, 0.6]


def test_runs_of_two_classes_say_what_is_recognised(tmp_path: Path) -> None:
    """In their rows, beside random and all images, and in the table of runs; the choice is a part of the key."""
    protocol = SMALL.model_copy(update={"choose_by": "balanced", "full_networks": 1, "full_epochs": 1})
    options = {**QUICK, "eval": protocol, "iterations": 1, "method": "dm"}
    run = limbeck.distill(easy_data(60), out=tmp_path / "run", **options)
    rows = read_json(run / "results.json")["results"]
    assert {row["set"] for row in rows} == {"distilled", "random", "kmeans", "full"}
    assert all(row["positive"] == "1" and row["sensitivity_mean"] is not None and "auc_mean" in row for row in rows)
    balanced = [(row["sensitivity_mean"] + row["specificity_mean"]) / 2 for row in rows]
    assert balanced == pytest.approx([row["balanced_accuracy_mean"] for row in rows])
    assert "choose_by" in read_json(run / "run.json")["validation"]
    table = write_table([run], tmp_path / "table.md").read_text()
    assert "easy (sensitivity)" in table
    assert "Sensitivity" in (run / "report.html").read_text()
    with pytest.raises(limbeck.UserError, match="choose_by"):
        limbeck.distill(easy_data(60), out=tmp_path / "run", **{**options, "eval": SMALL, "iterations": 2})


@pytest.mark.parametrize(
    ("counts", "parts"),
    [
        ((50, 50), None),
        ((10,) * 10, None),
        ((90, 10), None),
        ((49, 49), ("98 validation images (49 of class '0')", "up to 5 points")),
        ((200, 9, 200), ("409 validation images (9 of class '1')", "up to 2 points")),
        ((2, 2, 2), ("6 validation images (2 of class '0')", "up to 20 points")),
        ((1, 0), ("1 validation image (0 of class '1')", "up to 50 points")),
    ],
)
def test_a_small_validation_or_test_part_is_named(
    counts: tuple[int, ...], parts: tuple[str, ...] | None, digits: ImageData
) -> None:
    classes = tuple(map(str, range(len(counts))))
    enough = split_of(*(50 for _ in counts))
    small = replace(digits, validation=split_of(*counts), test=enough, classes=classes)
    texts = [finding.line for finding in find_small_splits(small)]
    assert len(texts) == (parts is not None)
    for part in parts or ():
        assert part in texts[0]
    small = replace(digits, validation=enough, test=split_of(*counts), classes=classes)
    of_test = [finding.line for finding in find_small_splits(small)]
    assert len(of_test) == len(texts)
    for part in parts or ():
        assert part.replace("validation", "test") in of_test[0]


def test_a_run_warns_of_small_splits_once(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    data, run = easy_data(20), tmp_path / "run"
    for iterations in (1, 2, 2):
        limbeck.distill(data, method="dm", iterations=iterations, out=run, listen=events.append, **QUICK)
    uncertain = [text for text in warnings_of(events) if "uncertain by up to" in text]
    assert [text.split()[0] for text in uncertain] == ["steps", "results"]
    assert "uncertain by up to" in (run / "log.jsonl").read_text()
    events.clear()
    distill_minimal(tmp_path / "digits", listen=events.append)
    assert not [text for text in warnings_of(events) if "uncertain" in text], "digits have enough"


@pytest.mark.parametrize(
    ("chosen", "deviation", "step", "warns"),
    [
        (0.283, 0.04, 30, True),
        (0.46, 0.04, 30, False),
        (0.9, 0.0, 30, False),
        (0.283, 0.04, 0, False),
        (0.2, None, 9, False),
    ],
)
def test_a_set_that_is_worse_than_random_images_is_named(
    chosen: float, deviation: float | None, step: int, warns: bool
) -> None:
    """0.504 +- 0.076 of random images: 0.46 is within the deviations; without steps the set is a coreset."""
    common = {"model": "convnet", "split": "test", "n": 5}
    row = ResultRow(set="distilled", which="chosen", accuracy_mean=chosen, accuracy_std=deviation, step=step, **common)
    texts: list[str] = []
    _warn_of_useless_set(
        [row, ResultRow(set="random", accuracy_mean=0.504, accuracy_std=0.076, **common)], texts.append
    )
    assert len(texts) == warns
    assert not warns or "22.1 points more on test" in texts[0]


def test_a_finished_run_is_not_said_to_be_chosen_by_another_measure(tmp_path: Path) -> None:
    run = distill_minimal(tmp_path / "run")
    balanced = EVAL.model_copy(update={"choose_by": "balanced"})
    with pytest.raises(limbeck.UserError, match="was chosen by plain accuracy, not by balanced accuracy"):
        distill_minimal(tmp_path / "run", eval=balanced)
    assert "balanced accuracy" not in (run / "results.json").read_text(encoding="utf-8")
    coreset = {"method": "random", "ipc": 1, "model": limbeck.ModelConfig(width=4), "out": tmp_path / "coreset"}
    limbeck.distill("digits", **coreset, eval=EVAL)
    limbeck.distill("digits", **coreset, eval=balanced)  # its step size is chosen anew, and no step was


def test_a_set_is_evaluated_on_the_split_it_was_distilled_from(tmp_path: Path) -> None:
    """The seed of the split, which `load_data` draws, is not that of the run."""
    for number, (split, seed) in enumerate([(0, 1), (2, 0), (2, 1)]):
        data = limbeck.load_data("digits", seed=split)
        options = {"method": "random", "ipc": 1, "model": limbeck.ModelConfig(width=4), "eval": EVAL}
        run = limbeck.distill(data, seed=seed, out=tmp_path / str(number), **options)
        assert limbeck.evaluate(run, epochs=1, num_networks=1)
