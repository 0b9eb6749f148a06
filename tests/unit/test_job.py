"""The whole job from Python, on digits at tiny settings: what it leaves, that it repeats, that it survives kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import limbeck
from limbeck import EvalConfig, ExpertConfig, ImageData, ModelConfig, UserError
from limbeck.core import files
from limbeck.core.records import StepLine, ValidationLine
from limbeck.data import Split
from limbeck.jobs.record import RunFolder

TINY: dict[str, Any] = {
    "ipc": 1,
    "num_experts": 2,
    "model": ModelConfig(width=4),
    "expert": ExpertConfig(epochs=2, lr=0.05, batch_size=64),
    "eval": EvalConfig(networks=2, epochs=5, baseline_lrs=(0.01, 0.03), full_epochs=1, full_networks=1),
    "iterations": 6,
    "syn_steps": 3,
    "max_start_epoch": 1.0,
    "expert_epochs": 1.0,
    "lr_img": 5.0,
    "lr_teacher": 0.05,
    "validate_every": 2,
    "validate_networks": 2,
    "validate_epochs": 3,
}
SETS = ("set-last.safetensors", "set-chosen.safetensors")
FILES = {"run.json", "log.jsonl", "experts.json", "results.json", "state.safetensors", "previews", "report.html"}
FILES |= {".lock", *SETS}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where the experts and baselines of TINY are kept from test to test."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def home(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIMBECK_HOME", str(shared))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of children
    return shared


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, for tests that count what is in it."""
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def job(out: Path, data: Any = "digits", **options: Any) -> Path:
    return limbeck.distill(data, out=out, **{**TINY, **options})


@pytest.fixture(scope="module")
def run(shared: Path, _one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others are compared with; nothing may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(shared))
        return job(tmp_path_factory.mktemp("runs") / "run")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(run: Path) -> Any:
    return read(run / "results.json")["results"]


def pixels(run: Path) -> list[torch.Tensor]:
    sets = [limbeck.load(run / name) for name in SETS]
    return [tensor for distilled in sets for tensor in (distilled.images, torch.tensor(distilled.lr))]


