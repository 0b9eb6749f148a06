"""A step size belongs to the optimiser with which it was learned, or for which validation chose it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import distill_minimal, result_rows
from torch import nn

import limbeck
from limbeck.core.errors import UserError
from limbeck.core.evaluation_records import EvaluationRow
from limbeck.evaluation.protocol import ADAMW_LRS, EvalConfig
from limbeck.evaluation.run import run_evaluations, run_on_networks
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.interop.export import export_set
from limbeck.synthetic.recipe import lr_optimiser

FAST: dict[str, Any] = {"networks": 1, "epochs": 2, "full_networks": 0, "baselines": ()}
SGD = EvalConfig(**FAST, baseline_lrs=(0.02,))
ADAMW = EvalConfig(**FAST, optimiser="adamw", baseline_lrs=(0.0007,))
NETWORK = limbeck.ModelConfig(width=4)


def coreset(out: Path, config: EvalConfig, **options: Any) -> Path:
    return limbeck.distill("digits", method="random", out=out, model=NETWORK, eval=config, **options)


@pytest.fixture(scope="module")
def chosen_for_adamw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coreset(tmp_path_factory.mktemp("adamw") / "run", ADAMW)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distill_minimal(tmp_path_factory.mktemp("learned") / "run", eval=ADAMW)


def rows_by(run: Path, **changes: Any) -> list[EvaluationRow]:
    return run_evaluations(prepare_evaluation(run, which="chosen", changes=changes))


def test_a_step_size_that_validation_chose_is_for_the_optimiser_of_its_run(chosen_for_adamw: Path) -> None:
    small = limbeck.load(chosen_for_adamw)
    assert (lr_optimiser(small), small.lr) == ("adamw", 0.0007)
    assert isinstance(small.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), nn.Module)
    (own,) = rows_by(chosen_for_adamw)
    assert (own.lr, own.lr_from) == (0.0007, "validation")
    assert own.accuracy_mean == result_rows(chosen_for_adamw)[1]["accuracy_mean"]
    (other,) = rows_by(chosen_for_adamw, optimiser="sgd")
    assert other.lr in EvalConfig().baseline_lrs  # and not among those of AdamW that the run chose from
    (same, *_), *_ = run_on_networks(
        prepare_evaluation(chosen_for_adamw, networks="same", changes={"optimiser": "sgd"})
    )
    assert same.lr in EvalConfig().baseline_lrs


def test_a_learned_step_size_is_for_sgd(learned: Path) -> None:
    small, network = limbeck.load(learned), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert lr_optimiser(small) == "sgd"
    assert {row["lr"] for row in result_rows(learned)} == {0.0007}
    with pytest.raises(UserError, match=r"learned with SGD.*trains by AdamW.*lr=0\.001"):
        small.train(network)
    assert small.train(network, lr=0.0007) is network
    (row,) = rows_by(learned, optimiser="sgd")
    assert (row.lr, row.lr_from) == (small.lr, "set")


def test_another_optimiser_chooses_among_its_own_step_sizes(tmp_path: Path) -> None:
    run = coreset(tmp_path / "run", SGD)
    assert limbeck.load(run).lr == 0.02
    (row,) = rows_by(run, optimiser="adamw")
    assert row.lr in ADAMW_LRS
    (row,) = rows_by(run, optimiser="adamw", baseline_lrs=(0.0004,))
    assert row.lr == 0.0004


def test_a_set_has_the_step_size_of_its_latest_evaluation(tmp_path: Path) -> None:
    for config, lr in ((SGD, 0.02), (ADAMW, 0.0007), (SGD, 0.02)):  # the last one's rows are in the log
        run = coreset(tmp_path / "run", config)
        small = limbeck.load(run)
        assert (small.lr, lr_optimiser(small), result_rows(run)[0]["lr"]) == (lr, config.optimiser, lr)


def test_networks_are_trained_as_often_as_is_announced(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    coreset(tmp_path / "run", ADAMW, listen=events.append)
    (start,) = (i for i, event in enumerate(events) if event.get("name") == "evaluate" and event["event"] == "stage")
    assert events[start]["total"] == sum(event["event"] == "advance" for event in events[start:]) == 2


@pytest.mark.parametrize(
    ("fixture", "code", "words"),
    [
        ("chosen_for_adamw", "torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0005)", "0.0007, for AdamW\n"),
        ("learned", "torch.optim.SGD(net.parameters(), LR, momentum=0.9", "for SGD; the evaluation trains by AdamW"),
    ],
)
def test_a_card_trains_by_the_optimiser_of_the_step_size(
    fixture: str, code: str, words: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    small = limbeck.load(request.getfixturevalue(fixture))
    export_set(small, tmp_path / "npz", "npz")
    card = (tmp_path / "npz" / "README.md").read_text()
    assert code in card
    assert words in card
    export_set(small, tmp_path / "mtt", "mtt")
    warned = (
        "chosen for AdamW, and the code that reads these files trains by SGD"
        in (tmp_path / "mtt" / "README.md").read_text()
    )
    assert warned == (fixture == "chosen_for_adamw")
