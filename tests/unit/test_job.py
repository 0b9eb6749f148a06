"""The whole job from Python, on digits with small settings: its files, options, stores and refusals."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import EVAL, FILES, SETS, WITH_BASELINES, distill_with_baselines, read_json, result_rows, set_bytes
from torch.utils.data import TensorDataset

import limbeck
from limbeck import EvalConfig, ExpertConfig, ImageData, ModelConfig, UserError
from limbeck.core.records import ValidationLine
from limbeck.data import Split
from limbeck.evaluation.counts import without_repeats
from limbeck.evaluation.sets import prepare_evaluation
from limbeck.jobs.record import RunFolder

pytestmark = pytest.mark.usefixtures("home")


def set_tensors(run: Path) -> list[torch.Tensor]:
    sets = [limbeck.load(run / name) for name in SETS]
    return [tensor for distilled in sets for tensor in (distilled.images, torch.tensor(distilled.lr))]


def file_stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file below a folder but the lock, which names the process that had it last."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_files_of_a_finished_run(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    names = {path.stem for path in (run / "previews").iterdir()}
    assert {name for name in names if not name.startswith("step-")} == {"initial", "last", "chosen", "random", "kmeans"}
    head = read_json(run / "run.json")
    assert head["config"]["ipc"] == 1
    assert head["config"]["model"]["depth"] == 2  # resolved
    assert {"torch", "limbeck", "python"} <= set(head["versions"])
    assert head["data"]["fingerprint"] == limbeck.load_data("digits").fingerprint
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["event"] == "validate"] == [0, 2, 4, 6]
    experts = read_json(run / "experts.json")
    assert experts["count"] == len(experts["test_accuracy"]) == len(experts["validation_per_epoch"]) == 2
    assert (run / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_fields_of_results_json(run: Path, home: Path) -> None:
    results = read_json(run / "results.json")
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


def test_the_chosen_set_is_the_last_best_by_validation(run: Path) -> None:
    checks = RunFolder(run).lines(ValidationLine)
    best = max(checks, key=lambda line: (line.accuracy_mean, line.step))
    chosen, last = (limbeck.load(run / f"set-{which}.safetensors") for which in ("chosen", "last"))
    assert chosen.provenance["step"] == best.step
    assert last.provenance["step"] == 6
    assert [row["step"] for row in result_rows(run)[:2]] == [6, best.step]
    assert torch.equal(limbeck.load(run).images, chosen.images)


def test_the_last_of_equal_sets_is_chosen(tmp_path: Path) -> None:
    path = distill_with_baselines(tmp_path / "run", lr_img=1e-12, lr_lr=0.0)  # all steps are equally good
    assert len({line.accuracy_mean for line in RunFolder(path).lines(ValidationLine)}) == 1
    assert limbeck.load(path).provenance["step"] == 6


def test_distillation_does_not_depend_on_the_test_split(run: Path, own_home: Path, tmp_path: Path) -> None:
    data = limbeck.load_data("digits")
    labels = data.test.labels[torch.randperm(len(data.test), generator=torch.Generator().manual_seed(1))]
    shuffled = replace(data, test=Split(data.test.images, labels))
    path = distill_with_baselines(tmp_path / "run", shuffled)
    assert all(map(torch.equal, set_tensors(path), set_tensors(run)))
    assert [row.get("step") for row in result_rows(path)] == [row.get("step") for row in result_rows(run)]
    assert [row["lr"] for row in result_rows(path)] == [row["lr"] for row in result_rows(run)]  # of baselines too
    assert result_rows(path) != result_rows(run)


def test_the_same_command_gives_the_same_bits(run: Path, own_home: Path, tmp_path: Path) -> None:
    path = distill_with_baselines(tmp_path / "elsewhere")  # with new experts and baselines
    assert set_bytes(path) == set_bytes(run)
    assert result_rows(path) == result_rows(run)


def test_repeating_a_finished_run_writes_nothing(run: Path) -> None:
    before, start = file_stamps(run), time.perf_counter()
    assert distill_with_baselines(run) == run
    assert file_stamps(run) == before
    assert time.perf_counter() - start < 2


def test_another_run_in_the_same_folder_is_refused(run: Path) -> None:
    before = file_stamps(run)
    for options, words in (
        ({"lr_img": 6.0}, "lr_img 5.0, not 6.0"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"expert": ExpertConfig()}, "expert batch_size 64, not batch_size 256"),
        ({"iterations": 4}, "iterations 6, not 4"),
    ):
        with pytest.raises(UserError, match=words):
            distill_with_baselines(run, **options)
    assert file_stamps(run) == before


def test_stored_experts_are_reused(run: Path, home: Path, tmp_path: Path) -> None:
    before = file_stamps(home / "experts")
    distill_with_baselines(tmp_path / "run", iterations=2, lr_img=1.0)
    assert file_stamps(home / "experts") == before


def train_experts(**options: Any) -> limbeck.Store:
    options_of_experts = {name: WITH_BASELINES[name] for name in ("num_experts", "model", "expert")}
    return limbeck.train_experts("digits", **{**options_of_experts, "num_experts": 1, **options})


def test_more_experts_are_added_to_the_store(own_home: Path) -> None:
    first = file_stamps(train_experts().path)
    larger = train_experts(num_experts=3)
    assert larger.indices() == [0, 1, 2]
    assert first.items() <= file_stamps(larger.path).items()


def test_an_expert_does_not_depend_on_the_experts_before_it(own_home: Path, tmp_path: Path) -> None:
    store = train_experts(num_experts=2)
    before = store.file(0).read_bytes()
    store.file(0).unlink()
    assert train_experts(num_experts=2).file(0).read_bytes() == before


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
def test_other_settings_have_another_store(other: dict[str, Any]) -> None:
    store = train_experts()
    before = file_stamps(store.path)
    assert train_experts(**other).path != store.path
    assert file_stamps(store.path) == before


def test_experts_from_a_store_folder_give_the_same_set(run: Path, tmp_path: Path) -> None:
    store = train_experts(num_experts=2, out=tmp_path / "store")
    path = distill_with_baselines(tmp_path / "run", experts=store.path)
    assert all(map(torch.equal, set_tensors(path), set_tensors(run)))


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
def test_a_run_with_other_options_finishes(run: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    path = distill_with_baselines(tmp_path / "run", **options)
    distilled = limbeck.load(path / "set-last.safetensors")
    assert distilled.images.shape == (10 * options.get("ipc", 1), 1, 8, 8)
    assert distilled.hard_labels().bincount().tolist() == [options.get("ipc", 1)] * 10
    assert distilled.images.isfinite().all()
    assert not torch.equal(distilled.images, limbeck.load(run / "set-last.safetensors").images)
    assert distilled.preprocess.kind == options.get("preprocess", "normalise")
    assert len(result_rows(path)) == 5


def test_backprop_and_replay_agree(run: Path, tmp_path: Path) -> None:
    path = distill_with_baselines(tmp_path / "run", gradient="backprop")
    for ours, theirs in zip(set_tensors(path), set_tensors(run)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_full_data_baseline_can_be_omitted(tmp_path: Path) -> None:
    path = distill_with_baselines(tmp_path / "run", eval=WITH_BASELINES["eval"].model_copy(update={"full_networks": 0}))
    assert [row["set"] for row in result_rows(path)] == ["distilled", "distilled", "random", "kmeans"]


def small_dataset(data: ImageData, n: int = 60) -> TensorDataset:
    return TensorDataset(data.train.images[:n].float() / 255, data.train.labels[:n])


def test_image_data_gives_the_same_set_as_its_name(run: Path, tmp_path: Path) -> None:
    path = distill_with_baselines(tmp_path / "run", limbeck.load_data("digits"))
    assert all(map(torch.equal, set_tensors(path), set_tensors(run)))
    assert limbeck.load(path).provenance["data"]["source"] == "digits"  # so that evaluate finds the images again
    assert [row.to_json() for row in limbeck.evaluate(path, num_networks=2)] == result_rows(run)[:2]


def test_a_torch_dataset_is_distilled_and_evaluated(tmp_path: Path) -> None:
    dataset = small_dataset(limbeck.load_data("digits"))
    path = distill_with_baselines(tmp_path / "run", dataset, num_experts=1, ipc=1)
    assert limbeck.load(path).provenance["data"]["source"] is None
    assert result_rows(path)[0]["n"] == 2
    with pytest.raises(UserError, match="--data"):
        limbeck.evaluate(path)
    assert limbeck.evaluate(path, data=dataset, num_networks=1, epochs=1)[0].n == 1


def test_arrays_by_split_are_distilled_and_evaluated(tmp_path: Path) -> None:
    data = limbeck.load_data("digits")
    splits = {
        split: (getattr(data, split).images[:60, 0].numpy(), getattr(data, split).labels[:60].numpy())
        for split in ("train", "validation", "test")
    }
    path = distill_with_baselines(tmp_path / "run", splits, num_experts=1, ipc=1)
    assert limbeck.load(path).classes == tuple("0123456789")
    assert limbeck.evaluate(path, data=splits, num_networks=1, epochs=1)[0].n == 1


def test_data_without_validation_images_is_refused(tmp_path: Path) -> None:
    data = limbeck.load_data("digits", validation=0)
    with pytest.raises(UserError, match="no validation images"):
        distill_with_baselines(tmp_path / "run", data)
    with pytest.raises(UserError, match="no validation images"):
        limbeck.train_experts(data, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_accepts_a_run_a_file_and_a_set(run: Path) -> None:
    of_run = limbeck.evaluate(run, num_networks=2)
    assert [row.which for row in of_run] == ["last", "chosen"]
    for row, stored in zip(of_run, result_rows(run)):
        assert row.to_json() == stored  # the same seeds, the same protocol
    assert limbeck.evaluate(run / "set-last.safetensors", num_networks=2) == of_run[:1]
    assert limbeck.evaluate(limbeck.load(run), num_networks=2) == of_run[1:]
    other = limbeck.evaluate(
        run / "set-last.safetensors", num_networks=1, epochs=1, model=ModelConfig(name="mlp", width=8)
    )
    assert other[0].model == "mlp"


def test_networks_are_trained_once_where_the_last_set_is_chosen(tmp_path: Path) -> None:
    """A coreset takes no steps: both files hold the same tensors. The data is read and preprocessed once."""
    path = limbeck.distill("digits", method="random", out=tmp_path / "run", eval=EVAL, validate_epochs=2)
    events: list[dict[str, Any]] = []
    rows = limbeck.evaluate(path, num_networks=2, listen=events.append)
    assert [event["total"] for event in events if event["event"] == "stage"] == [2]
    assert [row.which for row in rows] == ["last", "chosen"]
    assert rows[0] == rows[1].model_copy(update={"which": "last"})
    assert rows[1] == limbeck.evaluate(path / "set-chosen.safetensors", num_networks=2)[0]
    evaluations = prepare_evaluation(path)
    assert evaluations[0].task is evaluations[1].task
    assert without_repeats(evaluations) == evaluations[:1]


def test_networks_are_trained_on_each_set_where_they_differ(run: Path, tmp_path: Path) -> None:
    """In a step size alone, here."""
    last = limbeck.load(run / "set-last.safetensors")
    for which, lr in (("last", last.lr), ("chosen", last.lr / 100)):
        changed = replace(last, lr=lr, provenance={**last.provenance, "which": which})
        changed.save(tmp_path / f"set-{which}.safetensors")
    rows = limbeck.evaluate(tmp_path, num_networks=2)
    assert [row.lr for row in rows] == [last.lr, last.lr / 100]
    assert rows[0].accuracy_mean != rows[1].accuracy_mean


def test_a_set_as_a_torch_dataset(run: Path) -> None:
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
        ({"ipc": 0}, "ipc: Input should be greater than or equal to 1"),
        ({"ipc": 129}, "class '0' of digits has 128"),
        ({"augment": "no"}, "augmentation"),
        ({"nonsense": 1}, "there is no option nonsense; 'limbeck distill --help' lists all"),
        ({"iteration": 1}, r"there is no option iteration; did you mean iterations\?"),
        ({"icp": 1}, r"did you mean ipc\?"),
        ({"width": 8}, r"there is no option width; did you mean model=ModelConfig\(width=\.\.\.\)\?"),
        ({"lr_img": -1.0}, "lr_img"),
        ({"device": "nope"}, "device"),
        ({"method": "nope"}, "method"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_options_are_refused_before_anything_is_written(
    own_home: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        distill_with_baselines(tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_full_data_baseline_is_shared_between_runs(own_home: Path, tmp_path: Path) -> None:
    """It is the most expensive row, and is computed again only for another protocol."""

    def count_rows(kind: str) -> int:
        return len(list((own_home / "baselines").glob(f"*-{kind}-*.json")))

    distill_with_baselines(tmp_path / "one")
    longer = EvalConfig(**{**WITH_BASELINES["eval"].model_dump(), "epochs": 6})
    distill_with_baselines(tmp_path / "two", ipc=2, eval=longer)
    assert (count_rows("full"), count_rows("random"), count_rows("kmeans")) == (1, 2, 2)
    distill_with_baselines(
        tmp_path / "three", eval=EvalConfig(**{**WITH_BASELINES["eval"].model_dump(), "full_epochs": 2})
    )
    assert (count_rows("full"), count_rows("random"), count_rows("kmeans")) == (2, 2, 2)


def test_one_warning_if_kernels_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.derivatives.choice.convnet_derivatives", lambda model, dtype, device: None)
    monkeypatch.setattr("limbeck.derivatives.choice.unavailable_reason", lambda: "there is no C++ compiler")
    events: list[dict[str, Any]] = []
    limbeck.distill("digits", out=tmp_path / "run", listen=events.append, **WITH_BASELINES)
    warnings = [event["text"] for event in events if event["event"] == "warning" and "kernels" in event["text"]]
    assert len(warnings) == 1
    assert "there is no C++ compiler" in warnings[0]


def test_bfloat16_runs_have_their_own_experts_and_baselines(own_home: Path, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        limbeck.distill("digits", out=tmp_path / precision, precision=precision, **WITH_BASELINES)
    assert len(list((own_home / "experts").iterdir())) == 2
    assert len(list((own_home / "baselines").iterdir())) == 6
    stored = json.loads((tmp_path / "bfloat16" / "run.json").read_text())
    assert stored["config"]["precision"] == "bfloat16"
