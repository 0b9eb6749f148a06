"""--out where nothing can be written: one sentence and status 2 from every command that has the option."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import EXPERTS, TINY

import limbeck as limbeck_package
from limbeck.cli.commands import COMMANDS, find_command
from limbeck.core.text import shorten_path

WITH_OUT = [name for name in COMMANDS if "out" in find_command(name).options.model_fields]


def required_words(command: str) -> list[str]:
    """A word for every argument that the command cannot do without, beside --out."""
    fields = find_command(command).options.model_fields
    return ["digits" for name, field in fields.items() if field.is_required() and name not in ("out", "settings")]


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file" / "new" / "out"


def below_a_broken_link(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nowhere")
    return folder / "link" / "out"


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "below a file": (below_a_file, "file is a file, so"),
    "below a broken link": (below_a_broken_link, "link is a link to nothing"),
    "a broken link": (lambda folder: below_a_broken_link(folder).parent, "link is a link to nothing"),
    "a name that is too long": (lambda folder: folder / ("x" * 300), "file name too long"),
    "a name that is too long in bytes": (lambda folder: folder / ("ä" * 200), "file name too long"),
    "such a name in a new folder": (lambda folder: folder / "new" / ("x" * 300) / "out", "file name too long"),
    "a path that is too long": (lambda folder: folder.joinpath(*["x" * 200] * 30), "file name too long"),
}
if sys.platform == "linux":
    PLACES["/proc"] = lambda folder: Path("/proc/new/out"), "/proc/new/out cannot be written to"
    PLACES["below a device"] = lambda folder: Path("/dev/null/out"), "/dev/null is a file, so"
    PLACES["a device"] = lambda folder: Path("/dev/full"), "/dev/full is a device"


def test_the_commands_with_the_option_are_found() -> None:
    assert {"distill", "experts", "convexify", "inspect", "report", "table"} < set(WITH_OUT)
    assert {"import-experts", "import-set", "export"} < set(WITH_OUT)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", WITH_OUT)
def test_a_place_that_cannot_be(command: str, place: str, refused: Any, tmp_path: Path) -> None:
    make, words = PLACES[place]
    out = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    sentence = refused(command, *required_words(command), "--out", out)
    assert words in sentence
    assert "--out" in sentence
    assert len(sentence) <= 300
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC])
@pytest.mark.parametrize("command", WITH_OUT)
def test_a_folder_that_the_system_refuses(
    command: str, number: int, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that is read-only, somebody else's folder: what tests by root cannot have."""

    def refuse(*args: Any, **options: Any) -> str:
        raise OSError(number, os.strerror(number), "x")

    monkeypatch.setattr("limbeck.core.unfinished._create", refuse)
    for out in (tmp_path, tmp_path / "new" / "out"):
        assert os.strerror(number).lower() in refused(command, *required_words(command), "--out", out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
@pytest.mark.parametrize("words", [["methods"], ["presets", "--json"], ["--help"]], ids=" ".join)
def test_output_that_cannot_be_written_is_a_sentence(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from limbeck.cli.main import main

    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            main(words)
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # where what is left in the buffer goes
    assert end.value.code == 1
    assert capsys.readouterr().err == (
        "limbeck: the output cannot be written (no space left on device); free some space there, and repeat the "
        "command.\n"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root passes permissions")
@pytest.mark.parametrize("command", WITH_OUT)
def test_a_folder_without_permission(command: str, refused: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "permission denied" in refused(command, *required_words(command), "--out", tmp_path / "new")
    finally:
        tmp_path.chmod(0o700)


TAKES_FILE = {"table", "report", "import-set"}


@pytest.mark.parametrize("command", sorted(set(WITH_OUT) - TAKES_FILE - {"import-experts", "demo", "doctor"}))
def test_a_file_where_a_folder_is_to_be(command: str, artifacts: dict[str, Path], refused: Any, tmp_path: Path) -> None:
    words: dict[str, list[Any]] = {
        "distill": ["digits", *TINY],
        "estimate": ["digits", *TINY],
        "experts": ["digits", *EXPERTS],
        "convexify": [artifacts["recorded"]],
        "inspect": [artifacts["recorded"]],
        "export": [artifacts["run"]],
    }
    (tmp_path / "file").write_text("mine")
    refused(command, *words[command], "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_where_a_file_is_to_be(artifacts: dict[str, Path], refused: Any, tmp_path: Path) -> None:
    sentence = refused("table", artifacts["run"], "--out", tmp_path)
    assert sentence == f"limbeck: {shorten_path(tmp_path)} cannot be used (is a directory); name another path.\n"


def test_a_finished_run_may_lie_where_nothing_is_written(
    artifacts: dict[str, Path], limbeck: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "x")

    monkeypatch.setattr("limbeck.core.unfinished._create", refuse)
    assert limbeck("distill", "digits", *TINY, "--out", artifacts["run"]).status == 0
    assert limbeck("experts", "digits", *EXPERTS, "--out", artifacts["convex"]).status == 0


def test_python_is_told_the_same(tmp_path: Path) -> None:
    out = below_a_file(tmp_path)
    for call in (limbeck_package.distill, limbeck_package.train_experts, limbeck_package.prepare):
        with pytest.raises(limbeck_package.UserError, match="is a file, so"):
            call("digits", out=out)  # type: ignore[operator]
        with pytest.raises(limbeck_package.UserError, match="file name too long"):
            call("digits", out=tmp_path / ("x" * 300))  # type: ignore[operator]


def test_a_home_that_is_a_file_is_named_as_the_home(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(below_a_file(tmp_path).parent))
    assert "set LIMBECK_HOME to another folder" in refused("distill", "digits", *TINY, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_long_names_that_the_system_allows_can_be_written(
    artifacts: dict[str, Path], limbeck: Any, tmp_path: Path
) -> None:
    out = tmp_path / ("x" * 252 + ".md")
    assert limbeck("table", artifacts["run"], "--out", out).status == 0
    assert out.read_text().startswith("# Results")
