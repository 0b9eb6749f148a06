"""Commands end with the one command to type next, which parses and can be run; --quiet prints the result alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import save, save_set, walk
from command_line import EXPERTS, TINY

from limbeck.cli import demo
from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.next_command import ENDS, NEXT
from limbeck.cli.parse import make_default, parse
from limbeck.synthetic.distilled import load


def test_every_command_ends_something_or_has_a_next_one() -> None:
    assert set(NEXT) | set(ENDS) == set(COMMANDS)
    assert not set(NEXT) & set(ENDS)


@pytest.fixture
def words(artifacts: dict[str, Path], tmp_path: Path) -> dict[str, list[list[Any]]]:
    """Calls of every command of `NEXT`."""
    save([walk(0, 3)], tmp_path / "buffers/replay_buffer_0.pt")
    save_set(tmp_path / "theirs", torch.arange(10))
    load(artifacts["run"]).save(tmp_path / "a set.safetensors")
    evaluate = ["--num-networks", 1, "--epochs", 1]
    return {
        "demo": [["--out", tmp_path / "demo"]],
        "distill": [["digits", *TINY, "--out", artifacts["run"]]],
        "estimate": [["digits", *TINY, "--out", tmp_path / "a run"]],
        "doctor": [["digits", "--method", "kmeans", "--model.width", 4, "--eval.networks", 1, "--eval.epochs", 1]],
        "experts": [["digits", *EXPERTS, "--out", artifacts["convex"]]],
        "convexify": [[artifacts["recorded"], "--out", tmp_path / "convex"]],
        "evaluate": [[artifacts["run"], *evaluate], [tmp_path / "a set.safetensors", *evaluate]],
        "info": [
            *([artifacts["run"]], [artifacts["convex"]], ["digits"], ["digits", "--resize", 16]),
            *([tmp_path / "buffers/replay_buffer_0.pt"], [tmp_path / "a set.safetensors"]),
        ],
        "import-experts": [[tmp_path / "buffers", "digits", "--out", tmp_path / "store", "--validation-images", 20]],
        "import-set": [[tmp_path / "theirs", "digits", "--lr", 0.02, "--out", tmp_path / "imported.safetensors"]],
        "export": [
            [artifacts["run"], "--out", tmp_path / "my tensors", "--to", "ddranking"],
            [artifacts["run"], "--out", tmp_path / "mtt"],
            [artifacts["convex"], "--out", tmp_path / "points", "--to", "mct"],
        ],
    }


@pytest.mark.parametrize("name", NEXT)
def test_the_next_command_parses_and_its_files_are_there(
    name: str, words: dict[str, list[list[Any]]], limbeck: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WORDS", ("digits", *TINY))
    for arguments in words[name]:
        result = limbeck(name, *arguments)
        assert result.status == 0, result.err
        last = result.out.splitlines()[-1]
        assert last.startswith("next: limbeck "), result.out
        assert result.out.count("next: ") == 1
        _, _, command, *following = shlex.split(last)
        entry = find_command(command)
        prog = f"limbeck {command}"
        default = entry.choose_defaults(prog, following) if entry.choose_defaults else make_default(entry.options)
        parse(prog, default, following)
        first = following[0]
        assert first == "digits" or Path(first).exists(), last
        if command in ("info", "export", "report"):
            assert limbeck(command, *following).status == 0, last


def test_a_portable_export_ends_with_its_card(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    result = limbeck("export", artifacts["run"], "--to", "npz", "--out", tmp_path / "npz")
    assert result.out.splitlines()[-1] == f"card: {tmp_path / 'npz' / 'README.md'}"


def test_json_holds_no_hint(limbeck: Any, artifacts: dict[str, Path]) -> None:
    assert "next" not in limbeck("info", artifacts["run"], "--json").json


def test_quiet_prints_the_result_alone(limbeck: Any, artifacts: dict[str, Path], tmp_path: Path) -> None:
    loud = limbeck("evaluate", artifacts["run"], "--num-networks", 1, "--epochs", 1)
    quiet = limbeck("evaluate", artifacts["run"], "--num-networks", 1, "--epochs", 1, "--quiet")
    assert quiet.err == ""
    assert "no test split" in loud.err
    assert quiet.out == loud.out[: loud.out.index("next: ")]
