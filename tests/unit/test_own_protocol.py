"""A set with targets of its own is judged by their protocol too, beside random images judged alike."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limbeck import ImageData, distill
from limbeck.cli.comparison import comparison
from limbeck.cli.screen import results_table
from limbeck.core.evaluation_records import EvaluationRow
from limbeck.core.files import read_json
from limbeck.core.records import ResultRow
from limbeck.evaluation.regression import RegressionConfig
from limbeck.jobs.presets import load_preset
from limbeck.report.table import write_table

TINY: dict[str, Any] = {
    "model": {"width": 4},
    "iterations": 2,
    "pool": 1,
    "pool_width": 2,
    "validate_epochs": 1,
    "validate_networks": 1,
    "eval": {"networks": 2, "epochs": 2, "full_networks": 0, "baseline_lrs": (0.01,)},
}


@pytest.fixture(scope="module")
def run(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(
            "limbeck.jobs.results.RegressionConfig", partial(RegressionConfig, steps=40, warmup=20)
        )  # of 1000
        return distill(digits, method="rcig", out=tmp_path_factory.mktemp("run") / "rcig", **TINY)


def rows(run: Path) -> list[dict[str, Any]]:
    return list(read_json(run / "results.json", "limbeck-results")["results"])


def test_every_set_has_both_protocols_and_random_images_too(run: Path) -> None:
    own = {(row["set"], row["which"], row["protocol"]) for row in rows(run) if "protocol" in row}
    kinds = ("regression", "regression, augmented")
    assert own == {
        (*which, kind) for which in (("distilled", "last"), ("distilled", "chosen"), ("random", None)) for kind in kinds
    }
    assert all(row["n"] == 2 and row["split"] == "test" for row in rows(run))


def test_what_was_judged_is_not_judged_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without results.json, as after a crash, the same rows come from the log."""
    monkeypatch.setattr("limbeck.jobs.results.regression_rows", lambda *args: pytest.fail("judged again"))
    rows_before = rows(run)
    (run / "results.json").rename(tmp_path / "results.json")
    config = json.loads((run / "run.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(tmp_path))
        from limbeck import load_data

        distill(load_data("digits"), method="rcig", out=run, **TINY)
    assert [row for row in rows(run) if "protocol" in row] == [row for row in rows_before if "protocol" in row]
    assert json.loads((run / "run.json").read_text()) == config


def test_tables_and_reports_keep_the_protocols_apart(run: Path, tmp_path: Path) -> None:
    lines = [line for line in write_table([run], tmp_path / "t.md").read_text().splitlines() if "rcig" in line]
    assert [line.split(" | ")[3] for line in lines] == ["", "regression", "regression, augmented"]
    by = {(row["set"], row["which"], row.get("protocol", "")): f"{100 * row['accuracy_mean']:.1f}" for row in rows(run)}
    for line, protocol in zip(lines, ("", "regression", "regression, augmented")):
        cells = line.split(" | ")
        assert cells[5].startswith(by["distilled", "chosen", protocol])
        assert cells[6].startswith(by["distilled", "last", protocol])
        assert cells[7].startswith(by["random", None, protocol])
    table = results_table([EvaluationRow.model_validate(row) for row in rows(run)], "t")
    over = dict(zip(table.columns[0].cells, table.columns[5].cells))
    for protocol in ("regression", "regression, augmented"):
        own = {(row["set"], row["which"]): row["accuracy_mean"] for row in rows(run) if row.get("protocol") == protocol}
        gain = 100 * (own["distilled", "last"] - own["random", None])
        assert over[f"distilled (last), {protocol}"] == f"{gain:+.1f}"
    page = (run / "report.html").read_text()
    assert "distilled, regression, augmented" in page


def test_a_published_figure_stands_beside_that_of_its_own_protocol(run: Path) -> None:
    preset = load_preset("rcig/cifar10/ipc1-zca")
    sentence = comparison(preset, [ResultRow(**row) for row in rows(run)], "digits", {})
    last = next(row for row in rows(run) if row.get("protocol") == "regression" and row["which"] == "last")
    assert f"ours {100 * last['accuracy_mean']:.2f}" in sentence
    assert "by regression" in sentence
