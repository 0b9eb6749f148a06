"""`limbeck report` and `info`: the commands that read what others wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def test_report_of_one_run_and_of_several(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    one = limbeck("report", artifacts["run"], "--out", tmp_path / "one.html", "--json")
    assert one.json == {"report": str(tmp_path / "one.html")}
    shutil.copytree(artifacts["run"], tmp_path / "other")
    limbeck("report", artifacts["run"], tmp_path / "other", "--out", tmp_path / "both.html")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("one.html", "both.html"))


def test_info_tells_what_each_thing_is(limbeck: Any, artifacts: dict[str, Path]) -> None:
    run = artifacts["run"]
    kinds = {
        "digits": "data set",
        artifacts["convex"]: "store of experts",
        run: "run",
        run / "set-chosen.safetensors": "distilled set",
        next(artifacts["convex"].glob("expert-*")): "expert",
        run / "state.safetensors": "state",
    }
    for what, kind in kinds.items():
        assert limbeck("info", what, "--json").json["kind"] == kind
        text = limbeck("info", what)
        assert (text.status, f"kind: {kind}" in text.out) == (0, True)


def test_info_of_a_run_that_has_not_ended(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(artifacts["run"], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    assert limbeck("info", tmp_path / "run", "--json").json["finished"] is False


def test_report_and_info_refuse_what_they_do_not_know(refused: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    refused("report", artifacts["convex"])
    refused("report", artifacts["run"], tmp_path, "--out", tmp_path / "both.html")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "odd.txt").write_text("?")
    refused("info", tmp_path / "odd.txt")
    (tmp_path / "odd.safetensors").write_bytes(b"?")
    refused("info", tmp_path / "odd.safetensors")


def test_info_of_a_folder_of_runs_names_them(refused: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    """The pictures in `previews` are not taken for a data set."""
    shutil.copytree(artifacts["run"], tmp_path / "runs" / "first")
    sentence = refused("info", tmp_path / "runs")
    assert "folder of runs" in sentence
    assert str(tmp_path / "runs" / "first") in sentence
