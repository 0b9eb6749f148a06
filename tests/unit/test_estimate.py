"""Estimates of a job: which stages count, agreement with a run, and that they change no file and no result."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck import EvalConfig, ExpertConfig, Job, ModelConfig, UserError, estimate, prepare
from limbeck.cli.common import announce
from limbeck.cli.main import main
from limbeck.core.folders import size_of
from limbeck.jobs.estimate import Estimate, _seconds, estimate_experts
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
    """An empty home for every test."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_job(out: Path, method: str = "mct", **options: Any) -> Job:
    trajectory = TRAJECTORY if METHODS[method].experts else {}
    if method == "hop-tm":  # needs four waypoints
        trajectory = {**TRAJECTORY, "expert": ExpertConfig(epochs=3, lr=0.05)}
    own = {"iterations": 4} if "iterations" in METHODS[method].config.model_fields else {}
    common = {name: value for name, value in trajectory.items() if name in ("num_experts", "expert") or method == "mct"}
    return prepare("digits", method=method, out=out, **{**SMALL, **own, **common, **options})


def read_files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, without compiled code."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "kernels" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_an_estimate_as_text_and_as_json() -> None:
    estimated = Estimate({"experts": 360.0, "distill": 120.0, "evaluate": 240.0}, 18_200_000)
    value = estimated.to_json()
    assert json.loads(json.dumps(value)) == value
    assert (value["seconds"], value["stages"], value["store_bytes"]) == (720.0, estimated.seconds, 18_200_000)
    assert Estimate({"experts": 3.0}).text == "about 3.0 s"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("untouched_generators")
def test_an_estimate_of_every_method_writes_nothing(method: str, tmp_path: Path) -> None:
    estimated = estimate(make_job(tmp_path / "run", method))
    assert set(estimated.seconds) == {"distill", "evaluate"} | ({"experts"} if METHODS[method].experts else set())
    assert all(seconds > 0 for seconds in estimated.seconds.values())
    assert (estimated.store_bytes > 0) == bool(METHODS[method].experts)
    assert read_files(tmp_path) == {}


def test_stored_experts_and_finished_stages_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock by which every call takes a second, so that the load of the machine does not matter."""
    monkeypatch.setattr("limbeck.jobs.estimate._seconds", lambda call, device: 1.0)
    out = tmp_path / "run"
    before = estimate(make_job(out))
    limbeck.distill("digits", out=out, **SMALL, **TRAJECTORY)
    content = read_files(tmp_path)
    after = estimate(make_job(tmp_path / "other"))  # experts and baselines are stored, the run is new
    assert after.seconds["experts"] == 0
    assert 0 < after.seconds["evaluate"] < before.seconds["evaluate"]
    (store,) = (tmp_path / "home" / "experts").iterdir()
    assert before.store_bytes - after.store_bytes == pytest.approx(size_of(store), rel=0.2)
    assert estimate(make_job(out)) == Estimate({})
    longer = estimate(make_job(out, iterations=600)).seconds["distill"]
    assert longer > 10 * estimate(make_job(out, iterations=12)).seconds["distill"] > 0
    again = estimate(make_job(out, eval=SMALL["eval"].model_copy(update={"epochs": 9})))
    assert set(again.seconds) == {"evaluate"}
    assert read_files(tmp_path) == content


def test_a_store_folder_needs_no_training(tmp_path: Path) -> None:
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
def test_estimated_bytes_of_experts(config: dict[str, Any], tmp_path: Path) -> None:
    options = {"out": tmp_path / "store", "num_experts": 2, "model": SMALL["model"]}
    experts = prepare_experts("digits", expert=ExpertConfig(epochs=4, **config), **options)
    estimated = estimate_experts(experts)
    store = experts.train(lambda event: None)
    assert estimated.store_bytes == pytest.approx(store.bytes_of(store.indices()), rel=0.2)
    assert set(estimated.seconds) == {"experts"}


@pytest.mark.parametrize(
    ("durations", "seconds"),
    [
        ([5.0, 1.0, 1.0, 1.0], 1.0),
        ([9.0, 4.0], 4.0),
        ([0.1] * 9, 0.1),
        ([11.0, 1.0], 11.0),
        ([0.004, 4.0, 0.004, 0.005, 0.004], 0.005),
        ([0.4, 0.004, 0.004, 4.0, 0.004], 0.004),
    ],
    ids=str,
)
def test_a_call_that_warms_up_or_is_interrupted_does_not_count(
    durations: list[float], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said 19 minutes for 4, and on a loaded machine hours; only where calls take very long is there one alone."""
    clock, calls = [0.0], iter(durations)

    class Clock:
        @staticmethod
        def perf_counter() -> float:
            return clock[0]

    def call() -> None:
        clock[0] += next(calls)

    monkeypatch.setattr("limbeck.jobs.estimate.time", Clock)
    assert _seconds(call, torch.device("cpu")) == pytest.approx(seconds)


