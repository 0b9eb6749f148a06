"""Jobs of several processes that cannot work are refused, and one process speaks for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from limbeck import METHODS, UserError
from limbeck.cli.main import main
from limbeck.core.distributed import RankLostError, Ranks
from limbeck.core.launch import Launch
from limbeck.jobs.ranks import own_folder, require_same_job, share_draws
from limbeck.objectives.combine import Average
from limbeck.task import Task

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


@pytest.fixture
def _second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("limbeck.cli.processes.SECONDS", 0)
    monkeypatch.setattr("limbeck.cli.processes.signal.signal", lambda number, handler: None)


def test_the_environment_of_torchrun_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "3")  # as other launchers do
    assert Launch.of_environment() == Launch(0, 1, 0)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert Launch.of_environment() == Launch(1, 2, 1)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UserError, match="not all whole numbers"):
        Launch.of_environment()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_item_is_one_rank_s(size: int) -> None:
    shares = [Ranks(rank, size).share(range(7)) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_has_a_gpu_of_its_own() -> None:
    assert Ranks().device("cuda:3") == "cuda:3"
    assert [Ranks(rank, 4, rank % 2).device("cuda") for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Ranks(1, 2, 1).device("cpu") == "cpu"
    with pytest.raises(UserError, match="write --device cuda, not cuda:0"):
        Ranks(1, 2, 1).device("cuda:0")


def test_draws_are_shared_evenly_or_refused() -> None:
    two, mct = Ranks(0, 2), METHODS["mct"]
    assert share_draws(mct, two, {"ipc": 1}) == {"ipc": 1, "grad_accum": 2}
    assert share_draws(mct, two, {"grad_accum": 4}) == {"grad_accum": 4}
    assert share_draws(mct, Ranks(), {"ipc": 1}) == {"ipc": 1}
    assert share_draws(METHODS["random"], two, {}) == {}
    with pytest.raises(UserError, match="2 processes cannot share --grad-accum 3 evenly"):
        share_draws(mct, two, {"grad_accum": 3})
    with pytest.raises(UserError, match="the outer steps of dm cannot be shared by 2 processes"):
        share_draws(METHODS["dm"], two, {})
    with pytest.raises(ValueError, match="cannot be shared evenly"):
        Average(lambda synthetic, step, seed: synthetic.images.sum(), 3, two)


@dataclass(frozen=True)
class Echo(Ranks):
    """The first of two ranks, of which the other one agrees but in one thing."""

    size: int = 2
    differs: str = "nothing"

    def gather_json(self, value: Any) -> list[Any]:
        return [value, {name: "another" if name == self.differs else key for name, key in value.items()}]


@pytest.mark.parametrize("what", ["the options or the data", "what computes them", "the files of the run"])
def test_ranks_that_do_another_job_are_refused(what: str, task: Task, tmp_path: Path) -> None:
    require_same_job(replace(task, ranks=Echo()), {"ipc": 1}, tmp_path)
    with pytest.raises(UserError, match=f"rank 1 does not agree with rank 0 about {what}"):
        require_same_job(replace(task, ranks=Echo(differs=what)), {"ipc": 1}, tmp_path)


def test_only_the_first_rank_works_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("{}\n")
    monkeypatch.setattr(Ranks, "barrier", lambda ranks: None)
    with own_folder(Ranks(0, 2), run) as place:
        assert place == run
    with own_folder(Ranks(1, 2), run) as place:
        assert place.name == "run"
        assert (place / "log.jsonl").read_text() == "{}\n"
        (place / "log.jsonl").write_text("another\n")
    assert (run / "log.jsonl").read_text() == "{}\n"
    assert not place.exists()


@pytest.mark.usefixtures("_second_of_two")
def test_commands_that_cannot_share_their_work_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["methods"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("limbeck (rank 1): torchrun starts 'limbeck distill'")


@pytest.mark.usefixtures("_second_of_two")
def test_what_all_ranks_would_say_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "digits", "another"])
    assert capsys.readouterr() == ("", "")

    def lose(device: str) -> Any:
        raise RankLostError("another process ended")

    monkeypatch.setattr("limbeck.cli.distill.join_ranks", lose)
    for rank, err in (("1", "limbeck (rank 1): another process ended\n"), ("2", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            main(["distill", "digits"])
        assert end.value.code == 1
        assert capsys.readouterr() == ("", err)