def bits(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in SETS]


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file below a folder."""
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


def test_the_run_folder_holds_what_it_should(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    assert {path.name for path in (run / "previews").iterdir()} == {"initial.png", "last.png", "chosen.png"}
    head = read(run / "run.json")
    assert head["config"]["ipc"] == 1
    assert head["config"]["model"]["depth"] == 2  # resolved
    assert {"torch", "limbeck", "python"} <= set(head["versions"])
    assert head["data"]["fingerprint"] == limbeck.load_data("digits").fingerprint
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["event"] == "validate"] == [0, 2, 4, 6]
    experts = read(run / "experts.json")
    assert experts["count"] == len(experts["test_accuracy"]) == len(experts["validation_per_epoch"]) == 2
    assert (run / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_results_have_the_schema_of_the_contract(run: Path, home: Path) -> None:
    results = read(run / "results.json")
    assert results["method"] == "mct"
    assert results["ipc"] == 1
    assert results["data"] == {"name": "digits", "fingerprint": limbeck.load_data("digits").fingerprint}
    expected = [("distilled", "last"), ("distilled", "chosen"), ("random", None), ("kmeans", None), ("full", None)]
    assert [(row["set"], row["which"]) for row in results["results"]] == expected
    for row in results["results"]:
        assert (row["model"], row["split"]) == ("convnet", "test")
        assert row["n"] == (1 if row["set"] == "full" else 2)
        for name in ("accuracy", "balanced_accuracy"):
            assert 0 <= row[f"{name}_mean"] <= 1
            assert row[f"{name}_std"] is None if row["n"] == 1 else 0 <= row[f"{name}_std"] <= 1
    assert {"experts", "distill", "evaluate"} <= set(results["seconds"])
    assert all(isinstance(value, float) and value >= 0 for value in results["seconds"].values())
    store = next(iter((home / "experts").iterdir()))
    stored = sum(file.stat().st_size for file in sorted(store.glob("expert-*"))[:2])
    assert results["bytes"] == {"experts": stored, "set": (run / "set-chosen.safetensors").stat().st_size}


def test_chosen_is_the_first_best_by_validation(run: Path) -> None:
    checks = RunFolder(run).lines(ValidationLine)
    best = max(checks, key=lambda line: line.accuracy_mean)  # the first of equals
    chosen, last = (limbeck.load(run / f"set-{which}.safetensors") for which in ("chosen", "last"))
    assert chosen.provenance["step"] == best.step
    assert last.provenance["step"] == 6
    assert [row["step"] for row in rows(run)[:2]] == [6, best.step]
    assert torch.equal(limbeck.load(run).images, chosen.images)


def test_on_ties_the_first_is_chosen(tmp_path: Path) -> None:
    path = job(tmp_path / "run", lr_img=1e-12, lr_lr=0.0)  # every step as good as the first
    assert len({line.accuracy_mean for line in RunFolder(path).lines(ValidationLine)}) == 1
    assert limbeck.load(path).provenance["step"] == 0


def test_nothing_depends_on_the_test_split(run: Path, own_home: Path, tmp_path: Path) -> None:
    data = limbeck.load_data("digits")
    labels = data.test.labels[torch.randperm(len(data.test), generator=torch.Generator().manual_seed(1))]
    shuffled = replace(data, test=Split(data.test.images, labels))
    path = job(tmp_path / "run", shuffled)
    assert all(map(torch.equal, pixels(path), pixels(run)))
    assert [row.get("step") for row in rows(path)] == [row.get("step") for row in rows(run)]
    assert [row["lr"] for row in rows(path)] == [row["lr"] for row in rows(run)]  # of the baselines too
    assert rows(path) != rows(run)


def test_the_same_command_gives_the_same_bits(run: Path, own_home: Path, tmp_path: Path) -> None:
    path = job(tmp_path / "elsewhere")  # experts and baselines anew
    assert bits(path) == bits(run)
    assert rows(path) == rows(run)


def test_a_finished_run_repeated_changes_nothing(run: Path) -> None:
    before, start = stamps(run), time.perf_counter()
    assert job(run) == run
    assert stamps(run) == before
    assert time.perf_counter() - start < 2


def test_another_run_in_the_folder_is_refused(run: Path) -> None:
    before = stamps(run)
    for options, words in (
        ({"lr_img": 6.0}, "lr_img 5.0, not 6.0"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"expert": ExpertConfig()}, "expert batch_size 64, not batch_size 256"),
        ({"iterations": 4}, "iterations 6, not 4"),
    ):
        with pytest.raises(UserError, match=words):
            job(run, **options)
    assert stamps(run) == before


def test_experts_are_found_again(run: Path, home: Path, tmp_path: Path) -> None:
    before = stamps(home / "experts")
    job(tmp_path / "run", iterations=2, lr_img=1.0)
    assert stamps(home / "experts") == before


def experts(**options: Any) -> limbeck.Store:
    options_of_experts = {name: TINY[name] for name in ("num_experts", "model", "expert")}
    return limbeck.train_experts("digits", **{**options_of_experts, "num_experts": 1, **options})


def test_more_experts_only_add_what_is_missing(own_home: Path) -> None:
    first = stamps(experts().path)
    larger = experts(num_experts=3)
    assert larger.indices() == [0, 1, 2]
    assert first.items() <= stamps(larger.path).items()


def test_an_expert_does_not_depend_on_those_before_it(own_home: Path, tmp_path: Path) -> None:
    store = experts(num_experts=2)
    before = store.file(0).read_bytes()
    store.file(0).unlink()
    assert experts(num_experts=2).file(0).read_bytes() == before


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"model": ModelConfig(width=5)},
        {"expert": ExpertConfig(epochs=2, lr=0.06, batch_size=64)},
        {"expert": ExpertConfig(epochs=2, lr=0.05, batch_size=64, dtype="float16")},
        {"augment": "crop"},
        {"preprocess": "zca"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_setting_gives_another_store(other: dict[str, Any]) -> None:
    store = experts()
    before = stamps(store.path)
    assert experts(**other).path != store.path
    assert stamps(store.path) == before


def test_a_given_store_gives_the_same_set(run: Path, tmp_path: Path) -> None:
    store = experts(num_experts=2, out=tmp_path / "store")
    path = job(tmp_path / "run", experts=store.path)
    assert all(map(torch.equal, pixels(path), pixels(run)))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "tesla"},
        {"gradient": "tesla-corrected"},
        {"optimizer": "adam", "lr_img": 0.01},
        {"ipc": 2, "batch_syn": 7},
        {"init": "kmeans"},
        {"preprocess": "zca"},
        {"augment": "none"},
        {"model": ModelConfig(name="mlp", width=8)},
        {"expert": ExpertConfig(epochs=2, waypoints=3, smoothing="mct", keep="both", dtype="float16")},
    ],
    ids=lambda options: "-".join(str(value)[:12] for value in options.values()),
)
def test_every_option_goes_all_the_way(run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    path = job(tmp_path / "run", **options)
    distilled = limbeck.load(path / "set-last.safetensors")
    assert distilled.images.shape == (10 * options.get("ipc", 1), 1, 8, 8)
    assert distilled.hard_labels().bincount().tolist() == [options.get("ipc", 1)] * 10
    assert distilled.images.isfinite().all()
    assert not torch.equal(distilled.images, limbeck.load(run / "set-last.safetensors").images)
    assert distilled.preprocess.kind == options.get("preprocess", "normalise")
    assert len(rows(path)) == 5


def test_backprop_gives_what_replay_gives(run: Path, tmp_path: Path) -> None:
    path = job(tmp_path / "run", gradient="backprop")
    for ours, theirs in zip(pixels(path), pixels(run)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_full_figure_can_be_left_out(tmp_path: Path) -> None:
    path = job(tmp_path / "run", eval=TINY["eval"].model_copy(update={"full_networks": 0}))
    assert [row["set"] for row in rows(path)] == ["distilled", "distilled", "random", "kmeans"]


def few(data: ImageData, n: int = 60) -> TensorDataset:
    return TensorDataset(data.train.images[:n].float() / 255, data.train.labels[:n])


def test_image_data_from_python_gives_what_its_name_gives(run: Path, tmp_path: Path) -> None:
    path = job(tmp_path / "run", limbeck.load_data("digits"))
    assert all(map(torch.equal, pixels(path), pixels(run)))
    assert limbeck.load(path).provenance["data"]["source"] is None
    with pytest.raises(UserError, match="--data"):
        limbeck.evaluate(path)
    assert [row.to_json() for row in limbeck.evaluate(path, data="digits", networks=2)] == rows(run)[:2]


def test_a_torch_dataset_goes_all_the_way(tmp_path: Path) -> None:
    dataset = few(limbeck.load_data("digits"))
    path = job(tmp_path / "run", dataset, num_experts=1, ipc=1)
    assert limbeck.load(path).provenance["data"]["source"] is None
    assert rows(path)[0]["n"] == 2
    assert limbeck.evaluate(path, data=dataset, networks=1, epochs=1)[0].n == 1


def test_data_without_validation_images_is_refused(tmp_path: Path) -> None:
    data = limbeck.load_data("digits", validation=0)
    with pytest.raises(UserError, match="no validation images"):
        job(tmp_path / "run", data)
    with pytest.raises(UserError, match="no validation images"):
        limbeck.train_experts(data, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_takes_a_run_a_file_and_a_set(run: Path) -> None:
    of_run = limbeck.evaluate(run, networks=2)
    assert [row.which for row in of_run] == ["last", "chosen"]
    for row, stored in zip(of_run, rows(run)):
        assert row.to_json() == stored  # the same seeds, the same protocol
    assert limbeck.evaluate(run / "set-last.safetensors", networks=2) == of_run[:1]
    assert limbeck.evaluate(limbeck.load(run), networks=2) == of_run[1:]
    other = limbeck.evaluate(run / "set-last.safetensors", networks=1, epochs=1, model=ModelConfig(name="mlp", width=8))
    assert other[0].model == "mlp"


def test_the_set_is_a_dataset_in_pixel_space_too(run: Path) -> None:
    distilled = limbeck.load(run)
    image, label = distilled.dataset()[3]
    assert (image.shape, int(label)) == ((1, 8, 8), 3)
    torch.testing.assert_close(distilled.preprocess.apply(distilled.pictures()), distilled.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"expert": ExpertConfig(epochs=2, waypoints=4)}, "2 to 3 waypoints"),
        ({"expert": ExpertConfig(epochs=2, smoothing="no")}, "smoothing"),
        ({"expert": ExpertConfig(epochs=2, keep="recorded")}, "convex"),
        ({"ipc": 0}, "at least 1"),
        ({"ipc": 129}, "class '0' of digits has 128"),
        ({"augment": "no"}, "augmentation"),
        ({"nonsense": 1}, "nonsense"),
        ({"lr_img": -1.0}, "lr_img"),
        ({"device": "nope"}, "device"),
        ({"method": "nope"}, "method"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    own_home: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        job(tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_a_crash_cut_off_costs_no_other_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.line(StepLine(step=1, loss=0.0, lr=0.1))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "st')
    run.line(StepLine(step=2, loss=0.0, lr=0.1))
    run.line(StepLine(step=3, loss=0.0, lr=0.1))
    assert [line.step for line in run.lines(StepLine)] == [1, 2, 3]


# A child of its own runs the job and dies by SIGKILL the moment the n-th event of a kind in a stage arrives.
CHILD = """
import os, signal, sys, time
import limbeck, limbeck.jobs.checkpoint
from test_job import TINY
out, stage, kind, at, saving, pause = sys.argv[1:]
limbeck.jobs.checkpoint.SAVE_SECONDS = float(saving)
seen = {}
now = ""
def listen(event):
    global now
    now = event.get("name", now)
    time.sleep(float(pause))
    key = (now, event["event"])
    seen[key] = seen.get(key, 0) + 1
    if key == (stage, kind) and seen[key] == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
