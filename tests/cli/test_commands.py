"""What every command does: help, unknown options, lists of commands and methods."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import EXPERTS, TINY, Result

import limbeck as limbeck_package
from limbeck import METHODS, __version__
from limbeck.cli.catalogue import load_catalogue, read_registry, to_json
from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.main import main


def test_version_and_help(limbeck: Any) -> None:
    assert limbeck("--version") == Result(0, f"limbeck {__version__}\n", "")
    usage = limbeck("--help")
    assert usage.status == 0
    assert all(name in usage.out for name in COMMANDS)
    assert limbeck().status == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_and_the_common_options(limbeck: Any, command: str) -> None:
    result = limbeck(command, "--help-all")
    assert result.status == 0
    for option in ("--json", "--debug"):
        assert option in result.out
    if command not in ("demo", "methods", "presets", "sets", "cache"):  # they need no argument
        assert limbeck(command).status == 2  # no DATA, no STORE, ...


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_options_are_errors(limbeck: Any, command: str, tmp_path: Path) -> None:
    second = ["digits"] if command in ("import-experts", "import-set") else []
    result = limbeck(command, "digits", *second, "--out", tmp_path / "out", "--nonsense", "3")
    assert result.status == 2
    assert result.out == ""
    assert "no option --nonsense" in result.err or "no option --out" in result.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_commands_and_methods(refused: Any) -> None:
    assert "'nope'" in refused("nope")
    assert "choose one of mct, mtt" in refused("distill", "digits", "--method", "nope")
    assert "did you mean mtt or mct?" in refused("distill", "digits", "--method=mtc")
    assert "did you mean mct/cifar10/ipc1" in refused("distill", "digits", "--preset", "mct/cifar10/ipc2")


def test_a_mistyped_command_names_the_nearest(refused: Any) -> None:
    assert "did you mean distill?" in refused("distil")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_agrees_with_the_commands(name: str) -> None:
    command = find_command(name)
    assert (command.options.__doc__ or "").splitlines()[0] == COMMANDS[name].summary
    module = sys.modules[f"limbeck.cli.{COMMANDS[name].module}"]
    assert set(module.COMMANDS) == {other for other in COMMANDS if COMMANDS[other].module == COMMANDS[name].module}


def test_the_catalogue_is_the_registry() -> None:
    text = (Path(limbeck_package.__file__).parent / "cli" / "catalogue.json").read_text(encoding="utf-8")
    assert text == to_json(read_registry()), "write it anew: python -m limbeck.cli.catalogue"
    assert load_catalogue() == read_registry()


def test_a_method_of_the_users_own_is_listed(limbeck: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["mct"], name="mine"))
    assert limbeck("methods", "--json").json["methods"][-1]["name"] == "mine"


def test_the_command_lists_every_method_with_what_it_learns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["methods"])
    text = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["methods", "--json"])
    entries = json.loads(capsys.readouterr().out)["methods"]
    assert [entry["name"] for entry in entries] == list(METHODS)
    for entry in entries:
        method = METHODS[entry["name"]]
        assert entry["learns"] == list(method.learns)
        assert f"{method.name} " in text
        assert method.summary in text
        assert method.source in text
    assert "learns nothing; experts of any kind" in text
    assert [entry["name"] for entry in entries if entry["experimental"]] == ["ptm"]
    assert text.count("experimental; ") == 1
    assert "learns images, step size; convexified experts" in text


def test_no_such_path(distill: Any, refused: Any) -> None:
    assert "no/such/place" in distill("no/such/place")
    refused("info", "no/such/place")
    refused("evaluate", "no/such/place")
    refused("report", "no/such/place")
    refused("convexify", "no/such/place", "--out", "nor/here")
    assert not Path("nor").exists()


@pytest.mark.parametrize("command", ["distill", "experts", "evaluate"])
def test_a_job_says_first_what_was_done_to_the_data(
    command: str, limbeck: Any, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """On standard error, once; standard output is one JSON document."""
    words: dict[str, list[Any]] = {
        "distill": ["digits", *TINY, "--out", tmp_path / "run"],
        "experts": ["digits", *EXPERTS, "--out", tmp_path / "store"],
        "evaluate": [artifacts["run"], "--num-networks", 1, "--epochs", 1],
    }
    result = limbeck(command, *words[command], "--no-estimate", "--json")
    assert result.status == 0
    assert isinstance(result.json, dict)
    lines = result.err.splitlines()
    assert lines[0].startswith("digits: no test split: ")
    assert lines[1].startswith("digits: no validation split: ")
    assert result.err.count("digits: no test split: ") == 1
