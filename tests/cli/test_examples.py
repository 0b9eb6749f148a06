"""The examples at the end of a help work, as far as they name data that everybody has."""

from __future__ import annotations

import shlex
import shutil
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY
from own_plugins import PLUGINS

from limbeck.cli import demo
from limbeck.cli.commands import COMMANDS, find_command

SMALL = {
    "distill": TINY,
    "estimate": TINY,
    "doctor": TINY,
    "experts": ["--model.width", "4", "--num-experts", "1", "--epochs", "6"],
    "compare": ["--num-networks", "1", "--epochs", "2"],
    "evaluate": ["--num-networks", "1", "--epochs", "2"],
    "study": ["--dry-run"],
}
"""Options that are added to an example, so that it takes a second."""
EXAMPLES = [(name, example) for name in COMMANDS for example in find_command(name).examples]
RUNNABLE = [(name, example) for name, example in EXAMPLES if "path/to" not in example]


@pytest.fixture
def _folders(artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limbeck: Any) -> None:
    """A working directory with the runs and the store that examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))  # which the example of `cache` clears
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("study.toml").write_text(
        'title = "Start"\noptions = { data = "digits" }\naxes.method = { random = { method = "random" } }\n'
    )
    Path("my_file.py").write_text(PLUGINS + "make = Net\n")
    monkeypatch.delitem(sys.modules, "my_file", raising=False)
    monkeypatch.setattr(demo, "WORDS", ("digits", *TINY))
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    for name in ("digits", "mct", "mtt"):
        shutil.copytree(artifacts["run"], Path("runs") / name)


@pytest.mark.usefixtures("_folders")
def test_examples_run(limbeck: Any) -> None:
    shutil.rmtree("runs/digits")  # the example of `distill` makes it
    for name, example in RUNNABLE:
        if name == "cache":
            continue
        result = limbeck(*shlex.split(example)[1:], *SMALL.get(name, []))
        assert result.status in ((0, 1) if name == "doctor" else (0,)), (example, result)


@pytest.mark.usefixtures("_folders")
def test_the_examples_of_cache_run(limbeck: Any, tmp_path: Path) -> None:
    (tmp_path / "home" / "images" / "digits").mkdir(parents=True)
    for example in find_command("cache").examples:
        assert limbeck(*shlex.split(example)[1:]).status == 0
    assert list((tmp_path / "home" / "images").iterdir()) == []


def test_how_many_cannot_run() -> None:
    assert [name for name, example in EXAMPLES if "path/to" in example] == ["distill", "import-experts", "import-set"]