limbeck.distill("digits", out=out, listen=listen, **TINY)
"""


def child(
    out: Path, stage: str, kind: str, at: int, saving: float = 0.0, pause: float = 0.0
) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = [str(out), stage, kind, str(at), str(saving), str(pause)]
    return subprocess.Popen([sys.executable, "-c", CHILD, *words], env={**os.environ, "PYTHONPATH": path})


def test_a_run_killed_again_and_again_gives_the_same_bits(run: Path, own_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moments = [
        ("experts", "advance", 3),  # the second expert has begun
        ("distill", "advance", 3),  # step 3 is logged, its state not saved
        ("distill", "validate", 2),  # step 4 was validated, neither kept nor saved
        ("evaluate", "advance", 3),  # the row of the last set is there, that of the chosen one half done
    ]
    for moment in moments:
        assert child(out, *moment).wait(60) == -9
        assert not (out / "results.json").exists()
    assert job(out) == out
    assert bits(out) == bits(run)
    assert rows(out) == rows(run)
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in tmp_path.rglob("*.part")] == []


def test_a_run_killed_from_outside_gives_the_same_bits(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = child(out, "never", "never", 1, saving=0.1, pause=0.1)
    log = out / "log.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count('"step"') < 5):
        time.sleep(0.01)
    process.kill()
    assert process.wait(10) == -9
    assert not (out / "set-last.safetensors").exists()
    job(out)
    assert bits(out) == bits(run)
    assert rows(out) == rows(run)


def test_a_run_stopped_at_any_write_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th file, for every n, is the one that is not written any more; the next try goes on from there."""
    whole, written, stop = files.write_atomically, 0, 0

    def write(*args: Any) -> None:
        nonlocal written
        written += 1
        if written == stop:
            raise KeyboardInterrupt
        whole(*args)

    monkeypatch.setattr("limbeck.core.files.write_atomically", write)
    monkeypatch.setattr("limbeck.core.tensors.write_atomically", write)
    monkeypatch.setattr("limbeck.synthetic.grids.write_atomically", write)
    monkeypatch.setattr("limbeck.jobs.stages.write_report", lambda path: None)
    while written == stop:  # the try before this one was stopped
        written, stop, out = 0, stop + 1, tmp_path / f"{stop + 1}"
        with suppress(KeyboardInterrupt):
            job(out, iterations=2, validate_every=1)
        if written == stop:
            stopped, stop = stop, 0
            job(out, iterations=2, validate_every=1)
            written = stop = stopped
        assert bits(out) == bits(tmp_path / "1")
        assert rows(out) == rows(tmp_path / "1")
        assert len(list((out / "previews").iterdir())) == 3
    assert stop > 10


