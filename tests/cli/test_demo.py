"""`limbeck demo`: the job of the first page, and the report that it names or opens."""

from __future__ import annotations

import re
import shlex
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY

from limbeck.cli import demo

ROOT = Path(__file__).parents[2]


def test_it_is_the_job_of_the_first_page() -> None:
    text = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8").replace("\\\n", " ")
    command = re.search(r"^\$ limbeck distill (.*)$", text, re.MULTILINE)
    assert command is not None
    words = shlex.split(command[1])
    place = words.index("--out")
    assert words[:place] + words[place + 2 :] == list(demo.WORDS)


def test_it_names_the_report_and_opens_it_where_asked(
    limbeck: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "WORDS", ("digits", *TINY))
    out = tmp_path / "a demo"
    result = limbeck("demo", "--out", out)
    assert result.status == 0, result.err
    assert f"report: {out / 'report.html'}" in result.out
    assert f"this is: limbeck distill digits {shlex.join(TINY)} --out '{out}'" in result.err
    assert opened == []
    assert limbeck("demo", "--out", out, "--open").status == 0
    assert opened == [(out / "report.html").as_uri()]
