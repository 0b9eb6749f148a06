"""`limbeck report` and `info`: the commands that read what others wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import save, walk
from image_files import make_class_folders

from limbeck.core.folders import home_folder


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


def test_info_of_folders_names_what_is_in_them(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    """The pictures in `previews` are not taken for a data set."""
    for name in ("first", "second"):
        shutil.copytree(artifacts["run"], tmp_path / "runs" / name)
    (tmp_path / "runs" / "second" / "results.json").unlink()
    facts = limbeck("info", tmp_path / "runs", "--json").json
    assert facts == {"kind": "folder of runs", "runs": {"first": "finished", "second": "not finished"}}
    assert limbeck("info", home_folder(), "--json").json["kind"] == "limbeck's cache"
    save([walk(0, 3)], tmp_path / "buffers" / "replay_buffer_0.pt")
    facts = limbeck("info", tmp_path / "buffers", "--json").json
    assert facts["next"] == "limbeck import-experts"
    assert "replay_buffer_0.pt" in facts


@pytest.mark.parametrize("inside", ["", "pets"])
def test_info_of_a_data_set_with_weights_or_a_run_in_its_folder(
    limbeck: Any, artifacts: dict[str, Path], tmp_path: Path, inside: str
) -> None:
    """It is what `load_data` reads, which leaves the others out and says so."""
    folder = tmp_path / "photos"
    make_class_folders(folder / inside, count=10)
    torch.save({"weight": torch.zeros(3)}, folder / "best.pt")
    facts = limbeck("info", folder, "--json").json
    assert (facts["kind"], facts["classes"]) == ("data set", ["a", "b"])
    assert any("best.pt" in note for note in facts["notes"])
    if not inside:
        torch.save(torch.zeros(3), folder / "best.pt")
        shutil.copytree(artifacts["run"], folder / "run")
        facts = limbeck("info", folder, "--json", "--picture", tmp_path / "sheet.png").json
        assert (facts["kind"], facts["classes"]) == ("data set", ["a", "b"])
        assert any("runs and stores of limbeck (1)" in note for note in facts["notes"])
        assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("to", ["mtt", "ddranking"])
def test_info_of_an_exported_set_names_its_files(
    limbeck: Any, artifacts: dict[str, Path], tmp_path: Path, to: str
) -> None:
    """The pictures beside the tensors, as those of DD-Ranking, are not taken for a data set."""
    assert limbeck("export", artifacts["run"], "--to", to, "--out", tmp_path / "out").status == 0
    assert limbeck("info", tmp_path / "out", "--json").json["kind"] == "folder of .pt files"


@pytest.mark.parametrize("part", ["run.json", "report.html", "log.jsonl"])
def test_info_of_a_part_is_that_of_its_folder(limbeck: Any, artifacts: dict[str, Path], part: str) -> None:
    assert limbeck("info", artifacts["run"] / part).out == limbeck("info", artifacts["run"]).out


def test_a_table_leaves_out_what_is_not_finished(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(artifacts["run"], tmp_path / "stopped")
    (tmp_path / "stopped" / "results.json").unlink()
    alone, both = tmp_path / "alone.md", tmp_path / "both.md"
    assert limbeck("table", artifacts["run"], "--out", alone).status == 0
    result = limbeck("table", artifacts["run"], tmp_path / "stopped", "--out", both)
    assert result.status == 0
    assert f"{tmp_path / 'stopped'} is not finished and is left out" in result.err.replace("\n", "")
    assert both.read_text() == alone.read_text()
    assert limbeck("table", tmp_path / "stopped", "--out", tmp_path / "none.md").status == 2


def test_a_table_is_not_written_over_a_file(
    limbeck: Any, refused: Any, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.md").write_text("mine")
    assert "--force" in refused("table", artifacts["run"], "--out", tmp_path / "notes.md")
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert limbeck("table", artifacts["run"], "--out", tmp_path / "notes.md", "--force").status == 0
    assert "# Results" in (tmp_path / "notes.md").read_text()