def test_experts_weaker_than_the_start_are_named(tmp_path: Path) -> None:
    """One epoch with a tiny step size teaches nothing: the images that the set starts from do better."""
    heard: list[dict[str, Any]] = []
    weak = limbeck.ExpertConfig(epochs=1, lr=1e-6)
    options = {"num_experts": 1, "iterations": 1, "syn_steps": 1, "validate_epochs": 60, "validate_networks": 2}
    small = limbeck.EvalConfig(networks=1, epochs=2, full_networks=0)
    run = limbeck.distill(
        "digits",
        out=tmp_path / "run",
        expert=weak,
        eval=small,
        model=limbeck.ModelConfig(width=8),
        listen=heard.append,
        **options,
    )
    warning, far = (event["text"] for event in heard if event["event"] == "warning")
    assert "the experts reach" in warning
    assert "train the experts longer" in warning
    assert "goes far past its target" in far  # which is next to the start
    assert warning in (run / "log.jsonl").read_text()
    heard.clear()
    good = limbeck.ExpertConfig(epochs=4, lr=0.05, batch_size=16)
    limbeck.distill(
        "digits",
        out=tmp_path / "good",
        expert=good,
        eval=small,
        model=limbeck.ModelConfig(width=8),
        listen=heard.append,
        **{**options, "validate_epochs": 2},
    )
    assert not [event for event in heard if event["event"] == "warning"]


