"""The commands that import and export files of other code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from authors_files import (
    save,
    save_set,
    walk,
)

from limbeck.cli.info import describe
from limbeck.cli.main import main
from limbeck.synthetic.distilled import load


def command(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--json"])
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    return json.loads(captured.out)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save([walk(0, 3)], tmp_path / "b/replay_buffer_0.pt")
    about = describe(str(tmp_path / "b/replay_buffer_0.pt"))
    assert about["checkpoints"] == 4
    assert about["classes"] == 10
    store = command(
        capsys, "import-experts", tmp_path / "b", "digits", "--out", tmp_path / "store", "--measure", 20, "--lr", 0.02
    )
    assert store["experts"] == 1
    assert store["expert"]["lr"] == 0.02
    assert "too high" in store["notes"][0]
    out = command(capsys, "export", tmp_path / "store", "--out", tmp_path / "again")
    assert out["names"] == ["replay_buffer_0.pt"]
    save_set(tmp_path / "s", torch.arange(10))
    file = tmp_path / "set.safetensors"
    summary = command(capsys, "import-set", tmp_path / "s", "digits", "--out", file, "--lr", 0.02)
    assert summary["step_size"] == 0.02
    assert load(file).lr == 0.02
    out = command(capsys, "export", file, "--out", tmp_path / "t", "--to", "datm")
    assert out["files"] == 5
    assert describe(str(tmp_path / "t/images_best.pt"))["shape"] == [10, 1, 8, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import-set", "{0}", "digits", "--out", "{0}/x.pt", "--lr", "0.1"], "ends in .safetensors"),
        (["export", "{0}/nothing", "--out", "{0}/x"], "does not exist"),
        (["import-experts", "{0}", "digits", "--out", "{0}/x"], "no file called"),
    ],
)
def test_mistakes_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main([word.format(tmp_path) for word in words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
