"""A few damaged files of each reader that is cheap to ask; `make torture` asks all of them, and more often."""

from __future__ import annotations

from pathlib import Path

import pytest
from torture.image_subjects import IMAGES
from torture.pt_subjects import PT
from torture.readers import Fault, make_template, run_case
from torture.run_subjects import RUNS

CHEAP = ["set", "set-soft", "set-mosaics", "study", "study.toml", "pt-results", "pt-idc", *IMAGES]
CASES = 5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.fixture(autouse=True)
def _home(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(work / "home"))


@pytest.mark.parametrize("name", CHEAP)
def test_damaged_files_are_refused_in_one_sentence(name: str, work: Path) -> None:
    assert name in {**RUNS, **PT, **IMAGES}
    template = make_template(name, work)
    cases = [run_case(name, 0, number, template, work / "case") for number in range(CASES)]
    assert [case for case in cases if case.faults] == []


def test_a_reader_that_fails_is_caught(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> None:
        raise KeyError(text)

    template = make_template("study.toml", work)
    monkeypatch.setattr("limbeck.studies.config.tomllib.loads", fail)
    (fault,) = run_case("study.toml", 0, 0, template, work / "case").faults
    assert isinstance(fault, Fault)
    assert fault.kind.startswith("KeyError at config.py")
