"""What a job will take: what is counted and what is not, that nothing is written, and that results stay the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck import EvalConfig, ExpertConfig, Job, ModelConfig, UserError, estimate, prepare
from limbeck.cli.common import announce
from limbeck.cli.main import main
from limbeck.core.folders import size_of
from limbeck.jobs.estimate import Estimate, estimate_experts
from limbeck.jobs.job import prepare_experts
from limbeck.jobs.rehearsal import StandIn, stand_in, subset
from limbeck.methods import METHODS
from limbeck.task import Task

SMALL: dict[str, Any] = {
    "ipc": 1,
    "model": ModelConfig(width=4),
    "eval": EvalConfig(networks=2, epochs=8, baseline_lrs=(0.01, 0.03), full_epochs=1, full_networks=1),
    "validate_networks": 1,
    "validate_epochs": 4,
}
TRAJECTORY: dict[str, Any] = {
    "num_experts": 2,
    "expert": ExpertConfig(epochs=2, lr=0.05),
    "iterations": 6,
    "syn_steps": 2,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for every test, but for what was compiled once."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def job_of(out: Path, method: str = "mct", **options: Any) -> Job:
    trajectory = TRAJECTORY if METHODS[method].experts else {}
    own = {"iterations": 4} if "iterations" in METHODS[method].config.model_fields else {}
    common = {name: value for name, value in trajectory.items() if name in ("num_experts", "expert") or method == "mct"}
    return prepare("digits", method=method, out=out, **{**SMALL, **own, **common, **options})


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, without compiled code."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "kernels" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_an_estimate_in_words_and_as_json() -> None:
    estimated = Estimate({"experts": 360.0, "distill": 120.0, "evaluate": 240.0}, 18_200_000)
    value = estimated.to_json()
    assert json.loads(json.dumps(value)) == value
    assert (value["seconds"], value["stages"], value["store_bytes"]) == (720.0, estimated.seconds, 18_200_000)
    assert Estimate({"experts": 3.0}).text == "about 3.0 s"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("untouched_generators")
def test_every_method_is_estimated_without_a_trace(method: str, tmp_path: Path) -> None:
    estimated = estimate(job_of(tmp_path / "run", method))
    assert set(estimated.seconds) == {"distill", "evaluate"} | ({"experts"} if METHODS[method].experts else set())
    assert all(seconds > 0 for seconds in estimated.seconds.values())
    assert (estimated.store_bytes > 0) == bool(METHODS[method].experts)
    assert files(tmp_path) == {}


def test_what_is_there_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every call takes a second, so that the load of the machine is no part of it."""
    monkeypatch.setattr("limbeck.jobs.estimate._seconds", lambda call, device: 1.0)
    out = tmp_path / "run"
    before = estimate(job_of(out))
    limbeck.distill("digits", out=out, **SMALL, **TRAJECTORY)
    content = files(tmp_path)
    after = estimate(job_of(tmp_path / "other"))  # the experts and the baselines are there, the run is not
    assert after.seconds["experts"] == 0
    assert 0 < after.seconds["evaluate"] < before.seconds["evaluate"]
    (store,) = (tmp_path / "home" / "experts").iterdir()
    assert before.store_bytes - after.store_bytes == pytest.approx(size_of(store), rel=0.2)
    assert estimate(job_of(out)) == Estimate({})
    longer = estimate(job_of(out, iterations=600)).seconds["distill"]
    assert longer > 10 * estimate(job_of(out, iterations=12)).seconds["distill"] > 0
    again = estimate(job_of(out, eval=SMALL["eval"].model_copy(update={"epochs": 9})))
    assert set(again.seconds) == {"evaluate"}
    assert files(tmp_path) == content


def test_a_named_store_has_nothing_to_train(tmp_path: Path) -> None:
    store = limbeck.train_experts(
        "digits", out=tmp_path / "store", num_experts=1, model=SMALL["model"], expert=ExpertConfig(epochs=2)
    )
    estimated = estimate(prepare("digits", experts=store.path, out=tmp_path / "run", **SMALL, iterations=4))
    assert (estimated.seconds["experts"], estimated.store_bytes) == (0, 0)


@pytest.mark.parametrize(
    "config",
    [
        {"keep": "convex"},
        {"keep": "convex", "waypoints": 4, "smoothing": "mct"},
        {"keep": "recorded"},
        {"keep": "both", "dtype": "float16", "waypoints": 3},
        {"keep": "both", "waypoint_at": (0, 1, 4)},
    ],
    ids=str,
)
def test_bytes_of_experts(config: dict[str, Any], tmp_path: Path) -> None:
    options = {"out": tmp_path / "store", "num_experts": 2, "model": SMALL["model"]}
    experts = prepare_experts("digits", expert=ExpertConfig(epochs=4, **config), **options)
    estimated = estimate_experts(experts)
    store = experts.train(lambda event: None)
    assert estimated.store_bytes == pytest.approx(store.bytes_of(store.indices()), rel=0.2)
    assert set(estimated.seconds) == {"experts"}


