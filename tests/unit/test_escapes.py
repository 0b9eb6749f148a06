"""Names from files are text: in terminals, on pages, in the names of files, and in sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck import DistilledSet
from limbeck.cli.commands import _show
from limbeck.core.errors import UserError
from limbeck.core.study_records import StudyRecord
from limbeck.data import fit_preprocess
from limbeck.interop import export_set
from limbeck.progress.screen import Screen
from limbeck.report.page import write_report
from limbeck.report.study_page import write_study_page

HOSTILE = ["[red]a[/red]", "[/x]", ":smile:", "\x1b[2J\x1b]0;x\x07", "<script>alert(1)</script>", "a\r\nb", "\u202egnp"]
NAMES = ["../x", "a/b", "CON", "", "x" * 300, "..", "/etc", "a\0b", "\n", "C:\\x", "con.txt", "~", "-rf"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_shows_names_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"set": "random", "model": name, "split": "test", "accuracy_mean": 0.5, "n": 1, "protocol": name}
    result = {"results": [row], "data": name, "ipc": 1, "method": name, "run": name, "notes": [name]}
    _show(result, False)
    with Screen() as screen:
        screen({"event": "stage", "name": name, "total": 1, "unit": "image"})
        screen({"event": "advance", "text": name})
        screen({"event": "warning", "text": name})
    output = capsys.readouterr()
    for text in output:
        assert all(char.isprintable() or char == "\n" for char in text)
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert shown in output.out
    assert shown in output.err


@pytest.mark.parametrize("name", HOSTILE)
def test_a_sentence_is_one_line_of_printable_characters(name: str) -> None:
    assert str(UserError(f"no {name}.")).isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_escapes_names_and_loads_nothing(name: str, tmp_path: Path) -> None:
    row = {"set": "distilled", "which": name, "model": name, "split": "test", "accuracy_mean": 0.5, "n": 1}
    data = {"name": name, "classes": [name, "b"], "counts": {name: [1, 2]}, "notes": [name]}
    config = {"method": name, name: name, "ipc": 1}
    files: dict[str, Any] = {
        "run.json": {"format": "limbeck-run", "version": 1, "config": config, "data": data, "command": name},
        "results.json": {"format": "limbeck-results", "version": 1, "method": name, "results": [row]},
    }
    for file, content in files.items():
        (tmp_path / file).write_text(json.dumps(content))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<script") == 1, "the page's own"
    assert "<script>alert" not in page
    assert "http:" not in page
    assert "https:" not in page.replace("https://www.w3.org", "")


@pytest.mark.parametrize("name", [*HOSTILE, "$\\frac{", "_x", "$a$", "%s", ""])
def test_the_page_of_a_study_escapes_names(name: str, tmp_path: Path) -> None:
    result = {"set": "distilled", "which": "chosen", "model": name, "split": "test", "accuracy_mean": 0.5, "n": 1}
    curve = {"steps": [0, 2], "accuracy": [0.4, 0.5], "std": [None, None], "seconds": [0.0, 1.0]}
    curve |= {"loss_steps": [1, 2], "loss": [1.0, 0.9], "loss_low": [1.0, 0.9], "loss_high": [1.0, 0.9]}
    rows = [
        {"cell": {name: value}, "seed": 0, "key": value, "results": [result], "curve": curve, "data": name}
        for value in (name, "other")
    ]
    content = {"format": "limbeck-study", "version": 1, "title": name, "text": name, "axes": {name: [name, "other"]}}
    record = StudyRecord.model_validate({**content, "seeds": [0], "study": {}, "planned": 2, "rows": rows})
    page = write_study_page(record, tmp_path / "study.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1, "the page's own"
    assert "<script>alert" not in page


@pytest.mark.parametrize("to", ["imagefolder", "npz", "hf"])
def test_names_of_classes_never_become_paths_that_leave_the_folder(to: str, tmp_path: Path) -> None:
    pixels = torch.zeros(len(NAMES), 1, 4, 4, dtype=torch.uint8)
    preprocess = fit_preprocess("normalise", pixels)
    labels = torch.arange(len(NAMES))
    recipe = {"epochs": 1, "batch_size": 4}
    small = DistilledSet(preprocess.apply(pixels), labels, 0.01, preprocess, tuple(NAMES), recipe, {})
    folder = tmp_path / "a" / "exported"
    files = export_set(small, folder, to)
    assert len(files) == len(set(files))
    assert all(file.resolve().is_relative_to(folder) and file.exists() for file in files)
    assert [path for path in tmp_path.iterdir() if path.name != "a"] == []
    assert sorted((tmp_path / "a").iterdir()) == [folder]
    if to == "imagefolder":
        assert sum(path.is_dir() for path in folder.iterdir()) == len(NAMES)