@pytest.mark.parametrize("method", ["mct", "herding"])
def test_an_estimate_agrees_with_a_run_within_a_factor_of_four(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processor time, since other processes may be running."""

    class ProcessorTime:
        perf_counter = process_time = staticmethod(time.process_time)

    monkeypatch.setattr("limbeck.jobs.estimate.time", ProcessorTime)
    long = {**SMALL, "eval": EvalConfig(networks=2, epochs=60, full_epochs=1, full_networks=1), "validate_epochs": 30}
    job = make_job(tmp_path / "run", method, **long)
    estimated = estimate(job)
    start = time.process_time()
    limbeck.run(job)
    assert 0.25 < estimated.total / (time.process_time() - start) < 4


def test_a_stand_in_is_a_trajectory_and_a_subset_is_balanced(task: Task) -> None:
    first = stand_in(task, 5, 0)
    assert first.at(0).equal(first.start)
    assert first.at(5).equal(first.stop)
    assert isinstance(first, StandIn)
    assert first.end == 5
    part = subset(task, 5)
    assert part.data.train.counts(10) == [5] * 10
    assert part.preprocess is task.preprocess


# --- the command line


OPTIONS = ["--model.width", "4", "--num-experts", "1", "--expert.epochs", "2", "--iterations", "4", "--syn-steps", "2"]
OPTIONS += ["--validate-networks", "1", "--validate-epochs", "2", "--eval.epochs", "2", "--eval.networks", "1"]
OPTIONS += ["--eval.full-epochs", "1", "--eval.full-networks", "1"]


def run_command(*options: object, status: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(option) for option in options])
    assert end.value.code == status


def test_estimate_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_command("estimate", "digits", *OPTIONS)
    captured = capsys.readouterr()
    assert captured.out.startswith("about ")
    assert captured.err == ""
    run_command("estimate", "digits", *OPTIONS, "--json")
    value = json.loads(capsys.readouterr().out)
    assert list(value["stages"]) == ["experts", "distill", "evaluate"]
    assert value["seconds"] == pytest.approx(sum(value["stages"].values()), abs=0.1)
    run_command("estimate", "digits", "--method", "dream", "--factor", "2", *OPTIONS[6:8], *OPTIONS[10:], "--json")
    assert "experts" not in json.loads(capsys.readouterr().out)["stages"]
    assert read_files(tmp_path) == {}


def test_outer_steps_that_fit_into_a_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.jobs.estimate._seconds", lambda call, device: 2.0)
    run_command("estimate", "digits", *OPTIONS, "--json", "--within", "1000h")
    value = json.loads(capsys.readouterr().out)
    step = value["step_seconds"]
    steps = (3_600_000 - (value["seconds"] - 4 * step)) / step
    assert 0.9 * steps <= value["iterations"] <= steps
    assert str(value["iterations"])[2:].strip("0") == "", "two digits, since an estimate has no more"
    run_command("estimate", "digits", *OPTIONS, "--within=1000h")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f" --iterations {value['iterations']}")
    assert last.count("--iterations") == 1
    assert "--within" not in last
    for words, part in ((["2"], "not '2'"), (["3s"], "too short"), (["2h", "--method", "random"], "no outer steps")):
        run_command("estimate", "digits", *(OPTIONS if len(words) == 1 else []), "--within", *words, status=2)
        assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--ipc", "0"], ["--method", "nope"], ["--init", "forgetting", "--method", "dream"]]
)
def test_estimate_command_refuses_invalid_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run_command("estimate", "digits", *options, status=2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_commands_print_an_estimate_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run_command("distill", "digits", *OPTIONS, "--out", first)
    assert "about " in capsys.readouterr().err.split("experts:")[0]
    run_command("distill", "digits", *OPTIONS, "--out", first)  # nothing is left to do
    assert "about " not in capsys.readouterr().err
    run_command("evaluate", first)
    assert "about " in capsys.readouterr().err[:120]  # a note on derivatives may precede it
    run_command(
        "experts", "digits", "--model.width", "4", "--num-experts", "1", "--epochs", "2", "--out", tmp_path / "store"
    )
    assert "about " in capsys.readouterr().err[:120]  # a note on derivatives may precede it
    run_command(
        "experts", "digits", "--model.width", "4", "--num-experts", "1", "--epochs", "2", "--out", tmp_path / "store"
    )
    assert "about " not in capsys.readouterr().err

    run_command("distill", "digits", *OPTIONS, "--out", second, "--no-estimate")
    assert "about " not in capsys.readouterr().err.splitlines()[0]
    for name in ("set-last.safetensors", "set-chosen.safetensors", "previews/last.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    run_command("evaluate", first, "--no-estimate", "--json")
    captured = capsys.readouterr()
    assert not captured.err.startswith("about ")
    run_command("evaluate", first, "--json")
    assert json.loads(capsys.readouterr().out) == json.loads(captured.out)


def test_results_do_not_depend_on_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, baselines, losses and sets are computed twice and equal bit for bit."""
    results = []
    for name, options in (("with", []), ("without", ["--no-estimate"])):
        monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / name / "home"))
        run_command("distill", "digits", *OPTIONS, "--out", tmp_path / name / "run", *options)
        content = read_files(tmp_path / name)
        log = [json.loads(line) for line in content["run/log.jsonl"].decode().splitlines()]
        steps = [(line["step"], line["loss"], line["lr"]) for line in log if line["event"] == "step"]
        same = {file: data for file, data in content.items() if file.endswith((".safetensors", ".png"))}
        same |= {file: data for file, data in content.items() if "home" in file and file.endswith(".json")}
        same.pop("run/state.safetensors")  # it contains times
        results.append((steps, same))
    assert results[0][0] == results[1][0]
    assert {file for file in results[0][1] if results[0][1][file] != results[1][1].get(file)} == set()
    assert len(results[0][1]) >= 9


def test_a_failing_estimate_is_ignored() -> None:
    events: list[dict[str, Any]] = []

    def fail() -> Estimate:
        raise UserError("no")

    announce(fail, events.append)
    announce(lambda: Estimate({}), events.append)  # no event without work
    assert {event["event"] for event in events} <= {"note"}
    announce(lambda: Estimate({"evaluate": 2.0}), events.append)
    assert [event["event"] for event in events if event["event"] != "note"] == ["estimate"]
