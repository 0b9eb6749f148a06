"""The command that exports: what it says, what it refuses, and what 8 bits cost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from limbeck.interop.card import ROUNDED
from limbeck.synthetic.distilled import load


def test_a_run_goes_out_as_a_folder_of_pictures(artifacts: dict[str, Path], limbeck: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = limbeck("export", artifacts["run"], "--to", "imagefolder", "--out", out, "--num-networks", 2, "--json")
    assert result.status == 0, result.err
    measured = result.json["eight_bits"]
    assert measured["n"] == 2
    assert "labels.csv" not in (out / "README.md").read_text()
    assert measured["difference"] == pytest.approx(measured["rounded"] - measured["exact"])
    assert any("at 8 bits" in note for note in result.json["notes"])
    assert result.json["files"] == len([file for file in out.rglob("*") if file.is_file()])
    card = (out / "README.md").read_text()
    record = json.loads((artifacts["run"] / "run.json").read_text())
    rows = json.loads((artifacts["run"] / "results.json").read_text())["results"]
    assert record["command"] in card
    for row in rows:
        if row.get("which") != "last":
            name = "this set" if row["set"] == "distilled" else row["set"]
            assert f"| {name} | {row['model']} | {100 * row['accuracy_mean']:.1f}" in card
    assert "As pictures: " in card


@pytest.mark.parametrize("to", ["npz", "hf", "mtt"])
def test_only_pictures_are_measured(artifacts: dict[str, Path], limbeck: Any, tmp_path: Path, to: str) -> None:
    words = ["--no-measure"] if to in ROUNDED else []
    result = limbeck("export", artifacts["run"], "--to", to, "--out", tmp_path / "out", *words, "--json")
    assert result.status == 0, result.err
    assert "eight_bits" not in result.json
    assert "networks" not in result.err, "no progress, no estimate"


def test_a_set_whose_data_is_gone_is_exported_all_the_same(
    artifacts: dict[str, Path], limbeck: Any, tmp_path: Path
) -> None:
    distilled = load(artifacts["run"])
    distilled.provenance["data"]["source"] = str(tmp_path / "gone")
    distilled.save(tmp_path / "set.safetensors")
    result = limbeck("export", tmp_path / "set.safetensors", "--to", "hf", "--out", tmp_path / "out")
    assert result.status == 0, result.err
    assert "note: what 8 bits cost was not measured" in result.out
    assert (tmp_path / "out/data/train-00000-of-00001.parquet").exists()


def test_the_old_name_of_the_option(artifacts: dict[str, Path], limbeck: Any, tmp_path: Path) -> None:
    result = limbeck("export", artifacts["run"], "--style", "datm", "--out", tmp_path / "out")
    assert result.status == 0
    assert "--style is now called --to" in result.err


def test_a_folder_with_files_is_left_alone(artifacts: dict[str, Path], refused: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    for source in ("run", "recorded"):
        assert "is not an empty folder" in refused("export", artifacts[source], "--out", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    shutil.copytree(artifacts["run"], tmp_path / "run")
    assert "stores of experts" in refused("export", tmp_path / "run", "--to", "mct", "--out", tmp_path / "new")
    assert "exported as mtt or mct" in refused(
        "export", artifacts["recorded"], "--to", "npz", "--out", tmp_path / "new"
    )
