"""What a job will take: what is counted and what is not, that nothing is written, and that results stay the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck import EvalConfig, ExpertConfig, ModelConfig, UserError
from limbeck.cli.common import Foretell
from limbeck.cli.main import main
from limbeck.core.folders import size_of
from limbeck.core.rng import derive_seed
from limbeck.evaluation.baselines import kept_row
from limbeck.experts.make import default_store, describe_experts
from limbeck.jobs.estimate import Account, build, estimate, missing_experts, rhythm
from limbeck.jobs.job import Work, prepare, run_folder
from limbeck.jobs.rehearsal import StandIn, fewer, stand_ins
from limbeck.jobs.stopwatch import Estimate, Piece, measure
from limbeck.methods import METHODS
from limbeck.objectives.pool import Ageing
from limbeck.task import Task

SMALL: dict[str, Any] = {
    "ipc": 1,
    "model": ModelConfig(width=4),
    "eval": EvalConfig(networks=2, epochs=8, baseline_lrs=(0.01, 0.03), full_epochs=1, full_networks=1),
    "validate_networks": 1,
    "validate_epochs": 4,
}
TRAJECTORY: dict[str, Any] = {"count": 2, "expert": ExpertConfig(epochs=2, lr=0.05), "iterations": 6, "syn_steps": 2}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for every test, but for what was compiled once."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("limbeck.jobs.stopwatch.QUICK", 0.0)  # as little time as it does with
    return tmp_path / "home"


def work_of(method: str = "mct", **options: Any) -> Work:
    trajectory = TRAJECTORY if METHODS[method].experts else {}
    own = {"iterations": 4} if "iterations" in METHODS[method].config.model_fields else {}
    common = {name: value for name, value in trajectory.items() if name in ("count", "expert") or method == "mct"}
    return prepare("digits", method=method, **{**SMALL, **own, **common, **options})


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, without compiled code."""
    found = (path for path in folder.rglob("*") if path.is_file() and "kernels" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# --- the words


def test_an_estimate_says_what_it_holds() -> None:
    made = Estimate(
        {"experts": 360.0, "distill": 120.0, "evaluate": 240.0, "report": 1.5}, 615_000_000, None, 18_200_000
    )
    assert made.text == (
        "about 12 min (experts 6.0 min, distillation 2.0 min, evaluation 4.0 min), 0.6 GB of memory, 18 MB of disk"
    )
    told = made.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["seconds"] == 721.5
    assert told["stages"] == made.seconds
    assert (told["memory_bytes"], told["device_bytes"], told["disk_bytes"]) == (615_000_000, None, 18_200_000)
    assert Estimate({"experts": 3.0}, None, 2e9, 0).text == "about 3 s, 2.0 GB on the GPU, 0.0 MB of disk"


# --- the stopwatch


def piece(seconds: list[float], times: float, workers: int = 1) -> Piece:
    made = Piece(lambda: lambda: None, workers, torch.device("cpu"))
    made.seconds, made.uses = seconds, {"stage": times}
    return made


def test_the_first_call_warms_up_and_outliers_do_not_count() -> None:
    assert piece([9.0], 1).once() == 9.0
    assert piece([9.0, 1.0], 1).once() == 1.0
    assert piece([9.0, 1.0, 1.0, 2.0, 50.0], 1).once() == 1.5
    assert piece([9.0, 1.0, 1.0, 1.0], 100).doubt() == 0
    assert piece([9.0, 1.0], 100).doubt() == 50  # half of what it amounts to: measure it again


def test_pieces_at_work_at_the_same_time_are_timed_so() -> None:
    calls: list[int] = []

    def make() -> Any:
        number = len(calls)
        calls.append(0)

        def call() -> None:
            calls[number] += 1

        return call

    made = Piece(make, 3, torch.device("cpu"))
    made.run()
    assert calls == [1, 1, 1]
    more = made.repeats  # of so short a call
    made.run()
    assert calls == [1 + more] * 3


def test_what_matters_most_is_timed_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.jobs.stopwatch.QUICK", 0.05)
    made = [piece([], 1000), piece([], 1)]
    measure(made, lambda: sum(each.times * each.once() for each in made))
    assert len(made[0].seconds) > len(made[1].seconds) >= 1
    measure([], lambda: 0.0)


# --- what is counted


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("untouched_generators")
def test_every_method_is_estimated_without_a_trace(method: str, home: Path, tmp_path: Path) -> None:
    work = work_of(method)
    out = run_folder(work, tmp_path / "run")
    found = estimate(work, out)
    stages = {"distill", "evaluate", "report"} | ({"experts"} if METHODS[method].experts else set())
    assert set(found.seconds) == stages
    assert all(took > 0 for took in found.seconds.values())
    assert found.memory is None or found.memory > 1e7
    assert found.disk > 0
    assert files(tmp_path) == {}
    assert not out.exists()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Estimates, and gives how often a stage has how many pieces of each name beside the estimate."""
    seen: list[Account] = []
    real = Account.measure
    monkeypatch.setattr(Account, "measure", lambda account: (seen.append(account), real(account))[1])

    def call(work: Work, path: Path) -> tuple[Estimate, dict[tuple[str, str], float]]:
        found = estimate(work, path)
        pieces = seen[-1].pieces.items()
        return found, {(stage, name): times for (name, _), held in pieces for stage, times in held.uses.items()}

    return call


def test_what_is_there_is_not_counted(counted: Any, tmp_path: Path) -> None:
    work, out = work_of(), tmp_path / "run"
    before, all_of_it = counted(work, out)
    assert missing_experts(work) == 2
    # 1295 images in batches of 256 and 64, 10 synthetic ones in one; 3 x 2 networks to tune and test random, and kmeans
    expected = {
        ("experts", "expert, True"): 2 * 2 * 5,
        ("experts", "expert, 15"): 2 * 2,
        ("distill", "step"): 6,
        ("distill", "set, 10"): 4 * 7,
        ("evaluate", "set, 10"): 8 * 2 * 1.5,
        ("evaluate", "real, 10"): 8 * 2 * 3 * 2,
        ("evaluate", "full, True"): 20,
        ("evaluate", "full, 15"): 1,
    }
    assert {key: all_of_it[key] for key in expected} == expected

    limbeck.distill("digits", out=out, **SMALL, **TRAJECTORY)
    assert missing_experts(work) == 0
    where = [
        kept_row(work.task, name, work.config.ipc, work.config.eval, 0)[0] for name in ("random", "kmeans", "full")
    ]
    assert all(path.exists() for path in where)
    kept = files(tmp_path)
    after, left = counted(work, tmp_path / "other")  # the experts and the baselines are there, the run is not
    assert {key: left.get(key, 0) for key in expected if "expert, " in key[1] or key[1][:4] in ("real", "full")} == {
        key: 0 for key in expected if "expert, " in key[1] or key[1][:4] in ("real", "full")
    }
    assert {key: left[key] for key in expected if key[1] in ("step", "set, 10")} == {
        key: held for key, held in expected.items() if key[1] in ("step", "set, 10")
    }
    store = default_store(describe_experts(work.task, work.config.expert, 0))
    assert before.disk - after.disk == pytest.approx(size_of(store), rel=0.2)
    _, rest = counted(work, out)  # everything but the report is there
    assert rest == {}
    assert files(tmp_path) == kept


def test_a_run_that_was_cut_short_has_fewer_steps_left(counted: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"

    class Stop(Exception):
        pass

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "validate" and event["step"] == 40:
            raise Stop

    options = {**SMALL, **TRAJECTORY, "iterations": 50, "validate_every": 10}
    with pytest.raises(Stop):
        limbeck.distill("digits", out=out, listen=listen, **options)
    _, left = counted(prepare("digits", **options), out)
    assert left["distill", "step"] == 20  # the state of step 30 was the last that was saved
    assert left["distill", "set, 10"] == 2 * 4
    assert ("evaluate", "set, 10") in left


def test_a_named_store_has_nothing_to_train(tmp_path: Path, digits: Any) -> None:
    store = limbeck.train_experts(
        "digits", out=tmp_path / "store", count=1, model=SMALL["model"], expert=ExpertConfig(epochs=2)
    )
    work = prepare("digits", experts=store.path, **SMALL, iterations=4)
    assert missing_experts(work) == 0
    assert estimate(work, tmp_path / "run").disk < size_of(store.path) + 200_000


@pytest.mark.parametrize(
    "config",
    [
        {"keep": "convex"},
        {"keep": "convex", "waypoints": 4, "smoothing": "mct"},
        {"keep": "recorded"},
        {"keep": "both", "dtype": "float16", "waypoints": 3},
        {"keep": "both", "waypoint_at": (0, 1, 4)},
        {"form": "bezier"},
    ],
    ids=str,
)
def test_bytes_of_experts(config: dict[str, Any], tmp_path: Path) -> None:
    expert = ExpertConfig(epochs=4, **config)
    heard: list[Estimate] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "begin":
            heard.append(estimate(event["work"], event["path"]))

    store = limbeck.train_experts(
        "digits", out=tmp_path / "store", count=2, model=SMALL["model"], expert=expert, listen=listen
    )
    (found,) = heard
    assert found.disk == pytest.approx(store.bytes_of(store.indices()), rel=0.2)
    assert set(found.seconds) == {"experts"}


@pytest.mark.parametrize("method", ["mct", "herding"])
def test_it_agrees_with_a_real_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a generous factor, and in processor time: other processes may be at work."""

    class ProcessorTime:
        perf_counter = staticmethod(time.process_time)

    for module in ("stopwatch", "estimate"):
        monkeypatch.setattr(f"limbeck.jobs.{module}.time", ProcessorTime)
    long = {**SMALL, "eval": EvalConfig(networks=2, epochs=60, full_epochs=1, full_networks=1), "validate_epochs": 30}
    work, out = work_of(method, **long), tmp_path / "run"
    found = estimate(work, out)
    own = {"iterations": 6, "syn_steps": 2} if method == "mct" else {}
    start = time.process_time()
    limbeck.distill("digits", method=method, out=out, count=2, expert=work.config.expert, **long, **own)
    assert 0.25 < found.total / (time.process_time() - start) < 4
    written = size_of(out) + sum(size_of(store) for store in (tmp_path / "home").glob("experts/*"))
    assert 0.5 < found.disk / written < 2


# --- its parts


def test_jobs_at_the_same_time_count_in_rounds(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "max_workers", 2)
    account = Account(task)
    account.add("a", "one", lambda: lambda: None, 10, jobs=5, groups=3)
    account.add("b", "one", lambda: lambda: None, 10, jobs=2)
    account.add("b", "none", lambda: lambda: None, 0, jobs=5)
    account.add("b", "one", lambda: lambda: None, 10, jobs=1)
    assert {key: held.uses for key, held in account.pieces.items()} == {
        ("one", 2): {"a": 90.0, "b": 10.0},
        ("one", 1): {"b": 10.0},
    }


def test_batches_of_an_epoch_are_whole_ones_and_a_rest(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    account = Account(task)
    schedule = EvalConfig(batch_size=128).schedule(0.01, 7)
    account.train("a", "set", task.train, schedule, 1)  # 300 images: 128, 128, 44
    assert {key: held.times for key, held in account.pieces.items()} == {("set, True", 1): 14.0, ("set, 44", 1): 7.0}


def test_a_stand_in_answers_as_an_expert_does(task: Task) -> None:
    first, second = stand_ins(task, 5, 0)
    assert first.at(0).equal(first.start)
    assert first.at(5).equal(first.stop)
    assert isinstance(first, StandIn)
    assert (first.first_use, second.first_use) != (None, None)
    assert second.first_use is None
    assert second.end == 5


def test_a_plan_that_takes_long_is_of_fewer_images(task: Task) -> None:
    part = fewer(task, 5)
    assert part.data.train.counts(10) == [5] * 10
    assert part.preprocess is task.preprocess
    work = work_of("forgetting")
    small, all_of_it = build(work, 0.0), build(work, 1e9)
    assert small[2] > 1
    assert all_of_it[2] == 1


def test_a_hook_that_does_more_now_and_then_is_timed_apart(task: Task) -> None:
    network = Ageing(task.model, lambda number: task.model.fresh(number), 10)
    assert rhythm(network) == 10
    assert rhythm(lambda synthetic, step, loss: None) == 1


# --- the command line


WORDS = ["--model.width", "4", "--count", "1", "--expert.epochs", "2", "--iterations", "4", "--syn-steps", "2"]
WORDS += ["--validate-networks", "1", "--validate-epochs", "2", "--eval.epochs", "2", "--eval.networks", "1"]
WORDS += ["--eval.full-epochs", "1", "--eval.full-networks", "1"]


def call(*words: object, status: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == status


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("estimate", "digits", *WORDS)
    told = capsys.readouterr()
    assert told.out.startswith("about ")
    assert told.out.rstrip().endswith("of disk")
    assert told.err == ""
    call("estimate", "digits", *WORDS, "--json")
    found = json.loads(capsys.readouterr().out)
    assert list(found["stages"]) == ["start", "experts", "distill", "evaluate", "report"]
    assert found["seconds"] == pytest.approx(sum(found["stages"].values()), abs=0.1)
    call("estimate", "digits", "--method", "dream", "--factor", "2", *WORDS[6:8], *WORDS[10:], "--json")
    assert "experts" not in json.loads(capsys.readouterr().out)["stages"]
    assert files(tmp_path) == {}


@pytest.mark.parametrize("words", [["--ipc", "0"], ["--method", "nope"], ["--init", "forgetting", "--method", "dream"]])
def test_the_command_refuses_what_distill_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call("estimate", "digits", *words, status=2)
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)


def test_long_commands_say_first_how_long(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    call("distill", "digits", *WORDS, "--out", first)
    assert "\nabout " in capsys.readouterr().err.split("experts:")[0]  # after how derivatives are computed
    call("distill", "digits", *WORDS, "--out", first)  # nothing is left to do
    assert "about " not in capsys.readouterr().err
    call("evaluate", first)
    assert "about " in capsys.readouterr().err[:120]  # after how derivatives are computed, where that is said
    call("experts", "digits", "--model.width", "4", "--count", "1", "--epochs", "2", "--out", tmp_path / "store")
    assert "about " in capsys.readouterr().err[:120]  # after how derivatives are computed, where that is said
    call("experts", "digits", "--model.width", "4", "--count", "1", "--epochs", "2", "--out", tmp_path / "store")
    assert "about " not in capsys.readouterr().err

    call("distill", "digits", *WORDS, "--out", second, "--no-estimate")
    assert "about " not in capsys.readouterr().err.splitlines()[0]
    for name in ("set-last.safetensors", "set-chosen.safetensors", "previews/last.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    call("evaluate", first, "--no-estimate", "--json")
    told = capsys.readouterr()
    assert not told.err.startswith("about ")
    call("evaluate", first, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(told.out)


def test_results_are_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, baselines, losses and sets, each made anew: bit for bit."""
    made = []
    for name, more in (("with", []), ("without", ["--no-estimate"])):
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / name / "home"))
        call("distill", "digits", *WORDS, "--out", tmp_path / name / "run", *more)
        kept = files(tmp_path / name)
        log = [json.loads(line) for line in kept["run/log.jsonl"].decode().splitlines()]
        steps = [(line["step"], line["loss"], line["lr"]) for line in log if line["event"] == "step"]
        same = {file: held for file, held in kept.items() if file.endswith((".safetensors", ".png"))}
        same |= {file: held for file, held in kept.items() if "home" in file and file.endswith(".json")}
        same.pop("run/state.safetensors")  # it holds the seconds
        made.append((steps, same))
    assert made[0][0] == made[1][0]
    assert {file for file in made[0][1] if made[0][1][file] != made[1][1].get(file)} == set()
    assert len(made[0][1]) >= 9


def test_an_estimate_that_fails_does_not_stop_the_work() -> None:
    heard: list[dict[str, Any]] = []
    foretell = Foretell(heard.append)

    def fail() -> Estimate:
        raise UserError("no")

    foretell.tell(fail)
    assert heard == []
    foretell.tell(lambda: Estimate({}, 1, None, 0))  # nothing to do, nothing to say
    assert heard == []
    foretell.tell(lambda: Estimate({"evaluate": 2.0}, 1, None, 0))
    foretell({"event": "advance"})
    assert [event["event"] for event in heard] == ["estimate", "advance"]
    assert derive_seed(0, "estimate") != derive_seed(0, "expert")