def test_the_full_data_figure_is_shared_by_runs_that_differ_in_other_things(own_home: Path, tmp_path: Path) -> None:
    """It costs the most of all; a protocol of its own makes another one."""

    def count_rows(kind: str) -> int:
        return len(list((own_home / "baselines").glob(f"*-{kind}-*.json")))

    job(tmp_path / "one")
    longer = EvalConfig(**{**TINY["eval"].model_dump(), "epochs": 6})
    job(tmp_path / "two", ipc=2, eval=longer)
    assert (count_rows("full"), count_rows("random"), count_rows("kmeans")) == (1, 2, 2)
    job(tmp_path / "three", eval=EvalConfig(**{**TINY["eval"].model_dump(), "full_epochs": 2}))
    assert (count_rows("full"), count_rows("random"), count_rows("kmeans")) == (2, 2, 2)


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:
    """They would write the same files in turns; the second is told so and changes nothing."""
    out = tmp_path / "run"
    job(out)
    (out / "results.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code = f"import time\nfrom filelock import FileLock\nlock = FileLock({str(out / '.lock')!r})\nlock.acquire()\n"
    with subprocess.Popen([sys.executable, "-c", code + "print(flush=True); time.sleep(60)"], stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another process"):
            job(out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
        other.kill()
    assert (job(out) / "results.json").exists()


def test_says_once_where_kernels_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.derivatives.choice.convnet_derivatives", lambda model, dtype, device: None)
    monkeypatch.setattr("limbeck.derivatives.choice.unavailable_reason", lambda: "there is no C++ compiler")
    heard: list[dict[str, Any]] = []
    limbeck.distill("digits", out=tmp_path / "run", listen=heard.append, **TINY)
    warnings = [event["text"] for event in heard if event["event"] == "warning" and "kernels" in event["text"]]
    assert len(warnings) == 1
    assert "there is no C++ compiler" in warnings[0]


def test_bfloat16_is_another_run_with_experts_and_baselines_of_its_own(own_home: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        limbeck.distill("digits", out=tmp_path / precision, precision=precision, **TINY)
    assert len(list((own_home / "experts").iterdir())) == 2
    assert len(list((own_home / "baselines").iterdir())) == 6
    stored = json.loads((tmp_path / "bfloat16" / "run.json").read_text())
    assert stored["config"]["precision"] == "bfloat16"
