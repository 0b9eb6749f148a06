"""The campaigns of `make torture`, shortened: a few attempts of each kind, and the faults that they have to find."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from torture import campaigns, faults
from torture.__main__ import Readers
from torture.readers import Outcome
from torture.replay import Undisturbed, run_undisturbed
from torture.sandbox import make_materials

Cases = Callable[[str], Undisturbed]


@pytest.fixture(scope="module")
def materials(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_materials(tmp_path_factory.mktemp("materials"))


@pytest.fixture(scope="module")
def cases(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """A command that was run undisturbed, by its name."""
    ready: dict[str, Undisturbed] = {}

    def case(name: str) -> Undisturbed:
        if name not in ready:
            ready[name] = run_undisturbed(name, tmp_path_factory.mktemp("cases") / name, materials)
        return ready[name]

    return case


@pytest.mark.parametrize(
    ("name", "count"),
    [("distill", 4), ("experts", 4), ("convexify", 3), ("evaluate", 2), ("import-experts", 3), ("export", 2)],
)
def test_a_command_that_is_killed_goes_on_to_the_same_bits(name: str, count: int, cases: Cases) -> None:
    assert campaigns.kill_everywhere(cases(name), count).run() == (count, [])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_is_a_sentence_and_loses_nothing(error: int, cases: Cases) -> None:
    assert campaigns.fail_everywhere(cases("experts"), error, 3).run() == (3, [])


def test_a_disk_that_is_full_is_a_sentence_and_loses_nothing(cases: Cases, tmp_path: Path) -> None:
    """A file system in memory that has too few bytes for a distillation, and one that has too few files."""
    try:
        campaign = campaigns.fill_disk(cases("distill"), tmp_path / "disk", 6)
    except (PermissionError, FileNotFoundError):
        pytest.skip("only root on Linux mounts a file system in memory")
    assert [attempt() for attempt in campaign.attempts[1::3]] == [None, None]


def test_a_folder_that_vanishes_is_not_made_again(cases: Cases) -> None:
    for name, count in (("experts", 6), ("distill", 6)):
        assert campaigns.vanish_everywhere(cases(name), count).run() == (count, [])


def test_a_signal_is_a_sentence_and_loses_nothing(cases: Cases) -> None:
    assert campaigns.stop_by_signals(cases("experts"), 3, random.Random(0)).run() == (3, [])


@pytest.mark.parametrize("campaign", [campaigns.two_on_one_store, campaigns.two_on_one_cache])
def test_two_at_once(campaign: Callable[..., campaigns.Campaign], materials: Path, tmp_path: Path) -> None:
    assert campaign(tmp_path / "sandbox", materials, 1).run() == (1, [])


def test_a_flipped_bit_is_not_believed(materials: Path, tmp_path: Path) -> None:
    assert campaigns.flip_bits(tmp_path / "sandbox", materials, 3).run() == (3, [])


def test_a_reader_that_dies_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome("set", 3, 1, ["2: took over 30 s"], {"1 x KeyError at x.py:1 f": "case 0"}, 1.0)
    monkeypatch.setattr("torture.__main__.attack", lambda *arguments: outcome)
    attempts, wrongs = Readers("set", 3, tmp_path).run()
    assert (attempts, wrongs) == (3, ["died in case 2: took over 30 s", "1 x KeyError at x.py:1 f: case 0"])


def test_the_campaigns_find_faults_that_are_put_in(cases: Cases, materials: Path, tmp_path: Path) -> None:
    killed = campaigns.kill_everywhere(cases("experts"), 20)
    with faults.skip_rename():
        assert any(attempt() for attempt in killed.attempts)
    with faults.ignore_checksum():
        assert campaigns.flip_bits(tmp_path / "bits", materials, 1).run()[1]
    with faults.drop_locks():
        assert campaigns.two_on_one_store(tmp_path / "store", materials, 1).run()[1]
