"""How data is read is said alike to every command that reads data, and to the functions behind them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import EXPERTS, TINY, picture

from limbeck.cli.commands import COMMANDS, find_command
from limbeck.cli.common import Reading
from limbeck.data.images import READING

SMALL = ["--method", "kmeans", "--model.width", "4", *TINY[-8:]]
READERS = [name for name in COMMANDS if issubclass(find_command(name).options, Reading)]


@pytest.fixture
def later(tmp_path: Path) -> Path:
    for seed in range(20, 26):
        picture(tmp_path / "sent later" / ("cat", "dog")[seed % 2] / f"{seed}.png", seed=seed)
    return tmp_path / "sent later"


def test_the_options_are_the_keywords_of_load_data() -> None:
    assert set(Reading.model_fields) == set(READING)
    assert {"distill", "estimate", "doctor", "experts", "evaluate", "info", "inspect"} <= set(READERS)


def test_a_run_is_distilled_and_evaluated_on_test_images_of_their_own(
    limbeck: Any, folder: Path, later: Path, tmp_path: Path
) -> None:
    words = ["--test", later, "--validation", 0.2, "--resize", "8x10", "--resize-mode", "pad"]
    run = tmp_path / "run"
    first = limbeck("distill", folder, *SMALL, *words, "--out", run, "--json")
    assert first.status == 0, first.err
    record = json.loads((run / "run.json").read_text())
    assert [sum(record["data"]["counts"][split]) for split in ("train", "validation", "test")] == [16, 4, 6]
    assert record["data"]["shape"] == [1, 8, 10]
    assert limbeck("distill", folder, *SMALL, *words, "--out", run).status == 0, "the same command finds it again"
    other = limbeck("distill", folder, *SMALL, *words[:2], "--resize", "8x10", "--out", run)
    assert (other.status, "holds a run on other images or splits" in other.err) == (2, True), other.err
    assert limbeck("evaluate", run, "--num-networks", 1, "--epochs", 1).status == 0, "it remembers how to read"


def test_info_and_doctor_end_with_the_same_next_command(limbeck: Any, folder: Path, later: Path) -> None:
    words = ["--test", later, "--validation", "0.2", "--resize=8x10"]
    following = f"next: limbeck distill {folder} --test '{later}' --validation 0.2 --resize=8x10"
    info = limbeck("info", folder, "--picture", later.parent / "x.png", *words, "--near-duplicates=no")
    assert info.out.splitlines()[-1] == following
    doctor = limbeck("doctor", folder, "--near-duplicates", "no", *words, *EXPERTS[:4])
    assert doctor.out.splitlines()[-1] == f"{following} {shlex.join(EXPERTS[:4])}"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--resize", "32x"], "--resize is pixels a side, or HEIGHTxWIDTH, not '32x'; give, say, 32 or 32x48"),
        (["--resize", "0"], "--resize is pixels a side"),
        (["--validation", "1.5"], "--validation is a fraction of train below 1, or a folder, not 1.5"),
        (["--validation", "no such folder"], "--validation no such folder: there is no such folder"),
        (["--test", "no such folder"], "--test no such folder: there is no such folder"),
        (["--resize-mode", "pad"], "--resize-mode pad needs --resize"),
    ],
)
def test_refusals_name_the_option(refused: Any, folder: Path, words: list[str], parts: str) -> None:
    assert parts in refused("info", folder, *words)
