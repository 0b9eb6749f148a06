"""`limbeck distill`: what it prints, what it writes, where."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, picture

from limbeck import ModelConfig
from limbeck.jobs.job import prepare


def test_distill_prints_one_json_document(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    common = ["--json", "--threads", "1", "--device", "cpu", "--seed", "0"]
    result = limbeck("distill", "digits", *TINY, *common, "--method=mct", "--out", tmp_path / "run")
    assert result.status == 0
    assert result.json["run"] == str(tmp_path / "run")
    assert [row["set"] for row in result.json["results"]] == ["distilled", "distilled", "random", "kmeans", "full"]
    assert "distill" in result.err
    assert re.search(r"validation \d+\.\d % \(n = 1\)", result.err), result.err
    assert result.json["results"] == json.loads((artifacts["run"] / "results.json").read_text())["results"]


def test_distill_prints_a_table(limbeck: Any, artifacts: dict[str, Path]) -> None:
    result = limbeck("distill", "digits", *TINY, "--out", artifacts["run"])
    assert result.status == 0
    assert "distilled (chosen)" in result.out
    assert str(artifacts["run"]) in result.out
    rows = json.loads((artifacts["run"] / "results.json").read_text())["results"]
    assert {(row["n"], row["accuracy_std"], row["balanced_accuracy_std"]) for row in rows} == {(1, None, None)}
    assert "computed" not in result.out  # that is for programs
    assert "±" not in result.out  # one network has no deviation


def test_distill_names_its_run(limbeck: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert limbeck("distill", "digits", *TINY, "--json").json["run"] == "runs/digits-mct-ipc1-seed0"
    assert (tmp_path / "runs" / "digits-mct-ipc1-seed0" / "results.json").exists()


def test_distill_with_a_store(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    result = limbeck("distill", "digits", *TINY, "--experts", artifacts["convex"], "--out", tmp_path / "run", "--json")
    assert result.json["bytes"]["experts"] == next(artifacts["convex"].glob("expert-*")).stat().st_size


@pytest.mark.parametrize("name", ["/somewhere/bin/limbeck", "limbeck"])
def test_a_recorded_command_can_be_typed_again(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = ["distill", "my pictures", "--out", "it's $HERE", "--augment", ""]
    monkeypatch.setattr(sys, "argv", [name, *words])
    command = prepare("digits", model=ModelConfig(width=4)).record().command
    assert shlex.split(command) == ["limbeck", *words]


@pytest.mark.parametrize("words", [["--draws", "2"], ["--draws=2"]], ids=" ".join)
def test_the_old_name_of_an_option_works_and_says_its_new_name(limbeck: Any, tmp_path: Path, words: list[str]) -> None:
    result = limbeck("distill", "digits", *TINY, *words, "--out", tmp_path / "run", "--json")
    assert result.status == 0
    assert "limbeck: --draws is now called --grad-accum" in result.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["grad_accum"] == 2


def test_segments_past_the_experts_end_are_drawn_in(limbeck: Any, tmp_path: Path) -> None:
    words = ["--max-start-epoch", "1000", "--expert-epochs", "2"]
    assert limbeck("distill", "digits", *TINY, *words, "--out", tmp_path / "run").status == 0


def test_images_of_different_sizes(distill: Any, limbeck: Any, folder: Path, tmp_path: Path) -> None:
    picture(folder / "dog" / "wide.png", width=9)
    sentence = distill(folder)
    assert "wide.png" in sentence
    assert "00.png" in sentence
    assert "--resize" in sentence
    first = limbeck("distill", folder, *TINY, "--resize", "10", "--out", tmp_path / "run", "--json")
    assert first.json["results"][0]["n"] == 1
    again = limbeck("evaluate", tmp_path / "run", "--resize", "10", "--num-networks", "1", "--json")
    assert again.json["results"] == first.json["results"][:2]
    assert limbeck("info", folder, "--resize", "10", "--json").json["shape"] == [1, 10, 10]
