"""JSON files: whole or absent, and refused in one sentence where they are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusals import assert_refused

from limbeck.core import files
from limbeck.core.errors import UserError, WriteError
from limbeck.core.files import read_json, write_atomically, write_folder, write_json
from limbeck.core.tensors import write_tensors

HEADER = {"format": "limbeck-test", "version": 1, "note": "ä"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_nothing_and_harms_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write(path: Path) -> None:
        path.write_text("half a fi")
        raise error

    for before in (None, "as it was"):
        if before is not None:
            (tmp_path / "a.txt").write_text(before)
        with pytest.raises(error):
            write_atomically(tmp_path / "a.txt", write)
        assert [file.read_text() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_file_appears_whole_and_can_be_read_by_others(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    existed: list[bool] = []

    def write(path: Path) -> None:
        path.write_text("all of it")
        existed.append((tmp_path / "new" / "a.txt").exists())

    write_atomically(tmp_path / "new" / "a.txt", write)
    assert existed == [False]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new" / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_comes_back(tmp_path: Path) -> None:
    value = {**HEADER, "numbers": [0.1, 1e-300, 3], "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", "limbeck-test") == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_not_written(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": number})
    with pytest.raises(ValueError, match="JSON"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {**HEADER, "a": number})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", [None, b"", b"{", b"[1]", b"\xff\xfe", b'{"format": "other"}', b'{"format": "limbeck-test"}']
)
def test_json_that_is_not_ours_is_refused(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_bytes(text)
    assert_refused(lambda: read_json(tmp_path / "a.json", "limbeck-test"), "a.json")


def test_a_folder_that_is_gone_is_not_made_again_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="bring its folder back"):
        write_json(tmp_path / "gone/run.json", {})
    assert not (tmp_path / "gone").exists()


def test_a_folder_that_another_process_fills_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty when it is looked at, and full when it is replaced."""
    (tmp_path / "out").mkdir()
    check = files.require_new_folder

    def look_and_fill(path: Path, meaning: str) -> None:
        check(path, meaning)
        (path / "theirs").write_text("of another process")

    monkeypatch.setattr(files, "require_new_folder", look_and_fill)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        write_folder(tmp_path / "out", lambda folder: (folder / "ours").write_text("of this process"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]


def test_a_record_that_another_process_writes_meanwhile_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_first(path: Path, remedy: str = "") -> None:
        (path / "store.json").write_text("{}")

    assert not files.has_record(tmp_path, "store.json", "a store")
    monkeypatch.setattr(files, "require_writable", write_first)
    assert files.has_record(tmp_path, "store.json", "a store")
    with pytest.raises(UserError, match="exists and is not a run"):
        files.has_record(tmp_path, "run.json", "a run")
