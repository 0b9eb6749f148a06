"""Fixtures of the command line: a call of it in this process, and a run and stores to call it on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import EXPERTS, TINY, Result, picture

from limbeck.cli.main import main


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(autouse=True)
def _home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(shared / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of children


@pytest.fixture
def limbeck(capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls the entry point in this process."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        status: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def refused(limbeck: Any) -> Any:
    """Calls it and expects one sentence and status 2."""

    def call(*words: object, status: int = 2) -> str:
        result = limbeck(*words)
        assert result.status == status, result
        assert result.out == ""
        # another test may compile the kernels at the same time
        lines = [line for line in result.err.splitlines() if not line.startswith("waiting for ")]
        assert lines[0].startswith("limbeck: "), result.err
        assert len(lines) == 1
        return f"{lines[0]}\n"

    return call


def quietly(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 0


@pytest.fixture(scope="session")
def artifacts(shared: Path, _one_thread: None) -> dict[str, Path]:
    """A run, and stores of both kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared / "home"))
        quietly("distill", "digits", *TINY, "--out", shared / "run")
        quietly("experts", "digits", *EXPERTS, "--out", shared / "convex")
        quietly("experts", "digits", *EXPERTS, "--keep", "recorded", "--out", shared / "recorded")
    return {name: shared / name for name in ("run", "convex", "recorded")}


@pytest.fixture
def distill(refused: Any, tmp_path: Path) -> Any:
    """A distillation that is refused and leaves no run."""

    def call(data: object, *words: object) -> str:
        out = tmp_path / "runs" / "never"
        sentence: str = refused("distill", data, *TINY, "--out", out, *words)
        assert not out.parent.exists()
        return sentence

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten images of 8 x 8 pixels."""
    for seed in range(20):
        picture(tmp_path / "pictures" / ("cat", "dog")[seed % 2] / f"{seed:02}.png", seed=seed)
    return tmp_path / "pictures"


@pytest.fixture
def spoiled(artifacts: dict[str, Path], tmp_path: Path) -> Any:
    """Copies of the convex store in which the expert's file is treated by a function."""

    def copy(spoil: Any) -> Path:
        shutil.copytree(artifacts["convex"], tmp_path / "spoiled")
        spoil(next((tmp_path / "spoiled").glob("expert-*")))
        return tmp_path / "spoiled"

    return copy
