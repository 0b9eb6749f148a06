"""Fixtures of tests about whole runs: a home that a module shares, and finished runs to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import distill_minimal, distill_with_baselines
from small_studies import start_here

from limbeck.engines import Local


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the experts and baselines that the tests of a module share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as $LIMBECK_HOME, for child processes of one thread too."""
    monkeypatch.setenv("LIMBECK_HOME", str(shared_home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return shared_home


@pytest.fixture
def own_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as $LIMBECK_HOME instead, where experts and baselines are computed again."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def finished(shared_home: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished minimal run, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared_home))
        return distill_minimal(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def run(shared_home: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with baselines, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared_home))
        return distill_with_baselines(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The orders of a study's child processes, which are carried out in this process."""
    begun: list[dict[str, Any]] = []
    monkeypatch.setattr(Local, "start", start_here(begun))
    return begun