@pytest.mark.parametrize("method", ["mct", "herding"])
def test_it_agrees_with_a_real_run(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a generous factor, and in processor time: other processes may be at work."""

    class ProcessorTime:
        perf_counter = staticmethod(time.process_time)

    monkeypatch.setattr("limbeck.jobs.estimate.time", ProcessorTime)
    long = {**SMALL, "eval": EvalConfig(networks=2, epochs=60, full_epochs=1, full_networks=1), "validate_epochs": 30}
    job = job_of(tmp_path / "run", method, **long)
    estimated = estimate(job)
    start = time.process_time()
    limbeck.run(job)
    assert 0.25 < estimated.total / (time.process_time() - start) < 4


def test_a_stand_in_answers_as_an_expert_does(task: Task) -> None:
    first = stand_in(task, 5, 0)
    assert first.at(0).equal(first.start)
    assert first.at(5).equal(first.stop)
    assert isinstance(first, StandIn)
    assert first.end == 5
    part = subset(task, 5)
    assert part.data.train.counts(10) == [5] * 10
    assert part.preprocess is task.preprocess


# --- the command line


WORDS = ["--model.width", "4", "--num-experts", "1", "--expert.epochs", "2", "--iterations", "4", "--syn-steps", "2"]
WORDS += ["--validate-networks", "1", "--validate-epochs", "2", "--eval.epochs", "2", "--eval.networks", "1"]
WORDS += ["--eval.full-epochs", "1", "--eval.full-networks", "1"]


def call(*words: object, status: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == status


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("estimate", "digits", *WORDS)
    captured = capsys.readouterr()
    assert captured.out.startswith("about ")
    assert captured.err == ""
    call("estimate", "digits", *WORDS, "--json")
    value = json.loads(capsys.readouterr().out)
    assert list(value["stages"]) == ["experts", "distill", "evaluate"]
    assert value["seconds"] == pytest.approx(sum(value["stages"].values()), abs=0.1)
    call("estimate", "digits", "--method", "dream", "--factor", "2", *WORDS[6:8], *WORDS[10:], "--json")
    assert "experts" not in json.loads(capsys.readouterr().out)["stages"]
    assert files(tmp_path) == {}


@pytest.mark.parametrize("words", [["--ipc", "0"], ["--method", "nope"], ["--init", "forgetting", "--method", "dream"]])
def test_the_command_refuses_what_distill_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call("estimate", "digits", *words, status=2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_long_commands_say_first_how_long(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    call("distill", "digits", *WORDS, "--out", first)
    assert "about " in capsys.readouterr().err.split("experts:")[0]
    call("distill", "digits", *WORDS, "--out", first)  # nothing is left to do
    assert "about " not in capsys.readouterr().err
    call("evaluate", first)
    assert "about " in capsys.readouterr().err[:120]  # after how derivatives are computed, where that is said
    call("experts", "digits", "--model.width", "4", "--num-experts", "1", "--epochs", "2", "--out", tmp_path / "store")
    assert "about " in capsys.readouterr().err[:120]  # after how derivatives are computed, where that is said
    call("experts", "digits", "--model.width", "4", "--num-experts", "1", "--epochs", "2", "--out", tmp_path / "store")
    assert "about " not in capsys.readouterr().err

    call("distill", "digits", *WORDS, "--out", second, "--no-estimate")
    assert "about " not in capsys.readouterr().err.splitlines()[0]
    for name in ("set-last.safetensors", "set-chosen.safetensors", "previews/last.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    call("evaluate", first, "--no-estimate", "--json")
    captured = capsys.readouterr()
    assert not captured.err.startswith("about ")
    call("evaluate", first, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(captured.out)


def test_results_are_the_same_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, baselines, losses and sets, each made anew: bit for bit."""
    results = []
    for name, words in (("with", []), ("without", ["--no-estimate"])):
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / name / "home"))
        call("distill", "digits", *WORDS, "--out", tmp_path / name / "run", *words)
        content = files(tmp_path / name)
        log = [json.loads(line) for line in content["run/log.jsonl"].decode().splitlines()]
        steps = [(line["step"], line["loss"], line["lr"]) for line in log if line["event"] == "step"]
        same = {file: data for file, data in content.items() if file.endswith((".safetensors", ".png"))}
        same |= {file: data for file, data in content.items() if "home" in file and file.endswith(".json")}
        same.pop("run/state.safetensors")  # it holds the seconds
        results.append((steps, same))
    assert results[0][0] == results[1][0]
    assert {file for file in results[0][1] if results[0][1][file] != results[1][1].get(file)} == set()
    assert len(results[0][1]) >= 9


def test_an_estimate_that_fails_does_not_stop_the_work() -> None:
    events: list[dict[str, Any]] = []

    def fail() -> Estimate:
        raise UserError("no")

    announce(fail, events.append)
    announce(lambda: Estimate({}), events.append)  # nothing to do, nothing to say
    assert events == []
    announce(lambda: Estimate({"evaluate": 2.0}), events.append)
    assert [event["event"] for event in events] == ["estimate"]
